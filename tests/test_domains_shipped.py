"The domains with made-up problems: their oracles against their generators, spoilt steps, and runs of them."

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from psr_nb.datagen.ift import load_solutions
from psr_nb.domains import tracing
from psr_nb.domains.check import check_domain, steps_of
from psr_nb.domains.choices import CHOICES, convert_choices, with_choices
from psr_nb.domains.knights import KNIGHTS, draw_puzzles
from psr_nb.domains.made import (
    draw_problems,
    judged_rows,
    texts_of,
    word_tokenizer,
    write_data,
)
from psr_nb.domains.reckoning import RECKONING, draw_reckonings
from psr_nb.domains.tracing import TRACING, ask_what_prints, draw_programs, read_question, traces
from psr_nb.files import read_jsonl
from psr_nb.prompts import check_tokenizer
from psr_nb.questions.read import load_problems
from psr_nb.questions.solutions import ift_from_solution
from psr_nb.records import EFTRow, IFTRow, InputError
from psr_nb.sft import eft_ids, ift_ids

CHECKED = {
    "knights": (KNIGHTS, draw_puzzles),
    "reckoning": (RECKONING, draw_reckonings),
    "tracing": (TRACING, draw_programs),
}
ALL = CHECKED | {"choices": (CHOICES, with_choices(draw_reckonings))}
FEW = {"test": 6, "judge_test": 4, "questions": 40, "ift": 12, "eft": 12}


def solved(p):
    "The steps of a problem's worked solution."
    return p.meta["solution"].splitlines()


def drawn(name, n, seed=0):
    domain, draw = ALL[name]
    return domain, draw_problems(draw, n, random.Random(seed), "q", set())


def agree(name, n, seed):
    "The oracle takes every step and answer of the generator, and refuses every spoilt one."
    domain, problems = drawn(name, n, seed)
    rng = random.Random(seed)
    for p, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        steps = solved(p)
        assert domain.read("\n".join(steps)) == p.answer and domain.check_answer(p.question, p.answer)
        same = domain.equal(p.answer, other.answer)[0]
        assert domain.check_answer(p.question, other.answer) == same, (p, other.answer)
        for k, step in enumerate(steps):
            assert domain.check(p.question, steps[:k], step), (p.question, steps[: k + 1])
            spoilt = domain.corrupt(p.question, steps[:k], step, rng)
            assert spoilt, (p.question, step)
            assert domain.check(p.question, steps[:k], spoilt[0]) is False, (p.question, spoilt)
            assert spoilt[0] != step
            if_a, if_b = map(spoilt[1], "AB")
            assert re.search(r"A says .+: right\. B says .+: wrong\.$", if_a), if_a
            assert re.search(r"A says .+: wrong\. B says .+: right\.$", if_b), if_b


@pytest.mark.parametrize(("name", "n"), [("knights", 300), ("reckoning", 2000), ("tracing", 60)])
def test_the_oracle_agrees_with_the_generator(name, n):
    agree(name, n, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [("knights", 3000), ("tracing", 1000)])
def test_the_oracle_agrees_with_thousands(name, n):
    agree(name, n, 2)


def test_what_the_generator_kept_is_what_python_does():
    _, problems = drawn("tracing", 40, 4)
    tracing._KNOWN.clear()  # so that each program runs again
    agree_again = [TRACING.check_answer(p.question, p.answer) for p in problems[:10]]
    assert agree_again == [True] * 10 and len(tracing._KNOWN) == 10


def test_a_step_of_another_problem_is_refused():
    for name in ("knights", "reckoning"):
        domain, problems = drawn(name, 100, 3)
        taken = 0
        for p, other in zip(problems, problems[1:], strict=False):
            step = solved(other)[-1]
            taken += bool(domain.check(p.question, solved(p)[:-1], step)) and p.answer != other.answer
        assert taken == 0


@pytest.mark.parametrize("name", ALL)
def test_data_are_the_same_from_a_seed_and_nowhere_twice(name, tmp_path):
    domain, draw = ALL[name]
    counts = write_data(domain, draw, tmp_path / "a", seed=5, **FEW)
    write_data(domain, draw, tmp_path / "b", seed=5, **FEW)
    write_data(domain, draw, tmp_path / "c", seed=6, **FEW)
    texts = {x: [(tmp_path / x / f"{f}.jsonl").read_text() for f in counts] for x in "abc"}
    assert texts["a"] == texts["b"] and texts["a"] != texts["c"]
    seen = Counter()
    for file in ("questions", "test", "ift"):
        seen.update(json.loads(line)["question"] for line in (tmp_path / f"a/{file}.jsonl").open())
    judged = {r.question for r in read_jsonl(tmp_path / "a/judge_test.jsonl", EFTRow)}
    taught = {r.question for r in read_jsonl(tmp_path / "a/eft.jsonl", EFTRow)}
    assert max(seen.values()) == 1 and not judged & taught and not (judged | taught) & set(seen)
    assert {f: counts[f] for f in ("questions", "test", "ift")} == {
        f: FEW[f] for f in ("questions", "test", "ift")
    }


@pytest.mark.parametrize("name", ALL)
def test_question_files_are_read_with_their_solutions(name, tmp_path):
    domain, draw = ALL[name]
    write_data(domain, draw, tmp_path, seed=5, **FEW)
    problems = load_problems(str(tmp_path / "questions.jsonl"))
    check_domain(domain, problems[:8])
    for p in problems:
        steps = steps_of(domain, p.meta["solution"], p.answer)
        assert steps == solved(p)
    found, rejects = load_solutions(str(tmp_path / "questions.jsonl"))
    assert len(found) == len(problems) and not rejects


