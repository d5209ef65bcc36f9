"`python tests/readme.py` writes what is made from the notebooks: README.md, and the map of docs/pages."

import json
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
PLUMBING = {"enabled": True, "patterns": [r"^#\|\s*(hide|default_exp)"]}  # cells that nobody reads
FOLDERS = {  # a folder of notebooks, and the question it answers
    "": "The loop, in order",
    "maths": "Is this answer right?",
    "texts": "What does a model read and write?",
    "domains": "What kind of problem?",
    "questions": "Where do questions come from?",
    "engines": "What runs the model?",
    "evaluation": "How good is a model, really?",
    "datagen": "What is M1 trained on?",
    "studies": "What would it cost, what if?",
    "dashboard": "What happened?",
    "cli": "From a shell",
    "tutorials": "How is it done, and what comes out?",
}
MAP = """# The map

The paper comes first, in order; everything else stands behind a door whose name is a question. A notebook
exports the module of the same name in `psr_nb/`. `make readme` writes this page out of their first lines.
"""


def readme() -> str:
    "The index notebook as Markdown, without its plumbing cells."
    config = Config({"RegexRemovePreprocessor": PLUMBING})
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata.language_info = {"name": "python"}
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    links = re.compile(r"\]\((?!https?:|#)([^)]+)\)")  # the notebook's folder isn't the README's
    text = links.sub(lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def notebooks(folder: str) -> list[Path]:
    "The notebooks of a folder, but for the README's."
    return [p for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb")) if p.stem != "index"]


def told(path: Path) -> str:
    "A notebook on the map: its name, and its first line."
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    line = re.search(r"^> (.+(?:\n(?!\n).+)*)", first, re.M)
    said = " ".join(line[1].split())
    return f"- [{path.stem}](../../{path.relative_to(ROOT).as_posix()}): {said}"


def whole_map() -> str:
    "Every notebook, by folder, with what it answers."
    parts = [MAP]
    for folder, question in FOLDERS.items():
        name = f"{folder}/: " if folder else ""
        parts.append(f"## {name}{question}\n\n" + "\n".join(map(told, notebooks(folder))) + "\n")
    return "\n".join(parts)


MADE = {"README.md": readme, "docs/pages/map.md": whole_map}

if __name__ == "__main__":
    for name in sys.argv[1:] or MADE:
        (ROOT / name).write_text(MADE[name](), encoding="utf-8")
