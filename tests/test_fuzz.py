"""Damaged input ends in one line and exit code 2, in ten seconds, and never in other figures without a word.

A seeded mutator damages one file of a valid input, or the value of a setting, and the command runs in this
process. What would load a model or train one is replaced, since no file of a user's is read there."""

import contextlib
import gzip
import io
import json
import random
import re
import shutil
import signal
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import yaml

from psr_nb.cli.main import main
from psr_nb.engine import RecordedEngine, load_tokenizer, says
from psr_nb.files import packaged, write_jsonl
from psr_nb.folder import open_run
from psr_nb.recipe import Recipe
from psr_nb.studies.plan import check_run

FIXTURES = Path(__file__).resolve().parent / "fixtures"
SECONDS = 10  # for one input

# what is put into a file: (bytes anywhere, JSON values in place of others)
BYTES = (
    b"",
    b"null",
    b"-1",
    b"1e400",
    b"NaN",
    b'"\\ud800"',
    b"\0",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\n",
    b'"',
    b"}",
) + (
    b"7" * 6000,
    b"[" * 100_000,
    b'{"a":' * 2000,
    "\u202e".encode(),
    b"x" * 50_000,
    b"*a &a [*a]",
)
VALUES = (
    None,
    True,
    -1,
    0,
    0.5,
    10**30,
    1e308,
    "",
    " ",
    "x",
    "\ud800",
    "\0",
    "7" * 5000,
    [],
    {},
    [[]],
) + (
    ["x"],
    {"a": 1},
    float("nan"),
    float("inf"),
    "../../x",
    "A" * 300,
    "\x1b[31m",
)


class Hang(BaseException):
    "An input took longer than it may."


def ring(signum, frame):
    raise Hang


@dataclass
class Case:
    "A command with valid input."

    argv: list[str]
    files: list[Path]  # what may be damaged
    figures: str  # a pattern of what it prints that must not change without a word
    clean: tuple[Path, ...] = ()  # what it writes
    weight: int = 4  # how often it is damaged


def lines_of(name: str, n: int) -> list[dict]:
    "The first rows of a packaged file."
    with open(packaged(name), encoding="utf-8") as f:
        return [json.loads(line) for _, line in zip(range(n), f, strict=False)]


def grading(folder: Path) -> Case:
    pairs = (("72", "72.0"), ("50", "0.5"), ("7", None), ("x+1", "1+x"))
    rows = [{"gold": gold, "answer": answer} for gold, answer in pairs]
    rows += [
        {"gold": "7", "response": "The answer is 7."},
        {"gold": "4.2", "answer": "4.25", "tolerance": 0.1},
    ]
    write_jsonl(folder / "answers.jsonl", rows)
    return Case(
        ["grade", f"{folder}/answers.jsonl", "--workers", "1"],
        [folder / "answers.jsonl"],
        r"\d+ of \d+ .*",
    )


def worked() -> list[dict]:
    "Rows in GSM8K's format."
    return [
        {
            "question": f"What is {i}+{i}+1?",
            "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\nThen 1 more.\n#### {2 * i + 1}",
        }
        for i in range(6)
    ]


def cutting(folder: Path, kind: str) -> Case:
    "`data ift` on one of the formats."
    path, table = folder / f"worked.{kind}", pd.DataFrame(worked())
    if kind in ("jsonl", "jsonl.gz"):
        data = "".join(json.dumps(row) + "\n" for row in worked()).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind == "json":
        path.write_text(json.dumps(worked(), indent=1))
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    out = folder / f"ift-{kind}"
    return Case(["data", "ift", f"gsm8k={path}", "--out", str(out)], [path], r"(?s).*", (out,))


