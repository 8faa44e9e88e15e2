"""The settings of a run: their names, help and defaults, and how presets, YAML and flags make them.

Precedence: recipe's "default" or named preset < YAML < flags. Keys are the flags' names, nested at the dots.
"""

import contextlib
import dataclasses
import difflib
import io
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ConfigError
from runner.recipe import Recipe, note_outdated
from runner.settings import RENAMED, RunSettings

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
Value = typing.TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run was told: the runner's settings, the recipe with its own, and where they came from."""

    recipe_name: str
    preset: str | None
    run: RunSettings
    recipe: Any
    """The recipe itself: its fields are its settings."""
    explicit: frozenset[str] = frozenset()
    """The settings that YAML or flags named, as opposed to presets and defaults."""
    changed: frozenset[str] = frozenset()
    """Those of `explicit` whose value is not the one that the preset or the default has anyway."""
    flags: frozenset[str] = frozenset()
    """Those of `explicit` that were typed as flags."""
    file: Path | None = None
    """The YAML file that `--config` named."""

    def with_run(self, **changes: Any) -> "Config":
        """The same config with some of the runner's settings changed."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))

    def with_values(self, values: Mapping[str, object]) -> "Config":
        """The same config with other values of some settings, by their names."""
        run: RunSettings = self.run
        recipe = self.recipe
        in_run = {setting.flag: setting.attributes for setting in settings_of(type(run))}
        in_recipe = {setting.flag: setting.attributes for setting in settings_of(type(recipe))}
        run = _replaced(run, {in_run[name]: value for name, value in values.items() if name in in_run})
        recipe = _replaced(recipe, {in_recipe[name]: value for name, value in values.items() if name in in_recipe})
        return dataclasses.replace(self, run=run, recipe=recipe)

    def with_batch(self, num_processes: int) -> "Config":
        """The config of a run that starts on so many processes, with its batch resolved."""
        from runner.lanes import resolve_batch

        batch_size, micro_batch_size = resolve_batch(self.run, self.explicit, num_processes)
        return self.with_run(batch_size=batch_size, micro_batch_size=micro_batch_size, gradient_accumulation_steps=None)

    def nested(self) -> dict[str, Any]:
        """Every setting as resolved, nested as in YAML: what `config.yaml` holds."""
        nested: dict[str, Any] = {"recipe": self.recipe_name, "preset": self.preset}
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

    def flat(self) -> dict[str, Any]:
        """Every setting as resolved, flat with dots: what trackers are told."""
        return dict(flatten(self.nested()))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the settings: its flag, and where it is in the dataclasses."""

    flag: str
    """Name with dots, as in `--data.dir`."""
    attributes: tuple[str, ...]
    """The way from the outer dataclass to the field."""
    type: Any
    """The annotated type."""

    def get(self, owner: Any) -> Any:
        """The value in `owner`."""
        for attribute in self.attributes:
            owner = getattr(owner, attribute)
        return owner


def group_name(field: str) -> str:
    """The name users see of a nested field: `data_settings` is the group `data` (the verb `data` has the name)."""
    return field.removesuffix("_settings")


