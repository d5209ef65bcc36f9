"Texts that try to break out of a page; every view of the dashboard is tested with them."

import json

from psr_nb.files import packaged


def hostile_texts() -> dict[str, str]:
    "Payloads by name: scripts, handlers, addresses, torn LaTeX, terminal codes, a megabyte in one line."
    with open(packaged("hostile.jsonl"), encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return {r["name"]: r["text"] * r["times"] for r in rows}
