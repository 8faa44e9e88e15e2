"""The verbs of `relay`: one file each, with a function `main(arguments)`."""

import difflib

from runner.config import settings_of
from runner.settings import RunSettings


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
            target = own if name in {*names, "help", "h"} or is_near else others
        target.append(word)
    return own, others
