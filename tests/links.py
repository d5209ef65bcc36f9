"Links and headings of Markdown files and notebooks: which lead nowhere? No library is needed."

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()(?!https?:|mailto:)([^)\s]+)(\))")
MADE = {ROOT / "docs/pages/settings.md"}  # docs/build.py writes it from the declarations


def slug(heading: str) -> str:
    "A heading's address, as Markdown's toc makes it; notebooks keep its capitals and write - for a blank."
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def prose(path: Path) -> str:
    "What of a Markdown file or a notebook is Markdown, without blocks of code."
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(c["source"]) for c in cells)
    return re.sub(r"^```.*?^```|(?<=\n\n)(?:    [^\n]*\n?)+", "", text, flags=re.M | re.S)


def headings(path: Path) -> set[str]:
    "The addresses of a file's headings."
    return {slug(title) for title in re.findall(r"^#{1,6} (.+)$", prose(path), flags=re.M)}


def broken(path: Path) -> list[str]:
    "The links of a file that lead to no file of the repository, or to no heading of it."
    lost = []
    for _, target, _ in LINK.findall(re.sub(r"`[^`\n]+`", "", prose(path))):  # no spans of code
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        if to in MADE:
            continue
        known = to.suffix not in (".md", ".ipynb") or not anchor
        if not to.exists() or not (known or slug(anchor) in headings(to)):
            lost.append(target)
    return lost
