"Every link of a Markdown file or a notebook leads to a file, and its anchor to a heading, of the repository."

import re

import pytest
from links import ROOT, broken

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs" / "pages").glob("*.md")]
BOOKS = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("files", [PAGES, BOOKS], ids=["pages", "notebooks"])
def test_links_and_anchors_lead_somewhere(files):
    assert len(files) > 10
    assert {str(p.relative_to(ROOT)): lost for p in files if (lost := broken(p))} == {}


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "b.md").write_text("# B\n\n## What it *is*, and why\n")
    good = "[b](b.md) [why](b.md#what-it-is-and-why) [up](#a) [web](https://x.org/y) `[no](link.md)`\n"
    (tmp_path / "a.md").write_text(f"# A\n{good}")
    assert broken(tmp_path / "a.md") == []
    (tmp_path / "a.md").write_text("# A\n[gone](c.md) [no heading](b.md#who) [none here](#nowhere)\n")
    assert broken(tmp_path / "a.md") == ["c.md", "b.md#who", "#nowhere"]


def test_every_page_is_in_the_navigation():
    "A page that docs/build.py does not name would be found by nobody."
    named = re.search(r'^GUIDE = "(.*)"$', (ROOT / "docs" / "build.py").read_text("utf-8"), re.M)[1]
    pages = {p.stem for p in (ROOT / "docs" / "pages").glob("*.md")}
    assert pages == {*named.split(), "index"} - {"settings"}
