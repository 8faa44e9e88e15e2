"""Finding a recipe: by name, entry point, dotted module or file."""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from runner.errors import ConfigError
from runner.parts.cache import cache_folder
from runner.recipe import Recipe, with_defaults

ENTRY_POINT_GROUP = "relay.recipes"
FILE_PREFIX = "relay_recipe_"


def names() -> list[str]:
    """Every recipe that can be asked for by name: the folders of `recipes`, then the installed plug-ins."""
    import recipes

    shipped = [module.name for module in pkgutil.iter_modules(recipes.__path__) if module.ispkg]
    return sorted(shipped) + sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))


def is_installed(name: str) -> bool:
    """Whether a recipe comes with Relay or with an installed plug-in that names it; others are code of any origin."""
    return name in names()


def is_of_run(file: Path) -> bool:
    """Whether a file of settings lies in the folder of a run, of a checkpoint or of `final`."""
    marks = ("metrics.jsonl", "ledger.jsonl", "manifest.json", "checkpoint-*", "model*.safetensors")
    return file.name == "config.yaml" and any(True for mark in marks for _ in file.parent.glob(mark))


def check_trust(name: str, file: str) -> None:
    """Raises ConfigError where the recipe that the settings of a run name is code that nobody here has asked for.

    A run's folder may be somebody else's, and to import a recipe is to run it. Installed recipes are trusted, and
    files whose content was trained with by the same user before.
    """
    if is_installed(name) or (mark := _trust_mark(name)) is not None and mark.is_file():
        return
    raise ConfigError(
        f"{file} names the recipe {name}, which is not installed: to load it is to run its code.\n"
        f"If you trust it, type --recipe {name}, or --trust_recipe."
    )


def remember_trust(name: str) -> None:
    """Note that the user asked for a recipe file as it is now, so that its runs can be used without asking again."""
    mark = _trust_mark(name)
    if mark is not None:
        # Without a folder for it, the next command asks again.
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def _trust_mark(name: str) -> Path | None:
    """The empty file that stands for trust in the content of a recipe file."""
    if not name.endswith(".py") or not Path(name).is_file():
        return None
    return cache_folder() / "trusted-recipes" / hashlib.sha256(Path(name).read_bytes()).hexdigest()


def find(name: str) -> type[Recipe]:
    """The `Recipe` class of the recipe called `name`.

    Raises ConfigError with what there is, where nothing is called that or the module has no `Recipe`.
    """
    module = _module(name)
    recipe = getattr(module, "Recipe", None)
    if recipe is None:
        raise ConfigError(
            f"{name} has no class called Recipe: a recipe is a frozen dataclass of that name (docs/write-a-recipe.md)."
        )
    # A recipe of version 0.1 gets the defaults that its class lacks; worker processes find it under the same name.
    adapted = with_defaults(recipe)
    module.Recipe = adapted  # type: ignore[attr-defined]
    return adapted


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _from_file(Path(name))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return importlib.import_module(point.module)
    if "." not in name and name in names():
        return importlib.import_module(f"recipes.{name}.recipe")
    if "." in name and _exists(name):
        return importlib.import_module(name)
    known = names()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean --recipe {near[0]}? " if near else ""
    raise ConfigError(
        f"There is no recipe called {name!r}. {hint}There are: {', '.join(known)}.\n"
        "A plug-in is named by its entry point, its module (package.module) or its file (path/to/recipe.py)."
    )


def _exists(dotted: str) -> bool:
    # The console command does not have the working directory on its path; `python -m` does.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"There is no recipe file {path}: give the path of a .py file that holds a class Recipe.")
    module_name = f"{FILE_PREFIX}{path.stem}"
    known = sys.modules.get(module_name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    specification = importlib.util.spec_from_file_location(module_name, path.resolve())
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    # Dataclasses and worker processes look their module up by name.
    sys.modules[module_name] = module
    specification.loader.exec_module(module)
    return module


def summary(recipe: type) -> str:
    """The first sentence of the recipe's module."""
    return (sys.modules[recipe.__module__].__doc__ or "no description").strip().splitlines()[0]
