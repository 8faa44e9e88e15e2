"""`relay recipes`: list the recipes and their presets."""

import dataclasses

from runner import registry
from runner.config import parse_into


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesSettings:
    """The list has no settings."""


def main(arguments: list[str]) -> None:
    """Print each recipe that can be asked for by name, with what it is and its presets."""
    parse_into(RecipesSettings, arguments, "relay recipes", __doc__)
    for name in registry.names():
        recipe = registry.find(name)
        presets = ", ".join(recipe.presets()) or "none"
        print(f"{name}\n  {registry.summary(recipe)}\n  presets: {presets}")