def settings_of(owner: type, prefix: str = "", way: tuple[str, ...] = ()) -> list[Setting]:
    """Every setting of a (nested) dataclass, but for the fields that it hides with `tyro.conf.Suppress`."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found = []
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if not field.init or "Suppress" in repr(hint):
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += settings_of(hint, f"{prefix}{group_name(field.name)}.", (*way, field.name))
        else:
            found.append(Setting(prefix + field.name, (*way, field.name), hint))
    return found


def _defaults_of(owner: type, prefix: str = "") -> dict[str, Any]:
    """The default of every setting that has one, by its flag."""
    defaults: dict[str, Any] = {}
    hints = typing.get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(owner):
        group = hints[field.name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(group) and dataclasses.is_dataclass(default) and not isinstance(default, type):
            leaves = settings_of(type(default), f"{prefix}{group_name(field.name)}.")
            defaults |= {leaf.flag: leaf.get(default) for leaf in leaves}
        elif default is not dataclasses.MISSING:
            defaults[prefix + field.name] = default
    return defaults


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name with dots, value) for every leaf of nested mappings."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse(arguments: Sequence[str], program: str = "relay train") -> Config:
    """Read the command line of a training.

    Raises ConfigError for what cannot be understood; prints the help and leaves with status 0 for `--help`.
    """
    from runner import registry

    chosen, flags, wants_help = _split(arguments)
    from_yaml: dict[str, Any] = {}
    if "config" in chosen:
        from_yaml = read_yaml(Path(chosen["config"]))
        for name in ("recipe", "preset"):
            value = from_yaml.pop(name, None)
            if value is not None:
                chosen.setdefault(name, value)
    if "recipe" not in chosen:
        if wants_help:
            _print_general_help(program)
        raise ConfigError(
            f"No recipe was given: type --recipe with one of {', '.join(registry.names())}, or a file of yours."
        )
    recipe_class = registry.find(chosen["recipe"])
    all_settings = _combined(recipe_class)
    known = {setting.flag: setting for owner in (RunSettings, recipe_class) for setting in settings_of(owner)}
    renamed = {**RENAMED, **recipe_class.renamed_settings}
    preset = chosen.get("preset")
    values = _preset_values(recipe_class, chosen["recipe"], preset)
    _check_names(values, known, "preset")
    yaml_values = dict(_with_new_names(flatten(from_yaml), renamed))
    flags = _with_new_names(flags, renamed)
    _check_names(yaml_values, known, f"{chosen.get('config')}")
    _check_names([flag for flag, _ in flags], known, "flag")

    arguments_in_order: list[str] = []
    for flag, value in (*values.items(), *yaml_values.items()):
        arguments_in_order += _as_arguments(known[flag], value)
    for flag, given in flags:
        arguments_in_order += _as_arguments(known[flag], given)
    if wants_help:
        arguments_in_order.append("--help")
    settings = _ask_tyro(all_settings, arguments_in_order, f"{program} --recipe {chosen['recipe']}")

    explicit = frozenset(yaml_values) | frozenset(flag for flag, _ in flags)
    # A config.yaml that a run wrote names every setting, and most of them are as they would be without it.
    usual = _defaults_of(RunSettings) | _defaults_of(recipe_class) | values
    changed = frozenset(name for name in explicit if _plain(known[name].get(settings)) != _plain(usual.get(name)))
    run = _part(settings, RunSettings)
    typed = frozenset(flag for flag, _ in flags)
    file = Path(chosen["config"]) if "config" in chosen else None
    return Config(chosen["recipe"], preset, run, _part(settings, recipe_class), explicit, changed, typed, file)


def recorded_config(text: str, source: str, recipe_name: str, recipe_class: type[Recipe]) -> Config:
    """The settings in the text of a config.yaml that a run of this recipe wrote, and `source` names.

    Settings that this version does not know are left out. Raises ConfigError where the text cannot be read.
    """
    content = _yaml_of_text(text, source)
    preset = content.pop("preset", None)
    content.pop("recipe", None)
    known = {setting.flag: setting for owner in (RunSettings, recipe_class) for setting in settings_of(owner)}
    renamed = {**RENAMED, **recipe_class.renamed_settings}
    values = dict(recipe_class.presets().get(preset or "default", {}))
    values |= {renamed.get(name, name): value for name, value in flatten(content)}
    words = [word for name, value in values.items() if name in known for word in _as_arguments(known[name], value)]
    settings = _ask_tyro(_combined(recipe_class), words, source)
    return Config(recipe_name, preset, _part(settings, RunSettings), _part(settings, recipe_class))


def _replaced(owner: Value, values: Mapping[tuple[str, ...], object]) -> Value:
    """A (nested) dataclass with other values of some leaves, by the way to them."""
    own = {way[0]: value for way, value in values.items() if len(way) == 1}
    for group in {way[0] for way in values if len(way) > 1}:
        inner = {way[1:]: value for way, value in values.items() if len(way) > 1 and way[0] == group}
        own[group] = _replaced(getattr(owner, group), inner)
    return dataclasses.replace(owner, **own) if own else owner  # type: ignore[type-var]


def wants_debug(arguments: Sequence[str]) -> bool:
    """Whether a command line that could not be read asks for --debug."""
    with contextlib.suppress(ConfigError):
        given = [words for flag, words in _split(arguments)[1] if flag == "debug"]
        return bool(given) and (not given[-1] or given[-1][0].lower() in TRUE)
    return False


def _with_new_names(values: Iterable[tuple[str, Value]], renamed: Mapping[str, str]) -> list[tuple[str, Value]]:
    """The same settings, with old names replaced; a line names each new one."""
    pairs = list(values)
    for name, _ in pairs:
        if name in renamed:
            note_outdated(f"The setting {name} is called {renamed[name]} now.")
    return [(renamed.get(name, name), value) for name, value in pairs]


def parse_into(owner: type, arguments: Sequence[str], program: str, description: str | None = None) -> Any:
    """Read the command line of a `relay` verb into a dataclass, with the same manners as `parse`."""
    _, flags, wants_help = _split(arguments, own_names=())
    known = {setting.flag: setting for setting in settings_of(owner)}
    flags = _with_new_names(flags, getattr(owner, "renamed_settings", {}))
    _check_names([flag for flag, _ in flags], known, "flag")
    ordered = [word for flag, given in flags for word in _as_arguments(known[flag], given)]
    return _ask_tyro(owner, [*ordered, *(["--help"] if wants_help else [])], program, description)


def read_yaml(path: Path) -> dict[str, Any]:
    """The nested settings in a YAML file. Raises ConfigError where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}: check the path given to --config.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    return _yaml_of_text(text, str(path))


