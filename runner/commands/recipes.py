"""`relay recipes`: list the recipes and their presets."""

from runner import registry


def main(arguments: list[str]) -> None:
    """Print each recipe that can be asked for by name, with what it is and its presets."""
    if arguments:
        print("usage: relay recipes")
        return
    for name in registry.names():
        recipe = registry.find(name)
        presets = ", ".join(recipe.presets()) or "none"
        print(f"{name}\n  {registry.summary(recipe)}\n  presets: {presets}")
