"""The pages of the site that are made and not written: the reference, and copies of pages outside of docs/.

The reference is made of the dataclasses, of their docstrings and of the help of each command.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from runner import errors, registry
from runner.__main__ import VERBS, module_of
from runner.fields import Setting, defaults_of, settings_of
from runner.parts.setting_types import range_of
from runner.settings import FIRST, RunSettings

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
FOLDER = "_generated"
GENERATED = DOCS / FOLDER

# The heading of each part of the navigation, and its pages.
NAVIGATION: Mapping[str, Sequence[str]] = {
    "Start": ["which-recipe", "installation", "tutorial", "concepts"],
    "How to": [
        "start-from-trained-weights",
        "commands",
        "write-a-recipe",
        "scale-out/index",
        "publish-and-serve",
        "troubleshooting",
    ],
    "Recipes": ["recipes/text2sql", "recipes/language_model", "recipes/tabular", "recipes/microbiome"],
    "Notebooks": ["notebooks/README"],
    "Reference": [],
    "Compare": ["comparison", "coming-from", "benchmarks", "durations"],
    "Understand": ["resume-anywhere", "design", "glossary", "logbook"],
    "Project": [],
}


def copies() -> dict[Path, Path]:
    """Pages outside of docs/ and the page of the site that each becomes."""
    found = {REPOSITORY / "CONTRIBUTING.md": GENERATED / "contributing.md"}
    found[REPOSITORY / "CHANGELOG.md"] = GENERATED / "changelog.md"
    for readme in sorted((REPOSITORY / "recipes").glob("*/README.md")):
        found[readme] = GENERATED / "measured" / f"{readme.parent.name}.md"
    return found


def relinked(text: str, written_at: Path, shown_at: Path) -> str:
    """The text of a page with links that work in the site.

    `written_at` is the file that the links are relative to, and `shown_at` the page that shows them.
    """
    pages = {**copies(), **notebooks(), REPOSITORY / "README.md": DOCS / "index.md"}

    def lead(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        place = Path(os.path.normpath(written_at.parent / target))
        if not target or "://" in target or not place.exists():
            return match[0]
        page = pages.get(place, place)
        if page.is_dir():
            page = next(iter(page.glob("index.md")), REPOSITORY / "LICENSE")
        return f"]({os.path.relpath(page, shown_at.parent)}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", lead, text)


def navigation() -> str:
    """The table of contents that the first page of the site gets; GitHub shows that page without it."""
    generated = {
        "Notebooks": ["notebooks/*"],
        "Reference": ["reference/settings", "reference/recipe-*", "reference/commands", "reference/contract"],
        "Project": ["contributing", "changelog"],
    }
    text = ""
    for heading, written in NAVIGATION.items():
        pages = [page for page in written if (DOCS / f"{page}.md").is_file()]
        if heading == "Recipes":
            pages += [f"{name}: measured <{FOLDER}/measured/{name}>" for name in registry.names()]
        patterns = [f"{FOLDER}/{pattern}" for pattern in generated.get(heading, [])]
        pages += [pattern for pattern in patterns if any(DOCS.glob(f"{pattern}.md"))]
        if pages:
            listed = "\n".join(pages)
            text += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {heading}\n\n{listed}\n```\n"
    return text


def write_all() -> None:
    """Write every generated page anew."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    pages = {GENERATED / f"reference/recipe-{name}.md": recipe_page(name) for name in registry.names()}
    pages[GENERATED / "reference/settings.md"] = run_page()
    pages[GENERATED / "reference/commands.md"] = commands_page()
    pages[GENERATED / "reference/contract.md"] = CONTRACT
    for source, page in copies().items():
        pages[page] = relinked(source.read_text(encoding="utf-8"), source, page)
    for page, text in {**pages, **notebook_pages()}.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")


def notebooks() -> dict[Path, Path]:
    """The notebooks and the page of the site that each becomes, where jupytext is installed to read them."""
    if importlib.util.find_spec("jupytext") is None:
        return {}
    return {script: GENERATED / f"notebooks/{script.stem}.md" for script in sorted((DOCS / "notebooks").glob("*.py"))}


