"What a wheel has with it, and what the tools around the package rely on."

import ast
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def sh(*command, **kw):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kw)


def settings() -> dict:
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(ini["DEFAULT"])


def test_one_version_everywhere():
    version = settings()["version"]
    notebook = (ROOT / "nbs" / "names.ipynb").read_text("utf-8")
    assert f'__version__ = \\"{version}\\"' in notebook
    assert f'__version__ = "{version}"' in (ROOT / "psr_nb" / "__init__.py").read_text("utf-8")


def test_types(tmp_path):
    "What tests/mypy.ini asks of all modules."
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    config = ROOT / "tests" / "mypy.ini"
    mypy = (sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", tmp_path)
    done = sh(*mypy, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    checked = int(re.search(r"in (\d+) source files", done.stdout)[1])
    assert checked == len(list((ROOT / "psr_nb").rglob("*.py")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of the files git would take, opened."
    copy = tmp_path_factory.mktemp("package")
    for name in sh("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    quiet = ("-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    done = sh(sys.executable, "-m", "pip", "wheel", *quiet, "-w", copy / "out", copy)
    assert done.returncode == 0, done.stderr
    [path] = (copy / "out").glob("*.whl")
    assert path.stat().st_size < 3_000_000
    with zipfile.ZipFile(path) as z:
        yield z


@pytest.mark.slow
def test_a_wheel_has_its_manners(wheel):
    names = wheel.namelist()
    assert "psr_nb/py.typed" in names
    listed = sh("git", "ls-files", "-co", "--exclude-standard", "nbs/tutorials", cwd=ROOT).stdout
    shipped = {n.replace("psr_nb/data/", "nbs/") for n in names if "/data/tutorials/" in n}
    assert shipped == set(listed.split())
    [metadata] = [n for n in names if n.endswith("METADATA")]
    text = wheel.read(metadata).decode()
    for line in ("Project-URL: Documentation", "License: Apache-2.0", "Framework :: Jupyter"):
        assert line in text
    near = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not re.match(r"https?:|#", link)]
    assert near == [], "the package index has no files beside the page"


@pytest.mark.slow
def test_saving_in_jupyterlab_leaves_the_clone_as_it_is(tmp_path, monkeypatch):
    "JupyterLab writes a kernel's name and version as it opens a notebook; `make lab` has a hook against it."
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from traitlets.config import Config

    hook = re.search(r"--ContentsManager\.pre_save_hook=(\S+)", (ROOT / "Makefile").read_text())[1]
    source = (ROOT / "nbs" / "index.ipynb").read_bytes()
    (tmp_path / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "index.ipynb").write_bytes(source)
    monkeypatch.chdir(tmp_path)
    config = Config({"ContentsManager": {"pre_save_hook": hook}})
    manager = LargeFileManager(root_dir=str(tmp_path / "nbs"), config=config)
    content = manager.get("index.ipynb")["content"]
    content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    content["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    manager.save({"type": "notebook", "format": "json", "content": content}, "index.ipynb")
    assert (tmp_path / "nbs" / "index.ipynb").read_bytes() == source


def test_heavy_libraries_are_not_imported_at_the_top():
    "`import psr_nb` and the command's help wait for nothing."
    for name in ("__init__", "cli/main", "cli/data", "cli/doctor", "cli/tutorials"):
        tree = ast.parse((ROOT / "psr_nb" / f"{name}.py").read_text("utf-8"))
        tops = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        named = {a.name.split(".")[0] for n in tops for a in n.names}
        named |= {n.module.split(".")[0] for n in tops if isinstance(n, ast.ImportFrom) and n.module}
        assert not named & {"torch", "transformers", "trl", "datasets", "pandas", "plotly"}, name
