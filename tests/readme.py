"Write the README that nbs/index.ipynb makes: `python tests/readme.py FILE`."

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config


def readme() -> str:
    "The index notebook as Markdown, without its plumbing cells."
    config = Config(
        {"RegexRemovePreprocessor": {"enabled": True, "patterns": [r"^#\|\s*(hide|default_exp)"]}}
    )
    notebook = nbformat.read(Path(__file__).parent.parent / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata.language_info = {"name": "python"}
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = re.sub(r"\]\((?!https?:|#)", "](nbs/", text)  # the notebook's folder isn't the README's
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(readme(), encoding="utf-8")