def notebook_pages() -> dict[Path, str]:
    """The text of the page of each notebook."""
    pages = {}
    for script, page in notebooks().items():
        import jupytext

        cells = [
            cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
            for cell in jupytext.read(script, fmt="py:percent").cells
        ]
        note = (
            f"This page is the notebook `docs/notebooks/{script.name}`; `jupytext --to ipynb` makes a file for Jupyter."
        )
        pages[page] = relinked("\n\n".join([*cells, note, ""]), script, page)
    return pages


def run_page() -> str:
    """Every setting of a training that each recipe has."""
    known = {setting.flag: setting for setting in settings_of(RunSettings)}
    groups = {heading: [known.pop(flag) for flag in flags] for heading, flags in FIRST.items()}
    groups["All others"] = list(known.values())
    intro = "Flags of `relay train` that every recipe has; in YAML the same names without dashes.\n"
    return f"# Settings of every training\n\n{intro}\n{listed(groups, defaults_of(RunSettings), 'relay train')}"


def recipe_page(name: str) -> str:
    """The settings and presets of one recipe, and what its model can be asked."""
    recipe = registry.find(name)
    presets = recipe.presets()
    groups: dict[str, list[Setting]] = {}
    for setting in settings_of(recipe):
        group, dot, _ = setting.flag.partition(".")
        groups.setdefault(f"Group {group}" if dot else f"Settings of {name}", []).append(setting)
    text = f"# Settings of {name}\n\nFlags of `relay train --recipe {name}`, beside the settings of every training.\n\n"
    defaults = {**defaults_of(recipe), **{k: v for k, v in presets.get("default", {}).items()}}
    text += listed(groups, defaults, f"relay train {name}")
    if recipe.Request is not None:
        asked = {"What `relay predict` accepts": settings_of(recipe.Request)}
        text += listed(asked, defaults_of(recipe.Request), f"relay predict {name}")
    text += "\n## Presets\n\n`--preset NAME` selects one. Flags and YAML files win over it.\n"
    for preset, values in presets.items():
        lines = "\n".join(f"{flag}: {value}" for flag, value in values.items())
        text += f"\n### {preset}\n\n```yaml\n{lines}\n```\n"
    return text


def listed(groups: Mapping[str, Iterable[Setting]], defaults: Mapping[str, object], program: str) -> str:
    """Settings under headings, each with the values that it accepts, its default and its help."""
    text = f"```{{program}} {program}\n```\n"
    for heading, settings in groups.items():
        text += f"\n## {heading}\n"
        for setting in settings:
            default = defaults.get(setting.flag)
            words = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
            shown = "" if default is None else f" Default: `{words}`."
            text += f"\n```{{option}} --{setting.flag} <{values_of(setting)}>\n{escaped(setting.help)}{shown}\n```\n"
    return text


def values_of(setting: Setting) -> str:
    """What a setting accepts, in words."""
    if setting.is_switch or setting.choices:
        return setting.wanted.removeprefix("one of ")
    allowed = range_of(setting.hint)
    kind = "whole number" if setting.kinds == (int,) else "number" if float in setting.kinds else "text"
    return f"{kind} {allowed}" if allowed else kind


def escaped(text: str) -> str:
    """A help text as Markdown that shows it as it is, but for code in backticks."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\*<\[$])", r"\\\1", part) for i, part in enumerate(parts))


def commands_page() -> str:
    """The help of every command, as the command prints it."""
    text = "# Flags of every command\n\nWhat `relay COMMAND --help` prints; the page Commands explains them.\n"
    for verb, meaning in VERBS.items():
        if verb == "train":
            continue
        text += f"\n## {verb}\n\n`relay {verb}`: {meaning}.\n\n```text\n{help_of(verb)}\n```\n"
    return text


def help_of(verb: str) -> str:
    """What `relay VERB --help` prints."""
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            importlib.import_module(module_of(verb)).main(["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()).strip()


SHARED = ("Recipe", "Batch", "Loss", "Stream", "Order", "Source", "Download")
"""The classes of `runner/recipe.py` that the page of the contract shows, in its order."""

CONTRACT = f"""# What a recipe consists of

The classes that a recipe and the runner share (`runner/recipe.py`), made of their docstrings.

```{{eval-rst}}
.. automodule:: runner.recipe
   :no-members:

{chr(10).join(f".. autoclass:: runner.recipe.{name}{chr(10)}   :members:{chr(10)}" for name in SHARED)}```

## Errors

`runner/errors.py` says of itself:

```text
{(errors.__doc__ or "").strip()}
```
"""
