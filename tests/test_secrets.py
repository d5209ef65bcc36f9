"No key of an annotator's server, and no password of its address, is written to a file or a terminal."

import json
import os
import subprocess
import sys

import pytest
from faulty_server import FaultyServer

KEY = "k-314159265358"
PASSWORD = "open-sesame"
# the command, with no waiting between two tries
UNHURRIED = """
from psr_nb.cli.main import main
from psr_nb.datagen.annotate import _Asker
_Asker.rest = lambda asker, n: None
main()
"""
SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all she sold 48+24 = <<48+24=72>>72.\n#### 72"


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
    "refuses the key": lambda s, t, sent: (401, json.dumps({"error": {"message": f"wrong key: {sent}"}})),
    "refuses a prompt": lambda s, t, sent: (400, json.dumps({"error": f"headers: Authorization: {sent}"})),
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
    command = ["data", "ift", f"gsm8k={questions}", "--cut", "annotator", "--annotator", "m", "--server", url]
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
