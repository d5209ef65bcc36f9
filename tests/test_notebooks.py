"Saved notebooks are small and whole: no widget state, no errors, links that lead somewhere, short functions."

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))


def cells(path: Path, kind: str) -> list[str]:
    found = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


@each
def test_saved_small(path):
    nb = json.loads(path.read_text())
    kinds = {k for c in nb["cells"] for o in c.get("outputs", []) for k in o.get("data", {})}
    assert path.stat().st_size < 300_000
    assert "widgets" not in nb["metadata"] and "application/vnd.jupyter.widget-view+json" not in kinds
    assert not any(o["output_type"] == "error" for c in nb["cells"] for o in c.get("outputs", []))


@each
def test_outputs_name_no_machine(path):
    outputs = json.dumps([c.get("outputs", []) for c in json.loads(path.read_text())["cells"]])
    named = [word for word in ("site-packages", "/tmp/", "/home/", "/root/") if word in outputs]
    assert not named, "an output names a path of the machine it was made on"


@each
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", "\n".join(cells(path, "markdown")))
    assert [link for link in links if not (path.parent / link).exists()] == []


@each
def test_exported_cells_are_short(path):
    "At most two functions or classes in a cell, at most 30 lines in a function."
    for source in cells(path, "code"):
        if not re.match(r"#\|\s*export", source):
            continue
        tree = ast.parse(source)
        made = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert len(made) <= 2, made
        for n in ast.walk(tree):
            if isinstance(n, ast.FunctionDef):
                assert n.end_lineno - n.lineno < 30, n.name


def wide_tables(path: Path) -> list[str]:
    "The first lines of a notebook's tables that are wider than a hundred characters without HTML."
    cells = json.loads(path.read_text("utf-8"))["cells"]
    shown = [o.get("data", {}) for c in cells for o in c.get("outputs", [])]
    tables = ["".join(d["text/plain"]) for d in shown if "<table" in "".join(d.get("text/html", ""))]
    return [t[:200] for t in tables if max(map(len, t.splitlines())) > 100]


def test_no_table_of_a_tutorial_is_wide():
    found = {p.stem: wide_tables(p) for p in (ROOT / "nbs" / "tutorials").glob("*.ipynb")}
    assert len(found) > 10 and not any(found.values()), found
