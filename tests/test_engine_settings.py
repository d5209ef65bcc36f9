"""Every command that runs a model takes the settings of its engine: two engines write the rows of one."""

import json
import shutil
from dataclasses import replace

import pytest

from psr_nb.cli.main import main
from psr_nb.dashboard import rejudge
from psr_nb.engines import choose
from psr_nb.files import packaged, read_jsonl

MODEL = "packaged:models/demo-m1"
TEST = f"arithmetic={packaged('demo/test.jsonl')}"
PAIRS = "packaged:demo/judge_test.jsonl"
TREES = (
    "--rollouts 2 --rollout-tokens 60 --iterations 3 --children 3 --temperature 1 --max-step-tokens 26"
)
EFT = f"data eft --model {MODEL} --domain arithmetic {TREES} --min-gap 0.1 --max-tokens 60"
JUDGE = f"judge-eval --model {MODEL} --pairs {PAIRS} --domain arithmetic --limit 4 --max-tokens 60"
EVAL = f"eval --model M1={MODEL} --bench {TEST} --domain arithmetic --max-tokens 60 --limit 6"
COMMANDS = {  # the command, and what it writes; FOLDER is a folder of the test
    "eval": (f"{EVAL} --out FOLDER/out", "out/M1/arithmetic*.jsonl"),
    "judge-eval": (f"{JUDGE} --out FOLDER/out", "out/judgements.jsonl"),
    "data eft": (f"{EFT} --questions FOLDER/q.jsonl --out FOLDER/out", "out/trees.jsonl"),
    "rejudge": (
        f"rejudge FOLDER/demo --pairs M4 --judge M1={MODEL} --limit 3",
        "demo/rejudged/*/M1/judgements.jsonl",
    ),
}


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    "`rows_of(name, *options)`: the rows that a command writes, sorted, its jobs done in this process."

    def here(function, arguments, log, progress, **_):
        return getattr(rejudge, function.partition(":")[2])(**arguments, progress=progress)

    monkeypatch.setattr(rejudge, "run_job", here)

    def call(name, *options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(packaged("runs/demo"), folder / "demo")
        questions = read_jsonl(packaged("demo/questions.jsonl"))[:6]
        (folder / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
        command, written = COMMANDS[name]
        main([*command.replace("FOLDER", str(folder)).split(), *options])
        [file] = folder.glob(written)
        return sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(file))

    return call


@pytest.fixture
def opened(monkeypatch):
    "How many engines were opened as one, each time; one stands for them."
    counts = []

    def one_of(opener, model, s, n):
        counts.append(n)
        return opener(model, replace(s, replicas=1))

    monkeypatch.setattr(choose, "Fleet", one_of)
    return counts


TWO = ("--set", "engine.replicas=2", "--set", "engine.kind=transformers")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_opens_as_many_engines_as_it_is_told(name, rows_of, opened):
    assert rows_of(name, *TWO)
    assert opened == [2]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_two_engines_write_the_rows_of_one(name, rows_of):
    assert rows_of(name, *TWO) == rows_of(name)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "wrong,said",
    [
        ("engine.replicas=0", "replicas: 0 is less than 1"),
        ("engine.replica=2", "did you mean 'replicas'?"),
        ("search.w=2", "here only engine.SETTING=VALUE can be set"),
        ("engine.replicas", "give it as section.setting=value"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line(name, wrong, said, rows_of, capsys):
    with pytest.raises(SystemExit) as e:
        rows_of(name, "--set", wrong)
    errors = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and len(errors) == 1 and said in errors[0]
