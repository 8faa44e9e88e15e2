"""What a run was told: how presets, YAML and flags become settings.

Precedence: recipe's "default" or named preset < YAML < flags. Keys are the flags' names, nested at the dots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.command_line import TRUE, as_flags, chosen_values, read_words, unknown_name, with_new_names
from runner.errors import ConfigError
from runner.fields import Setting, defaults_of, flatten, group_name, settings_of
from runner.parts.setting_types import check_ranges
from runner.recipe import Recipe
from runner.settings import RENAMED, RunSettings
from runner.urls import check_no_secret, check_url, is_url
from runner.yaml_file import Nested, read_yaml, yaml_of_text

__all__ = ["Config", "Setting", "flatten", "parse", "parse_into", "read_yaml", "settings_of", "write_yaml", "yaml_of"]

Owner = typing.TypeVar("Owner")
OWN_NAMES = ("recipe", "preset", "config", "trust_recipe")
"""Flags of a training that are no settings."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run was told: the runner's settings, the recipe with its own, and where they came from."""

    recipe_name: str
    preset: str | None
    run: RunSettings
    recipe: Recipe
    """The recipe itself: its fields are its settings."""
    explicit: frozenset[str] = frozenset()
    """The settings that YAML or flags named, as opposed to presets and defaults."""
    changed: frozenset[str] = frozenset()
    """Those of `explicit` whose value is not the one that the preset or the default has anyway."""
    flags: frozenset[str] = frozenset()
    """Those of `explicit` that were typed as flags."""
    file: Path | None = None
    """The YAML file that `--config` named."""

    def with_run(self, **changes: object) -> Config:
        """The same config with some of the runner's settings changed."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))  # type: ignore[arg-type]

    def with_values(self, values: Mapping[str, object]) -> Config:
        """The same config with other values of some settings, by their names."""
        in_run = {setting.flag: setting.attributes for setting in settings_of(type(self.run))}
        in_recipe = {setting.flag: setting.attributes for setting in settings_of(type(self.recipe))}
        run = _replaced(self.run, {in_run[name]: value for name, value in values.items() if name in in_run})
        recipe = _replaced(self.recipe, {in_recipe[name]: value for name, value in values.items() if name in in_recipe})
        return dataclasses.replace(self, run=run, recipe=recipe)

    def with_batch(self, num_processes: int) -> Config:
        """The config of a run that starts on so many processes, with its batch resolved."""
        from runner.lanes import resolve_batch

        batch_size, micro_batch_size = resolve_batch(self.run, self.explicit, num_processes)
        return self.with_run(batch_size=batch_size, micro_batch_size=micro_batch_size, gradient_accumulation_steps=None)

    def nested(self) -> dict[str, typing.Any]:
        """Every setting as resolved, nested as in YAML: what `config.yaml` holds."""
        nested: dict[str, typing.Any] = {"recipe": self.recipe_name, "preset": self.preset}
        for owner in (self.run, self.recipe):
            for setting in settings_of(type(owner)):
                place = nested
                for part in setting.flag.split(".")[:-1]:
                    place = place.setdefault(part, {})
                place[setting.flag.split(".")[-1]] = _plain(setting.get(owner))
        # A consent is for one start, not for those that repeat it from config.yaml.
        nested["allow_changed_data"] = False
        return nested

    def values(self) -> dict[str, object]:
        """Every setting of the run and the recipe, by its name."""
        owners = (self.run, self.recipe)
        return {each.flag: each.get(owner) for owner in owners for each in settings_of(type(owner))}

    def flat(self) -> dict[str, typing.Any]:
        """Every setting as resolved, flat with dots: what trackers are given."""
        return dict(flatten(self.nested()))


def parse(arguments: Sequence[str], program: str = "relay train", of_run: bool = False) -> Config:
    """Read the command line of a training.

    `of_run`: the file after --config lies in the folder of a run, which may be somebody else's; Relay then imports no
    recipe that the file alone names by a path or a module. Raises ConfigError for what cannot be understood; prints
    the help and leaves with status 0 for `--help`.
    """
    from runner import registry
    from runner.help_page import print_general_help, print_help

    words, trusts_file = _without_switch(arguments, "trust_recipe")
    chosen, words = chosen_values(words, ("recipe", "preset", "config"))
    is_typed, from_yaml, filed_name = "recipe" in chosen, Nested(), None
    if "config" in chosen:
        file = Path(chosen["config"])
        from_yaml = read_yaml(file)
        filed_name = str(from_yaml.get("recipe") or "") or None
        _take_own_names(from_yaml, chosen, file)
        trusts_file = trusts_file or not (of_run or registry.is_of_run(file))
    if "recipe" not in chosen:
        if wants_help(words):
            print_general_help(program, wants_help(words) == "help_all")
            sys.stdout.flush()
            raise SystemExit(0)
        raise ConfigError(
            f"No recipe was given: type --recipe with one of {', '.join(registry.names())}, or a file of yours."
        )
    name, preset = chosen["recipe"], chosen.get("preset")
    if of_run and filed_name is not None and filed_name != name and {filed_name, name} & {*registry.names()}:
        # Two files may be one recipe that was moved; of an installed one it is known.
        folder = Path(chosen["config"]).parent
        raise ConfigError(f"{folder} is of the recipe {filed_name}, not of {name}: leave --recipe out.")
    if not is_typed and not trusts_file:
        registry.check_trust(name, chosen["config"])
    recipe_class = registry.find(name)
    registry.remember_trust(name)
    known = {setting.flag: setting for owner in (RunSettings, recipe_class) for setting in settings_of(owner)}
    renamed = {**RENAMED, **recipe_class.renamed_settings}
    preset_values = _preset_values(recipe_class, name, preset)
    usual = {flag: _words_of(value) for flag, value in preset_values.items()}
    _check_names(usual, known, f"the preset {preset or 'default'}")
    filed = _yaml_words(from_yaml, known, renamed, chosen.get("config", ""))
    reading = read_words(words, known, renamed)
    given = frozenset(flag for flag, value in [*filed.items(), *reading.values] if value not in (["None"], ["none"]))
    filed = {flag: value for flag, value in filed.items() if flag not in recipe_class.unmeant_settings(given, False)}
    unmeant = recipe_class.unmeant_settings(given, True)
    preset_values = {flag: value for flag, value in preset_values.items() if flag not in unmeant}
    usual = {flag: value for flag, value in usual.items() if flag not in unmeant}
    if reading.help == "help":
        print_help(program, name, preset, recipe_class, usual)
        sys.stdout.flush()
        raise SystemExit(0)
    checked = {flag: as_flags(known[flag], value, f"the preset {preset or 'default'}") for flag, value in usual.items()}
    checked |= {flag: as_flags(known[flag], value, chosen.get("config")) for flag, value in filed.items()}
    checked |= {flag: as_flags(known[flag], value) for flag, value in reading.values}
    ordered = [word for value in checked.values() for word in value] + (["--help"] if reading.help else [])
    settings = _ask_tyro(_combined(recipe_class), ordered, f"{program} --recipe {name}")
    typed = frozenset(flag for flag, _ in reading.values)
    explicit = frozenset(filed) | typed
    # A config.yaml that a run wrote names every setting, and most of them are as they would be without it.
    before = {**defaults_of(RunSettings), **defaults_of(recipe_class), **preset_values}
    changed = frozenset(flag for flag in explicit if _plain(known[flag].get(settings)) != _plain(before.get(flag)))
    run, recipe = _part(settings, RunSettings), _part(settings, recipe_class)
    _check_secrets(run, recipe)
    file = Path(chosen["config"]) if "config" in chosen else None
    return Config(name, preset, run, recipe, explicit, changed, typed, file)


def recorded_config(text: str, source: str, recipe_name: str, recipe_class: type[Recipe]) -> Config:
    """The settings in the text of a config.yaml that a run of this recipe wrote, and `source` names.

    Settings that this version does not know are left out. Raises ConfigError where the text cannot be read.
    """
    content = yaml_of_text(text, source)
    preset = content.pop("preset", None)
    content.pop("recipe", None)
    known = {setting.flag: setting for owner in (RunSettings, recipe_class) for setting in settings_of(owner)}
    renamed = {**RENAMED, **recipe_class.renamed_settings}
    filed = {renamed.get(name, name): value for name, value in flatten(content)}
    named = frozenset(name for name, value in filed.items() if value is not None)
    unmeant = recipe_class.unmeant_settings(named, True)
    values = dict(recipe_class.presets().get(str(preset or "default"), {}))
    values = {name: value for name, value in values.items() if name not in unmeant}
    unmeant = recipe_class.unmeant_settings(named, False)
    values |= {name: value for name, value in filed.items() if name not in unmeant}
    given = {name: as_flags(known[name], _words_of(value), source) for name, value in values.items() if name in known}
    settings = _ask_tyro(_combined(recipe_class), [word for words in given.values() for word in words], source)
    preset = None if preset is None else str(preset)
    return Config(recipe_name, preset, _part(settings, RunSettings), _part(settings, recipe_class))


def _replaced(owner: Owner, values: Mapping[tuple[str, ...], object]) -> Owner:
    """A (nested) dataclass with other values of some leaves, by the way to them."""
    own = {way[0]: value for way, value in values.items() if len(way) == 1}
    for group in {way[0] for way in values if len(way) > 1}:
        inner = {way[1:]: value for way, value in values.items() if len(way) > 1 and way[0] == group}
        own[group] = _replaced(getattr(owner, group), inner)
    return dataclasses.replace(owner, **own) if own else owner  # type: ignore[type-var]


def parse_into(owner: type[Owner], arguments: Sequence[str], program: str, description: str | None = None) -> Owner:
    """Read the command line of a `relay` verb into a dataclass, with the same manners as `parse`.

    Settings that are marked with a `Position` may come without their flag. Raises ConfigError.
    """
    known = {setting.flag: setting for setting in settings_of(owner)}
    reading = read_words(arguments, known, getattr(owner, "renamed_settings", {}), "--help")
    given = {flag: as_flags(known[flag], words) for flag, words in reading.values}
    usage = " ".join([program, *(setting.position.shown for setting in known.values() if setting.position)])
    if not reading.help:
        defaults = defaults_of(owner)
        missing = [flag for flag in known if flag not in defaults and flag not in given]
        if missing:
            raise ConfigError(_missing(usage, [known[flag] for flag in missing]))
    ordered = [word for words in given.values() for word in words] + (["--help"] if reading.help else [])
    found = _ask_tyro(owner, ordered, usage, description)
    check_ranges(found)
    return found


def _missing(usage: str, settings: list[Setting]) -> str:
    """What to say about required settings that did not come."""
    flags = "".join(f" --{each.flag} VALUE" for each in settings if each.position is None)
    for setting in settings:
        if setting.position is not None:
            program, example = usage.partition(f" {setting.position.shown}")[0], setting.position.example
            also = f", or --{setting.flag} {example}" if not flags else ""
            return f"{program} takes {setting.position.what}: type {program} {example}{flags}{also}."
    named = " and ".join(f"--{setting.flag}" for setting in settings)
    return f"{named} did not come: type {usage}{flags} ({settings[0].help.rstrip('.')})."


def wants_help(words: Sequence[str]) -> str:
    """`help`, `help_all`, or nothing: what a command line without a recipe asks for."""
    if {"--help_all", "--help-all"} & {*words}:
        return "help_all"
    return "help" if {"-h", "--help"} & {*words} else ""


def wants_debug(arguments: Sequence[str]) -> bool:
    """Whether a command line that could not be read asks for --debug."""
    found = False
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == "--debug":
            value = value if equals else following
            found = value.lower() in TRUE or (not equals and (not value or value.startswith("--")))
    return found


def write_yaml(config: Config, path: Path) -> None:
    """Write all settings as resolved, so that `--config` with the file repeats the run."""
    path.write_text(yaml_of(config), encoding="utf-8")


def yaml_of(config: Config) -> str:
    """All settings as resolved, as text."""
    import yaml

    return yaml.safe_dump(config.nested(), sort_keys=False, allow_unicode=True)


def _without_switch(arguments: Sequence[str], name: str) -> tuple[list[str], bool]:
    """The other words, and whether the switch `name` is among them."""
    spellings = (f"--{name}", f"--{name.replace('_', '-')}")
    return [word for word in arguments if word not in spellings], any(word in spellings for word in arguments)


def _take_own_names(from_yaml: Nested, chosen: dict[str, str], file: Path) -> None:
    """Take recipe and preset out of what a file holds; what was typed comes first."""
    for name in ("recipe", "preset"):
        value = from_yaml.pop(name, None)
        if isinstance(value, (list, dict)):
            raise ConfigError(f"{name} in {file} is a list or a group; wanted: one name.")
        if value is not None:
            chosen.setdefault(name, value)


def _yaml_words(
    from_yaml: Nested, known: Mapping[str, Setting], renamed: Mapping[str, str], file: str
) -> dict[str, list[str]]:
    """The settings in a file, each with its words. Raises ConfigError by name."""
    groups = {flag.rpartition(".")[0] for flag in known} - {""}
    found: dict[str, list[str]] = {}
    pairs = [(name, value) for name, value in flatten(from_yaml) if not (name in groups and value is None)]
    for name, _ in pairs:
        if name in groups:
            raise ConfigError(f"{name} in {file} is a group: write its settings below it, indented, or leave it out.")
        above = next((flag for flag in known if name.startswith(f"{flag}.")), None)
        if above is not None:
            raise ConfigError(f"{above} in {file} is a group; wanted: one value.")
    words = [(name, value if isinstance(value, list) else [value]) for name, value in pairs]
    lists = {renamed.get(name, name) for name, value in pairs if isinstance(value, list)}
    for name, value in with_new_names(words, renamed):
        _check_names([name], known, file)
        setting = known[name]
        if name in found:
            raise ConfigError(f"{name} stands twice in {file}: leave one out.")
        if name in lists and not (setting.is_sequence or setting.is_comma_list):
            raise ConfigError(f"{name} in {file} is a list; wanted: one value.")
        if None in value and (len(value) > 1 or not setting.may_be_unset):
            raise ConfigError(f"{name} in {file} is empty: give it a value, or leave the line out.")
        found[name] = ["None" if word is None else word for word in value]
    return found


def _words_of(value: object) -> list[str]:
    """A value of a preset as the words that would be typed for it."""
    if isinstance(value, (list, tuple)):
        return [word for each in value for word in _words_of(each)]
    return [str(value)]


def _check_names(names: typing.Iterable[str], known: Mapping[str, Setting], place: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name(name, known, place))


def _check_secrets(*owners: object) -> None:
    """Raises ConfigError where a setting holds a password, a key or a token: config.yaml and the logs would show it."""
    for owner in owners:
        for setting in settings_of(type(owner)):
            value = setting.get(owner)
            if isinstance(value, (str, Path)):
                check_no_secret(str(value), setting.flag)
                if setting.flag in ("upload_to", "resume_from_checkpoint", "init_from") and is_url(str(value)):
                    check_url(str(value), setting.flag)


def _combined(recipe_class: type) -> type:
    """One dataclass of the runner's and the recipe's settings, which inherits so that help texts are found."""
    import tyro

    shared = {field.name for field in dataclasses.fields(RunSettings)}
    clash = shared.intersection(field.name for field in dataclasses.fields(recipe_class))
    if clash:
        raise ConfigError(f"The recipe has settings of the runner's own names: rename {', '.join(sorted(clash))}.")
    hints = typing.get_type_hints(recipe_class, include_extras=True)
    renamed = []
    for field in dataclasses.fields(recipe_class):
        if field.name != group_name(field.name):
            hint = typing.Annotated[hints[field.name], tyro.conf.arg(name=group_name(field.name))]
            default = {"default_factory": field.default_factory} if field.default is dataclasses.MISSING else {}
            default = default or {"default": field.default}
            renamed.append((field.name, hint, dataclasses.field(**default)))  # type: ignore[call-overload]
    return dataclasses.make_dataclass("Settings", renamed, bases=(RunSettings, recipe_class), frozen=True, kw_only=True)


def _part(settings: object, owner: type[Owner]) -> Owner:
    names = [field.name for field in dataclasses.fields(owner) if field.init]  # type: ignore[arg-type]
    return owner(**{name: getattr(settings, name) for name in names})


def _ask_tyro(owner: type[Owner], arguments: list[str], program: str, description: str | None = None) -> Owner:
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(owner, args=arguments, prog=program, description=description, use_underscores=True)
    except SystemExit as leaving:
        if not leaving.code:
            # A reader that has gone, such as `head`, is noticed here and not when Python ends.
            sys.stdout.flush()
            raise
        raise ConfigError(_one_line(printed.getvalue())) from None


def _one_line(box: str) -> str:
    """The message inside tyro's framed report, without the frame and the long help."""
    lines = [line.strip("│╭╰╮╯─ \n") for line in box.splitlines()]
    # Without a terminal of UTF-8 the frame is made of dashes.
    lines = [line for line in lines if line.strip("-+| ")]
    message = lines[1] if len(lines) > 1 else " ".join(lines)
    for line in lines[2:]:
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        message += f" {line}"
    return f"{message.rstrip(' .')}. --help lists every setting." if "help" not in message else message


def _preset_values(recipe_class: type[Recipe], recipe_name: str, preset: str | None) -> dict[str, object]:
    presets = recipe_class.presets()
    if preset is None:
        return dict(presets.get("default", {}))
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        listed = ", ".join(presets) or "none"
        raise ConfigError(f"{recipe_name} has no preset called {preset!r}. {hint}It has: {listed}.")
    return dict(presets[preset])


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
