"""Folders made by an earlier version are shown and continued by this one as if they were its own.

tests/fixtures holds what psr_nb 0.1.0 left of the commands RUN, `psr_nb report run --json > report.json`,
EVAL and JUDGE_EVAL. The weights of the run's M2 and its logs are left out.
"""

import json
import shutil
from pathlib import Path

import pytest

from psr_nb.files import folder_fault, packaged
from psr_nb.folder import open_run
from psr_nb.mend import mend
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError

FIXTURES = Path(__file__).resolve().parent / "fixtures"
SETTINGS = {
    "questions": "[8]",
    "data.test_limit": 6,
    "data.judge_test_limit": 4,
    "data.ift_limit": 16,
    "data.eft_limit": 16,
    "engine.kind": "transformers",
}
RUN = ("run", "fast", *[x for name, value in SETTINGS.items() for x in ("--set", f"{name}={value}")])
ENGINE = ("--domain", "arithmetic", "--engine", "transformers", "--dtype", "float32")
MODEL = ("--model", FIXTURES / "demo-m1")  # that of the evaluations, shipped until 0.1.0
EVAL = (
    "eval",
    *MODEL,
    *"--limit 8 --max-tokens 110 --mode sample --samples 3".split(),
    "--bench",
    packaged("demo/test.jsonl"),
    *ENGINE,
)
JUDGE_EVAL = (
    "judge-eval",
    *MODEL,
    *"--pairs packaged:demo/judge_test.jsonl".split(),
    *"--limit 12 --max-tokens 90".split(),
    *ENGINE,
)


@pytest.fixture
def copied(tmp_path):
    "A copy of a fixture's folder."

    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / name, tmp_path / name))

    return copy


def rows(path: Path) -> list[dict]:
    "The rows of a file in an order that does not depend on which was done first."
    return sorted(map(json.loads, path.read_text("utf-8").splitlines()), key=json.dumps)


