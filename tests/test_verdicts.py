"""A table of judges' replies with what each of them says: A, B, or nothing that is clear."""

import json
import re
import time

import pytest

from psr_nb.domains.find import domain_named, listed
from psr_nb.files import packaged
from psr_nb.texts.verdicts import defused, read_verdict

# The mark ends the reply, or all marks agree and nothing speaks against them.
AT_THE_END = [
    ("[[A]]", "A"),
    ("[[B]]", "B"),
    ("A drops the carry. [[B]]", "B"),
    ("A drops the carry [[B]]", "B"),
    ("5+4 is 9, so candidate A is right. [[A]]", "A"),
    ("candidate B is right. [[A]]", "A"),
    ("A 97 bad. B 95 ok. [[B]]", "B"),
    ("A 33 ok. B 113 bad. [[A]]", "A"),
    ("[[A]], because 5+4 is 9", "A"),
    ("[[A]] because 5+4 is 9, not 10", "A"),
    ("[[B]]\n\n5+4 is 9.", "B"),
    ("Candidate B does not follow.\n\n[[A]]", "A"),
    ("Candidate A is wrong [[B]]", "B"),
    ("[[A]] [[A]]", "A"),
    ("[[ A ]]", "A"),
    ("[[A]].", "A"),
    ("**[[B]]**", "B"),
    ("*[[A]]*.", "A"),
    ("`[[A]]`", "A"),
    ("([[B]])", "B"),
    ('"[[B]]"', "B"),
    ("[[A]] ✅", "A"),
    ("$[[A]]$", "A"),
    ("\\[\\[A\\]\\]", "A"),
    ("【【B】】", "B"),
    ("[[Candidate B]]", "B"),
    ("[[**A**]]", "A"),
    ("[[a]]", "A"),
    ("it follows. [[b]]", "B"),
    ("[[B]]</answer>", "B"),
    ("[[B]]?! No: [[B]]", "B"),
    ("5+4 = 9. So B is wrong [[A]] .", "A"),
    ("Candidate A is right.\n[[A]]\n\n[[A]]", "A"),
    ("[[B]] drops nothing, [[B]]", None),
]
# A mark or a letter is named as the answer.
NAMED = [
    ("Verdict: A", "A"),
    ("verdict: b", "B"),
    ("Verdict: [[A]]", "A"),
    ("**Verdict:** [[B]]", "B"),
    ("**Verdict: B**", "B"),
    ("Final verdict: B.", "B"),
    ("Final answer: B", "B"),
    ("Answer: A.", "A"),
    ("The answer is [[A]], not [[B]].", "A"),
    ("The answer is [[A]], not [[B]]", "A"),
    ("The answer is [[B]] because [[A]] drops the carry.", "B"),
    ("The better candidate is B.", "B"),
    ("Verdict:\n\n[[A]]", "A"),
    ("### Verdict\n[[B]]", "B"),
    ("Verdict:\nB", "B"),
    ("At first [[A]] looks right, but no: [[B]].", "B"),
    ("[[A]] looks right at first. The answer is [[B]], since 5+4 is 9.", "B"),
    ("Verdict: [[A]] is better than [[B]].", "A"),
    ("The correct one is [[B]]; [[A]] adds 4 twice.", "B"),
    ("答案：[[B]]", "B"),
    ("答案是[[A]]，不是[[B]]。", "A"),
    ("A是错的。[[B]]", "B"),
    ("La réponse est [[A]], pas [[B]].", "A"),
    ("Die Antwort ist [[B]].", "B"),
    ("Antwort: B", "B"),
    ("So the better step is [[B]].", "B"),
    ("I choose [[A]].", "A"),
    ("[[A]] is better.", "A"),
    ("[[A]] is correct, whereas candidate B makes an error.", "A"),
    ("There is no error in [[A]].", "A"),
    ("[[A]] is better because B is wrong.", "A"),
    ("Candidate B is wrong, therefore [[A]]", "A"),
    ("The winner is [[B]]!", "B"),
    ("My final decision is candidate [[B]].", "B"),
    ("Winner: **A**", "A"),
    ("**Final verdict**: [[A]]\n\nThe sum in B is wrong.", "A"),
    ("[[A]] forgets the 4. Therefore, the better step is [[B]], as 5+4 = 9.", "B"),
    ("Better candidate: B", "B"),
    ("Respuesta: [[B]]", "B"),
    ("정답: A", "A"),
    ("The correct answer is not in doubt: [[B]]", None),
]
# Two different marks in the sentence that decides, and neither is named: an echo, a comparison.
TWO_MARKS = [
    ("[[A]] is better than [[B]].", None),
    ("[[B]] is better than [[A]]", None),
    ("[[A]] is longer than [[B]], which proves nothing", None),
    ("Explain shortly, then end with [[A]] or [[B]].", None),
    ("end with [[A]] or [[B]]", None),
    ("[[A]] or [[B]]", None),
    ("[[A]]/[[B]]", None),
    ("[[A]][[B]]", None),
    ("[[A]], [[B]]", None),
    ("Both [[A]] and [[B]] are right.", None),
    ("Neither [[A]] nor [[B]]", None),
    ("The answer is [[A]] or [[B]].", None),
    ("Verdict: [[A]] or [[B]]", None),
    ("[[A]] vs. [[B]]", None),
    ("The answer is either [[A]] or [[B]]", None),
    ("[[B]]\n\nExplain shortly, then end with [[A]] or [[B]].", None),
    ("Explain shortly, then end with [[A]] or [[B]].\nA is right. [[A]]", "A"),
    ("Not [[A]] but [[B]].", None),
    ("Verdict: [[A]], [[B]]", None),
    ("Choose between the two: [[A]] or [[B]]", None),
    ("[[A]] beats [[B]]", None),
    ("Is it [[A]] or [[B]]?", None),
    ("It is [[A]]. Or [[B]], if 5+4 were 10.", None),
    ("Candidate A: [[A]] Candidate B: [[B]] which", None),
]
# The only mark is the wrong side.
SPOKEN_AGAINST = [
    ("A is better than [[B]].", None),
    ("I prefer A over [[B]]", None),
    ("The answer is not [[A]].", None),
    ("[[A]] is wrong.", None),
    ("The wrong one is [[A]].", None),
    ("The worse candidate is [[B]].", None),
    ("The mistake is in [[B]].", None),
    ("I do not think [[A]] is right.", None),
    ("I would not choose [[A]].", None),
    ("The wrong answer is [[B]].", None),
    ("Verdict: not [[A]]", None),
    ("[[A]] drops the carry.", None),
    ("The wrong one: [[A]]", None),
    ("答案不是[[A]]。", None),
    ("Besser als [[B]].", None),
    ("Candidate B does not follow, unlike [[A]].", None),
    ("There is an error in [[A]]", None),
    ("I can't choose [[B]]", None),
    ("I reject [[A]]", None),
    ("The winner is not [[B]]", None),
    ("It is worse than [[A]].", None),
]
# No mark of A or B, or none that holds.
NEITHER = [
    ("Both are fine.", None),
    ("", None),
    ("[[C]]", None),
    ("[[A]] is as good. [[tie]]", None),
    ("[[A or B]]", None),
    ("[A]", None),
    ("[[A]", None),
    ("Is it [[A]]?", None),
    ("Candidate A is better.", None),
    ("A", None),
    ("Verdict: A or B", None),
    ("Verdict: A, B is wrong", None),
    ("Verdict: a better step", None),
    ("Verdict: neither", None),
    ("The answer is 9.", None),
    ("Is the answer A?", None),
    ("The wrong answer is B.", None),
    ("The matrix is [[1, 2], [3, 4]]. [[A]]", "A"),
    ("The matrix is [[1, 2], [3, 4]].", None),
    ("[[A]] looks longer. Verdict: B", None),
    ("The correct answer is B, as candidate A finds. [[A]]", "A"),
    ("[[A]] looks right. [[B]] drops the carry.", None),
    ("Verdict: [[C]]", None),
    ("Verdict: A. Verdict: B.", None),
    ("The answer is a matter of taste.", None),
    ("Decision: B?", None),
    ("[[A]]? Perhaps.", None),
]
# What a model thinks first is no verdict.
AFTER_A_THOUGHT = [
    ("<think>Perhaps [[A]].</think>B follows. [[B]]", "B"),
    ("<think>It is [[A]]", None),
    ("Perhaps [[A]]</think>\n\n[[B]]", "B"),
    ("<think>[[A]]</think>", None),
    ("<think></think>[[A]]", "A"),
    ("<thinking>[[B]]</thinking>\nVerdict: A", "A"),
    ("[THINK]so [[B]][/THINK][[A]]", "A"),
]
# A word beside the mark turns it round.
WRONG_SIDE = [
    ("Incorrect: [[A]]", None),
    ("The incorrect answer is [[A]].", None),
    ("The incorrect one is [[B]].", None),
    ("Incorrect: A", None),
    ("The incorrect candidate is B.", None),
    ("Unanswer: A", None),
    ("Loser: [[A]]", None),
    ("The least correct is [[A]]", None),
    ("Non-preferred answer: [[A]]", None),
    ("Unpreferred: [[A]]", None),
    ("The second best is [[A]]", None),
    ("Second-best answer: [[A]]", None),
    ("The second best is A.", None),
    ("I doubt that [[A]] is better.", None),
    ("[[A]] is hardly better.", None),
    ("It is unlikely that [[A]] is the better step.", None),
    ("I would avoid [[A]].", None),
    ("No [[A]]", None),
    ("Eliminate [[A]]", None),
    ("I would rule out [[B]].", None),
    ("[[A]] is at least correct.", "A"),
    ("There is no doubt: [[B]]", "B"),
    ("[[A]] correctly eliminates x.", "A"),
    ("The second candidate is right: [[B]]", "B"),
    ("So the correct answer is a", None),
]
IN_OTHER_LANGUAGES = [
    ("Mauvaise réponse : [[A]]", None),
    ("La mauvaise réponse est [[A]].", None),
    ("Die falsche Antwort ist [[A]].", None),
    ("Die schlechtere Antwort ist [[A]].", None),
    ("[[A]] no es correcto.", None),
    ("La respuesta incorrecta es [[A]].", None),
    ("Respuesta errónea: [[A]]", None),
    ("[[A]] não está certo", None),
    ("Resposta errada: [[A]]", None),
    ("La risposta sbagliata è [[A]]", None),
    ("[[A]] неверно", None),
    ("Неправильный ответ: [[A]]", None),
    ("错误答案是[[A]]", None),
    ("不正确的选择是[[A]]", None),
    ("[[A]]は間違いです。", None),
    ("[[A]]は正しくない", None),
    ("間違った回答: [[A]]", None),
    ("[[A]] 틀렸습니다.", None),
    ("오답: [[A]]", None),
    ("[[A]] إجابة خاطئة", None),
    ("La mejor respuesta es [[A]].", "A"),
    ("Endurteil: [[A]]", "A"),
    ("最终答案：[[B]]", "B"),
    ("최종 정답: [[B]]", "B"),
]
# A judge that repeats its task, or only a part of it, or says under which condition it would say what.
CONDITIONS = [
    ("If the first is better, output [[A]].", None),
    ("If the first is better, the verdict is [[A]].", None),
    ("Output [[A]] if the first is better.", None),
    ("Finish with [[A]] if candidate A is better, and with", None),
    ("[[A]] if the first", None),
    ("Answer:\n[[A]] if first\n[[B]] if second", None),
    ("`Verdict: [[A]]` if the first is better, otherwise `Verdict: [[B]]`.", None),
    ("Verdict: [[A]] or Verdict: [[B]]", None),
    ("Verdict: A or verdict: B", None),
    ("If A is better, write verdict: A", None),
    ('Output {"verdict": "A"} or {"verdict": "B"}', None),
    ("如果A更好，输出[[A]]", None),
    ("[[A]]\n[[B]]", None),
    ("[[A]]\n\nor\n\n[[B]]", None),
    ("If I recompute 3+4, I get 7, so [[A]].", "A"),
    ("If the first is better, output [[A]].\nB drops the carry. The verdict is [[A]].", "A"),
]
OTHER_FORMS = [
    ("\\boxed{A}", "A"),
    ("$\\boxed{B}$.", "B"),
    ("Candidate A ends with \\boxed{B}", None),
    ("\\boxed{9}", None),
    ("<answer>A</answer>", "A"),
    ("<answer>A or B</answer>", None),
    ('{"reason": "B is wrong", "verdict": "A"}', "A"),
    ('{\n  "reason": "A is wrong.",\n  "verdict": "B"\n}', "B"),
    ('{"verdict": "A|B"}', None),
    ("[[A]] is correct while [[B]] is incorrect.", "A"),
    ("[[A]] is incorrect, but [[B]] is correct.", "B"),
    ("[[A]] is correct and [[B]] is correct.", None),
    ("[[A]] is incorrect while [[B]] is incorrect.", None),
    ("Is it so that [[A]] is correct while [[B]] is incorrect?", None),
]
# It is taken back, or ranked behind the other.
TAKEN_BACK = [
    ("[[A]]\n\nWait, 5+4 is 9, so B is right after all.", None),
    ("[[A]]. Hmm, I made a mistake; it should be B.", None),
    ("[[A]] is better. On reflection, candidate B is the right one.", None),
    ("[[A]]. Scratch that.", None),
    ("[[A]] is right. Or rather, B.", None),
    ("[[A]]\nNein, doch B.", None),
    ("[[A]]。不对，应该是B。", None),
    ("[[A]]\n\nFinal: B", None),
    ("[[A]]\n\nThe second is right.", None),
    ("[[A]] is better, but B is best.", None),
    ("[[A]] is right? No.", None),
    ("First place: [[A]]. Second place: [[B]].", None),
    ("1st: [[A]]. 2nd: [[B]].", None),
    ("Best to worst: [[A]]. [[B]].", None),
    ("1. B\n2. [[A]]", None),
    ("1. B 2. [[A]]", None),
    ("Better: B, worse: [[A]]", None),
    ("Preferred: B\nOther: [[A]]", None),
    ("The better candidate is B. [[A]]", None),
    ("Better: [[A]]\nWorse: [[B]]", "A"),
    ("Worse: [[A]]\nBetter: [[B]]", "B"),
    ("[[A]]\n\nStep A is right since 4 + 5 = 9.", "A"),
]
# Words that stand on no list turn it round: each is the only mark, on the wrong side.
NOT_KNOWN = """
B > [[A]] | B surpasses [[A]]. | B trumps [[A]]. | B is better, compared to [[A]].
I prefer B to [[A]]. | B优于[[A]] | Instead of choosing [[A]] | The answer is anything but [[A]].
Everything except [[A]]. | All but [[A]] are fine | Discard: [[A]] | Faulty: [[A]] | Weak: [[A]]
❌ [[A]] | [[A]]: no | ~~[[A]]~~ | [[A]] loses. | [[A]] makes no sense. | [[A]] is inaccurate.
[[A]] contradicts step 1. | The problem is with [[A]]. | La réponse à rejeter est [[A]]. | [[A]]有问题
The answer that should be thrown out is [[B]]. | Format: [[A]] | e.g. [[A]]
Write [[A]] to choose the first. | Suppose the answer is [[A]].
[[A]] would have been right if 5+4 were 10. | Verdict: tie [[A]] | Option [[A]] costs 3.
[[A]], the loser. | [[A]] because it is wrong. | [[A]] as the worse one. | I choose against [[A]].
I'd take [[A]] out. | I pick [[A]] to be rejected. | Which one is wrong? [[A]] | Rejected. [[A]]
The wrong one. [[A]] | A is wrong: [[A]] | It is [[A]] that is wrong.
[[A]] is right only if 5+4 is 10. | [[A]] is the right one to drop. | [[A]] wins nothing.
[[A]] is better written but wrong. | The answer might be [[A]].
Suppose 5+4 is 10. The answer is [[A]]. | Not so: [[A]] | Verdict: [[A]] rejected | Verdict: [[A]] loses
[[A]] 👎 | 👎 [[A]] | Wrong → [[A]] | Wrong; [[A]] | Vote [[A]] down | I pick [[A]] because B is better.
[[A]]: 0 points | In [[A]], 4 + 5 = 9. | [[A]] miscounts. | Cross out [[A]]. | Лучше не [[A]].
Die schlechteste Wahl ist [[A]]. | Le mauvais choix : [[A]] | 最差的选择是[[A]] | 答えは[[A]]ではない。
"""
UNKNOWN = [(s.strip(), None) for line in NOT_KNOWN.strip().splitlines() for s in line.split(" | ")]
UNKNOWN += [(f"{head}\n\n[[A]]", None) for head in ("Rejected", "### Worse", "The one to discard is")]
# And words that are known: the mark is not the whole sentence, and is the verdict.
KNOWN = [
    ("Therefore, my final answer: [[B]]", "B"),
    ("I'd go with [[A]].", "A"),
    ("The better candidate is therefore [[A]].", "A"),
    ("A is right, B forgets the tax. So [[A]].", "A"),
    ("[[B]] is correct because it carries the one.", "B"),
    ("[[B]] because A forgets the minus sign.", "B"),
    ("[[A]] wins.", "A"),
    ("B ok [[B]]", "B"),
    ("Which one is better? [[A]]", "A"),
    ("\\boxed{[[A]]}", "A"),
    ("B adds 4 two times\n\n[[A]]", "A"),
    ("Donc la meilleure réponse est [[A]].", "A"),
    ("La réponse correcte est [[B]].", "B"),
    ("Die bessere Antwort ist [[B]].", "B"),
    ("Quindi la risposta migliore è [[B]].", "B"),
    ("Итак, лучше [[B]].", "B"),
    ("所以我选择[[B]]", "B"),
    ("結論：[[A]]", "A"),
    ("したがって[[B]]の方が良い。", "B"),
    ("따라서 정답은 [[A]]입니다.", "A"),
    ("الجواب: [[B]]", "B"),
]
TABLE = AT_THE_END + NAMED + TWO_MARKS + SPOKEN_AGAINST + NEITHER + AFTER_A_THOUGHT
TABLE += WRONG_SIDE + IN_OTHER_LANGUAGES + CONDITIONS + OTHER_FORMS + TAKEN_BACK + UNKNOWN + KNOWN


