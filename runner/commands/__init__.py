"""The verbs of `relay`: one file each, with a function `main(arguments)`."""

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Annotated

from runner.config import settings_of
from runner.errors import ConfigError
from runner.parts.setting_types import Position
from runner.settings import RunSettings

RunFolder = Annotated[str, Position("RUN", "runs/NAME", "the folder of a run")]
"""The folder of a run, of a checkpoint or of final: typed as it is, or after --checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """The base of a run with adapters."""

    pretrained: str | None = None
    """Folder of the base of a run with adapters, where it is no longer at the path that the run names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedSettings:
    """Which trained model a verb works with, and whether the recipe that it names is trusted."""

    checkpoint: RunFolder
    """Folder of a run, of a checkpoint or of final; it may stand alone, without the flag."""
    recipe: str | None = None
    """The recipe, where the run names a file or a module that is not here, or that Relay asks about."""
    trust_recipe: bool = False
    """Import the recipe file that the run names, and so run its code."""
    model: BaseSettings = BaseSettings()

    @property
    def folder(self) -> Path:
        """The folder that was typed."""
        return Path(self.checkpoint)

    @property
    def recipe_flags(self) -> list[str]:
        """The flags that read the settings of the run with this recipe."""
        flags = ["--trust_recipe"] if self.trust_recipe else []
        flags += [] if self.recipe is None else ["--recipe", self.recipe]
        return flags + ([] if self.model.pretrained is None else ["--model.pretrained", self.model.pretrained])


def split_flags(owner: type, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words that belong to a verb's own settings (and --help), and those for the recipe or the training.

    A flag that is nearly one of the verb's own and none of a training's is given to the verb, which says so.
    """
    names = {setting.flag for setting in settings_of(owner)}
    of_training = {setting.flag for setting in settings_of(RunSettings)} | {"recipe", "preset", "config"}
    own: list[str] = []
    others: list[str] = []
    target = own
    for word in arguments:
        if word.startswith("-") and not word.lstrip("-").replace(".", "", 1).isdigit():
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            is_near = name not in of_training and difflib.get_close_matches(name, names, n=1, cutoff=0.8)
            target = own if name in {*names, "help", "help_all", "h"} or is_near else others
        target.append(word)
    return own, others


def check_output_file(output: str | Path | None) -> None:
    """Raise ConfigError where a file could not be written: before the work, not after it."""
    if output is None:
        return
    path = Path(output)
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder for {output}: type mkdir -p {path.parent}, or another --output.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{output} cannot be written: type --output with a file, in a folder that you may write in.")


def check_output_folder(output: Path) -> None:
    """Raise ConfigError where a folder could not be made, or not be written in."""
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{output} cannot be written: type --output with a folder that you may write in.")