def cut(path: Path, keep: int):
    "Leave the first `keep` rows and half of the next, as a kill does."
    lines = path.read_text("utf-8").splitlines(keepends=True)
    assert len(lines) > keep
    path.write_text("".join(lines[:keep]) + lines[keep][: len(lines[keep]) // 2], "utf-8")


def figures(path: Path) -> dict:
    "Metrics without what they cost; losses to the third digit, for another processor rounds otherwise."
    found = json.loads(path.read_text("utf-8"))
    del found["costs"]
    training = found["training"]
    return found | {
        "training": {k: round(v, 3) if isinstance(v, float) else v for k, v in training.items()}
    }


def test_the_report_is_what_it_was(psr, copied):
    run = copied("run")
    done = psr("report", run, "--json")
    assert (done.returncode, done.stdout) == (0, (FIXTURES / "report.json").read_text("utf-8")), (
        done.stderr
    )
    done = psr("report", run)
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text("utf-8")
    assert all(
        f'<section id="{part}">' in page
        for part in (
            "overview",
            "problembyproblem",
            "searchesthatmadem2",
            "timeandtokens",
            "recipeandversions",
        )
    )


def test_a_whole_run_has_nothing_left_to_do(psr, copied):
    run = copied("run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    done = psr(*RUN, "--out", run)
    assert done.returncode == 0, done.stderr
    assert {p: p.read_bytes() for p in before} == before
    new = [p for p in run.rglob("*") if p.is_file() and p not in before]
    assert {p.name for p in new} == {".lock", "report.html", "manifest.json"}
    assert folder_fault(run) == folder_fault(run / "M1/model") == ""  # M2's weights are left out


def test_another_recipe_is_refused(psr, copied):
    done = psr(*RUN, "--set", "search.w=3", "--out", copied("run"))
    assert done.returncode == 2 and "search.w: 4 there, 3 here" in done.stderr, done.stderr


def test_a_run_killed_in_its_search_is_continued(psr, copied):
    run = copied("run")
    for model in (run / "M2", run / "random" / "M2"):
        shutil.rmtree(model / "model")
        for name in (
            "pairs.jsonl",
            "evaluation.jsonl",
            "judge_test.jsonl",
            "metrics.json",
            "phases.jsonl",
        ):
            (model / name).unlink()
        cut(model / "trajectories.jsonl", 4)
    done = psr(*RUN, "--out", run)
    assert done.returncode == 0, done.stderr
    for model in ("M2", "random/M2"):
        for name in ("trajectories.jsonl", "pairs.jsonl", "evaluation.jsonl", "judge_test.jsonl"):
            then = rows(FIXTURES / "run" / model / name)
            if (model, name) == ("random/M2", "pairs.jsonl"):  # said true of pairs that nobody compared
                then = [row | {"orders_agree": None} for row in then]
            assert rows(run / model / name) == then, f"{model}/{name}"
        then = figures(FIXTURES / "run" / model / "metrics.json")
        now = figures(run / model / "metrics.json")
        assert {name: now[name] for name in then} == then, (
            "a later version adds figures and changes none"
        )
    now = json.loads(psr("report", run, "--json").stdout)["arms"]
    for arm, models in json.loads((FIXTURES / "report.json").read_text("utf-8"))["arms"].items():
        for model, then in models.items():
            assert {name: now[arm][model][name] for name in then} == then, (arm, model)


def test_a_run_that_a_power_cut_damaged_is_continued(psr, copied):
    "Without a sync, names came to the disk before contents."
    run = copied("run")
    for name in ("data/test.jsonl", "M1/metrics.json", "M1/evaluation.jsonl", "M2/pairs.jsonl"):
        (run / name).write_text("")
    cut(run / "M2/phases.jsonl", 1)
    done = psr(*RUN, "--out", run)
    assert done.returncode == 0, done.stderr
    for said in (
        "data/test.jsonl: lost",
        "M1/metrics.json: is damaged",
        "M2/pairs.jsonl: is torn",
        "torn bytes",
    ):
        assert said in done.stderr
    for name in ("data/test.jsonl", "M1/evaluation.jsonl", "M2/pairs.jsonl"):
        assert rows(run / name) == rows(FIXTURES / "run" / name), name
    assert figures(run / "M1/metrics.json") == figures(FIXTURES / "run/M1/metrics.json")


def test_a_torn_model_is_trained_again(copied):
    run = open_run(copied("run"), load_recipe("fast", **SETTINGS | {"questions": [8]}))
    (run.path / "M1/model.training/checkpoint-5").mkdir(parents=True)  # of a kill before the clean-up
    assert mend(run) == []
    assert not (run.path / "M1/model.training").exists()
    weights = run.path / "M1/model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4096])
    [said] = mend(run)
    assert f"model.safetensors has {len(whole) - 4096} bytes of {len(whole)}; it is made again" in said
    assert not weights.parent.exists()


@pytest.mark.parametrize(
    "name, old, new, refused",
    [
        ("recipe.yaml", "schema: 1", "schema: 2", "schema 2"),
        ("recipe.yaml", "torch: 2", "torch: 1", "other libraries (torch 1"),
        ("recipe.yaml", "w: 4", "w: 5", "search.w: 5 there, 4 here"),
        ("data/test.jsonl", "\n", None, "data/test.jsonl has"),
        ("data/test.jsonl", "7", "8", "data/test.jsonl is not what was written"),
        ("recipe.yaml", "", None, "no recipe.yaml"),
    ],
)
def test_a_folder_that_was_changed_is_refused(copied, name, old, new, refused):
    recipe = load_recipe("fast", **SETTINGS | {"questions": [8]})
    run = open_run(copied("run"), recipe).path
    text = (run / name).read_text("utf-8")
    if not old:
        (run / name).unlink()
        recipe = load_recipe("fast", **SETTINGS | {"questions": [8], "seed": 1})
    elif new is None:
        (run / name).write_text(text[: text.rindex(old, 0, -1) + 1], "utf-8")
    else:
        assert old in text
        (run / name).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(InputError) as e:
        open_run(run, recipe)
    assert refused in str(e.value)


def test_an_evaluation_is_continued(psr, copied):
    folder = copied("evaluation")
    cut(folder / "demo-m1" / "test.jsonl", 3)
    tables = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert sorted(tables) == ["results.json", "table.csv", "table.md", "table.tex"]
    for name in tables:
        (folder / name).unlink()
    done = psr(*EVAL, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert {name: (folder / name).read_bytes() for name in tables} == tables
    assert rows(folder / "demo-m1" / "test.jsonl") == rows(
        FIXTURES / "evaluation" / "demo-m1" / "test.jsonl"
    )


def test_an_evaluation_of_the_judge_is_continued(psr, copied):
    folder = copied("judge-evaluation")
    whole = psr(*JUDGE_EVAL, "--out", folder)
    assert whole.returncode == 0, whole.stderr
    assert (folder / "judgements.jsonl").read_bytes() == (
        FIXTURES / "judge-evaluation" / "judgements.jsonl"
    ).read_bytes()
    cut(folder / "judgements.jsonl", 5)
    done = psr(*JUDGE_EVAL, "--out", folder)
    assert (done.returncode, done.stdout) == (0, whole.stdout), done.stderr
    assert rows(folder / "judgements.jsonl") == rows(FIXTURES / "judge-evaluation" / "judgements.jsonl")


def test_the_fixtures_name_no_machine():
    for path in FIXTURES.rglob("*.json*"):
        text = path.read_text("utf-8")
        assert not any(word in text for word in ("site-packages", "/tmp/", "/home/", "/root/")), path