@pytest.mark.parametrize("text, verdict", TABLE, ids=[text[:60] for text, _ in TABLE])
def test_reading(text, verdict):
    assert read_verdict(text) == verdict


@pytest.mark.parametrize("text, verdict", TABLE, ids=[text[:60] for text, _ in TABLE])
def test_sides_have_equal_rights(text, verdict):
    "With its marks exchanged it says the other side, or nothing where its words name a side too."
    swapped = text.replace("[[A", "[[@").replace("[[B", "[[A").replace("[[@", "[[B")
    words = re.sub(r"\[\[.*?\]\]", "", text)
    names_one = re.search(r"(?<![a-z])[AB](?![a-z])|first|second", words, re.I)
    if swapped != text and "thinking" not in text and (verdict or not names_one):
        other = {"A": "B", "B": "A", None: None}[verdict]
        assert read_verdict(swapped) in ((other, None) if names_one else (other,))


OWN_WORDS = (
    "{}{}{}\nExplain, then reply [[A]] or [[B]].",
    "Say [[A]] if the first is better, [[B]] if the second is.\n{}{}{}",
    "{} {} {} Your verdict must be [[A]] or [[B]]. Judgement:",
    "{}{}{}\nWrite your reasons. Last line: [[A]] or [[B]]",
)


