"Write the README that nbs/index.ipynb makes: `python tests/readme.py FILE`."
import re, sys
from pathlib import Path
from nbconvert import MarkdownExporter
from traitlets.config import Config


def readme() -> str:
    "The index notebook as Markdown, without its plumbing cells."
    config = Config({"TagRemovePreprocessor": {"enabled": False}, "RegexRemovePreprocessor": {"enabled": True, "patterns": [r"^#\|\s*(hide|default_exp)"]}})
    text, _ = MarkdownExporter(config=config).from_filename(str(Path(__file__).parent.parent/"nbs"/"index.ipynb"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__": Path(sys.argv[1]).write_text(readme(), encoding="utf-8")
