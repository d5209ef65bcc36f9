"An engine that answers at once, without a model: with it the rest of a search is measured."

from collections import deque

from psr_nb.domains.arithmetic import ARITHMETIC
from psr_nb.engine import Usage, load_tokenizer
from psr_nb.files import packaged
from psr_nb.prompts import label_ids
from psr_nb.records import Completion

MODEL = str(packaged("models/demo-m0"))  # only its tokenizer is read
DEPTH = 10  # the step in which a solution ends


class InstantEngine:
    "Writes right and wrong candidates by turns, and as a judge prefers the right one."

    context, vocabulary = 1 << 20, 1 << 20

    def __init__(self, depth: int = DEPTH):
        tok = load_tokenizer(MODEL)
        self.tokenizer, self.usage, self.queue = tok, Usage(), deque()
        self.last_label = label_ids(tok, ARITHMETIC, depth)
        self.check = tok.convert_tokens_to_ids("Check")
        self.right = tok.convert_tokens_to_ids("2")
        self.wrong = tok.convert_tokens_to_ids("3")
        self.texts = {True: (" answer 2<eos>", " answer 3<eos>"), False: (" 1+1=2\n", " 1+1=3\n")}
        self.known = {text: self._said(text) for pair in self.texts.values() for text in pair}
        self.known |= {text: self._said(text) for text in (" [[A]]", " [[B]]")}

    def _said(self, text: str) -> Completion:
        "A completion that ends as its text does."
        eos = self.tokenizer.eos_token
        ids = self.tokenizer(text.removesuffix("<eos>"), add_special_tokens=False)["input_ids"]
        if not text.endswith("<eos>"):
            return Completion(ids, text, "stop")
        return Completion(
            ids + [self.tokenizer.convert_tokens_to_ids(eos)], text.removesuffix("<eos>"), "eos"
        )

    def _answer(self, request) -> list[Completion]:
        "Completions of one request: a verdict, or candidates."
        ids = request.prompt_ids
        if ids[-2] == self.check:
            shown = [i for i in ids[-24:] if i in (self.right, self.wrong)]
            return [self.known[" [[A]]" if shown[-2] == self.right else " [[B]]"]]
        texts = self.texts[ids[-len(self.last_label) :] == self.last_label]
        return [self.known[texts[i % 2]] for i in range(request.sampling.n)]

    def submit(self, key, request):
        self.queue.append((key, self._answer(request)))
        self.usage.requests += 1
        self.usage.output_tokens += sum(len(c.ids) for c in self.queue[-1][1])

    def step(self):
        done, self.queue = list(self.queue), deque()
        return done

    def forget(self):
        pass

    def close(self):
        pass


def instant(model, settings):
    "The engine, as a fleet's processes open it."
    return InstantEngine()