def _prompts():
    "What judges are asked in the domains that ship, and in some of a user's."
    for name, _, _ in listed():
        yield domain_named(name).judge("How many are 2 and 3?", ["2"], "5", "6")
    for words in OWN_WORDS:
        yield words.format("How many are 2 and 3?", "\nA: 5", "\nB: 6")


def test_an_echo_of_the_task_is_no_verdict():
    "Wherever it is cut, and whatever it began with."
    for prompt in _prompts():
        ends = [m.end() for m in re.finditer(r"\[\[[AB]\]\]", prompt)]
        for end in {*ends, *range(1, len(prompt), 7), len(prompt)}:
            for before in ("", "5 is the sum.\n\n\n"):
                assert read_verdict(before + prompt[:end]) is None, prompt[:end][-60:]


def _judgements(value):
    "All judgements, and all rows that teach one, in some JSON."
    if isinstance(value, dict):
        if "verdict" in value and "logprobs" in value and "text" in value:
            yield value["text"], value["verdict"]
        if "explanation" in value and "verdict" in value:
            yield f"{value['explanation']} [[{value['verdict']}]]", value["verdict"]
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _judgements(part)


def test_what_was_taught_and_recorded_reads_as_before():
    "The runs and training rows that ship: two models' own replies, one of them a real one's."
    seen = 0
    for file in sorted(packaged().rglob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            for text, verdict in _judgements(json.loads(line)):
                seen += 1
                assert read_verdict(text) == verdict, (file.name, text[-200:])
    assert seen > 400


def test_a_quoted_mark_is_no_vote():
    "Candidates can't vote, however they write a mark."
    for mark in ("[[A]]", "[[ a ]]", r"\[\[A\]\]", "【【A】】", "[[Candidate A]]", "[[**A**]]"):
        assert read_verdict(mark) == "A"
        assert read_verdict(f"B says {defused(mark)}. [[B]]") == "B"
        assert read_verdict(f"It says {defused(mark)}.") is None


def test_a_long_reply_is_read_in_time():
    "No pattern goes through a text for each of its characters."
    start = time.time()
    for part in (
        "[[A]] ",
        "answer is *",
        "[[",
        "Verdict: A, ",
        "\n:",
        "[[ ",
        "verdict is candidate ",
        "* ",
        "if [[A]], ",
    ):
        read_verdict(part * (30_000 // len(part)))
        read_verdict("Verdict:" + part[-1] * 30_000 + "x [[A]]")
    assert time.time() - start < 10
