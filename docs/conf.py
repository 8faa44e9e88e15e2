"""Settings of Sphinx, which builds these pages as a site: `make docs` writes build/docs/index.html.

The pages are plain Markdown and read well without Sphinx. This file adds the navigation and the generated pages
(`site_pages.py`), and makes links to files outside of docs/ lead to the pages that are made of them.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import site_pages  # noqa: E402

project = "Relay"
author = "the authors of Relay"
html_title = "Relay"
html_theme = "furo"
html_show_copyright = False
smartquotes = False
"""Quotation marks in help texts are those that people type."""
extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_heading_anchors = 4
"""Anchors as on GitHub, so that one link works in both places and a wrong one is a warning."""
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
"""Docstrings write code in single backticks."""
suppress_warnings = ["misc.highlighting_failure"]
"""A block of `sql` or `json` with `...` in it is no valid SQL or JSON."""


def add_navigation_and_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Change the text of a page after it is read: complete the first page, and lead links to pages of the site."""
    if not name.startswith(site_pages.FOLDER):
        source[0] = site_pages.relinked(source[0], DOCS / f"{name}.md", DOCS / f"{name}.md")
    if name == "index":
        source[0] += site_pages.navigation()


def setup(app: Sphinx) -> None:
    """Write the generated pages, before Sphinx looks for pages."""
    site_pages.write_all()
    app.connect("source-read", add_navigation_and_links)
