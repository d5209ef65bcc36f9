"A domain of somebody's own: found from anywhere, tried before a model is loaded, and told by nothing else."

import json
import re
import subprocess
import sys
import warnings
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from psr_nb.dashboard.figures import closing_table
from psr_nb.dashboard.report import report_html
from psr_nb.domains import check, find
from psr_nb.domains.find import BUILT_IN, domain_named, name_of
from psr_nb.engine import RecordedEngine, says
from psr_nb.evaluate import EvalSettings, Solving, accuracy, evaluate
from psr_nb.files import packaged, read_jsonl, write_jsonl
from psr_nb.folder import open_run, plan
from psr_nb.judge import JudgeSettings
from psr_nb.pairs import PairSettings, make_pairs
from psr_nb.recipe import load_recipe
from psr_nb.records import InputError, Problem
from psr_nb.run import run
from psr_nb.search import SearchSettings, SearchSetup, drive, search
from psr_nb.sft import eft_ids, ift_ids

ROOT = Path(__file__).resolve().parent.parent

# Modules that know mathematics or the demo's sums, and why; everything else asks the domain.
KNOW = {
    "domains.find": "names them, for they came with the library",
    "evaluation.models": "takes mathematics where `eval` is called without a domain",
    "evaluation.judges": "makes pairs of ProcessBench, whose problems are mathematics",
    "questions.read": "reads gold answers as published files mark them, behind #### or in a box",
    "questions.benchmarks": "the published benchmarks, all of them mathematics",
    "datagen.ift": "cuts the published solutions of mathematics; another domain cuts its own",
    "datagen.eft": "examples for an annotator of mathematics; refused for another domain",
    "datagen.scorers": "an oracle of the demo's problems by their numbers, for the examples",
    "cli.main": "`grade`, which grades answers of mathematics; `bench`, of the demo's model",
}
MATHS = r"\bmaths\.\w+ import|domains\.(?:maths|arithmetic)\b|\bMATH\b(?!-)|\\boxed|\bfbox|The answer is|####"
SHOWN = {  # what looks like mathematics, and only shows a text or reads a verdict in it
    "texts.verdicts": "a model may put its verdict into a box",
    "dashboard.html": "shows formulas",
    "dashboard.decision": "shows formulas",
    "dashboard.align": "keeps formulas whole where two texts are aligned",
}
KIN = """
from psr_nb.prompts import Domain

WORDS = ["奶奶", "爷爷", "外婆", "外公", "姑姑", "舅舅"]


def other(question, steps, step, rng):
    "The step with another relative in it."
    said = next((w for w in WORDS if w in step), None)
    if said is None:
        return None
    wrong = rng.choice([w for w in WORDS if w != said])
    return step.replace(said, wrong), f"{{right}}说的是{said}，{{wrong}}说错了。", "换了一个词"


def right(question, answer):
    return {"爸爸的妈妈": "奶奶", "爸爸的爸爸": "爷爷"}.get(question[:5]) in (None, answer)


KIN = Domain(
    "kin",
    ask=lambda question: f"问：{question}\\n",
    judge=lambda question, steps, a, b: f"问：{question}\\n{'；'.join(steps)}\\n甲：{a}\\n乙：{b}\\n哪个对？",
    stop=lambda k: f"\\n第{k + 1}步：",
    label=lambda k: f"第{k}步：",
    read=lambda text: text.partition("答案是")[2].strip("。 \\n") or None,
    equal=lambda gold, answer: (gold == answer, "同"),
    conclude=lambda answer: f"答案是{answer}。",
    corrupt=other,
    check_answer=right,
    about="亲戚叫什么。",
)
"""
ASKED = {
    "爸爸的妈妈": "奶奶", "爸爸的爸爸": "爷爷", "妈妈的妈妈": "外婆", "妈妈的爸爸": "外公",
    "爸爸的姐姐": "姑姑", "妈妈的弟弟": "舅舅", "爸爸的妹妹": "姑姑", "妈妈的哥哥": "舅舅",
}  # fmt: skip


def kin_row(i: int, who: str) -> dict:
    solution = f"先看{who[:2]}。\n{who}叫{ASKED[who]}。"
    return {"id": f"k{i}", "question": f"{who}叫什么？", "answer": ASKED[who], "solution": solution}


