"The data of a domain: from an installed package, from solutions alone, and never all of it without a word."

import json
import subprocess
import sys
from pathlib import Path

import pytest

from psr_nb.domains.find import domain_named, draw_of
from psr_nb.domains.made import write_data
from psr_nb.files import write_jsonl
from psr_nb.folder import plan
from psr_nb.questions.read import load_problems
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError

SPELLING = """
from psr_nb.prompts import Domain

SPELLING = Domain(
    "spelling",
    ask=lambda word: f"Spell {word}.\\n",
    judge=lambda word, steps, a, b: f"{word}: {a} or {b}?",
    stop=lambda k: "\\n",
    read=lambda text: text.strip()[-1:] or None,
    equal=lambda gold, answer: (gold == answer, "same text"),
    about="Words, letter by letter.",
)
"""
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "psr-spelling"
version = "1.0"

[project.entry-points."psr_nb.domains"]
spelling = "psr_spelling:SPELLING"

[tool.setuptools]
py-modules = ["psr_spelling"]
"""
ASKS = """
import sys
sys.path.insert(0, sys.argv[1])
from psr_nb.cli.main import main
from psr_nb.domains.find import domain_named, source_hash
print(domain_named("spelling").ask("ape"), source_hash("spelling")[:4])
main(["domains"])
"""


@pytest.mark.slow
def test_a_package_that_is_installed_adds_a_domain(tmp_path):
    "Installed by pip, not by a fake of its metadata."
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "psr_spelling.py").write_text(SPELLING)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = "-m pip install -q --no-index --no-deps --no-build-isolation --target".split()
    subprocess.run([sys.executable, *pip, str(target), str(source)], check=True, capture_output=True)
    ran = subprocess.run([sys.executable, "-c", ASKS, str(target)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Spell ape." in ran.stdout
    assert "spelling (from psr-spelling): Words, letter by letter." in ran.stdout


def test_gold_answers_are_read_by_the_domain(tmp_path):
    "Where only a solution tells the answer, a run takes what its domain reads, not what mathematics would."
    (tmp_path / "spell.py").write_text(SPELLING)
    for name in ("test", "questions"):
        row = {"id": name, "question": f"ape {name}", "solution": "a\np, \\boxed{4} letters\ne"}
        write_jsonl(tmp_path / f"{name}.jsonl", [row])
    recipe = {"name": "s", "model": "packaged:models/demo-m0", "start": "M1", "questions": [1]}
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("test", "questions")} | {"judge_test": ""}
    recipe |= {"domain": "spell.py:SPELLING", "data": data}
    (tmp_path / "s.yaml").write_text(json.dumps(recipe))
    assert load_problems(data["test"])[0].answer == "4"
    found = plan(load_recipe(str(tmp_path / "s.yaml")))
    assert [p.answer for p in found["test"] + found["questions-2"]] == ["e", "e"]


def test_rows_for_m1_that_take_every_question_are_told_of(tmp_path):
    "The setting that leaves some questions to search on is named."
    write_data(domain_named("knights"), draw_of("knights"), tmp_path, questions=12, test=3)
    data = {"questions": str(tmp_path / "questions.jsonl"), "test": str(tmp_path / "test.jsonl")}
    data |= {"judge_test": "", "ift_limit": 3}
    recipe = {"name": "k", "model": "packaged:models/demo-m0", "domain": "knights", "questions": [2]}
    (tmp_path / "k.yaml").write_text(json.dumps(recipe | {"data": data}))
    with pytest.raises(InputError, match="set data.eft_limit"):
        plan(load_recipe(str(tmp_path / "k.yaml")))
    found = plan(load_recipe(str(tmp_path / "k.yaml"), **{"data.eft_limit": 4}))
    assert len(found["questions-2"]) == 2
    with pytest.raises(InputError, match="set data.ift_limit"):
        plan(load_recipe(str(tmp_path / "k.yaml"), **{"data.ift_limit": None}))


def test_the_file_of_a_domain_draws_its_problems(tmp_path):
    "`data made` takes a domain of somebody's own with a DRAW beside it."
    from psr_nb.cli.main import main

    text = "from psr_nb.domains.knights import KNIGHTS as MINE, draw_puzzles as DRAW\n"
    (tmp_path / "mine.py").write_text(text)
    sizes = "--questions 4 --test 2 --ift 2 --eft 2 --judge-test 2".split()
    main(["data", "made", f"{tmp_path}/mine.py:MINE", "--out", str(tmp_path / "made"), *sizes])
    assert len(Path(tmp_path / "made" / "questions.jsonl").read_text().splitlines()) == 4
