"No key of an annotator's server, and no password of its address, is written to a file or a terminal."

import base64
import html
import json
import os
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from faulty_server import FaultyServer

from psr_nb.datagen.annotate import ServerSettings, ask_server, masked, unkeyed
from psr_nb.records import InputError

KEY = "k-314159265358"
PASSWORD = "open-sesame"
# the command, with no waiting between two tries
UNHURRIED = """
from psr_nb.cli.main import main
from psr_nb.datagen.annotate import _Asker
_Asker.rest = lambda asker, n: None
main()
"""
SOLUTION = (
    "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all she sold 48+24 = <<48+24=72>>72.\n#### 72"
)


def leaking(answer=None, **more):
    "The status and text of a server's response -> a server whose responses quote what it was sent."

    class Leaking(FaultyServer):
        def send(self, handler, status, text, headers=None, half=False):
            sent = f"{handler.headers.get('authorization')}, {KEY} for {PASSWORD}"
            status, text = answer(status, text, sent) if answer else (status, text)
            super().send(handler, status, text, headers, half)

    return Leaking(lambda body: "Step 1: 48/2 = 24.\nStep 2: 48+24 = 72.", **more)


def quoted(status, text, sent):
    return status, text.replace("48+24 = 72.", f"48+24 = 72. {sent}")


SERVERS = {
    "refuses the key": lambda s, t, sent: (
        401,
        json.dumps({"error": {"message": f"wrong key: {sent}"}}),
    ),
    "refuses a prompt": lambda s, t, sent: (
        400,
        json.dumps({"error": f"headers: Authorization: {sent}"}),
    ),
    "breaks down": lambda s, t, sent: (500, f"<html>proxy sent Authorization: {sent}</html>"),
    "speaks another language": lambda s, t, sent: (200, f'{{"echo": "{sent}"}}'),
    "answers with it": quoted,
}