@pytest.fixture
def kin(tmp_path):
    "A folder with a domain in Chinese, its questions and a recipe; the recipe's path."
    (tmp_path / "kin.py").write_text(KIN, encoding="utf-8")
    rows = [kin_row(i, who) for i, who in enumerate(ASKED)]
    write_jsonl(tmp_path / "questions.jsonl", rows[2:])
    write_jsonl(tmp_path / "test.jsonl", rows[:2])
    data = {"questions": str(tmp_path / "questions.jsonl"), "test": str(tmp_path / "test.jsonl")}
    data |= {"judge_test": "corrupted", "ift_limit": 2, "eft_limit": 4}
    recipe = {"name": "kin", "model": "packaged:models/demo-m0", "domain": "kin.py:KIN"}
    recipe |= {"questions": [2], "data": data}
    (tmp_path / "kin.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return tmp_path / "kin.yaml"


def modules() -> dict[str, str]:
    "Module -> its code, without comments."
    found = {}
    for path in (ROOT / "psr_nb").rglob("*.py"):
        name = path.relative_to(ROOT / "psr_nb").with_suffix("").as_posix().replace("/", ".")
        if not name.startswith("maths.") and not name.endswith("_modidx"):
            found[name] = re.sub(r"(?m)#.*$", "", path.read_text(encoding="utf-8").replace("####", "＃"))
    return {name: text.replace("＃", "####") for name, text in found.items()}


def test_nothing_outside_a_domain_knows_mathematics():
    knows = {name for name, text in modules().items() if re.search(MATHS, text)} - set(SHOWN)
    knows -= {name for name in knows if name.startswith("domains.") and name not in KNOW}
    assert knows <= set(KNOW), f"these ask no domain: {sorted(knows - set(KNOW))}"
    assert set(KNOW) - knows == set(), "these know nothing any more: take them off the list"


def test_the_labels_of_steps_are_the_domains():
    "Outside the domains nothing writes the label of a step without asking for the domain's."
    says_step = re.compile(r"[\"'(]Step [{1]|\bnumbered\((?![^\n]*label)")
    found = {
        n for n, text in modules().items() if says_step.search(text) and not n.startswith("domains.")
    }
    known = {"texts.labels": "the default", "engines.transformers": "any text, to try a model with"}
    known["dashboard.compare"] = "takes the default off a prompt that it shows"
    assert found - set(known) == set(), "a domain may have labels of its own"


def foreign(text: str) -> list[str]:
    "What is of another language in a text of the Chinese domain, but for the marks of a verdict and digits."
    return re.findall(r"[A-Za-z]+|\\\w+", text.replace("[[A]]", "").replace("[[B]]", ""))


def test_data_of_a_domain_in_another_language(kin):
    r = load_recipe(str(kin))
    data, tok, domain = plan(r), tiny_tokenizer(), domain_named(r.domain)
    assert data["ift"][0].steps == ["先看妈妈。", "妈妈的妈妈叫外婆。 答案是外婆。"]
    assert {row.verdict for row in data["eft"]} == {"A", "B"} and len(data["judge_test"]) > 1
    texts = []
    for to_ids, rows in ((ift_ids, data["ift"]), (eft_ids, data["eft"])):
        for row in rows:
            prompt, completion = to_ids(tok, domain, row)
            texts.append(tok.decode(prompt + completion, skip_special_tokens=True))
    assert foreign("".join(texts).replace("A说", "").replace("B说", "")) in ([], ["A", "B"] * 9), texts
    assert "第1步：" in texts[0] and "\n第2步：" in texts[0]
    assert texts[-1].rstrip().endswith(f"[[{data['eft'][-1].verdict}]]")


class Relatives:
    "Writes two candidates a step in Chinese, one of them wrong, and judges by the right word."

    def __init__(self, tok):
        self.tok = tok

    def __call__(self, request):
        said, eos = self.tok.decode(request.prompt_ids), self.tok.eos_token
        who = re.search(r"问：(.....)", said)[1]
        if "哪个对？" in said:
            a = re.search(r"甲：(.*)", said)[1]
            return says(self.tok, f"看词。 [[{'A' if ASKED[who] in a or '看看' in a else 'B'}]]")
        n, first = request.sampling.n, said.endswith("第1步：")
        right, wrong = (f" {who}叫{w}。 答案是{w}。{eos}" for w in (ASKED[who], "邻居"))
        if n == 1:  # a whole solution is asked for
            return says(self.tok, f" 先看{who[:2]}。\n第2步：{right}")
        steps = (f" 先看{who[:2]}。\n", f" 先看看{who[:2]}。\n") if first else (right, wrong)
        return says(self.tok, *(steps * n)[:n])


def test_the_whole_loop_in_another_language(kin, tmp_path):
    r = load_recipe(str(kin))
    domain, tok = domain_named(r.domain), tiny_tokenizer()
    engine = RecordedEngine(tok, Relatives(tok))
    problems = [
        Problem(**{k: v for k, v in row.items() if k != "solution"})
        for row in map(kin_row, range(8), ASKED)
    ]
    settings = SearchSettings(w=4, max_step_tokens=60, max_steps=4)
    setup = SearchSetup(tok, domain, settings, JudgeSettings(max_tokens=40), context=1 << 20)
    found = [t for _, t in drive(engine, [(p.id, search(p, setup)) for p in problems])]
    assert [t.ended for t in found] == ["answered"] * 8
    assert {t.answer for t in found} == set(ASKED.values())
    pairs, _ = make_pairs(found, PairSettings(), {p.id: p.answer for p in problems}, domain)
    assert len(pairs) >= 8 and all("邻居" in p.rejected for p in pairs if p.step == 2)
    assert foreign("".join(p.chosen + p.rejected for p in pairs)) == []
    how = Solving(domain, EvalSettings(max_tokens=80))
    figures = accuracy(evaluate(engine, problems, how, tmp_path / "rows.jsonl"))
    assert figures["accuracy"] == 1 and figures["unread"] == 0


def changed(old: str, new: str, kin: Path):
    "Write the domain's file anew with something in it replaced."
    assert old in KIN
    (kin.parent / "kin.py").write_text(KIN.replace(old, new), encoding="utf-8")


BAD = {
    "a stop of another label": (
        'f"\\\\n第{k + 1}步："',
        'f"\\\\nStep {k + 1}:"',
        "never matches the label '第2步：'",
    ),
    "a stop of the step itself": (
        "{k + 1}步",
        "{k}步",
        "never matches the label '第2步：' that follows",
    ),
    "a reader that raises": (
        "read=lambda text: ",
        "read=lambda text: len(text) // len(text) and ",
        "read raises on ''",
    ),
    "a reader that hangs": (
        "def right(",
        "def hang(text):\n    while True:\n        pass\n\n\ndef right(",
        "read hangs on ''",
    ),
    "an equality of one direction": (
        "gold == answer",
        'gold <= (answer or "")',
        "equal is not symmetric",
    ),
    "an equality that says too little": (
        '(gold == answer, "同")',
        "gold == answer",
        "equal returns a bool",
    ),
    "an oracle that knows otherwise": (
        '"奶奶", "爸爸的爸爸": "爷爷"',
        '"姥姥", "爸爸的爸爸": "爷爷"',
        "check_answer says that",
    ),
    "a file that raises": (
        "WORDS = ",
        'raise ValueError("one\\nand two")\nWORDS = ',
        "could not import",
    ),
    "a file that isn't Python": ("WORDS = ", "WORDS == = ", "could not import"),
    "no such name": ("KIN = Domain(", "KINDRED = Domain(", "there is no KIN in it; it has KINDRED"),
    "no Domain": ("KIN = Domain(", "KIN = dict(kind=", "is no Domain but dict"),
    "a field that is no function": (
        'conclude=lambda answer: f"答案是{answer}。"',
        'conclude="答案"',
        "conclude is a str",
    ),
    "no text to ask": (
        'lambda question: f"问：{question}\\\\n"',
        "lambda question: None",
        "ask returns a NoneType",
    ),
    "a reader of something else": (
        'partition("答案是")',
        'partition("先看")',
        "read finds the answer of none of",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_domain_is_one_sentence_before_a_model_is_loaded(what, kin, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.3)
    old, new, said = BAD[what]
    changed(old.replace("\\\\", "\\"), new.replace("\\\\", "\\"), kin)
    if what == "a reader that hangs":
        text = (kin.parent / "kin.py").read_text()
        (kin.parent / "kin.py").write_text(re.sub(r"read=lambda.*", "read=hang,", text))
    with pytest.raises(InputError, match=re.escape(said)) as e:
        plan(load_recipe(str(kin)))
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_a_domain_that_is_right_is_taken(kin):
    assert len(plan(load_recipe(str(kin)))["ift"]) == 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_domains_that_came_along_are_domains(name):
    domain = domain_named(name)
    assert check.check_form(domain) is domain and domain.about
    assert name_of(domain) == name
    check.check_domain(
        domain, [Problem("1", "What is 2 + 3?", "5"), Problem("2", "What is 3 + 4?", "7")]
    )


def test_demo_data_passes_the_check():
    problems = read_jsonl(packaged("demo/test.jsonl"), Problem)
    check.check_domain(domain_named("arithmetic"), problems)


def test_file_beside_the_recipe_from_any_folder(kin, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with chdir(elsewhere):
        r = load_recipe(str(kin))
        assert r.domain == f"{kin.parent / 'kin.py'}:KIN"
        assert load_recipe(str(kin), domain="kin.py:KIN") == r
        with pytest.raises(InputError, match="there is no such file in"):
            load_recipe(str(kin), domain="nowhere.py:KIN")
    with chdir(kin.parent):
        assert load_recipe("fast", domain="kin.py:KIN").domain == r.domain


def test_looking_at_a_run_runs_no_code_of_it(kin, tmp_path, monkeypatch):
    "Its table and its report, where the domain is a file that leaves a trace when it is run."
    open_run(tmp_path / "run", load_recipe(str(kin)))
    monkeypatch.setattr(find, "_files", {})  # as in a process that has not read it
    trace = kin.parent / "trace.txt"
    (kin.parent / "kin.py").write_text(f"open({str(trace)!r}, 'w')\n{KIN}")
    run = open_run(tmp_path / "run")
    assert "no model" in closing_table(run) and "kin" in report_html(run)
    with pytest.raises(InputError, match="is code of the run's own, which a look at it does not run"):
        run.domain  # noqa: B018
    assert not trace.exists()
    domain_named(run.recipe.domain)
    assert run.domain.name == "kin" and trace.exists()


def test_a_changed_domain_is_said_and_a_moved_one_is_the_same(kin, tmp_path):
    run = tmp_path / "run"
    open_run(run, load_recipe(str(kin)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_run(run, load_recipe(str(kin))).recipe.name == "kin"
        moved = tmp_path / "moved"
        moved.mkdir()
        (kin.parent / "kin.py").rename(moved / "kin.py")
        kin = kin.rename(moved / "kin.yaml")
        assert open_run(run, load_recipe(str(kin))).recipe.domain == f"{moved / 'kin.py'}:KIN"
    changed("同", "一样", kin)
    with pytest.warns(UserWarning, match="has changed since the run began"):
        open_run(run, load_recipe(str(kin)))
    changed("gold == answer", "gold != answer", kin)
    with (
        pytest.warns(UserWarning, match="has changed since"),
        pytest.raises(InputError, match="not the same as itself"),
    ):
        open_run(run, load_recipe(str(kin)))


def test_a_reader_that_fails_on_one_text_costs_one_answer(kin, monkeypatch):
    monkeypatch.setattr(check, "SECONDS", 0.3)
    changed(
        "KIN = Domain(",
        "def odd(text):\n    while '圈' in text:\n        pass\n    return text\n\n\nKIN = Domain(",
        kin,
    )
    text = (kin.parent / "kin.py").read_text()
    (kin.parent / "kin.py").write_text(
        text.replace("read=lambda text: text", "read=lambda text: odd(text)")
    )
    domain = domain_named(f"{kin.parent / 'kin.py'}:KIN")
    assert domain.read("答案是奶奶。") == "奶奶"
    with pytest.warns(UserWarning, match="read of the domain 'kin' failed on '圈'.*longer than 0.3 s"):
        assert domain.read("圈") is None
    slow = replace(domain, equal=lambda gold, answer: 1 / 0)
    with pytest.warns(UserWarning, match="equal of the domain"):
        assert check.guarded(slow).equal("x", "y") == (False, "error ZeroDivisionError")


def test_the_object_itself_is_found_by_its_file(kin, tmp_path):
    path = f"{kin.parent / 'kin.py'}:KIN"
    domain = domain_named(path)
    assert name_of(domain) == path == name_of(check.guarded(domain))
    with pytest.raises(InputError, match="'unwritten': it stands in no file.*%%writefile mine.py"):
        run("fast", tmp_path / "run", domain=replace(domain, name="unwritten"))
    with pytest.raises(InputError, match="there is no such file in"):
        run("fast", tmp_path / "run", domain="nowhere.py:KIN")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_script_that_defines_a_domain_and_runs_it(kin):
    "Its jobs read the script for the domain: it says so where the call is not under `__main__`."
    call = f'from psr_nb.run import run\n\nrun("fast", {str(kin.parent / "run")!r}, True, KIN)\n'
    (kin.parent / "script.py").write_text(KIN + call)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=kin.parent, capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert "script.py starts a run while it is read for its domain; put that under" in last
