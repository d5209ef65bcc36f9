"""Saved notebooks stay small: no widget state, no bundles, no errors."""
import json
from pathlib import Path
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent/"nbs").rglob("*.ipynb"))


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts], ids=lambda p: p.stem)
def test_saved_small(path):
    nb = json.loads(path.read_text())
    kinds = {k for c in nb["cells"] for o in c.get("outputs", []) for k in o.get("data", {})}
    assert path.stat().st_size < 300_000
    assert "widgets" not in nb["metadata"] and "application/vnd.jupyter.widget-view+json" not in kinds
    assert not any(o["output_type"] == "error" for c in nb["cells"] for o in c.get("outputs", []))


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts], ids=lambda p: p.stem)
def test_outputs_name_no_machine(path):
    outputs = json.dumps([c.get("outputs", []) for c in json.loads(path.read_text())["cells"]])
    assert not any(word in outputs for word in ("site-packages", "/tmp/", "/home/", "/root/")), "an output names a path of the machine it was made on"
