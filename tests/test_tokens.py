"""Whatever the tokenizer: training, search and judge put the same ids together and cut them at one place."""

import random
import unicodedata
import warnings
from dataclasses import replace

import pytest
from tiny_models import TOKENIZERS, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from psr_nb.datagen.prm import PRMFormat, prm_ids, prm_row
from psr_nb.datagen.scorers import StepLabels
from psr_nb.domains.find import BUILT_IN, domain_named
from psr_nb.domains.maths import MATH
from psr_nb.engine import RecordedEngine, generate
from psr_nb.engines.batch import Stops
from psr_nb.judge import run_with
from psr_nb.prompts import check_returned, check_tokenizer, label_ids, step_candidate, step_ids
from psr_nb.records import Completion, EFTRow, IFTRow, InputError, Problem
from psr_nb.search import SearchSettings, SearchSetup, search
from psr_nb.sft import check_rows, eft_ids, ift_ids
from psr_nb.texts.chat import prompt_ids
from psr_nb.texts.labels import labels_in, next_label, unlabelled
from psr_nb.texts.tokens import encode, first_lost, ids_after, ids_before
from psr_nb.texts.verdicts import verdict_ids

KINDS = list(TOKENIZERS)
GOOD, BAD = KINDS[:4], KINDS[4:]
STEPS = [
    "Tom starts with 13 apples.",
    "Then Tom buys 12, so that is 13 + 12 = 25.",
    "The answer is \\boxed{25}.",
]
QUESTION = "Tom has 13 apples and buys 12 more. How many apples does Tom have now?"
PLAIN = replace(MATH, ask="{}\n\n".format)  # a short prompt


def always_spaced() -> PreTrainedTokenizerFast:
    "A Metaspace that puts a space before the parts of a text too, not only before the whole."
    known = ["<unk>", "</s>", "▁", *"▁1 ▁2 1 2 3 5 : . ▁[[ A B ]] ▁so \n Step ▁Step".split(" ")]
    known += list("\n4567890")
    made = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(dict.fromkeys(known))}, unk_token="<unk>")
    )
    parts = [pre_tokenizers.Metaspace(prepend_scheme="always")]
    parts += [pre_tokenizers.Split(c, "isolated") for c in ("\n", ":", ".", "A", "B", *"1234567890")]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("kind", GOOD)
def test_a_training_row_is_the_ids_of_the_whole_text(kind):
    tok = tiny_tokenizer(kind)
    prompt, completion = ift_ids(tok, PLAIN, IFTRow("1", QUESTION, STEPS, "25"))
    lines = [f"Step {k}: {step}" for k, step in enumerate(STEPS, 1)]
    whole = prompt_ids(tok, f"{QUESTION}\n\n" + "\n".join(lines))
    assert prompt + completion == whole + [tok.eos_token_id]


def searched(tok, completions: list[str]):
    "The trajectory of a search in which the model writes these texts, one a step."
    written = iter(completions)

    def reply(request):
        before = tok.decode(request.prompt_ids)[-20:]
        text = next(written)
        reason = "eos" if text.endswith("}.") else "stop"
        ids = ids_after(tok, before, text) + [tok.eos_token_id] * (reason == "eos")
        return [Completion(ids, tok.decode(ids, skip_special_tokens=True), reason)] * 2

    setup = SearchSetup(tok, PLAIN, SearchSettings(w=2))
    engine = RecordedEngine(tok, reply)
    return run_with(
        search(Problem("1", QUESTION, "25"), setup), lambda requests: generate(engine, requests)
    )


@pytest.mark.parametrize("kind", GOOD)
def test_the_search_has_the_ids_that_training_has_taught(kind):
    tok = tiny_tokenizer(kind)
    texts = [f" {step}\nStep {k}:" for k, step in enumerate(STEPS[:-1], 2)] + [f" {STEPS[-1]}"]
    t = searched(tok, texts)
    assert t.ended == "answered" and [s.candidates[0].text.strip() for s in t.path] == STEPS
    prompt, completion = ift_ids(tok, PLAIN, IFTRow("1", QUESTION, STEPS, "25"))
    found = list(t.prompt_ids)
    for step in t.path:
        found += step.label_ids + step.candidates[0].ids
    assert found == prompt + completion


