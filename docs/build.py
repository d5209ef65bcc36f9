"""`python docs/build.py` writes the site, _docs/site, from docs/pages, notebooks, docstrings and settings.

Notebooks become Markdown with their kept outputs, so that mkdocs checks every link. Nothing is run and
nothing is fetched."""

import ast
import inspect
import os
import re
import shutil
import sys
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import nbformat
import yaml
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_docs"
PAGES = OUT / "pages"
BLOB = "https://github.com/psr-nb/psr_nb/blob/main/"
SETTINGS = """Every setting of a recipe: its default and what it means.
`psr_nb run RECIPE --set SECTION.SETTING=VALUE` changes one;
`psr_nb recipes --schema` has types and bounds for an editor.
Where a default is the paper's, the notebook that a section names says from which section of the paper."""
LINK = re.compile(r"(\]\()(?!https?:|mailto:)([^)\s]+)(\))")
TITLES = {  # a folder of notebooks, and the question it answers
    "": "The loop, in order",
    "maths": "Is this answer right?",
    "domains": "What kind of problem?",
    "questions": "Where do questions come from?",
    "texts": "How is text cut and read?",
    "engines": "What runs the model?",
    "evaluation": "How good is a model?",
    "datagen": "What is M1 trained on?",
    "studies": "What if, and at what cost?",
    "dashboard": "What happened?",
    "cli": "From a shell",
}


def notebooks() -> list[Path]:
    "All notebooks, those of the loop first."
    found = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(
        (p for p in found if ".ipynb_checkpoints" not in p.parts), key=lambda p: (len(p.parts), p)
    )


def exporter() -> MarkdownExporter:
    "Without cells that are plumbing; of a cell's outputs the one that Markdown shows best."
    hidden = {"enabled": True, "patterns": [r"^#\|\s*(hide|default_exp)"]}
    kinds = ["image/png", "image/svg+xml", "text/markdown", "text/html", "text/plain"]
    return MarkdownExporter(
        config=Config(
            {"RegexRemovePreprocessor": hidden, "NbConvertBase": {"display_data_priority": kinds}}
        )
    )


def page_link(at: Path, target: str) -> str:
    "A link of a notebook, as its page has it: to a page, a picture beside it, or a file in the repository."
    path, hash_, anchor = target.partition("#")
    if not path:
        return f"#{slug(anchor)}"
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md" + (hash_ + slug(anchor) if anchor else "")
    if (at.parent / path).suffix in (".png", ".svg"):
        return target
    return (
        BLOB + str((at.parent / path).resolve().relative_to(ROOT))
        if (at.parent / path).exists()
        else target
    )


def slug(anchor: str) -> str:
    "A heading's address, as Markdown's toc makes it; notebooks keep its capitals and write - for a blank."
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", anchor).strip().lower())


def shown(output):
    "An output of a cell; a figure that only plotly's JavaScript draws is told instead."
    data = output.get("data", {})
    if data and not any(kind.startswith(("text/", "image/")) for kind in data):
        return nbformat.v4.new_output("display_data", {"text/plain": "(a figure, drawn in JupyterLab)"})
    return output


