"""What works with which architecture? A small model of each goes through the whole loop, and what comes out
is compared with plain passes.

`python tests/model_matrix.py` prints the outcomes, `--write` keeps them in nbs/tutorials/models.json, which
the notebook beside it shows; names of architectures after it take only those."""

import argparse
import gc
import json
import re
import tempfile
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from math import log
from pathlib import Path

import tiny_models as tiny
import torch
import transformers
from transformers import AutoModelForCausalLM

from psr_nb.dpo import DPOSettings, train_dpo
from psr_nb.engine import generate, load_tokenizer
from psr_nb.engines.transformers import TransformersEngine
from psr_nb.judge import JudgeSettings
from psr_nb.pairs import make_pairs
from psr_nb.prompts import Domain
from psr_nb.records import EFTRow, IFTRow, InputError, Problem, Request, Sampling, StepPair
from psr_nb.search import SearchSettings, SearchSetup, drive, search
from psr_nb.sft import SFTSettings, eft_ids, ift_ids, train_sft

KEPT = Path(__file__).resolve().parent.parent / "nbs" / "tutorials" / "models.json"
STOP = "e"  # the letter that ends a step: random models reach it


def _judge(question: str, steps: list[str], a: str, b: str) -> str:
    return f"{question} {' '.join(steps)} A: {a} B: {b} Which step is better?"


def _never(*_) -> None:
    return None


DOMAIN = Domain(
    "letters", ask=str, judge=_judge, stop=lambda k: STOP, read=_never, equal=lambda a, b: (a == b, "")
)


@dataclass
class Row:
    "What came out for an architecture."

    kind: str  # transformers' name of its type
    outcome: str  # "works", "falls back", "refused", "untested" or "WRONG"
    notes: list[str] = field(default_factory=list)


class Plain:
    "The model of a folder as transformers gives it, one text at a time and without a cache."

    def __init__(self, folder: str):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        "Logits (T, vocabulary) of a text."
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    def log_prob(self, before: list[int], ids: list[int]) -> float:
        "Log-probability of ids after others."
        scores = self.logits(before + ids)[len(before) - 1 : -1].log_softmax(-1)
        return scores.gather(1, torch.tensor(ids)[:, None]).sum().item()


# What an engine does.


def prompts(tokenizer) -> list[list[int]]:
    "Prompts of unequal lengths, up to several times a window."
    text = " ".join(tiny.solutions(2))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids[n : n + length] for n, length in enumerate([3, 11, 26, 60])]


def check_greedy(engine, plain: Plain):
    "A batch, and a batch that rows join and leave, draw the likeliest ids of plain passes."
    asked = prompts(engine.tokenizer)
    room = engine.max_batch_tokens
    for refill, budget in ((False, room), (True, 150)):
        engine.refill, engine.max_batch_tokens = refill, budget
        # the longest prompt is done first, and lets go of columns that only it used
        given = [Request(p, Sampling(max_tokens=14 - 3 * i)) for i, p in enumerate(asked)]
        got = generate(engine, given)
        for p, [c] in zip(asked, got, strict=True):
            logits = plain.logits(p + c.ids)[len(p) - 1 : -1]
            behind = logits.max(-1).values - logits.gather(1, torch.tensor(c.ids)[:, None])[:, 0]
            assert behind.max() < 0.01, f"greedy ids are behind the likeliest ones by {behind.max():.2f}"
            alone = plain.logits(p)[-1]
            assert (alone - logits[0]).abs().max() < 1e-3, (
                "it sees what comes after, and was not refused"
            )
    engine.refill, engine.max_batch_tokens = False, room


