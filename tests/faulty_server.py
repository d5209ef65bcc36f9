"An OpenAI-compatible server on a loopback port that fails on purpose: what an annotator is tried on."

import http.server
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

FAULTS = ("429", "500", "silence", "half", "rubbish", "format", "drop")

_WRONG_KEY = '{"error": {"message": "Incorrect API key"}}'
_LATER = '{"error": {"message": "later"}}'


class _Handler(http.server.BaseHTTPRequestHandler):
    "Hands requests to the FaultyServer that listens."

    def do_POST(self):
        try:
            self.server.owner.serve(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone

    def do_GET(self):
        self.server.owner.list_models(self)

    def log_message(self, *_):
        pass


class _Listening(http.server.ThreadingHTTPServer):
    "One thread a request."

    request_queue_size = 256
    daemon_threads = True


def _response(prompt: str, text: str) -> str:
    "The body of a chat completion, with a usage of a token for four characters."
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
    return json.dumps({"choices": [choice], "usage": usage})


class FaultyServer:
    "Answers with a function of the request, and fails in a share of them. Counts what it was asked."

    def __init__(
        self,
        answer: Callable[[dict], str],  # request -> text; may pass the request on to a real server
        share: float = 0,  # of requests that meet a fault
        faults: tuple[str, ...] = FAULTS,
        key: str | None = None,  # the only one that is let in
        seed: int = 0,
        delay: float = 0,  # seconds before an answer
        silence: float = 5,  # seconds without an answer, for the fault of this name
    ):
        self.answer, self.share, self.faults = answer, share, faults
        self.key, self.delay, self.silence = key, delay, silence
        self.rng = random.Random(seed)
        self.lock = threading.Lock()
        self.asked = Counter()  # prompt -> requests
        self.answered = Counter()  # prompt -> whole answers
        self.met = Counter()  # fault -> requests
        self.server = _Listening(("127.0.0.1", 0), _Handler)
        self.server.owner = self
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def knows(self, handler) -> bool:
        "Is the request's key the right one?"
        return not self.key or handler.headers.get("authorization") == f"Bearer {self.key}"

    def list_models(self, handler):
        "The list of models, which is free."
        if self.knows(handler):
            self.send(handler, 200, '{"object": "list", "data": []}')
        else:
            self.send(handler, 401, _WRONG_KEY)

    def serve(self, handler):
        "Answer one request, or fail."
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        fault = self._drawn(prompt)
        if not self.knows(handler):
            self.send(handler, 401, _WRONG_KEY)
            return
        if self.delay:
            time.sleep(self.delay)
        if fault and fault != "half":
            self._fail(handler, fault)
            return
        full = _response(prompt, self.answer(body))
        self.send(handler, 200, full, half=fault == "half")
        if not fault:
            with self.lock:
                self.answered[prompt] += 1

    def _drawn(self, prompt: str) -> str | None:
        "Count a request, and draw its fault."
        with self.lock:
            self.asked[prompt] += 1
            fault = self.rng.choice(self.faults) if self.rng.random() < self.share else None
            if fault:
                self.met[fault] += 1
        return fault

    def _fail(self, handler, fault: str):
        "Go wrong in one of the ways that need no answer."
        if fault == "drop":
            handler.connection.close()
        elif fault == "silence":
            time.sleep(self.silence)
        elif fault == "429":
            self.send(handler, 429, _LATER, {"retry-after": "0.01"})
        elif fault == "500":
            self.send(handler, 500, _LATER)
        elif fault == "rubbish":
            self.send(handler, 200, "<html>Bad gateway</html>")
        else:
            self.send(handler, 200, '{"candidates": [{"output": "hello"}]}')

    def send(self, handler, status: int, text: str, headers: dict | None = None, half: bool = False):
        "Send a response, or the first half of it."
        data = text.encode()
        handler.send_response(status)
        sent = {"content-type": "application/json", "content-length": str(len(data))}
        for name, value in (sent | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if half else data)
        handler.wfile.flush()
        if half:
            handler.connection.close()

    def close(self):
        "Stop listening."
        self.server.shutdown()
        self.server.server_close()
