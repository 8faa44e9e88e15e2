"""The documentation as a site: it builds with strict links, and its reference holds every setting, command and class.

Run alone: python -m pytest tests/test_site.py
"""

import dataclasses
import html
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import recipe, registry
from runner.__main__ import VERBS
from runner.fields import settings_of
from runner.settings import RunSettings
from tests.launching import REPOSITORY

for package in ("sphinx", "myst_parser", "furo", "jupytext"):
    pytest.importorskip(package, reason="pip install -c constraints.txt -e '.[docs]'")

pytestmark = pytest.mark.slow
# What docs/conf.py reads beside docs/.
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "LICENSE", "accelerate_configs", "recipes", "runner")


def copy_of_the_repository(folder: Path) -> Path:
    """A folder in which the site can be built without writing into this repository."""
    shutil.copytree(REPOSITORY / "docs", folder / "docs", ignore=shutil.ignore_patterns("_generated", "__pycache__"))
    for name in BESIDE:
        place = REPOSITORY / name
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(place, folder / name, ignore=skipped) if place.is_dir() else shutil.copy(place, folder)
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    command = re.search(r"python (-m sphinx .*) docs build/docs", makefile)
    assert command is not None
    words = [sys.executable, *command[1].split(), "docs", "build/docs"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("site"))
    done = build(folder)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return folder / "build/docs"


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_page_is_in_the_navigation(site: Path) -> None:
    navigation = (site / "index.html").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").rglob("*.md"):
        name = page.relative_to(REPOSITORY / "docs").with_suffix(".html").as_posix()
        assert "_generated" in name or f'href="{name}"' in navigation or name == "index.html", name


def owners() -> Iterator[tuple[str, type]]:
    yield "settings", RunSettings
    for name in registry.names():
        yield f"recipe-{name}", registry.find(name)


@pytest.mark.parametrize(("page", "owner"), list(owners()))
def test_the_reference_has_every_setting_with_default_range_and_help(site: Path, page: str, owner: type) -> None:
    text = " ".join(text_of(site / f"_generated/reference/{page}.html").split())
    for setting in settings_of(owner):
        assert f"--{setting.flag} <" in text, setting.flag
        assert setting.help.replace("`", "") in text.replace("`", ""), setting.flag


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("adam_beta1", "<number from 0 to below 1>¶ AdamW: decay rate of the first moment. Default: 0.9."),
        ("mixed_precision", "<auto, no, bf16, fp16>"),
        ("max_steps", "<whole number of at least 1, or -1>"),
        ("save_steps", "Default: 500."),
    ],
)
def test_a_setting_is_shown_with_what_it_accepts(site: Path, flag: str, shown: str) -> None:
    text = " ".join(text_of(site / "_generated/reference/settings.html").replace("\n", " ").split())
    entry = re.search(rf"--{flag} <.*?(?= --\w+ <|$)", text)
    assert entry and shown in entry[0], entry


def test_the_reference_has_every_member_of_the_contract_and_every_command(site: Path) -> None:
    page = (site / "_generated/reference/contract.html").read_text(encoding="utf-8")
    for owner in (recipe.Batch, recipe.Loss):
        for field in dataclasses.fields(owner):
            assert f'id="runner.recipe.{owner.__name__}.{field.name}"' in page, field.name
    for name in vars(recipe.Recipe):
        assert name.startswith("_") or f'id="runner.recipe.Recipe.{name}"' in page, name
    commands = text_of(site / "_generated/reference/commands.html")
    for verb in VERBS.keys() - {"train"}:
        assert f"usage: relay {verb}" in commands, verb


@pytest.mark.parametrize("link", ["no-such-page.md", "design.md#no-such-heading", "../recipes/tabular/README.md#none"])
def test_a_dead_link_fails_the_build(tmp_path: Path, link: str) -> None:
    folder = copy_of_the_repository(tmp_path)
    # Two pages are enough here.
    for page in (folder / "docs").rglob("*.md"):
        if page.name not in ("index.md", "design.md"):
            page.write_text("# A page\n", encoding="utf-8")
    (folder / "docs/index.md").write_text(f"# Index\n\n[somewhere]({link})\n", encoding="utf-8")
    done = build(folder)
    assert done.returncode != 0 and link.rpartition("#")[2].removesuffix(".md") in done.stderr, done.stderr
