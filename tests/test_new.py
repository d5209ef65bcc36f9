"`psr_nb new`: what it writes loads, is explained line by line, fits its machine, and runs."

import json
import subprocess
import sys

import pytest
import yaml

from psr_nb.cli.main import main
from psr_nb.domains.made import write_data
from psr_nb.domains.reckoning import RECKONING, draw_reckonings
from psr_nb.files import packaged
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError
from psr_nb.studies.costs import model_shape
from psr_nb.studies.new import new_recipe, recipe_text
from psr_nb.studies.plan import plan_recipe

SHAPES = sorted(packaged("shapes").glob("*.json"))
DEMO = ["--model", "packaged:models/demo-m1", "--questions", "packaged:demo/questions.jsonl"]
HERE = ["--card", "CPU", "--gpu-memory", "8", "--engine", "transformers"]
PLACES = {
    "cpu": {"card": "CPU", "gpu_memory": 15, "engine": "transformers"},
    "24": {"gpus": 1, "card": "RTX4090"},
    "80": {"gpus": 1, "card": "H100"},
    "8 x 80": {"gpus": 8, "card": "H100"},
    "32 x 80": {"gpus": 8, "nodes": 4, "card": "H100"},
}
LARGE = {
    "cpu": 2,
    "24": 9,
    "80": 20,
    "8 x 80": 80,
    "32 x 80": 80,
}  # billions of parameters that fit, at most


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    "Questions with worked solutions and nothing beside them."
    folder = tmp_path_factory.mktemp("data")
    sizes = dict.fromkeys(("test", "judge_test", "ift", "eft"), 1)
    write_data(RECKONING, draw_reckonings, folder / "all", questions=240, **sizes)
    (folder / "all/questions.jsonl").rename(folder / "alone.jsonl")
    return str(folder / "alone.jsonl")


def written(capsys, *arguments) -> str:
    "What the command writes."
    main(["new", *map(str, arguments)])
    return capsys.readouterr().out


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", SHAPES, ids=lambda f: f.stem)
def test_every_shape_gets_a_recipe_that_fits_or_is_told_why_not(file, place, questions, tmp_path):
    model = json.loads(file.read_text())["model"]
    try:
        new = new_recipe(model, questions, "reckoning", **PLACES[place])
    except InputError as e:
        assert model_shape(model).parameters > 1e9 * LARGE[place] and str(e).isprintable(), e
        return
    assert model_shape(model).parameters <= 1e9 * LARGE[place]
    (tmp_path / "r.yaml").write_text(recipe_text(new))
    again = plan_recipe(load_recipe(str(tmp_path / "r.yaml")), new.plan.basis.hardware)
    assert new.plan.faults == again.faults == []


def test_every_line_says_why(capsys, tmp_path):
    text = written(capsys, *DEMO, "--domain", "arithmetic", *HERE)
    lines = text.splitlines()
    assert len(lines) > 35
    for line in lines:
        setting, mark, why = line.partition("# ")
        assert mark and len(why) > 8, line
    (tmp_path / "r.yaml").write_text(text)
    r = load_recipe(str(tmp_path / "r.yaml"))
    given = yaml.safe_load(text)
    assert (r.model, r.domain, r.data.test) == (DEMO[1], "arithmetic", "packaged:demo/test.jsonl")
    assert given["search"]["max_step_tokens"] == r.search.max_step_tokens < 40
    assert r.judge.max_tokens < 120 and r.evaluate.max_tokens < 160


def test_longer_texts_get_longer_steps(questions):
    "The lengths come from the questions, and the tokens from the model's own tokenizer."
    place = PLACES["80"]
    short = new_recipe("Qwen/Qwen2.5-Math-1.5B", questions, "reckoning", **place).settings
    own = new_recipe("packaged:models/demo-m1", questions, "reckoning", **PLACES["cpu"]).settings
    assert "guessed at 4" in short["search"]["max_step_tokens"][1]
    assert "its own tokenizer" in own["search"]["max_step_tokens"][1]
    assert own["search"]["max_step_tokens"][0] > short["search"]["max_step_tokens"][0]
    assert short["data"]["contamination"][0] == "drop" and short["data"]["test_limit"][0] == 48


def test_a_model_without_lessons_starts_as_m1(tmp_path):
    rows = "".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(60))
    (tmp_path / "q.jsonl").write_text(rows)
    new = new_recipe("packaged:models/demo-m1", str(tmp_path / "q.jsonl"), **PLACES["cpu"])
    assert new.settings["start"][0] == "M1" and "sft" not in new.settings and new.plan.faults == []


BAD = {
    "no such model": (["--model", "nowhere/none"], "model: the sizes of nowhere/none"),
    "no such file": (["--questions", "no.jsonl"], "no.jsonl: no such file"),
    "no JSON": (["--questions", "torn.jsonl"], "torn.jsonl:1: not JSON"),
    "no answers": (
        ["--questions", "unanswered.jsonl"],
        "unanswered.jsonl: none of its questions has an answer",
    ),
    "an answer missing": (["--test", "some.jsonl"], "some.jsonl: q1 has no answer"),
    "too few": (["--questions", "few.jsonl"], "few.jsonl: 2 questions are too few"),
    "no domain": (["--domain", "maths"], "did you mean 'math'"),
    "no room": (["--model", "Qwen/Qwen2.5-Math-72B"], "engine: Qwen/Qwen2.5-Math-72B has"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{i}", "question": f"{i}+1?"} for i in range(40)]
    some = [row | {"answer": "2"} if row["id"] != "q1" else row for row in rows]
    (tmp_path / "torn.jsonl").write_text("{\n{}\n")
    for file, of_file in (("unanswered", rows), ("some", some), ("few", some[2:4])):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in of_file))
    change, said = BAD[name]
    with pytest.raises(SystemExit) as ended:
        main(["new", *DEMO, "--domain", "arithmetic", *HERE, *change])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == "" and said in shown.err and shown.err.count("\n") == 1


@pytest.mark.slow
def test_what_is_written_runs(capsys, tmp_path):
    text = written(capsys, *DEMO, "--domain", "arithmetic", *HERE)
    (tmp_path / "r.yaml").write_text(text)
    small = "questions=[8] data.test_limit=4 data.judge_test_limit=4 data.ift_limit=60 sft.epochs=1"
    small += " data.eft_limit=60"
    sets = [x for pair in [*small.split(), "gates.action=warn"] for x in ("--set", pair)]
    code = "import sys; from psr_nb.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", tmp_path / "r.yaml", "--out", tmp_path / "run", *sets]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/M2/metrics.json").is_file()