def write_notebook(path: Path, export: MarkdownExporter) -> None:
    "A notebook's page, with its pictures beside it."
    page = PAGES / "nbs" / path.relative_to(ROOT / "nbs").with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    nb = nbformat.read(path, as_version=4)
    nb.metadata.language_info = {"name": "python"}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown(o) for o in cell.outputs]
            cell.source = re.sub(r"^#\|\s*(export|slow|eval).*\n", "", cell.source)
        else:
            cell.source = LINK.sub(lambda m: m[1] + page_link(path, m[2]) + m[3], cell.source)
    unique = f"{path.stem}_files"
    text, resources = export.from_notebook_node(
        nb, {"unique_key": path.stem, "output_files_dir": unique}
    )
    for name, data in resources.get("outputs", {}).items():
        (page.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (page.parent / name).write_bytes(data)
    text = re.sub(r"<script\b.*?</script>", "", text, flags=re.S)  # nothing of a page is run
    page.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")


def comments(cls) -> dict[str, str]:
    "Setting -> what the comments above and beside it say of it."
    lines = textwrap.dedent(inspect.getsource(cls)).split("\n")
    told = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        own = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
        above, i = [], node.lineno - 2
        while lines[i].strip().startswith("#"):
            above.insert(0, lines[i].strip().lstrip("# "))
            i -= 1
        told[node.target.id] = " ".join([*above, *filter(None, own)]).strip()
    return told


def setting_rows(cls) -> list[str]:
    "A line of a table for each setting of a class, those of the class it comes from included."
    told = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            told |= comments(base)
    rows = []
    for f in fields(cls):
        if is_dataclass(f.type):
            continue
        default = f.default if f.default is not MISSING else None
        if f.default_factory is not MISSING:
            default = f.default_factory()
        missing = f.default is MISSING and f.default_factory is MISSING
        shown = "required" if missing else f"`{default!r}`"
        rows.append(f"| `{f.name}` | {shown} | {told.get(f.name, '').replace('|', chr(92) + '|')} |")
    return rows


def notebook_of(cls) -> Path:
    "The notebook that a class is written in."
    text = inspect.getsource(sys.modules[cls.__module__])
    name = re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", text)[1]
    return Path(name).with_suffix(".md")


def settings_page() -> str:
    "Every setting of a recipe, by section."
    from psr_nb.recipe import Recipe

    parts = ["# Settings", SETTINGS]
    sections = [("", Recipe), *((f.name, f.type) for f in fields(Recipe) if is_dataclass(f.type))]
    for name, cls in sections:
        about = " ".join((cls.__doc__ or "").split())
        link = f"Declared in [{notebook_of(cls).stem}]({notebook_of(cls)})."
        table = ["| setting | default | meaning |", "|---|---|---|", *setting_rows(cls)]
        parts += [f"## {name or 'A recipe itself'}", f"{about} {link}", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def reference() -> list:
    "A page of docstrings for every module; the part of the navigation with them."
    groups = {}
    for path in sorted((ROOT / "psr_nb").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] in ("_modidx", "__init__"):
            continue
        page = Path("reference", *parts[1:]).with_suffix(".md")
        (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / page).write_text(f"# {'.'.join(parts)}\n\n::: {'.'.join(parts)}\n", encoding="utf-8")
        groups.setdefault(".".join(parts[:-1]), []).append({parts[-1]: str(page)})
    return [{name: pages} for name, pages in groups.items()]


def tour() -> list:
    "The notebooks in the navigation, by the question of their folder."
    nav = []
    for folder, title in TITLES.items():
        found = sorted((ROOT / "nbs" / folder).glob("*.ipynb"))
        pages = [
            f"nbs/{p.relative_to(ROOT / 'nbs').with_suffix('.md')}" for p in found if p.stem != "index"
        ]
        nav.append({title: pages})
    return nav


def navigation() -> list:
    "All pages, in the order of somebody who comes for the first time."
    shown = ("what_we_found", "models")
    tutorials = sorted(p.stem for p in (ROOT / "nbs/tutorials").glob("*.ipynb") if p.stem not in shown)
    return [
        {"Home": "index.md"},
        {"Guide": ["guide.md", "concepts.md", "settings.md", "ecosystem.md", "questions.md"]},
        {"Tutorials": [f"nbs/tutorials/{name}.md" for name in tutorials]},
        {"What we found": "nbs/tutorials/what_we_found.md"},
        {"Models": "nbs/tutorials/models.md"},
        {"Notebooks": tour()},
        {"Reference": reference()},
    ]


def main() -> None:
    "Write the pages and the configuration, and build the site."
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "pages", PAGES)
    shutil.copytree(ROOT / "nbs" / "images", PAGES / "nbs" / "images")
    export = exporter()
    for path in notebooks():
        write_notebook(path, export)
    (PAGES / "settings.md").write_text(settings_page(), encoding="utf-8")
    config = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text("utf-8"))
    config |= {"docs_dir": str(PAGES), "site_dir": str(OUT / "site"), "nav": navigation()}
    (OUT / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    from mkdocs.__main__ import cli

    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    cli(["build", "--strict", "-f", str(OUT / "mkdocs.yml")])  # a warning is an error


if __name__ == "__main__":
    main()
