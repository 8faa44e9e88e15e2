"""`relay predict`: answer one request with a trained model."""

import sys
from pathlib import Path
from typing import Any

from runner.config import parse_into
from runner.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Load the checkpoint's recipe and model, and print the recipe's answer to the request on the command line."""
    from runner import registry
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import find_config, find_weights, load_trained

    checkpoint, words = _taken("checkpoint", arguments)
    name, words = _taken("recipe", words)
    wants_help = "--help" in words or "-h" in words
    if checkpoint is None and name is not None and wants_help:
        parse_into(_request_of(registry.find(name), name), words, f"relay predict --recipe {name} --checkpoint DIR")
    if checkpoint is None and wants_help:
        print("usage: relay predict --checkpoint DIR [the recipe's own flags; --recipe NAME --help lists them]")
        sys.exit(0)
    if checkpoint is None:
        raise ConfigError(
            "No checkpoint was given: type --checkpoint with a run's folder, a checkpoint-<step> or final/."
        )
    folder = Path(checkpoint)
    config = find_config(folder)
    if name is not None and registry.find(name) is not type(config.recipe):
        raise ConfigError(f"{folder} is of the recipe {config.recipe_name}, not of {name}: leave --recipe out.")
    request_type = _request_of(type(config.recipe), config.recipe_name)
    request = parse_into(request_type, words, f"relay predict --checkpoint {folder}")
    print(f"model: {describe_weights(find_weights(folder))}", file=sys.stderr, flush=True)
    recipe, model = load_trained(folder, config.recipe)
    print(recipe.answer(model, request))


def _request_of(recipe: Any, name: str) -> Any:
    if recipe.Request is None:
        raise ConfigError(f"The recipe {name} has no Request: it cannot answer from the command line.")
    return recipe.Request


def _taken(flag: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of a flag, and the words without the two."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"--{flag}=") else [word])]
    if f"--{flag}" not in words:
        return None, words
    place = words.index(f"--{flag}")
    if place + 1 == len(words):
        raise ConfigError(f"--{flag} came without a value: type --{flag} {'DIR' if flag == 'checkpoint' else 'NAME'}.")
    return words[place + 1], words[:place] + words[place + 2 :]