@pytest.mark.parametrize("kind", GOOD)
def test_the_stop_text_is_in_what_training_teaches(kind):
    tok = tiny_tokenizer(kind)
    _, completion = ift_ids(tok, PLAIN, IFTRow("1", QUESTION, STEPS, "25"))
    text = tok.decode(completion, skip_special_tokens=True)
    assert all(MATH.stop(k) in text for k in (1, 2))
    c = step_candidate(tok, MATH, 1, Completion(completion, text, "eos"))
    assert (c.text.strip(), c.final, c.relabelled) == (STEPS[0], False, 0)
    assert c.ids == step_ids(tok, MATH, 1, STEPS[0])


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("explanation", ["The first is right.", "13 + 12 = 25", ""])
def test_a_scored_verdict_is_one_that_training_teaches(kind, explanation):
    tok = tiny_tokenizer(kind)
    opening, sides = verdict_ids(tok)
    for side, last in zip("AB", sides, strict=True):
        _, taught = eft_ids(tok, MATH, EFTRow("1", QUESTION, [], "x", "y", side, explanation, "rule"))
        said = [*opening, last]
        assert any(taught[i : i + len(said)] == said for i in range(len(taught)))
        assert f"[[{side}]]" in tok.decode(taught)


@pytest.mark.parametrize("kind", GOOD)
def test_a_tokenizer_that_can_write_a_domain_is_taken(kind):
    check_tokenizer(tiny_tokenizer(kind), MATH)
    check_tokenizer(tiny_tokenizer(kind), replace(MATH, stop=lambda k: "。", label="第{}步：".format))


@pytest.mark.parametrize(
    "kind, said", list(zip(BAD, ["line ends are lost", "capitals are lost"], strict=True)), ids=BAD
)
def test_one_that_cannot_is_refused_by_name(kind, said):
    tok = tiny_tokenizer(kind)
    tok.name_or_path = f"a/{kind}"
    with pytest.raises(InputError, match=f"a/{kind}: .*{said}"):
        check_tokenizer(tok, MATH)
    with pytest.raises(InputError, match=said):
        next(search(Problem("1", QUESTION, "25"), SearchSetup(tok, MATH)))


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("mark", ["", " [[A]]"])
def test_a_reward_model_reads_the_ids_of_the_whole_text(kind, mark):
    tok, f = tiny_tokenizer(kind), PRMFormat(mark=mark)
    ids, ends = prm_ids(tok, PLAIN, QUESTION, STEPS, f)
    lines = [f"Step {k}: {step}{mark}\n" for k, step in enumerate(STEPS, 1)]
    whole = prompt_ids(tok, f"{QUESTION}\n\n" + "".join(lines))
    assert tok.decode(ids) == tok.decode(whole)
    assert mark or ids == whole  # the mark's last token is its own, whatever follows
    for k, end in enumerate(ends, 1):
        assert tok.decode(ids[: end + 1]).endswith(
            lines[k - 1] if not mark else lines[k - 1].rstrip("\n")
        )
    row = prm_row(tok, PLAIN, StepLabels("1", QUESTION, STEPS, [1, 0, None]), f)
    [bad, good] = [row["labels"][ends[i] + 1] for i in (1, 0)]
    assert (tok.decode([good]).strip(), tok.decode([bad]).strip()) == ("+", "-")


def rewritten(normalizer, **tokens) -> PreTrainedTokenizerFast:
    "The tokenizer like Llama 3's, which first rewrites what it reads."
    made = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, **({"eos_token": "</s>"} | tokens))


