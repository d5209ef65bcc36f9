"The tree as a whole: notebooks, modules, README and wheel say the same."
import subprocess, sys, zipfile
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).parent))
from readme import readme

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))


def sh(*command, **kw): return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kw)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the files git would take."
    to = tmp_path_factory.mktemp("copy")
    for name in sh("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split("\n"):
        if name and (ROOT/name).is_file():
            (to/name).parent.mkdir(parents=True, exist_ok=True)
            (to/name).write_bytes((ROOT/name).read_bytes())
    return to


def test_modules_are_what_the_notebooks_export(copy):
    before = {p.name: p.read_text() for p in (copy/"psr_nb").glob("*.py")}
    assert sh(Path(sys.executable).parent/"nbdev_export", cwd=copy).returncode == 0
    assert {p.name: p.read_text() for p in (copy/"psr_nb").glob("*.py")} == before


def test_notebooks_are_clean(copy):
    before = {p: p.read_text() for p in copy.rglob("*.ipynb")}
    assert sh(Path(sys.executable).parent/"nbdev_clean", cwd=copy).returncode == 0
    assert [p.name for p in before if p.read_text() != before[p]] == []


def test_readme_is_the_index_notebook(): assert (ROOT/"README.md").read_text(encoding="utf-8") == readme()


def test_numbered_notebooks_import_only_lower_ones():
    numbers = {p.stem.split("_", 1)[1]: p.stem[:2] for p in NOTEBOOKS if p.stem[:2].isdigit()}
    for p in (ROOT/"psr_nb").glob("[a-z]*.py"):
        used = [w.split(".")[1].split()[0] for w in p.read_text().splitlines() if "from psr_nb." in w or "from ." in w for w in [w.strip().replace("from .", "from psr_nb.").removeprefix("from ")] if w.startswith("psr_nb.")]
        assert [u for u in used if u in numbers and u != p.stem and numbers[u] >= numbers[p.stem]] == [], p


def test_wheel_works_elsewhere(copy, tmp_path):
    built = sh(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, copy)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"psr_nb/data/recipes/demo.yaml", "psr_nb/data/models/demo-m0/model.safetensors", "psr_nb/cli.py"} <= set(names)
    site = tmp_path/"site"
    assert sh(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel).returncode == 0
    code = "import psr_nb.records as r; print(r.packaged('demo/test.jsonl')); from psr_nb.cli import main; main(['recipes'])"
    out = sh(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"})
    assert str(site) in out.stdout.splitlines()[0] and "qwen2.5-math-72b" in out.stdout, out.stderr
