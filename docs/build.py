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
sys.path.append(str(ROOT / "tests"))

from links import LINK, slug  # noqa: E402
from readme import FOLDERS, PLUMBING, notebooks  # noqa: E402

OUT = ROOT / "_docs"
PAGES = OUT / "pages"
BLOB = "https://github.com/psr-nb/psr_nb/blob/main/"
SETTINGS = """Every setting of a recipe: its default and what it means.
`psr_nb run RECIPE --set SECTION.SETTING=VALUE` changes one;
`psr_nb recipes --schema` has types and bounds for an editor.
Where a default is the paper's, the notebook that a section names says from which section of the paper."""
GUIDE = "install guide commands demo concepts settings rules speed ecosystem questions map"


def exporter() -> MarkdownExporter:
    "Without cells that are plumbing; of a cell's outputs the one that Markdown shows best."
    kinds = ["image/png", "image/svg+xml", "text/markdown", "text/html", "text/plain"]
    return MarkdownExporter(
        config=Config(
            {"RegexRemovePreprocessor": PLUMBING, "NbConvertBase": {"display_data_priority": kinds}}
        )
    )


def page_of(path: Path) -> Path | None:
    "Where the site has a file of the repository: a notebook, a picture beside them or a page, else nowhere."
    if path.is_relative_to(ROOT / "docs" / "pages"):
        return path.relative_to(ROOT / "docs" / "pages")
    page = path.relative_to(ROOT)
    if page.match("nbs/index.ipynb"):
        return Path("index.md")
    if page.parts[0] != "nbs" or page.suffix not in (".ipynb", ".png", ".svg"):
        return None
    return page.with_suffix(".md") if page.suffix == ".ipynb" else page


def site_link(at: Path, target: str) -> str:
    "A link of a notebook or a page, as the site has it: to a page, a picture, or a file in the repository."
    name, _, anchor = target.partition("#")
    to = (at.parent / name).resolve() if name else at
    if not to.is_relative_to(ROOT):
        return target
    page = page_of(to)
    near = os.path.relpath(page, page_of(at).parent) if page else f"{BLOB}{to.relative_to(ROOT)}"
    return (near if name else "") + (f"#{slug(anchor)}" if anchor else "")


def with_links(text: str, at: Path) -> str:
    "Markdown of a notebook or a page with its links as the site has them."
    return LINK.sub(lambda m: m[1] + site_link(at, m[2]) + m[3], text)


def shown(output):
    "An output of a cell; a figure that only plotly's JavaScript draws is told instead."
    data = output.get("data", {})
    if data and not any(kind.startswith(("text/", "image/")) for kind in data):
        return nbformat.v4.new_output("display_data", {"text/plain": "(a figure, drawn in JupyterLab)"})
    return output


def write_notebook(path: Path, export: MarkdownExporter) -> None:
    "A notebook's page, with its pictures beside it."
    page = PAGES / page_of(path)
    page.parent.mkdir(parents=True, exist_ok=True)
    nb = nbformat.read(path, as_version=4)
    nb.metadata.language_info = {"name": "python"}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown(o) for o in cell.outputs]
            cell.source = re.sub(r"^#\|\s*(export|slow|eval).*\n", "", cell.source)
        else:
            cell.source = with_links(cell.source, path)
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


def default_of(f) -> str:
    "A setting's default, as the table shows it."
    if f.default_factory is not MISSING:
        return f"`{f.default_factory()!r}`"
    return "required" if f.default is MISSING else f"`{f.default!r}`"


def setting_rows(cls) -> list[str]:
    "A line of a table for each setting of a class, those of the class it comes from included."
    told = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        told |= comments(base)
    own = [f for f in fields(cls) if not is_dataclass(f.type)]
    meaning = {f.name: told.get(f.name, "").replace("|", r"\|") for f in own}
    return [f"| `{f.name}` | {default_of(f)} | {meaning[f.name]} |" for f in own]


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


def pages(folder: str) -> list[str]:
    "The pages of a folder's notebooks."
    return [str(page_of(path)) for path in notebooks(folder)]


def navigation() -> list:
    "All pages, in the order of somebody who comes for the first time."
    apart = [f"nbs/tutorials/{name}.md" for name in ("what_we_found", "models")]
    tour = [{title: pages(folder)} for folder, title in FOLDERS.items() if folder != "tutorials"]
    return [
        {"Home": "index.md"},
        {"Guide": [f"{name}.md" for name in GUIDE.split()]},
        {"Tutorials": [page for page in pages("tutorials") if page not in apart]},
        {"What we found": apart[0]},
        {"Models": apart[1]},
        {"Notebooks": tour},
        {"Reference": reference()},
    ]


def main() -> None:
    "Write the pages and the configuration, and build the site."
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "pages", PAGES)
    for path in (ROOT / "docs" / "pages").glob("*.md"):
        (PAGES / path.name).write_text(with_links(path.read_text("utf-8"), path), encoding="utf-8")
    shutil.copytree(ROOT / "nbs" / "images", PAGES / "nbs" / "images")
    export = exporter()
    for folder in FOLDERS:
        for path in notebooks(folder):
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