@pytest.mark.parametrize(
    "tok, said",
    [
        (rewritten(normalizers.Replace("\n", "")), "line ends are lost"),
        (rewritten(normalizers.Replace("7", "1")), "a step, '1234567890'"),
        (rewritten(normalizers.Replace("[[B", "[[A")), "a verdict, '\\[\\[B\\]\\]'"),
        (rewritten(normalizers.Replace("Step 10", "Step 1")), "a label, 'Step 10:'"),
        (rewritten(normalizers.Replace("\nStep 2:", "\n Step 2:")), "a label, 'Step 2:'|spaces"),
        (rewritten(None, eos_token=None), "no end-of-text token"),
    ],
    ids=["line end", "digit", "mark", "label of two digits", "space", "end"],
)
def test_all_that_is_put_together_is_read_back(tok, said):
    with pytest.raises(InputError, match=said):
        check_tokenizer(tok, MATH)


def with_special(*texts: str) -> PreTrainedTokenizerFast:
    "One that has taken some signs for special tokens."
    tok = rewritten(None)
    tok.add_special_tokens({"additional_special_tokens": list(texts)})
    return tok


@pytest.mark.parametrize("sign, other", [(",", ""), ("\\", "/"), ('"', "'"), ("Problem", "problem")])
def test_one_that_changes_what_the_domain_says_is_refused(sign, other):
    with pytest.raises(InputError, match="for math: the domain's own words come back without"):
        check_tokenizer(rewritten(normalizers.Replace(sign, other)), MATH)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_words_of_the_librarys_domains_come_back(kind, name):
    check_tokenizer(tiny_tokenizer(kind), domain_named(name))


NFKC = rewritten(normalizers.NFKC())
ROWS = [
    (NFKC, "so 3² = 9", "²"),
    (NFKC, "ﬁve", "ﬁ"),
    (with_special("+"), "四 + 1 = 5", "+"),
    (with_special("<x>", "%"), "so <x> = 7%", "%"),
    (rewritten(normalizers.Replace("√", "")), "√9 is 3", "√"),
    (rewritten(normalizers.Replace("  ", " ")), "a  b", " "),
]