def annotated(folder, url):
    "`psr_nb data ift` with an annotator at the address; everything that it printed."
    questions = folder / "gsm8k.jsonl"
    rows = [
        {"question": f"Ana sold 48 clips, then half as many ({i}). How many?", "answer": SOLUTION}
        for i in range(3)
    ]
    questions.write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = [
        "data",
        "ift",
        f"gsm8k={questions}",
        "--cut",
        "annotator",
        "--annotator",
        "m",
        "--server",
        url,
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            UNHURRIED,
            *command,
            "--out",
            folder / "out",
            "--key-from",
            "SOME_KEY",
        ],
        env=os.environ | {"SOME_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def written(folder):
    "All that is in the files of a folder."
    return {p: p.read_bytes().decode(errors="replace") for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", SERVERS)
def test_no_secret_is_kept_or_shown(tmp_path, kind):
    server = leaking(SERVERS[kind])
    url = server.url.replace("://", f"://ann:{PASSWORD}@")
    said = annotated(tmp_path, url)
    server.close()
    assert server.asked or kind == "refuses the key"
    kept = written(tmp_path)
    for secret in (KEY, PASSWORD):
        assert secret not in said
        assert [str(p) for p, text in kept.items() if secret in text] == []


def test_the_servers_do_leak():
    "What the test above looks for is really sent back."
    import openai

    server = leaking(quoted)
    client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
    server.close()
    assert KEY in reply.choices[0].message.content


UNUSABLE = {
    "an address that is none": (
        "http://ann:open-sesame@[bad/v1",
        {},
        "the server's address can't be read",
    ),
    "no scheme": ("ann:open-sesame@localhost/v1", {}, "the server's address can't be read"),
    "a port that is none": ("http://ann:open-sesame@a:b/v1", {}, "the server's address can't be read"),
    "a key over two lines": ("URL", {"SOME_KEY": f"{KEY}\n271828"}, "the key in SOME_KEY holds a line"),
    "a key in letters": ("URL", {"SOME_KEY": f"{KEY}é"}, "the key in SOME_KEY holds a line break"),
    "a proxy": ("URL", {"HTTP_PROXY": "foo://ann:open-sesame@127.0.0.1:1"}, "the server can't be asked"),
    "a header": ("URL", {"OPENAI_PROJECT_ID": "é"}, "the header OpenAI-Project, from the environment"),
    "certificates": ("URL", {"SSL_CERT_FILE": "/nowhere"}, "the server can't be asked from here"),
}


@pytest.mark.parametrize("url, given, words", UNUSABLE.values(), ids=UNUSABLE)
def test_what_nothing_can_be_asked_with_is_told_without_secrets(
    tmp_path, monkeypatch, url, given, words
):
    url = url.replace("URL", "http://127.0.0.1:9/v1")
    for name, value in ({"SOME_KEY": KEY} | given).items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings("m", url, key_from="SOME_KEY", tries=1, backoff=0)
    with pytest.raises(InputError, match=words) as told:
        ask_server(["?"], tmp_path / "answers.jsonl", settings, say=lambda line: None)
    for secret in (KEY, "271828", PASSWORD):
        assert secret not in str(told.value)


QUERY = {"key": "qq-887766554433", "token": "tt-123123123123", "page": "pp-555555"}


def test_no_value_of_an_address_comes_back_in_an_error(tmp_path):
    class Echo(FaultyServer):
        def send(self, handler, status, text, headers=None, half=False):
            plain = f"no such place: {handler.path}"
            body = json.dumps({"error": plain.replace("&", r"&amp;") + f" or {plain}"})
            super().send(handler, 400, body, headers, half)

    server = Echo(str)
    url = f"{server.url}?" + "&".join(f"{name}={value}" for name, value in QUERY.items())
    settings = ServerSettings("m", url, key_from="NO_SUCH_KEY", tries=1)
    [reply] = ask_server(["?"], tmp_path / "answers.jsonl", settings, say=lambda line: None)
    server.close()
    assert "key=***" in reply.problem and "page=***" in reply.problem
    for value in QUERY.values():
        assert value not in reply.problem
    assert unkeyed(f"sent {QUERY['token']}", settings) == "sent ***"
    assert unkeyed("sent pp-555555", settings) == "sent pp-555555"  # an answer's words may be these


AWKWARD = "k/3&1'4-15+92=65~35\\8"  # its characters are written otherwise somewhere


def every(pattern):
    "Writes each character of a text as the pattern, of its code, says."
    return lambda text: "".join(pattern.format(ord(c)) for c in text)


SPELLINGS = {
    "as it is": str,
    "in upper case": str.upper,
    "in JSON": lambda text: json.dumps(text)[1:-1],
    "in JSON of another maker": lambda text: text.replace("/", r"\/").replace("-", r"\u002D"),
    "in JSON in JSON": lambda text: json.dumps(json.dumps(text)[1:-1].replace("-", r"\u002d"))[1:-1],
    "in JSON, all of it": every(r"\u{:04x}"),
    "in Python": every(r"\x{:02x}"),
    "in an address": lambda text: quote(text, safe=""),
    "in an address in an address": lambda text: quote(quote(text, safe=""), safe=""),
    "in an address, all of it": every("%{:02X}"),
    "in a page": html.escape,
    "in a page, all of it": every("&#{};"),
    "in a page, in hexadecimal": every("&#x{:04X};"),
    "over two lines": lambda text: f"{text[:7]}\r\n  {text[7:]}",
    "over two lines in JSON": lambda text: text[:7] + r"\n" + text[7:],
}


@pytest.fixture
def keyed(monkeypatch):
    monkeypatch.setenv("SOME_KEY", AWKWARD)
    return ServerSettings("m", f"http://ann:{PASSWORD}@localhost/v1", key_from="SOME_KEY")


@pytest.mark.parametrize("spelt", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_is_found_however_it_is_written(keyed, spelt):
    for secret in (AWKWARD, PASSWORD):
        assert unkeyed(f"sent: {spelt(secret)}, and no more", keyed) == "sent: ***, and no more"
        assert masked(f"sent: {spelt(secret)}, and no more", keyed) == "sent: ***, and no more"


@pytest.mark.parametrize("before", ["", "a", "ab", "Bearer ", "ann:"])
@pytest.mark.parametrize("after", ["", "z", "zz", "zzz"])
@pytest.mark.parametrize("code", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_is_found_in_base64(keyed, before, after, code):
    for secret in (AWKWARD, PASSWORD):
        coded = code(f"{before}{secret}{after}".encode()).decode()
        first = -(-len(before) * 4 // 3)  # the first character that holds nothing but the secret
        for text in (coded, coded[: first + 3] + "\n" + coded[first + 3 :]):
            left = unkeyed(f"sent: {text}", keyed)
            assert "***" in left and coded[first + 4 : first + 10] not in left, left


def test_other_words_stay(keyed):
    for text in (
        "Step 1: 48/2 = 24.\nIn all 72.",
        AWKWARD[:-1],
        "open sesame",
        base64.b64encode(b"x" * 99).decode(),
    ):
        assert unkeyed(text, keyed) == text


def test_no_text_of_a_server_takes_long_to_search(keyed):
    almost = [spelt(AWKWARD[:-1]) for spelt in SPELLINGS.values()]
    almost += [
        base64.b64encode(AWKWARD[:-4].encode()).decode(),
        "\\",
        " ",
        r"\n",
        "%25",
        "&#0",
        "k",
        "k/  ",
    ]
    begun = time.process_time()
    for text in almost:
        unkeyed(text * (20_000 // len(text)), keyed)
        unkeyed(text[:1] + text[-1] * 20_000, keyed)
    assert time.process_time() - begun < 20