def alike(request: Request, one: list[int], other: list[int], plain: Plain) -> bool:
    "Are samples equal, or parted where rounding decides: at two ids that are equally likely but for it?"
    if one == other:
        return True
    same = next(k for k, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    scores = plain.logits(request.prompt_ids + one[:same])[-1]
    return abs(scores[one[same]] - scores[other[same]]).item() < 1e-3


def check_sampled(engine, plain: Plain):
    "Samples end with the token that completes the stop text, and are the same in a batch and alone."
    tokenizer = engine.tokenizer
    hot = [Sampling(3, 1.0, 0.95, 16, (STOP,), seed=i) for i in range(4)]
    asked = [Request(p, s) for p, s in zip(prompts(tokenizer), hot, strict=True)]
    got = generate(engine, asked)
    for request, completions in zip(asked, got, strict=True):
        [alone] = generate(engine, [request])
        for c, own in zip(completions, alone, strict=True):
            assert alike(request, c.ids, own.ids, plain), "a sample is another one in a batch"
            before = tokenizer.decode(c.ids[:-1], skip_special_tokens=True)
            assert STOP not in before, "a sample goes on after the stop text"
            assert (STOP in c.text) == (c.finish_reason == "stop") or c.finish_reason == "eos", c
    reasons = {c.finish_reason for completions in got for c in completions}
    assert "stop" in reasons, f"no sample has the stop text: {reasons}"


def check_scored(engine, plain: Plain):
    "How likely some ids come next is what plain passes say."
    among = tuple(range(5, 25))
    asked = prompts(engine.tokenizer)
    got = generate(engine, [Request(p, Sampling(among=among)) for p in asked])
    for p, [c] in zip(asked, got, strict=True):
        own = plain.logits(p)[-1].log_softmax(-1)[list(among)]
        off = (torch.tensor(c.logprobs) - own).abs().max()
        assert off < 1e-3, f"likelihoods are off by {off:.4f}"


def searched(engine, scores: str, problems: int) -> list:
    "The trajectories of a short search."
    s = SearchSettings(w=4, temperature=1.0, top_p=1.0, max_steps=3, max_step_tokens=30, on_tie="skip")
    judge = JudgeSettings(verdict="short", orders="single")
    setup = SearchSetup(engine.tokenizer, DOMAIN, s, judge, scores=scores, context=engine.context)
    asked = [Problem(f"p{i}", text.split("\n")[0]) for i, text in enumerate(tiny.solutions(problems))]
    found = dict(drive(engine, [(p.id, search(p, setup)) for p in asked]))
    return [found[p.id] for p in asked]


def check_judging(engine):
    "Every judgement of a search has a verdict, or says that both are equally likely."
    [trajectory] = searched(engine, "judge", 1)
    judgements = [j for step in trajectory.steps for j in step.judgements]
    unread = [j for j in judgements if j.verdict is None and len(set(j.logprobs or ())) != 1]
    assert judgements and not unread, f"no verdict in {len(unread)} of {len(judgements)} judgements"


def pairs_of_a_search(engine) -> list[StepPair]:
    "Pairs of best and worst by lot: how a random model judges may leave none."
    pairs, fate = make_pairs(searched(engine, "random", 2))
    assert len(pairs) > 1, f"a search of two problems made {len(pairs)} pairs: {fate}"
    return pairs


# What training does.


def rows(tokenizer) -> list:
    "Training rows of unequal lengths of both kinds."
    first, second, *_ = tiny.solutions(2)
    question, *lines = [line for line in first.split("\n") if line]
    steps = [line.split(": ", 1)[1] for line in lines[:3]]
    solved = [IFTRow("1", question, steps, "5"), IFTRow("2", question[:20], steps[:1], "5")]
    verdicts = [EFTRow("3", question, steps[:1], steps[1], steps[2], v, "So it is.") for v in "AB"]
    return [ift_ids(tokenizer, DOMAIN, r) for r in solved] + [
        eft_ids(tokenizer, DOMAIN, r) for r in verdicts
    ]


def check_sft(folder: str, out: Path, plain: Plain):
    "One update, padded and packed; its loss is the mean over all tokens by plain passes, but for dropout."
    ids = rows(load_tokenizer(folder))
    own = -sum(plain.log_prob(p, c) for p, c in ids) / sum(len(c) for _, c in ids)
    allowed = 0.2 * own if drops(plain.model) else 1e-3
    for name, tokens in (("M1", 0), ("packed", 256)):
        s = SFTSettings(epochs=1, learning_rate=3e-3, batch_size=4, micro_batch=4, pack_tokens=tokens)
        figures = train_sft(folder, ids, out / name, s)
        off = abs(figures["loss_first"] - own)
        assert figures["updates"] == 1, figures
        assert off < allowed, f"the loss of SFT ({name}) is off by {off:.4f} of {own:.2f}"


def drops(model) -> bool:
    "Does a model draw anything at random in training?"
    return _draws(model.config.get_text_config().to_dict())


def _draws(settings: dict) -> bool:
    "Is there a share of dropout or noise among some settings, or among those of a part (DBRX's attention)?"
    parts = [part for part in settings.values() if isinstance(part, dict)]
    own = any(settings[name] for name in map(str, settings) if "drop" in name or "jitter" in name)
    return own or any(_draws(part) for part in parts)


def expected_loss(pairs: list[StepPair], policy: Plain, reference: Plain, beta: float) -> float:
    "DPO's loss (Rafailov et al. 2023, equation 7) by plain passes."
    total = 0.0
    for p in pairs:
        ratios = []
        for ids in (p.chosen_ids, p.rejected_ids):
            ratios.append(policy.log_prob(p.prompt_ids, ids) - reference.log_prob(p.prompt_ids, ids))
        total -= torch.nn.functional.logsigmoid(torch.tensor(beta * (ratios[0] - ratios[1]))).item()
    return total / len(pairs)


def check_dpo(folder: str, start: str, pairs: list[StepPair], out: Path, plain: Plain):
    "First losses: ln 2 against the start; against another model what plain passes say, by trees and pairs."
    many = dict(batch_size=len(pairs), micro_batch=4, epochs=1, beta=0.5)
    own = expected_loss(pairs, Plain(start), plain, 0.5)
    for packing in ("tree", "pairs"):
        s = DPOSettings(packing=packing, **many)
        loss = train_dpo(start, pairs, out / packing, s, reference=folder)["loss_first"]
        assert abs(loss - own) < 2e-4, f"DPO's first loss by {packing} is {loss:.4f}, not {own:.4f}"
    same = train_dpo(start, pairs, out / "same", DPOSettings(**many))["loss_first"]
    assert abs(same - log(2)) < 1e-4, f"DPO's first loss is {same:.4f}, not ln 2"


# The matrix.


def whole_loop(folder: str, out: Path):
    "AssertionError for what is wrong, InputError for what is refused."
    engine, plain = TransformersEngine(folder), Plain(folder)
    check_greedy(engine, plain)
    check_sampled(engine, plain)
    check_scored(engine, plain)
    check_judging(engine)
    pairs = pairs_of_a_search(engine)
    check_sft(folder, out, plain)
    TransformersEngine(str(out / "M1"))
    check_dpo(folder, str(out / "M1"), pairs, out, plain)


CLASSES = re.compile("|".join(sorted(set(tiny.ARCHITECTURES.values()), key=len, reverse=True)))


def _plain_words(text: str, folder: Path) -> str:
    "A message without what differs from run to run, and from architecture to architecture."
    text = CLASSES.sub(
        "the model", text.replace(str(folder / "M0"), "the model").replace(str(folder), "")
    )
    return re.sub(r"\s+", " ", text).strip()


def _said(heard: list, folder: Path) -> list[str]:
    "What psr_nb warned of, there or where it was called."
    places = ("psr_nb", Path(__file__).name)
    own = [w for w in heard if any(p in w.filename for p in places) and w.category is UserWarning]
    return sorted({_plain_words(str(w.message), folder) for w in own})


def _last_place(e: Exception) -> str:
    "Where an exception came from."
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__}: {e} ({Path(frame.filename).name}:{frame.lineno})"