@pytest.mark.parametrize("tok, said, lost", ROWS)
@pytest.mark.parametrize("where", ["step", "question", "explanation", "a"])
def test_rows_that_do_not_come_back_are_counted(tok, said, lost, where):
    good = IFTRow("good", "How many?", ["so 5", "\\boxed{5}"], "5")
    judged = EFTRow("bad", "How many?", ["so"], "x", "z", "A", "It is so.")
    bad = {
        "step": replace(good, id="bad", steps=["so", said, "so"]),
        "question": replace(good, id="bad", question=said),
        "explanation": replace(judged, explanation=said),
        "a": replace(judged, a=said),
    }[where]
    told = f"1 of 3 rows lose characters in its tokenizer, the first is 'bad', .* without '[{lost}]'"
    with pytest.warns(UserWarning, match=told):
        assert check_rows(tok, MATH, [good, bad, good]) == 1
    with pytest.raises(InputError, match="2 of 3 rows lose .*; take another model"):
        check_rows(tok, MATH, [bad, good, bad])


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    "text", ["  so 3 ", "a , b .  c 's", "a\n\n  b\tc", "café", "cafe\u0301", "√9 ✅", "</s>"]
)
def test_what_changes_no_text_is_no_loss(kind, text):
    tok = tiny_tokenizer(kind)
    row = IFTRow("1", text, [text, "so 5", text], "5")
    judged = EFTRow("2", text, [text], text, text, "B", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_rows(tok, MATH, [row, judged]) == 0


def test_one_way_to_write_a_character_is_as_good_as_another():
    tok = rewritten(normalizers.NFC())
    tok.clean_up_tokenization_spaces = True
    tok.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = unicodedata.normalize("NFD", "é , Å .")
    assert tok.decode(encode(tok, text)) == "é, Å."  # which is what tidying makes of it
    assert first_lost(tok, encode(tok, text), [text]) is None


def test_of_many_rows_a_thousand_are_looked_at():
    seen = []

    def lost(row):
        seen.append(row)
        return None if row % 2 else (str(row), "²")

    with pytest.warns(UserWarning, match=r"of 1,000 rows looked at, of 5,000, lose"):
        found = check_returned(tiny_tokenizer(), "rows", [2, *[1, 1, 1, 2] * 1249, 1, 1, 1], lost)
    assert len(seen) == 1000 and found == seen.count(2) and 200 < found < 300


def test_a_tokenizer_without_the_words_of_a_domain_is_refused():
    with pytest.raises(InputError, match="some of its characters are lost"):
        check_tokenizer(always_spaced(), replace(MATH, label="Move {}:".format, stop=lambda k: "\n"))


def test_spaces_before_every_part_of_a_text():
    tok = always_spaced()
    ids = encode(tok, "so 1\n") + label_ids(tok, MATH, 2) + step_ids(tok, MATH, 2, "5")
    assert tok.decode(ids) == " so 1\nStep 2: 5\n"  # alone the label would be " Step 2:"
    assert tok.decode(encode(tok, "Step 2:")) == " Step 2:"


@pytest.mark.parametrize("kind", GOOD)
def test_a_special_token_in_a_row_is_taught_as_text(kind):
    "The one at a row's end is the only real one, and what is read back is the row."
    tok = tiny_tokenizer(kind)
    steps = ["Tom </s> has <s>3</s>.", "</s>", "The answer is \\boxed{3}. <pad>"]
    rows = [ift_ids(tok, PLAIN, IFTRow("1", QUESTION, steps, "3"))]
    rows += [eft_ids(tok, MATH, EFTRow("1", QUESTION, [], "x", "y", "A", "It says </s> here.", "rule"))]
    for _, taught in rows:
        assert [i for i in taught if i in tok.all_special_ids] == [tok.eos_token_id]
        assert taught[-1] == tok.eos_token_id
    lines = [f" {steps[0]}\n", f"Step 2: {steps[1]}\n", f"Step 3: {steps[2]}"]
    assert tok.decode(rows[0][1], skip_special_tokens=True).strip() == "".join(lines).strip()
    assert tok.decode(rows[1][1], skip_special_tokens=True).strip() == "It says </s> here. [[A]]"


# What is cut.

PIECES = [
    " so 3",
    "✅",
    "\n",
    "Step 2:",
    "  ",
    "第2步：",
    "。",
    "é",
    " 12+3=15",
    "👍🏽",
    ".",
    "�",
    "\t",
    "A",
]


def random_ids(tok, rng: random.Random) -> list[int]:
    "Ids of a text as models write it, or any ids, which may break characters."
    if rng.random() < 0.7:
        return encode(tok, "".join(rng.choices(PIECES, k=rng.randint(1, 8))))
    return [rng.randrange(len(tok)) for _ in range(rng.randint(1, 20))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_keeps_what_is_before_it_and_no_id_more(kind):
    tok, rng = tiny_tokenizer(kind), random.Random(kind)
    for _ in range(60):
        ids = random_ids(tok, rng)
        text = tok.decode(ids, skip_special_tokens=True)
        beginnings = [tok.decode(ids[:n], skip_special_tokens=True) for n in range(len(ids) + 1)]
        for end in range(len(text) + 1):
            fewest = next(n for n, b in enumerate(beginnings) if b.startswith(text[:end]))
            assert ids_before(tok, ids, end) == ids[:fewest], (text, end)


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    "text, step",
    [
        (" so 3 ✅\nStep 2: more", " so 3 ✅\n"),
        (" 3\n✅\nStep 2: more", " 3\n✅\n"),
        (" 三个苹果\n第2步：更多", " 三个苹果\n"),
        (" so 3 ✅✅✅✅\n### Step 2: more", " so 3 ✅✅✅✅\n"),
    ],
)
def test_a_cut_before_a_label_keeps_line_end_and_emoji(kind, text, step):
    tok = tiny_tokenizer(kind)
    ids = ids_after(tok, ":", text)
    whole = tok.decode(ids)
    c = step_candidate(tok, MATH, 1, Completion(ids, whole, "length"))
    assert (c.text.lstrip(), c.problem) == (step.lstrip(), None)
    assert c.ids == ids[: len(c.ids)] and tok.decode(c.ids) == c.text


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    "stop, label", [("。", "第{}步："), ("\n", "Step {}:"), ("<end>", ""), ("\n", "{})")]
)
def test_a_step_ends_where_its_domain_says(kind, stop, label):
    tok, domain = tiny_tokenizer(kind), replace(MATH, stop=lambda k: stop, label=label.format)
    ids = ids_after(tok, ":", f" so 3 ✅{stop} and more{stop}")
    c = step_candidate(tok, domain, 1, Completion(ids, tok.decode(ids), "eos"))
    assert (c.text.strip(" "), c.final, c.relabelled) == (f"so 3 ✅{stop}", False, 0)
    whole = step_candidate(tok, domain, 1, Completion(c.ids, c.text, "stop"))
    assert whole.ids == c.ids


