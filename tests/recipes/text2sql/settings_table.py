"""The table of settings in docs/recipes/text2sql.md, made of the settings' own help texts.

Write it into the page: python -m tests.recipes.text2sql.settings_table
"""

import re

from tyro._docstrings import get_field_docstring

from recipes.text2sql.recipe import Recipe
from runner.config import settings_of
from tests.launching import REPOSITORY

PAGE = REPOSITORY / "docs" / "recipes" / "text2sql.md"
HEAD = "| setting | default | meaning |\n| --- | --- | --- |\n"


def table() -> str:
    """A row for every setting of the recipe: its flag, its default and its help."""
    default, rows = Recipe(), []
    for setting in settings_of(Recipe):
        owner = default
        for attribute in setting.attributes[:-1]:
            owner = getattr(owner, attribute)
        words = " ".join((get_field_docstring(type(owner), setting.attributes[-1], ()) or "").split())
        # Markdown would take <t0> for a tag of HTML.
        meaning = re.sub(r"<\w+>", r"`\g<0>`", words).replace("|", "\\|")
        rows.append(f"| `{setting.flag}` | {shown(setting.get(default))} | {meaning} |\n")
    return HEAD + "".join(rows)


def shown(value: object) -> str:
    """A default as the page writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def with_table(page: str) -> str:
    """The page with the table of today."""
    before, head, rest = page.partition(HEAD)
    assert head, f"the page has no table that begins with {HEAD!r}"
    return before + table() + rest[rest.index("\n\n") + 1 :]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
