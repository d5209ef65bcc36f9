"The tree as a whole: notebooks, modules and README agree and are formatted; imports keep to the rules."

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from readme import FOLDERS, readme, whole_map

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

EARLY = "records files prompts engine judge search pairs".split()
LATE = "sft tree dpo statistics evaluate recipe jobs gates folder searches health work mend run"
LOOP = [*EARLY, *LATE.split()]
FOUNDATIONS = {"maths", "domains", "questions", "engines", "texts"}
OUTER = {"evaluation", "datagen", "studies", "dashboard", "cli"}
MAY_READ = {"dashboard": {"evaluation", "studies"}, "cli": OUTER}


def sh(*command, **kw):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kw)


def modules(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in (root / "psr_nb").rglob("*.py")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the files git would take."
    to = tmp_path_factory.mktemp("copy")
    for name in sh("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes((ROOT / name).read_bytes())
    return to


def test_modules_are_what_the_notebooks_export(copy):
    before = modules(copy)
    done = sh("make", "export", f"VENV={BIN.parent}", "-o", f"{BIN.parent}/ready", cwd=copy)
    assert done.returncode == 0, done.stderr
    after = modules(copy)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_notebooks_are_clean(copy):
    before = {p: p.read_text() for p in copy.rglob("*.ipynb")}
    assert sh(BIN / "nbdev_clean", cwd=copy).returncode == 0
    assert [p.name for p in before if p.read_text() != before[p]] == []


def test_readme_is_the_index_notebook():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme()


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]], ids=["format", "check"])
def test_ruff(command):
    done = sh(BIN / "ruff", *command, "nbs", "tests", "psr_nb", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_notebook_is_one_module():
    notebooks = {p.relative_to(ROOT / "nbs").with_suffix("") for p in (ROOT / "nbs").rglob("*.ipynb")}
    names = {
        str(p.parent / p.name.split("_", 1)[1]) if p.name[:2].isdigit() else str(p) for p in notebooks
    }
    for name in modules(ROOT):
        path = Path(name).relative_to("psr_nb").with_suffix("")
        if path.name not in ("__init__", "_modidx"):
            assert str(path) in names, f"{name} has no notebook of its name"


def test_the_map_names_every_notebook():
    "The whole map is made of the notebooks; the README's has a line for every folder of them."
    text = (ROOT / "docs" / "pages" / "map.md").read_text(encoding="utf-8")
    assert text == whole_map()
    found = {str(p.relative_to(ROOT / "nbs"))[:-6] for p in (ROOT / "nbs").rglob("*.ipynb")}
    assert set(re.findall(r"\]\(\.\./\.\./nbs/(\S+)\.ipynb\): \S", text)) == found - {"index"}
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n    nbs/\n")[2]
    folders = {p.parent.name for p in (ROOT / "nbs").rglob("*.ipynb")} - {"nbs"}
    assert set(re.findall(r"^      (\w+)/ ", block, re.M)) == folders == set(FOLDERS) - {""}


def imports() -> dict[str, set[str]]:
    "Module -> the modules of psr_nb that it imports, anywhere in its code."
    names = {n.removeprefix("psr_nb/").removesuffix(".py").replace("/", ".") for n in modules(ROOT)}
    graph = {}
    for name, text in modules(ROOT).items():
        here = name.removeprefix("psr_nb/").removesuffix(".py").split("/")
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                own = (node.module or "").split(".")
                base = (
                    here[: -node.level] + own if node.level else own[1:] if own[0] == "psr_nb" else None
                )
                if base is not None:
                    base = [part for part in base if part]
                    found.add(".".join(base))
                    found |= {".".join([*base, a.name]) for a in node.names}
        if here[-1] not in ("__init__", "_modidx"):
            graph[".".join(here)] = {x for x in found if x in names} - {".".join(here)}
    return graph


def forbidden(module: str, used: str) -> bool:
    "Does an import break the rules of CONTRIBUTING.md?"
    door, other = (m.split(".")[0] if "." in m else "" for m in (module, used))
    if not door and not other:
        return LOOP.index(used) >= LOOP.index(module)
    if not door:
        return other in OUTER
    if door in FOUNDATIONS:
        return other in OUTER or (not other and used not in LOOP[:4])
    return other in OUTER - {door} and other not in MAY_READ.get(door, ())


def test_imports_keep_to_the_rules():
    graph = imports()
    assert len(graph) > 40
    assert [f"{m} -> {x}" for m, used in graph.items() for x in used if forbidden(m, x)] == []
    assert forbidden("search", "run") and forbidden("maths.equal", "judge")
    assert forbidden("datagen.ift", "evaluation.models") and not forbidden("cli.main", "datagen.ift")


def test_imports_have_no_circle():
    graph, done = imports(), set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for used in sorted(graph[module]):
                visit(used, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