@contextmanager
def quickly():
    """One thread: several would wait for each other on tensors as small as these. And what was imported isn't
    looked through again whenever a training collects garbage."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


@quickly()
def row_of(kind: str, tokenizer=None, **more) -> Row:
    "What comes out for an architecture, with more settings of its configuration if there are any."
    if kind in tiny.NOT_MADE:
        return Row(kind, "untested", [tiny.NOT_MADE[kind]])
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        out = Path(place)
        try:
            model = tiny.tiny_model(tiny.tiny_config(kind, **more))
            folder = tiny.save_tiny(out / "M0", model, tokenizer or tiny.tiny_tokenizer())
        except Exception as e:
            return Row(kind, "untested", [f"no small model of it could be made: {_last_place(e)}"])
        try:
            whole_loop(folder, out)
        except InputError as e:
            return Row(kind, "refused", [_plain_words(str(e), out)])
        except Exception as e:
            return Row(kind, "WRONG", [str(e) if type(e) is AssertionError else _last_place(e)])
        said = _said(heard, out)
    return Row(kind, "falls back" if said else "works", said)


@cache
def documented() -> dict:
    "What the documentation has: the version of transformers, and a row for each architecture."
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"transformers": "", "rows": []}


def kept() -> dict[str, Row]:
    "The documentation's table by kind."
    return {r["kind"]: Row(**r) for r in documented()["rows"]}


def counts(table: list[Row]) -> dict[str, int]:
    "How many architectures there are of each outcome."
    names = ("works", "falls back", "refused", "untested", "WRONG")
    return {name: sum(r.outcome == name for r in table) for name in names}


def write(table: list[Row]):
    "Keep a table as the documentation's."
    lines = ",\n".join(json.dumps(asdict(r), ensure_ascii=False) for r in table)
    version = transformers.__version__
    KEPT.write_text(f'{{"transformers": "{version}",\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = kept() if args.kinds else {}
    for kind in args.kinds or tiny.ARCHITECTURES:
        rows[kind] = row_of(kind)
        print(f"{kind:26} {rows[kind].outcome:10} {'; '.join(rows[kind].notes)[:500]}", flush=True)
        if args.write:
            write(list(rows.values()))
    print(counts(list(rows.values())))


if __name__ == "__main__":
    main()
