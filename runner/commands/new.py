"""`relay new NAME`: write a recipe that trains, and its test, to start from.

It writes NAME.py and test_NAME.py. The recipe classifies made points; replace its data, model and loss by yours.
"""

import dataclasses
import importlib.util
import keyword
import sys
from pathlib import Path
from typing import Annotated

from runner import registry
from runner.config import parse_into
from runner.errors import ConfigError
from runner.parts.setting_types import Position

TEMPLATES = Path(__file__).parents[1] / "parts" / "templates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewSettings:
    """Settings of the new recipe."""

    name: Annotated[str, Position("NAME", "my_task", "the name of the recipe")]
    """Name of the recipe and of its file: letters, digits and _; it may stand alone, without the flag."""
    folder: str = "."
    """Folder for the two files; it is made where it is not there."""


def main(arguments: list[str]) -> None:
    """Write the two files, and print what to type next."""
    settings = parse_into(NewSettings, arguments, "relay new", __doc__)
    name, folder = settings.name, Path(settings.folder)
    check_name(name)
    files = {folder / f"{name}.py": "recipe.py.txt", folder / f"test_{name}.py": "test_recipe.py.txt"}
    there = [str(path) for path in files if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} is there already: type relay new with another name, or --folder NEW.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in files.items():
            text = (TEMPLATES / template).read_text(encoding="utf-8").replace("NAME", name)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}. Type --folder with another folder.") from None
    recipe, test = files
    print(f"written: {recipe}, {test}")
    print("Next:")
    print(f"  relay check --recipe {recipe}       the rules that every recipe keeps")
    print(f"  relay train --recipe {recipe} --output_dir runs/{name}")
    print(f"  python -m pytest {test}")


def check_name(name: str) -> None:
    """Raises ConfigError for a name that no Python file can have, or that a library or a recipe has already."""
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name != name.lower():
        raise ConfigError(
            f"{name!r} cannot be the name of a recipe: type small letters, digits and _, such as relay new my_task."
        )
    if name in registry.names():
        raise ConfigError(f"{name} is a recipe of Relay: type relay new with another name.")
    # The file would be imported in place of the library.
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name} is the name of a Python package: type relay new with another name.")
