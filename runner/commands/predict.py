"""`relay predict`: answer one request with a trained model."""

import sys
from pathlib import Path
from typing import Any

from runner.config import parse_into
from runner.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Load the checkpoint's recipe and model, and print the recipe's answer to the request on the command line."""
    from runner.trained import find_recipe

    folder, rest = _checkpoint(arguments)
    recipe = find_recipe(folder)
    if not hasattr(recipe, "Request"):
        raise ConfigError(
            f"The recipe {type(recipe).__module__} has no Request: it cannot answer from the command line."
        )
    request = parse_into(recipe.Request, rest, f"relay predict --checkpoint {folder}")
    from runner.trained import load

    recipe, model = load(folder, recipe)
    print(recipe.answer(model, request))


def _checkpoint(arguments: list[str]) -> tuple[Path, list[str]]:
    words: list[Any] = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--checkpoint=") else [word])
    ]
    if "--checkpoint" not in words:
        if "--help" in words or "-h" in words:
            print("usage: relay predict --checkpoint DIR [the recipe's own flags; --help after it lists them]")
            sys.exit(0)
        raise ConfigError(
            "No checkpoint was given: type --checkpoint with a run's folder, a checkpoint-<step> or final/."
        )
    place = words.index("--checkpoint")
    if place + 1 == len(words):
        raise ConfigError("--checkpoint came without a folder: type --checkpoint DIR.")
    return Path(words[place + 1]), words[:place] + words[place + 2 :]