def overlapping() -> PreTrainedTokenizerFast:
    "A tokenizer with tokens that reach from a label, a mark or a line end into what follows."
    known = ["<unk>", "</s>", *dict.fromkeys("Step 0123456789:\n.[]ABx=+"), ": ", "\nS", ". "]
    merges = [(":", " "), ("\n", "S"), (".", " ")]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(known)}, merges, unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


def test_where_a_token_reaches_over_the_border_another_anchor_is_taken():
    tok = overlapping()
    check_tokenizer(tok, MATH)
    assert tok.convert_ids_to_tokens(step_ids(tok, MATH, 1, "5", last=True)) == [" ", "5"]
    assert tok.convert_ids_to_tokens(label_ids(tok, MATH, 2))[:2] == ["S", "t"]
    row = IFTRow("1", "5", ["5", "x=5"], "5")
    prompt, completion = ift_ids(tok, replace(MATH, ask="{}\n".format), row)
    assert tok.decode(prompt + completion[:-1]) == "5\nStep 1: 5\nStep 2: x=5"


def test_a_stop_of_single_bytes_is_seen():
    "ByT5's bytes decode to nothing each, and not to the sign of a broken character."
    tok = ByT5Tokenizer()
    stops = Stops(tok)
    for stop in ("。", "第2步：", "é", "\nStep 2:"):
        ids = tok(f"so 3 ✅{stop}", add_special_tokens=False)["input_ids"]
        seen = [n for n in range(1, len(ids) + 1) if stops.hit((stop,), ids[:n])]
        assert seen == [len(ids)]


# Labels.

WRITTEN = r"""
### Step 2: | **Step 2:** | **Step 2**: | Step 2. Add | Step 2 - add | Step 2) add | step 2: | STEP 2:
步骤2： | 第2步 | 第二步：计算 | 步骤 2: | Schritt 2: | 2. Schritt: | Étape 2 : | Paso 2: | Passo 2:
Шаг 2: | ステップ2： | 2단계: | Bước 2: | Adım 2: | الخطوة 2: | Step Two: | Step II. | Step #2:
[Step 2] | (Step 2) add | Step 2 of 5: | Step 2/5: | Step 2 (add): | \textbf{Step 2:} add
\section*{Step 2} | <b>Step 2:</b> | - **Step 2:** | > Step 2: | 1. **Step 2:** | ## Step 2 Add them
**Step 2: Add.** 3 | __Step 2__ | Step 2 – add | ✅ Step 2: | Step 2: | Step 2 | *Step 2:* | Step２:
Step 2:5+4 | Step 2 -> add | 2nd step: add | Step [2]: | Step <2>: | Step{2}: | Step $2$: | Step **2**:
**Step** 2: | 1️⃣ Step 2: | Step 2a: | === Step 2 === | --- Step 2 --- | Step number 2: | \item Step 2:
\item[Step 2:] add | Final step: | Last step: add | Step ②: | Step ❷: | \(Step 2\): | Step 2, we add 4.
Step 2 He buys 4. | Step 2; | {\bf Step 2:} | Step 2 out of 5: | Deuxième étape : | Zweiter Schritt:
Segundo paso: | Secondo passo: | Второй шаг: | Letzter Schritt: | 最后一步： | <step>2</step>
Step n°2: | Étape n° 2 : | Step 2… | Ｓｔｅｐ　２： | Second step: | 步骤【2】： | ### 2단계 더하기
**2 langkah** tambah | 2步：计算
"""
PROSE = """
Step 2 shows it | as Step 2: says | Steps 2 and 3: | Step 2.5: | Step 2-3 | Step by step: | 2. add
2) add | (2) | "Step 2:" says | (Step 2: see above) | Second: add | Step 2's sum | # 2 | - 2
第2步的结果 | footstep 2: | 2 steps: | Step 2000: | Step 2 and 3: | - Step 2 shows | In step 2: so
Step: 2 | **2.** add | Step A: | 2步。 | 12步。 | 十二步。 | 12 langkah. | 12단계. | 2 langkah
Step 2 is wrong | In step 2 we add | in step 2 we | Step 2, which is wrong | Step 2, then step 3
Step 2 I | Step 2, as above, is | Step 2, we saw, is | Final step is to | As step 2, we | Twenty steps:
Step 2 and we add | Step 2.1: add | Second step is to add | Step [A]: | Step $x$: | 2️⃣ add
"""