def planned(folder: Path) -> Case:
    "`run`, up to where its data is made."
    write_jsonl(folder / "q.jsonl", lines_of("demo/questions.jsonl", 12))
    write_jsonl(folder / "test.jsonl", lines_of("demo/test.jsonl", 4))
    write_jsonl(
        folder / "ift.jsonl",
        [{"id": f"i{i}", "question": f"{i}+{i}?", "steps": ["So."], "answer": "1"} for i in range(4)],
    )
    judged = {"steps": [], "a": "1+1=2", "b": "1+1=3", "verdict": "A", "explanation": "A is right."}
    write_jsonl(
        folder / "eft.jsonl", [{"id": f"e{i}", "question": f"{i}-{i}?"} | judged for i in range(4)]
    )
    data = {name: f"{folder}/{name}.jsonl" for name in ("test", "ift", "eft")}
    recipe = {
        "name": "mine",
        "model": "none",
        "domain": "arithmetic",
        "questions": [2, 2],
        "data": {"questions": f"{folder}/q.jsonl", "judge_test": f"{folder}/eft.jsonl"} | data,
        "search": {"w": 4, "temperature": 0.8},
        "dpo": {"learning_rate": "1e-6"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    files = [folder / f"{name}.jsonl" for name in ("q", "test", "ift", "eft")] + 4 * [
        folder / "mine.yaml"
    ]
    out = folder / "planned"
    return Case(["run", f"{folder}/mine.yaml", "--out", str(out)], files, r"(?s).*", (out,))


def looked_at(folder: Path, argv: list[str]) -> Case:
    "A command that looks at a run of an earlier version."
    run = folder / "run"
    if not run.exists():
        shutil.copytree(FIXTURES / "run", run, ignore=shutil.ignore_patterns("*.safetensors"))
        kept = yaml.safe_load((run / "recipe.yaml").read_text())["recipe"]
        (folder / "again.yaml").write_text(yaml.safe_dump(kept))
    files = [
        f
        for f in run.rglob("*")
        if f.suffix in (".jsonl", ".json", ".yaml") and "tokenizer" not in f.name
    ]
    figures = "(?!)" if argv[0] == "run" else "(?s).*"
    weight = 1 if "--out" in argv else 4
    argv = [a.replace("RUN", str(run)) for a in argv]
    written = (run / "M2/trajectories.index.json",)
    return Case(argv, sorted(files) + [run / "recipe.yaml"] * 3, figures, written, weight)


def evaluated(folder: Path, what: str) -> Case:
    "`eval` and `judge-eval` with an engine that always says the same."
    path, out = folder / f"{what}.jsonl", folder / f"out-{what}"
    write_jsonl(path, lines_of("demo/test.jsonl" if what == "eval" else "demo/judge_test.jsonl", 4))
    source = ["--bench", f"ours={path}"] if what == "eval" else ["--pairs", str(path)]
    argv = [
        what,
        "--model",
        "packaged:models/demo-m1",
        *source,
        "--domain",
        "arithmetic",
        "--out",
        str(out),
    ]
    return Case([*argv, "--engine", "transformers"], [path], r"(?s).*", (out,))


def other_data(folder: Path, what: str) -> Case:
    "`data eft` and `data prm` up to where a model is needed."
    path, out = folder / f"for-{what}.jsonl", folder / f"out-{what}"
    model = ["--model", "packaged:models/demo-m1", "--domain", "arithmetic", "--out", str(out)]
    if what == "eft":
        write_jsonl(path, lines_of("demo/questions.jsonl", 4))
        return Case(["data", "eft", "--questions", str(path), *model], [path], r"(?s).*", (out,))
    steps = ["2+2=4", "4+1=6"]
    write_jsonl(
        path, [{"prompt": f"{i}+1?", "completions": steps, "labels": [True, False]} for i in range(6)]
    )
    return Case(["data", "prm", str(path), *model], [path], r"(?s).*", (out,))


def cases(folder: Path) -> list[Case]:
    "Every command that reads files."
    kinds = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "parquet")
    looks = [["report", "RUN", "--json"], ["report", "RUN", "--out", f"{folder}/report.html"]]
    looks += [
        ["rejudge", "RUN", "--judge", "M1"],
        ["probe", "RUN"],
        ["run", f"{folder}/again.yaml", "--out", "RUN"],
    ]
    made = [grading(folder), planned(folder), *(cutting(folder, kind) for kind in kinds)]
    made += [looked_at(folder, argv) for argv in looks]
    made += [evaluated(folder, what) for what in ("eval", "judge-eval")]
    return made + [other_data(folder, what) for what in ("eft", "prm")]


def spot(value, rng: random.Random):
    "(container, key) of a random place in nested JSON."
    at, key = value, None
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return None
        key = rng.choice(keys)
        inside = at[key]
        if not isinstance(inside, (dict, list)) or not inside or rng.random() < 0.3:
            return at, key
        at = inside


def other_value(data: bytes, rng: random.Random) -> bytes:
    "A JSON value of one line, or of the whole, replaced, left out or renamed."
    rows = data.split(b"\n") if data.lstrip().startswith(b"{") and b"\n{" in data else [data]
    i = rng.randrange(len(rows))
    try:
        row = json.loads(rows[i])
        at, key = spot(row, rng)
    except (ValueError, TypeError):
        return data + rng.choice(BYTES)
    new = rng.choice(VALUES)
    if isinstance(at, dict) and rng.random() < 0.2:
        del at[key]
        new = at.setdefault(f"{key}x", new) if rng.random() < 0.5 else new
    else:
        at[key] = new
    rows[i] = json.dumps(row).encode()
    return b"\n".join(rows)


def damaged(data: bytes, rng: random.Random) -> bytes:
    "The bytes of a file with one thing wrong, or changed."
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 5, 50, 10**6)))
    rows = data.splitlines(keepends=True)
    i = rng.randrange(len(rows)) if rows else 0
    made = {
        "cut": data[:a],
        "drop": data[:a] + data[b:],
        "twice": data[:b] + data[a:],
        "put": data[:a] + rng.choice(BYTES) + data[a:],
        "over": data[:a] + rng.choice(BYTES) + data[b:],
        "flip": data[:a] + bytes([rng.randrange(256)]) + data[a + 1 :],
        "line twice": b"".join(rows[: i + 1] + rows[i:]),
        "no line": b"".join(rows[:i] + rows[i + 1 :]),
        "empty": b"",
    }
    kind = rng.choice([*made, *["value"] * 9])
    return other_value(data, rng) if kind == "value" else made[kind]