def _yaml_of_text(text: str, source: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds a {type(content).__name__}; wanted: settings as `name: value` lines.")
    return content


def write_yaml(config: Config, path: Path) -> None:
    """Write all settings as resolved, so that `--config` with the file repeats the run."""
    path.write_text(yaml_of(config), encoding="utf-8")


def yaml_of(config: Config) -> str:
    """All settings as resolved, as text."""
    import yaml

    return yaml.safe_dump(config.nested(), sort_keys=False, allow_unicode=True)


def _split(
    arguments: Sequence[str], own_names: Sequence[str] = ("recipe", "preset", "config")
) -> tuple[dict[str, str], list[tuple[str, list[str]]], bool]:
    """Cut the command line into our own choices, the settings' flags with their words, and whether help is wanted."""
    chosen: dict[str, str] = {}
    flags: list[tuple[str, list[str]]] = []
    wants_help = False
    for argument in arguments:
        if argument in ("-h", "--help"):
            wants_help = True
        elif argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            flags.append((name.replace("-", "_"), [value] if equals else []))
        elif flags:
            flags[-1][1].append(argument)
        else:
            raise ConfigError(f"{argument!r} came where a flag was wanted: settings are typed as --name value.")
    rest = []
    for name, words in flags:
        if name not in own_names:
            rest.append((name, words))
        elif len(words) == 1:
            chosen[name] = words[0]
        else:
            raise ConfigError(f"--{name} takes one value; it came with {len(words)}.")
    return chosen, rest, wants_help


def _check_names(names: Any, known: Mapping[str, Setting], source: str) -> None:
    for name in names:
        if name in known:
            continue
        shown = f"--{name}" if source == "flag" else name
        where = "" if source == "flag" else f" in {source}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [
            flag for flag in known if flag.split(".")[-1] == name.split(".")[-1]
        ]
        mark = "--" if source == "flag" else ""
        hint = f"Did you mean {mark}{near[0]}?" if near else "--help lists every setting."
        raise ConfigError(f"There is no setting {shown}{where}. {hint}")


def _as_arguments(setting: Setting, value: Any) -> list[str]:
    """One setting as the words that tyro reads: from flags (a list of strings) or from YAML (any value)."""
    flag = f"--{setting.flag}"
    is_switch = setting.type is bool
    if is_switch:
        word = value[0] if isinstance(value, list) and len(value) == 1 else value
        if word in ([], True) or str(word).lower() in TRUE:
            return [flag]
        if word is False or str(word).lower() in FALSE:
            parent, _, leaf = setting.flag.rpartition(".")
            return [f"--{parent}.no_{leaf}" if parent else f"--no_{leaf}"]
        raise ConfigError(f"{flag} is a switch: type {flag} true or {flag} false; it came with {value!r}.")
    words = value if isinstance(value, (list, tuple)) else [value]
    return [flag, *(_word(word, setting) for word in words)]


def _word(value: Any, setting: Setting) -> str:
    # YAML reads the words no, off, yes and on as truth values: give a setting that wants the word its word.
    if isinstance(value, bool) and "Literal" in repr(setting.type):
        return "yes" if value else "no"
    if "bool" in repr(setting.type) and str(value).lower() in ("true", "yes", "on", "false", "no", "off"):
        return str(str(value).lower() in ("true", "yes", "on"))
    if isinstance(value, str) and value.lower() in ("none", "null") and "None" in repr(setting.type):
        return "None"
    return str(value)


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


def _part(settings: Any, owner: type) -> Any:
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    return owner(**{name: getattr(settings, name) for name in names})


def _ask_tyro(owner: type, arguments: list[str], program: str, description: str | None = None) -> Any:
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(owner, args=arguments, prog=program, description=description, use_underscores=True)
    except SystemExit as leaving:
        if not leaving.code:
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
    return f"{message}. --help lists every setting." if "help" not in message else message


def _preset_values(recipe_class: type, recipe_name: str, preset: str | None) -> dict[str, Any]:
    presets = recipe_class.presets()
    if preset is None:
        return dict(presets.get("default", {}))
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        listed = ", ".join(presets) or "none"
        raise ConfigError(f"{recipe_name} has no preset called {preset!r}. {hint}It has: {listed}.")
    return dict(presets[preset])


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _print_general_help(program: str) -> typing.NoReturn:
    from runner import registry

    listed = ", ".join(registry.names())
    print(f"usage: {program} --recipe NAME [--preset P] [--config FILE.yaml] [--flag value ...]\n")
    print(f"  --recipe NAME  what to train: {listed}; or an entry point, a module, a .py file")
    print("  --preset P     a named set of settings of the recipe (relay recipes lists them)")
    print("  --config FILE  settings from YAML; flags win over it\n")
    print(f"{program} --recipe NAME --help adds the recipe's own settings. Settings of every run:\n")
    _ask_tyro(RunSettings, ["--help"], program)
    raise SystemExit(0)