def cells(table: str) -> list[str]:
    "What stands between the bars."
    return [cell.strip() for line in table.strip().splitlines() for cell in line.split(" | ")]


@pytest.mark.parametrize("written", cells(WRITTEN))
def test_a_label_is_read_however_it_is_written(written):
    [found] = labels_in(f" first,\n{written}\nrest", 1)
    assert (found.at, found.number) == (8, 2)
    assert next_label(f" first\r\n  {written}\r\nrest", 2).at == 8
    assert len(unlabelled(f"{written}\n")) < len(written)


@pytest.mark.parametrize("written", cells(PROSE))
def test_prose_and_lists_are_no_labels(written):
    assert next_label(f" first,\n{written}\nrest", 2) is None


@pytest.mark.parametrize(
    "written", ["Step eleven:", "Step XI:", "Step ⑪:", "STEP 11a:", "第十一步", "Step [11]: add"]
)
def test_numbers_above_ten_are_read(written):
    assert [x.number for x in labels_in(f" first,\n{written}\nrest", 10)] == [11]
    assert next_label("a\nStep Twenty: b", 20).number == 20


def test_numbers_may_be_repeated_or_skipped_and_a_label_repeated_at_once_is_none():
    def numbers(text, before=1):
        return [x.number for x in labels_in(text, before)]

    assert numbers(" Step 1: a\nStep 1: b\nStep 4: c\nStep 20: d") == [1, 4, 20]
    assert numbers("\n\n**Step 1:** a\n**Step 2:** b") == [2]
    assert numbers("Step 2: b") == [2]
    assert next_label(" a\nStep 20: b", 2).number == 20


def test_a_domains_own_labels_come_first_and_its_list_is_one():
    assert next_label("5\n2. 6", 2, "{}.".format).text == "2."
    assert next_label("5\n2. 6", 2) is None
    assert next_label(" a\n**move 2** b", 2, "Move {}:".format).number == 2
    assert next_label(" a\nMove 20 b", 2, "Move {}".format).number == 20
    assert next_label(" a\n- b", 2, lambda k: "-").at == 3
    assert next_label(" a\nb) c", 2, lambda k: f"{'abc'[k - 1]})").number == 2
    assert next_label("no labels\nat all", 2, lambda k: "") is None


@pytest.mark.parametrize("kind", GOOD)
def test_a_foreign_label_ends_a_step_and_is_counted(kind):
    tok = tiny_tokenizer(kind)
    text = " Tom has 3.\n\n**Step 2**: He buys 4.\n\n**Step 3:** \\boxed{7}."
    t = searched(tok, [text, f" {STEPS[-1]}"])
    [first, last] = [s.candidates[0] for s in t.path]
    assert (first.text.strip(), first.final, first.count, first.relabelled) == (
        "Tom has 3.",
        False,
        2,
        2,
    )
    assert (last.final, last.relabelled) == (True, 0)