def said(argv: list[str]) -> tuple[int | str, str, str]:
    "(exit code or traceback, output, errors) of a command, with an alarm."
    out, err = io.StringIO(), io.StringIO()
    code = 0
    signal.signal(signal.SIGALRM, ring)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda told, *_, **__: print(
            f"psr_nb: {told}", file=err
        )  # pytest keeps them
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            main(argv)
        except SystemExit as e:
            code = e.code
        except Hang:
            code = f"HANG {traceback.format_exc()[-1500:]}"
        except BaseException:
            code = traceback.format_exc()[-1500:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return code, out.getvalue(), err.getvalue()


def whole(data: bytes) -> bool:
    "Is every line JSON, so that whatever differs was meant?"
    try:
        text = data.decode("utf-8-sig")
        try:
            json.loads(text)
        except ValueError:
            return all(isinstance(json.loads(line), dict) for line in text.split("\n") if line.strip())
        return True
    except (ValueError, RecursionError):
        return False


def of_another_type(before, after) -> bool:
    "Is there a list, an object or a truth value where there was text or a number, or the reverse?"
    if isinstance(before, dict) and isinstance(after, dict):
        return any(of_another_type(before[k], after[k]) for k in before.keys() & after.keys())
    if isinstance(before, list) and isinstance(after, list):
        return any(map(of_another_type, before, after))
    nested = [isinstance(x, (dict, list)) for x in (before, after)]
    truth = [isinstance(x, bool) for x in (before, after)]
    return before is not None and after is not None and (nested[0] != nested[1] or truth[0] != truth[1])


def meant(before: bytes, after: bytes) -> bool:
    "May figures differ? Every line is JSON, and its values are of the types they had."
    if not whole(after):
        return False
    rows = [
        [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        for data in (before, after)
    ]
    return len(rows[0]) != len(rows[1]) or not of_another_type(*rows)


def fault(case: Case, plain: tuple, before: bytes, path: Path) -> str | None:
    "What is wrong with how a command took damaged input; None if nothing is."
    code, out, err = said(case.argv)
    data = path.read_bytes()
    if isinstance(code, str):
        return code
    told = [line for line in err.splitlines() if line.startswith("psr_nb: ")]
    if code == 2:
        one = len(told) and err.rstrip().endswith(told[-1]) and told[-1].isprintable()
        return None if one else f"not one line at the end: {err[-500:]!r}"
    if code:
        return f"exit code {code}: {err[-300:]}"
    figures = re.findall(case.figures, out + err)
    if figures == re.findall(case.figures, plain[1] + plain[2]) or told or "left out" in out + err:
        return None
    if path.suffix in (".csv", ".tsv", ".yaml", ".parquet", ".gz"):  # any text is a legal cell
        return None
    try:
        legal = meant(before, data)
    except ValueError:  # one value of several lines
        legal = whole(data)
    return None if legal else f"other figures without a word: {(out + err)[-300:]}"


def no_engine(tokenizer):
    "Stands in for `open_engine`: an engine that always says the same."

    def open_engine(path, *settings):
        return RecordedEngine(
            tokenizer, lambda r: says(tokenizer, *[" 2+2=4. The answer is 4."] * r.sampling.n)
        )

    return open_engine


def planned_only(recipe, out):
    "Stands in for `run`: makes the run's data, and prints how many rows there are."
    check_run(recipe)
    made = open_run(out, recipe)
    for file in sorted(made.path.rglob("*.jsonl")):
        print(file.name, len(file.read_bytes().splitlines()))
    return made


@contextlib.contextmanager
def no_models():
    "Nothing is trained or generated."
    opened = no_engine(load_tokenizer(str(packaged("models/demo-m1"))))
    with contextlib.ExitStack() as stack:
        stand_ins = {
            "psr_nb.cli.main._go": planned_only,
            "psr_nb.evaluation.models.open_engine": opened,
            "psr_nb.engines.choose.open_engine": opened,
            "psr_nb.dashboard.rejudge.rejudge_in_child": lambda *args: None,
            "psr_nb.dashboard.probe.probe_in_child": lambda *args: None,
            "psr_nb.datagen.trees.grow_trees": lambda *args: [],
            "psr_nb.datagen.prm.train_prm": lambda *args: {"rows": 1},
            "psr_nb.datagen.prm.PRM": lambda *args: None,
            "psr_nb.datagen.prm.prm_accuracy": lambda *args: {"accuracy_n": 0},
        }
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        yield


def place(wrong: str) -> str:
    "The last line of a traceback that is ours and the kind of error, which tells one fault from another."
    ours = re.findall(r'/psr_nb/(\S+)", line (\d+)', wrong)
    return f"{ours[-1:]} {wrong.strip().splitlines()[-1].split(':')[0][:60]}"


def settings_of(cls, at: str = "") -> list[str]:
    "The dotted names of all settings."
    names = []
    for f in fields(cls):
        inner = f.default if is_dataclass(f.default) else None
        names += settings_of(type(inner), f"{at}{f.name}.") if inner else [f"{at}{f.name}"]
    return names


def fuzz(folder: Path, n: int, seed: int) -> Counter:
    "Damage inputs, so many, and say how often each exit code came. AssertionError with the faults."
    rng, counts, faults = random.Random(seed), Counter(), {}
    with no_models():
        all_cases = cases(folder)
        plain = [said(case.argv) for case in all_cases]
        for i in range(n):
            [k] = rng.choices(range(len(all_cases)), [case.weight for case in all_cases])
            case = all_cases[k]
            path = rng.choice(case.files)
            for made in case.clean:
                shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(
                    missing_ok=True
                )
            before = path.read_bytes()
            path.write_bytes(damaged(before, rng))
            wrong = fault(case, plain[k], before, path)
            path.write_bytes(before)
            counts[" ".join(case.argv[:2]).split("/")[0]] += 1
            if wrong:
                key = place(wrong)
                faults.setdefault(key, f"input {i}: {' '.join(case.argv[:3])}, {path.name}\n{wrong}")
    shown = "\n\n".join(faults.values())
    assert not faults, f"{len(faults)} kinds of fault:\n{shown}"
    return counts


def set_values(n: int, seed: int) -> Counter:
    "Give settings values of every kind; how often each exit code came. AssertionError with the faults."
    rng, counts, faults = random.Random(seed), Counter(), {}
    names = settings_of(Recipe) + [
        "search",
        "nothing",
        "search.",
        ".w",
        "search.w.x",
        "a.b.c",
        "",
        "domain",
    ]
    values = [v.decode("latin-1") for v in BYTES] + [json.dumps(v) for v in VALUES]
    values += [
        "[1, 2",
        "!!python/name:os.system",
        "2024-13-45",
        "0x" + "f" * 9000,
        "{a: {b: c}}",
        "1e-6",
        "4",
        ":",
    ]
    with no_models():
        for _ in range(n):
            pair = f"{rng.choice(names)}={rng.choice(values)}"
            shutil.rmtree("runs", ignore_errors=True)
            code, _, err = said(["run", "fast", "--set", pair, "--seed", "1"])
            counts[code if isinstance(code, int) else "fault"] += 1
            one = err.count("\n") == 1 and err[:-1].isprintable()
            if code not in (0, 2) or (code == 2 and not one):
                faults.setdefault(place(str(code)), f"--set {pair[:80]!r}: {code}, {err[:300]!r}")
    assert not faults, "\n\n".join(faults.values())
    return counts


def test_damaged_files(tmp_path):
    counts = fuzz(tmp_path, 1700, 1)
    assert min(counts.values()) > 10, counts


def test_settings_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = set_values(300, 2)
    assert counts[0] > 5 and counts[2] > 150, counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_at_length(tmp_path, seed):
    fuzz(tmp_path, 4500, 100 + seed)


@pytest.mark.slow
def test_settings_at_length(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_values(5000, 3)
