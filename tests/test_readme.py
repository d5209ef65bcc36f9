"What the README and the pages of docs/ say: figures as recorded, code that runs, commands that there are."

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from psr_nb.cli.main import parser
from psr_nb.files import packaged

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
each = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
CODE = re.compile(r"^```python\n(.*?)^```\n\n((?:    [^\n]*\n)*)", re.M | re.S)
# Lines of the README that another test runs.
ELSEWHERE = {
    "make demo": "tests/test_slow.py, by its command",
    "make test": "is running",
    "psr_nb demo": "tests/test_slow.py",
}
# What stands for a reader's own in the README, and what a test can wait for.
MINE = {
    "MODEL": "packaged:models/demo-m1",
    "M4": "M2",
    "bench dpo": "bench dpo --model packaged:models/demo-m1 --L 2",
    "psr_nb run my.yaml": "psr_nb run my.yaml --set data.test_limit=4 --set search.w=3",
    "--over search.w=3,6 --seeds 0-4": "--over search.w=3 --seeds 0 --set data.test_limit=4",
}


def lines(page: Path) -> list[str]:
    "The commands in a page's blocks, without what is said of them."
    found = re.findall(r"^    ((?:psr_nb|make|pip) .*)$", page.read_text("utf-8"), re.M)
    return [line.partition("  #")[0].partition(" # ")[0].strip() for line in found]


def test_the_readme_fits_one_screen():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def row(cells: list[dict], arm: str) -> str:
    "An arm's figures of a recorded sweep, as the README's table has them."
    of = {c["model"]: c for c in cells if c["arm"] == arm}
    shown = [f"{100 * of[m]['mean']:.1f} ± {100 * of[m]['sd']:.1f}" for m in ("M1", "M2", "M3", "M4")]
    gain, low, high = (100 * of["M4"]["against_m1"][k] for k in ("difference", "low", "high"))
    return " | ".join([*shown, f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"])


@pytest.mark.parametrize("page, arms", [("README.md", 3), ("docs/pages/demo.md", 5)])
def test_figures_are_those_of_the_recorded_sweep(page, arms):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    found = json.loads((ROOT / "nbs/tutorials/what_we_found/arms.json").read_text("utf-8"))
    rows = [row(found["cells"], arm) for arm in ("judge", "truth", "random", "frequency", "flipped")]
    assert [r in text for r in rows] == [n < arms for n in range(5)]
    made = {name: v.partition("+")[0] for name, v in found["versions"].items()}
    for said in (found["date"], *(f"{name} {made[name]}" for name in ("torch", "transformers", "trl"))):
        assert said in text


@each
def test_code_runs_by_itself_and_prints_what_is_shown(page):
    for code, shown in CODE.findall(page.read_text("utf-8")):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page.name, "exec"), {})
        assert textwrap.dedent(shown).rstrip() == textwrap.dedent(out.getvalue()).rstrip()


def commands(p: argparse.ArgumentParser, before: str = "") -> dict[str, argparse.ArgumentParser]:
    "Every command and subcommand by its name."
    found = {before.strip(): p} if before else {}
    for action in p._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= commands(inner, f"{before} {name}")
    return found


def test_the_readme_names_every_command():
    named = {line.split()[1] for line in lines(ROOT / "README.md") if line.startswith("psr_nb ")}
    assert named == {name.split()[0] for name in commands(parser())}


@each
def test_every_command_line_is_understood(page, capsys):
    for line in lines(page):
        words = shlex.split(re.split(r" [>|] ", line)[0])
        if words[0] == "psr_nb" and words[1] != "--version":
            try:
                parser().parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.name)
def test_commands_in_prose_are_commands_with_such_options(page):
    known = commands(parser())
    for line in re.findall(r"`psr_nb ([^`]+)`", page.read_text("utf-8")):
        words = [word for word in line.split() if word != "COMMAND"]
        if words[0].startswith("-"):
            continue
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        assert name in known, f"psr_nb {line}"
        missing = [w for w in words if w.startswith("--") and w not in known[name].format_help()]
        assert missing == [], f"psr_nb {line}"


@pytest.fixture
def desk(tmp_path):
    "A folder with files of the names that the README uses."
    demo = packaged("demo")
    taken = {"train": ("questions", 24), "test": ("test", 16), "ift": ("ift", 24), "eft": ("eft", 48)}
    for name, (source, n) in taken.items():
        text = (demo / f"{source}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(text[:n]), encoding="utf-8")
    last = (demo / "questions.jsonl").read_text("utf-8").splitlines(keepends=True)[-2:]
    (tmp_path / "new.jsonl").write_text("".join(last), encoding="utf-8")
    (tmp_path / "answers.jsonl").write_text('{"gold": "1/2", "answer": "0.5"}\n')
    worked = {"question": "What is 2 + 3 + 4?", "answer": "2 + 3 = 5.\n5 + 4 = 9.\n#### 9"}
    (tmp_path / "worked.jsonl").write_text(json.dumps(worked) + "\n")
    return tmp_path


def shell(line: str, desk: Path) -> str:
    "Run a line in a folder, as a reader whose command this is; what it printed."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, cwd=desk, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_shell_line_of_the_readme_runs(desk):
    """One after the other in one folder, on the demo's model and few of its questions.

    Then what docs/pages/ecosystem.md does with the pairs of such a run."""
    ran = [line for line in lines(ROOT / "README.md") if line not in ELSEWHERE]
    for line in ran:
        for theirs, mine in MINE.items():
            line = line.replace(theirs, mine)
        if re.match(r"psr_nb (new|eval|lm-eval|judge-eval|data eft)", line):
            line = re.sub(r"( >.*)?$", r" --domain arithmetic\1", line, count=1)
        shell(line, desk)
    assert len(ran) > 12
    assert {p.name for p in (desk / "runs").iterdir()} == {"mine", "widths"}
    page = (ROOT / "docs" / "pages" / "ecosystem.md").read_text("utf-8")
    code = re.search(r"^    from datasets.*?\n\n(?=\S)", page, re.M | re.S)[0]
    (desk / "train.py").write_text(textwrap.dedent(code), encoding="utf-8")
    shell(f"HF_HUB_OFFLINE=1 {sys.executable} train.py", desk)
    shutil.rmtree(desk)
