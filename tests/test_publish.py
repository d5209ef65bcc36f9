"A model that leaves its run: nothing is uploaded unasked, and what a person wrote into a card stays."

import os
import shutil
from pathlib import Path

import pytest

from psr_nb.cli.main import main
from psr_nb.files import packaged, seal


class Hub:
    "Stands in for the hub's client, and notes what is asked of it."

    asked = []

    def create_repo(self, repo, **settings):
        self.asked.append(("create", repo, settings["repo_type"], settings["private"]))

    def upload_folder(self, **settings):
        self.asked.append(("upload", settings["repo_id"], settings["allow_patterns"]))
        return f"https://hub/{settings['repo_id']}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    "The demo's run, with the weights of M1."
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    folder = shutil.copytree(packaged("runs/demo"), tmp_path / "demo")
    shutil.copytree(packaged("models/demo-m1"), folder / "M1/model")
    return folder


def publish(run: Path, *more: str):
    main(["publish", str(run), "--model", "M1", "--out", str(run.parent / "out"), *more])


def test_nothing_is_uploaded_unasked(run, capsys):
    publish(run)
    assert Hub.asked == []
    assert "Nothing was uploaded" in capsys.readouterr().out


def test_the_card_as_it_was_changed_is_uploaded(run, capsys):
    publish(run, "--licence", "MIT")
    card = run.parent / "out/model/README.md"
    assert "license: mit" in card.read_text()
    card.write_text(card.read_text() + "Not for exams.\n")
    (card.parent / ".secret").write_text("x")
    publish(run, "--push-to-hub", "me/demo")
    assert card.read_text().endswith("Not for exams.\n")
    created, uploaded = Hub.asked
    assert created == ("create", "me/demo", "model", True)
    assert "README.md" in uploaded[2] and ".secret" not in uploaded[2]
    assert "https://hub/me/demo" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_only_the_files_of_a_model_are_published(run, capsys):
    model, token = run / "M1/model", run.parent / "token"
    token.write_text("hf_secret")
    seal(model)
    (model / "notes.txt").symlink_to(token)
    (model / "token.json").write_text("{}")  # since the model was sealed
    (model / "logs").mkdir()
    with pytest.warns(UserWarning, match="no part of the model: logs, notes.txt, token.json"):
        publish(run)
    there = sorted(p.name for p in (run.parent / "out/model").iterdir())
    original = {p.name for p in packaged("models/demo-m1").iterdir()}
    assert set(there) == original | {"README.md", "recipe.yaml", "manifest.json"}
    assert "notes.txt" not in capsys.readouterr().out


@pytest.mark.parametrize("sealed", [True, False])
def test_a_link_that_leads_out_of_the_run_is_not_published(run, capsys, sealed):
    token = run.parent / "token"
    token.write_text("{}")
    (run / "M1/model/chat_template.jinja").symlink_to(token)
    if sealed:
        seal(run / "M1/model")
    with pytest.raises(SystemExit) as e:
        publish(run)
    said = "chat_template.jinja: a link that leads out of"
    assert e.value.code == 2 and said in capsys.readouterr().err
    assert not (run.parent / "out").exists()


def test_a_damaged_model_is_not_published_whatever_its_time(run, capsys):
    weights = run / "M1/model/model.safetensors"
    seal(weights.parent)
    times, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SystemExit) as e:
        publish(run)
    assert e.value.code == 2 and "is not what was written" in capsys.readouterr().err
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "M9"], "--model M9: not measured in the arm judge; there are M1, M2, M3, M4"),
        (["--model", "M4"], "the weights of M4 are not there"),
        (["--pairs"], "no pairs made M1"),
        (["--arm", "nobody"], "--arm nobody: the run has judge, random"),
    ],
)
def test_what_cannot_be_published_is_one_sentence(run, capsys, given, said):
    with pytest.raises(SystemExit) as e:
        publish(run, *given)
    assert e.value.code == 2 and Hub.asked == []
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_another_models_folder_is_left_alone(run, capsys):
    out = run.parent / "out/model"
    out.mkdir(parents=True)
    (out / "README.md").write_text("mine")
    with pytest.raises(SystemExit):
        publish(run)
    assert "holds something else than this model" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["README.md"]
