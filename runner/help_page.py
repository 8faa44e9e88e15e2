"""The first page of help of a training: the settings that people use first, under headings; --help_all lists all."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping

from runner.fields import Setting, defaults_of, settings_of
from runner.recipe import Recipe
from runner.settings import FIRST, RunSettings


def print_help(
    program: str, recipe_name: str, preset: str | None, recipe: type[Recipe], values: Mapping[str, list[str]]
) -> None:
    """Print the first page of a recipe's help. `values`: what the preset sets."""
    known = {setting.flag: setting for setting in settings_of(recipe)}
    first = [flag for flag in recipe.first_settings if flag in known] or [*known][:4]
    defaults = {**defaults_of(RunSettings), **defaults_of(recipe), **values}
    presets = ", ".join(recipe.presets()) or "none"
    print(f"usage: {program} --recipe {recipe_name} [--preset P] [--config FILE.yaml] [--flag value ...]\n")
    print(f"  presets: {presets}{f'; below, the values of {preset}' if preset else ''}")
    _print_group(f"Settings of {recipe_name}", (known[flag] for flag in first), defaults)
    _print_run_groups(defaults)
    total = len(known) + len(settings_of(RunSettings))
    print(f"\n{program} --recipe {recipe_name} --help_all lists all {total} settings.")


def print_general_help(program: str, with_all: bool) -> None:
    """Print how a training is started, and the settings of every run that people use first; or all, `with_all`."""
    from runner import registry

    listed = ", ".join(registry.names())
    print(f"usage: {program} --recipe NAME [--preset P] [--config FILE.yaml] [--flag value ...]\n")
    print(f"  --recipe NAME  what to train: {listed}; or an entry point, a module, a .py file")
    print("  --preset P     a named set of settings of the recipe (relay recipes lists them)")
    print("  --config FILE  settings from YAML; flags win over it")
    print("  --trust_recipe import the recipe file that the config.yaml of a run names")
    defaults = defaults_of(RunSettings)
    if with_all:
        _print_group("Settings of every run", settings_of(RunSettings), defaults)
    else:
        _print_run_groups(defaults)
    print(f"\n{program} --recipe NAME --help adds the recipe's own settings, and --help_all lists everything.")


def _print_run_groups(defaults: Mapping[str, object]) -> None:
    known = {setting.flag: setting for setting in settings_of(RunSettings)}
    for heading, flags in FIRST.items():
        _print_group(heading, (known[flag] for flag in flags), defaults)


def _print_group(heading: str, settings: Iterable[Setting], defaults: Mapping[str, object]) -> None:
    width = min(shutil.get_terminal_size().columns, 100)
    print(f"\n{heading}:")
    for setting in settings:
        default = defaults.get(setting.flag)
        words = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        shown = "" if default is None else f" (default: {words})"
        print(f"  --{setting.flag} {_kind(setting)}".rstrip())
        indent = " " * 6
        print(textwrap.fill(f"{setting.help}{shown}", width, initial_indent=indent, subsequent_indent=indent))


def _kind(setting: Setting) -> str:
    if setting.is_switch:
        return "true|false"
    if setting.choices:
        return "|".join(setting.choices)
    return "INT" if setting.kinds == (int,) else "NUMBER" if float in setting.kinds else "TEXT"
