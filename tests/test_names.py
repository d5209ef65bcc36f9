"""No function of the library uses a name that its module does not have.

What a notebook imports in a hidden cell is not exported.
"""

import builtins
import dis
import importlib
import pkgutil
from types import CodeType

import pytest

import psr_nb

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(psr_nb.__path__, "psr_nb.") if m.name.split(".")[1] != "data"
)


def looked_up(code: CodeType) -> set[str]:
    "Names that a piece of code, or one nested in it, looks up in its module."
    inner = [x for x in code.co_consts if isinstance(x, CodeType)]
    return {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}.union(
        *map(looked_up, inner)
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_there(name):
    module = importlib.import_module(name)
    with open(module.__file__, encoding="utf-8") as f:
        code = compile(f.read(), module.__file__, "exec")
    assert looked_up(code) - set(vars(module)) - set(vars(builtins)) == set()