@pytest.mark.parametrize("name", ALL)
def test_rows_go_through_a_tokenizer_and_back(name):
    domain, problems = drawn(name, 150)
    tok = word_tokenizer(texts_of(domain, problems))
    check_tokenizer(tok, domain)
    sides = Counter()
    for p in problems[:40]:
        prompt, completion = ift_ids(tok, domain, ift_from_solution(p, domain))
        text = tok.decode(prompt + completion, skip_special_tokens=True)
        assert tok.unk_token_id not in prompt + completion
        assert domain.equal(p.answer, domain.read(text))[0]
        for row in judged_rows(domain, p, random.Random(0)):
            ids = eft_ids(tok, domain, row)
            assert tok.decode(ids[1], skip_special_tokens=True).endswith(f"[[{row.verdict}]]")
            assert "{" not in row.explanation.replace("\\boxed{", "")
            sides[row.verdict] += 1
    assert sides["A"] == sides["B"] > 20


def test_a_program_can_reach_nothing():
    closed = [
        "import os",
        "x = open('a')",
        "x = ().__class__",
        "def f():\n    print(1)",
        "x = [i for i in range(3)]",
        "x = lambda: 1",
        "print = 3\nx = exec('1')",
        "with x:\n    y = 1",
        "x = f'{1}'",
        "x = " + "(" * 500,
    ]
    assert [read_question(ask_what_prints(p)) for p in closed] == [None] * len(closed)


@pytest.mark.slow
def test_a_program_that_wants_much_gets_nothing():
    hungry = [
        "x = 2 ** 10000000000",
        "x = [0] * 100000000000",
        "x = 1\nwhile x:\n    x = x + 1",
        "x = range(10 ** 18)\nprint(sum(x))",
    ]
    assert all(read_question(ask_what_prints(p)) for p in hungry)
    found = traces([(p, []) for p in [*hungry, "print(1)"]])
    assert [printed for _, printed in found] == [None] * len(hungry) + [["1"]]


def test_claims_of_a_model_run_no_code():
    question = ask_what_prints("x = 1\ny = x + 1\nprint(y)")
    claims = [
        "line 1: x = print(3)",
        "line 1: __builtins__ = 3",
        "line 1: x = __import__('os')",
        "line 1: x = ",
        "line 1: x",
    ]
    assert [TRACING.check(question, [claim], "line 2: x = 3, y = 4") for claim in claims] == [None] * 5
    assert TRACING.check(question, ["line 1: x = 5"], "line 2: x = 5, y = 6") is True
    assert TRACING.check(question, ["line 1: print = 5"], "line 2: x = 1, y = 2") in (None, False)


def test_files_with_choices_name_the_row_that_is_wrong(tmp_path):
    good = {"question": "What floats?", "choices": ["iron", "wood"], "answer": "B"}
    bad = [
        ({}, "no question in this row"),
        (good | {"choices": ["iron"]}, "no 2 to 10 options"),
        (good | {"answer": "C"}, "neither a letter"),
        (good | {"choices": None}, "no 2 to 10 options"),
        (3, "expected an object"),
    ]
    for row, said in bad:
        file = tmp_path / "q.jsonl"
        file.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
        with pytest.raises(InputError, match=rf"q\.jsonl:2: .*{said}"):
            convert_choices(str(file), tmp_path / "out.jsonl")
    file.write_text(json.dumps(good) + "\n")
    assert convert_choices(str(file), tmp_path / "out.jsonl") == 1
    assert load_problems(str(tmp_path / "out.jsonl"))[0].answer == "B"


def tiny(folder: Path, name: str):
    "A model of random weights whose tokenizer has the words of a domain."
    domain, problems = drawn(name, 300)
    tok = word_tokenizer(texts_of(domain, problems))
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tok), max_position_embeddings=512, **sizes, **ends)
    ).save_pretrained(folder)
    tok.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knights", "choices"])
def test_a_run_of_a_domain(name, tmp_path):
    domain, draw = ALL[name]
    write_data(domain, draw, tmp_path / "data", questions=60, test=4, judge_test=3, ift=150, eft=40)
    tiny(tmp_path / "m0", name)
    files = {n: str(tmp_path / f"data/{n}.jsonl") for n in ("questions", "test", "ift", "judge_test")}
    recipe = {
        "name": "tiny",
        "model": str(tmp_path / "m0"),
        "domain": name,
        "questions": [12],
        "arms": ["random"],
        "data": files | {"eft": "corrupted", "eft_limit": 40},
        "sft": {"learning_rate": 0.02, "epochs": 2, "batch_size": 8},
        "search": {"w": 3, "temperature": 1.0, "max_steps": 2, "max_step_tokens": 60, "on_tie": "skip"},
        "judge": {"max_tokens": 8},
        "evaluate": {"max_tokens": 40},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [
        sys.executable,
        "-m",
        "psr_nb.cli.main",
        "run",
        tmp_path / "recipe.yaml",
        "--out",
        tmp_path / "run",
    ]
    code = "import sys; from psr_nb.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [command[0], "-c", code, *map(str, command[3:])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        read_jsonl(tmp_path / "run/data/ift.jsonl", IFTRow)
        and (tmp_path / "run/M2/metrics.json").is_file()
    )
