"""The verbs of `relay`: one file each, with a function `main(arguments)`."""

from runner.config import settings_of


def own_and_others(owner: type, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words that belong to a verb's own settings (and --help), and those for the recipe or the training."""
    names = {setting.flag for setting in settings_of(owner)} | {"help"}
    own: list[str] = []
    others: list[str] = []
    target = own
    for word in arguments:
        if word.startswith("-") and not word.lstrip("-").replace(".", "", 1).isdigit():
            target = own if word.lstrip("-").partition("=")[0].replace("-", "_") in {*names, "h"} else others
        target.append(word)
    return own, others
