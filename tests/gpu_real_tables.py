"""Small tables of what gpu_real.sh or gpu_real_svamp.py wrote: `python tests/gpu_real_tables.py FOLDER OUT`.

FOLDER holds results.json, real.tar.gz and random.tar.gz. Written to OUT:
  results.json  as it is, its differences and their intervals computed again
  solved.csv    a row a test question, a column a model: right, wrong, unread (ended without an answer) or cut
  pairs.csv     a row a preference pair of every search: which of its steps is final, whose equations hold?
  verdicts.csv  how often each log-odds of A against B came out, in searches
  judged.csv    the judge test by model and by where a pair comes from
  taught.csv    rows made to teach the judge, and those that did: is one of the two steps final, and one not?
  written.csv   of each model's answers: equations, those that hold, and what is word for word as M1's
"""

import csv
import json
import re
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from gpu_real import _EQUATION, Place, holds, models_of, results

from psr_nb.domains.maths import MATH
from psr_nb.evaluate import EvalRow, JudgeRow
from psr_nb.files import read_jsonl
from psr_nb.pairs import agrees
from psr_nb.records import EFTRow, Trajectory


def write_table(file: Path, columns: list[str], rows):
    with open(file, "w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def all_hold(text: str) -> bool | None:
    "Are all equations of a step true? None if it has none that can be worked out."
    known = [x for x in (holds(*e) for e in _EQUATION.findall(text)) if x is not None]
    return all(known) if known else None


def as_figure(x: bool | None) -> str:
    return "" if x is None else str(int(x))


def pair_rows(model: str, t: Trajectory) -> list[list]:
    "A row for each preference pair of a search."
    rows = []
    for step in (s for s in t.path if s.outcome == "pair"):
        two = [step.candidates[i] for i in (step.chosen, step.rejected)]
        margin = step.scores[step.chosen] - step.scores[step.rejected]
        alike = agrees(step, step.chosen, step.rejected) if step.judgements else None
        finals = [as_figure(c.final) for c in two]
        right = [as_figure(all_hold(c.text)) for c in two]
        rows.append([model, t.problem_id, step.k, round(margin, 3), as_figure(alike), *finals, *right])
    return rows


def fate(row: EvalRow) -> str:
    "What became of a test question."
    if row.answer is None:
        return "cut" if row.note == "cut" else "unread"
    return "right" if row.equal else "wrong"


def evaluations(work: Path, models: dict[str, Path]) -> dict[str, Path]:
    "Name of a model -> the file of its answers."
    files = {name: folder / "evaluation.jsonl" for name, folder in models.items()}
    if (work / "eval-m0").exists():  # it is evaluated last
        [files["M0"]] = (work / "eval-m0").rglob("*.jsonl")
    return files


def solved_table(files: dict[str, Path], out: Path):
    rows = {name: {r.id: fate(r) for r in read_jsonl(file, EvalRow)} for name, file in files.items()}
    names = sorted(rows, key=lambda name: (name != "M0", name))
    table = [[i, *(rows[n][i] for n in names)] for i in rows["judge M1"]]
    write_table(out / "solved.csv", ["id", *names], table)


def written_table(files: dict[str, Path], out: Path):
    texts = {}
    for name, file in files.items():
        found = {
            r.id: re.split(r"(?m)^Step \d+:", r.completions[0])[1:] for r in read_jsonl(file, EvalRow)
        }
        texts[name] = {i: [step.strip() for step in steps] for i, steps in found.items()}
    first, rows = texts["judge M1"], []
    for name, mine in texts.items():
        steps = [step for steps in mine.values() for step in steps]
        known = [x for step in steps for e in _EQUATION.findall(step) if (x := holds(*e)) is not None]
        begun = sum(steps[:1] == first[i][:1] for i, steps in mine.items())
        rows.append(
            [name, len(known), sum(known), begun, sum(steps == first[i] for i, steps in mine.items())]
        )
    columns = ["model", "equations", "hold", "first_step_as_m1", "all_as_m1"]
    write_table(out / "written.csv", columns, rows)


def search_tables(models: dict[str, Path], out: Path):
    pairs, odds = [], Counter()
    for name, folder in models.items():
        file = folder / "trajectories.jsonl"
        for t in read_jsonl(file, Trajectory) if file.exists() else []:
            pairs += pair_rows(name, t)
            scored = [j.logprobs for s in t.steps for j in s.judgements if j.logprobs]
            odds.update((name, round(a - b, 4)) for a, b in scored)
    columns = ["model", "question", "step", "margin", "orders_agree", "chosen_final", "rejected_final"]
    write_table(out / "pairs.csv", [*columns, "chosen_holds", "rejected_holds"], pairs)
    counted = [[model, value, n] for (model, value), n in sorted(odds.items())]
    write_table(out / "verdicts.csv", ["model", "log_odds_of_a", "judgements"], counted)


def judged_table(work: Path, models: dict[str, Path], out: Path):
    sources = {r.id: r.source for r in read_jsonl(work / "run" / "data" / "judge_test.jsonl", EFTRow)}
    counts = Counter()
    for name, folder in models.items():
        file = folder / "judge_test.jsonl"  # an arm without a judge of steps has none
        for r in read_jsonl(file, JudgeRow) if file.exists() else []:
            said = "abstained" if r.verdict is None else "right" if r.verdict == r.gold else "wrong"
            counts[name, sources[r.id], said] += 1
    columns = ["model", "source", "said", "judgements"]
    write_table(out / "judged.csv", columns, [[*key, n] for key, n in sorted(counts.items())])


def taught_table(work: Path, out: Path):
    counts = Counter()
    for said, where in (("made", work / "data"), ("used", work / "run" / "data")):
        for r in read_jsonl(where / "eft.jsonl", EFTRow):
            one_ends = (MATH.read(r.a) is None) != (MATH.read(r.b) is None)
            counts[said, r.source, int(one_ends)] += 1
    columns = ["rows", "source", "one_is_final", "number"]
    write_table(out / "taught.csv", columns, [[*key, n] for key, n in sorted(counts.items())])


def main(folder: Path, out: Path):
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as where:
        for name in ("real", "random"):
            with tarfile.open(folder / f"{name}.tar.gz") as tar:
                tar.extractall(where, filter="data")
        place = Place(None, Path(where) / "real", out, False)
        models = models_of(place)
        files = evaluations(place.work, models)
        solved_table(files, out)
        written_table(files, out)
        search_tables(models, out)
        judged_table(place.work, models, out)
        taught_table(place.work, out)
        found = json.loads((folder / "results.json").read_text()) | results(place)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
