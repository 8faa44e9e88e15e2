"""The words of a command line become values of settings, and what cannot be one is refused by name.

Values of YAML files and presets take the same way: a list of words for a setting.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from runner.errors import ConfigError, warn
from runner.fields import Setting
from runner.other_tools import BY_NAME, name_here, value_here
from runner.parts.setting_types import Range, range_of
from runner.recipe import note_outdated
from runner.urls import shown

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
HELP, HELP_ALL = ("-h", "--help"), ("--help_all", "--help-all")
LARGEST = 2**63 - 1
"""The largest whole number that tensors hold."""
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""Characters that look like a hyphen, and that text programs write in its place."""
NUMBER = re.compile(r"-?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|-?(inf|nan|infinity)", re.IGNORECASE)


@dataclasses.dataclass
class Reading:
    """What a command line says."""

    values: list[tuple[str, list[str]]] = dataclasses.field(default_factory=list)
    """(setting, its words) in their order; a switch that is on has no word."""
    help: str = ""
    """`help`, `help_all`, or nothing."""


def name_of(word: str) -> str:
    """The setting's name in a flag: `--learning-rate=1` is learning_rate."""
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def chosen_values(arguments: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the flags `names` (each takes one), and the other words. Raises ConfigError."""
    chosen: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name = name_of(word)
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        _, equals, value = word.partition("=")
        if not equals:
            value = next(words, "")
            if value.startswith("--"):
                value = ""
        if not value:
            kind = {"config": "FILE.yaml", "checkpoint": "DIR"}.get(name, "NAME")
            raise ConfigError(f"--{name} came without a value: type --{name} {kind}.")
        if chosen.get(name, value) != value:
            _warn_twice(name, [chosen[name]], [value])
        chosen[name] = value
    return chosen, rest


def read_words(
    arguments: Sequence[str], known: Mapping[str, Setting], renamed: Mapping[str, str], everything: str = "--help_all"
) -> Reading:
    """Read the flags of `known`, and words without a flag for the settings that have a position.

    `renamed`: old names of settings and the new ones; `everything`: the flag that lists all settings. Raises
    ConfigError where a flag is unknown, came without a value or with too many, and where a word belongs to none.
    """
    reading = Reading()
    positions = [setting for setting in known.values() if setting.position]
    given: dict[str, list[str]] = {}
    words = list(arguments)
    only_words = False
    while words:
        word = words.pop(0)
        if not only_words and word in (*HELP, *HELP_ALL):
            reading.help = "help_all" if word in HELP_ALL or reading.help == "help_all" else "help"
            continue
        if not only_words and word == "--":
            only_words = True
            continue
        if not only_words and word.startswith("--"):
            name, values = _flag(word, words, known, renamed, everything)
        else:
            free = [setting for setting in positions if setting.flag not in given]
            if word[:1] in ("-", *DASHES) and not only_words or not free:
                raise ConfigError(_stray(word, reading.values, known))
            name, values = free[0].flag, [word]
            while free[0].is_sequence and words and not words[0].startswith("-"):
                values.append(words.pop(0))
        if name in given and given[name] != values:
            if known[name].is_sequence:
                values = given[name] + values
            else:
                _warn_twice(name, given[name], values)
        given[name] = values
        reading.values.append((name, values))
    return reading


def _flag(
    word: str, rest: list[str], known: Mapping[str, Setting], renamed: Mapping[str, str], everything: str
) -> tuple[str, list[str]]:
    """The setting of a flag and its words, which are taken from the front of `rest`."""
    name, (_, equals, value) = name_of(word), word.partition("=")
    if name in renamed:
        note_outdated(f"The setting {name} is called {renamed[name]} now.")
        name = renamed[name]
    if name not in known:
        denied = _denied(name, known)
        if denied is None:
            raise ConfigError(unknown_name(name, known, everything=everything))
        if equals or (rest and rest[0].lower() in TRUE + FALSE):
            raise ConfigError(f"--{name} takes no value: type --{denied} false.")
        return denied, ["false"]
    setting = known[name]
    if equals:
        return name, [value]
    if setting.is_switch:
        takes_word = rest and not rest[0].startswith("-") and (rest[0].lower() in TRUE + FALSE or not _position(known))
        return name, [rest.pop(0)] if takes_word else []
    values: list[str] = []
    takes_more = setting.is_sequence or setting.is_comma_list
    while rest and (takes_more or not values) and _is_value(rest[0], setting, known, renamed, values):
        values.append(rest.pop(0))
    if not values:
        example = _example(setting)
        hint = f" A value that begins with dashes is typed as --{name}=VALUE." if rest and setting.is_text else ""
        raise ConfigError(f"--{name} came without a value: type --{name} {example}.{hint}")
    return name, values


def _position(known: Mapping[str, Setting]) -> bool:
    return any(setting.position for setting in known.values())


def _is_value(
    word: str, setting: Setting, known: Mapping[str, Setting], renamed: Mapping[str, str], before: list[str]
) -> bool:
    """Whether a word after a flag is its value, and not the next flag."""
    if not word.startswith("-") or NUMBER.fullmatch(word):
        return True
    if before or not setting.is_text or word in (*HELP, *HELP_ALL, "--"):
        return False
    if not re.fullmatch(r"--[A-Za-z][\w.-]*(=.*)?", word, re.DOTALL):
        # "-x", "--what is this", "--- a line": nothing that looks like a flag.
        return True
    name = name_of(word)
    is_flag = name in known or name in renamed or name in ("recipe", "preset", "config") or name in BY_NAME
    return not is_flag and not difflib.get_close_matches(name, known, n=1, cutoff=0.8) and _denied(name, known) is None


def _denied(name: str, known: Mapping[str, Setting]) -> str | None:
    """The switch that `no_NAME`, `GROUP.no_NAME` or `no_GROUP.NAME` turns off."""
    parent, _, leaf = name.rpartition(".")
    candidates = []
    if leaf.startswith("no_"):
        candidates.append(f"{parent}.{leaf[3:]}" if parent else leaf[3:])
    if name.startswith("no_"):
        candidates.append(name[3:])
    return next((each for each in candidates if each in known and known[each].is_switch), None)


def _stray(word: str, before: list[tuple[str, list[str]]], known: Mapping[str, Setting]) -> str:
    """What to say about a word that no flag takes."""
    if word[:1] in DASHES:
        plain = word.lstrip("-" + DASHES)
        return (
            f"{word!r} begins with the character {word[0]} (U+{ord(word[0]):04X}), which a text program wrote in place "
            f"of hyphens: type --{plain}."
        )
    if re.fullmatch(r"-[A-Za-z].*", word):
        return unknown_name(name_of(word), known, shown_name=word)
    if not before:
        return f"{shown(word)} came where a flag was wanted: settings are typed as --name value."
    name, values = before[-1]
    setting = known[name]
    if setting.is_switch:
        return f"--{name} takes true or false, and {shown(word)} came after it: leave that out."
    quotes = f'; a text with blanks is typed in quotes: --{name} "{values[0]} {word} ..."' if setting.is_text else ""
    return f"--{name} takes one value, and {shown(word)} came after {shown(values[-1])}: leave that out{quotes}."


def unknown_name(
    name: str,
    known: Collection[str],
    place: str | None = None,
    shown_name: str | None = None,
    everything: str = "--help_all",
) -> str:
    """What to say about a setting that does not exist. `place`: the file or preset that names it; None for a flag."""
    mark = "" if place else "--"
    start = f"There is no setting {shown_name or mark + name}{f' in {place}' if place else ''}."
    leaves = [flag for flag in known if flag.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = None if leaves else name_here(name, known, mark)
    if hint is not None:
        return f"{start} {hint}"
    shortened = [flag for flag in known if flag.startswith(name) or flag.rpartition(".")[2].startswith(name)]
    near = leaves or (shortened if 0 < len(shortened) <= 3 and len(name) > 1 else [])
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        return f"{start} {everything} lists every setting."
    return f"{start} Did you mean {' or '.join(mark + flag for flag in near[:3])}?"


def _warn_twice(name: str, before: Sequence[str], after: Sequence[str]) -> None:
    first, last = (" ".join(map(shown, words)) or "true" for words in (before, after))
    warn(f"--{name} came twice, with {first} and with {last}: the last one counts.")


def as_flags(setting: Setting, words: Sequence[str], place: str | None = None) -> list[str]:
    """The words for tyro that give `setting` its value, checked.

    `place`: the file or the preset that names it; None for a flag. Raises ConfigError.
    """
    label = f"{setting.flag} in {place}" if place else f"--{setting.flag}"
    flag = f"--{setting.flag}"
    if setting.is_switch and setting.kinds == (bool,) and not setting.may_be_unset:
        word = words[0].lower() if words else "true"
        if len(words) > 1 or word not in TRUE + FALSE:
            typed = f"{flag} true or {flag} false" if not place else "true or false"
            raise ConfigError(f"{label} is a switch: type {typed}; it came with {' '.join(map(shown, words))}.")
        parent, _, leaf = setting.flag.rpartition(".")
        return [flag if word in TRUE else f"--{parent}.no_{leaf}" if parent else f"--no_{leaf}"]
    if setting.is_comma_list and len(words) > 1:
        words = [",".join(words)]
    if setting.is_sequence:
        # tyro takes the words one by one, and would take one with dashes for a flag.
        return [flag, *words]
    if len(words) > 1:
        raise ConfigError(f"{label} takes one value; it came with {len(words)}: {', '.join(map(shown, words))}.")
    # With an equals sign, a value may begin with dashes.
    return [f"{flag}={_checked(setting, words[0] if words else 'true', label)}"]


def _checked(setting: Setting, word: str, label: str) -> str:
    """The word that tyro reads for a value. Raises ConfigError where the setting has no such value."""
    low = word.lower()
    if setting.may_be_unset and low in ("none", "null"):
        return "None"
    if setting.is_switch:
        if low in TRUE + FALSE:
            return str(low in TRUE)
        raise ConfigError(f"{label} is {shown(word)}: type true or false.")
    if setting.is_text:
        return _home(word)
    if not word.strip():
        raise ConfigError(f"{label} is empty: type {setting.wanted}, or leave it out.")
    if setting.choices:
        if word in setting.choices:
            return word
        hint = value_here(setting.flag.rpartition(".")[2], low)
        near = difflib.get_close_matches(low, setting.choices, n=1, cutoff=0.5)
        hint = hint or (f"Did you mean {near[0]}?" if near else "")
        raise ConfigError(f"{label} is {shown(word)}: type {setting.wanted}. {hint}".rstrip())
    if setting.kinds == (int,) or float in setting.kinds:
        return _number(setting, word, label)
    return word


def _number(setting: Setting, word: str, label: str) -> str:
    word = word.strip()
    special = {".inf": "inf", "-.inf": "-inf", "+.inf": "inf", ".nan": "nan"}
    word = special.get(word.lower(), word)
    if word[:1] in DASHES:
        raise ConfigError(
            f"{label} is {word!r}, which begins with the character {word[0]} (U+{ord(word[0]):04X}): type -{word[1:]}."
        )
    is_whole = setting.kinds == (int,)
    try:
        value = int(word) if is_whole else float(word)
    except ValueError:
        pass
    else:
        limit = range_of(setting.hint) or Range(-LARGEST if is_whole else -math.inf, LARGEST if is_whole else math.inf)
        if not limit.holds(value):
            kind = (
                f"{setting.wanted} {limit.wanted_instead(value)}"
                if limit.low > -LARGEST
                else f"{setting.wanted} that is finite"
            )
            raise ConfigError(f"{label} is {word}: type {kind}.")
        return word
    meant = None
    has_thousands = is_whole and re.fullmatch(r"\d{1,3}(,\d{3})+", word)
    for candidate in (word, word.replace(",", "" if has_thousands else ".")):
        try:
            meant = float(candidate)
            break
        except ValueError:
            continue
    hint = ""
    if meant is not None and math.isfinite(meant) and (not is_whole or meant.is_integer()):
        hint = f", such as {int(meant) if is_whole else f'{meant:g}'}"
    raise ConfigError(f"{label} is {shown(word)}: type {setting.wanted}{hint}.")


def _example(setting: Setting) -> str:
    if setting.choices:
        return "|".join(setting.choices)
    if setting.position or setting.flag == "recipe":
        return setting.position.shown if setting.position else "NAME"
    return "NUMBER" if setting.kinds == (int,) or float in setting.kinds else "VALUE"


def _home(word: str) -> str:
    """A path in the home folder: the shell replaces `~` after a blank, and neither after `=` nor in a file."""
    from pathlib import Path

    return str(Path(word).expanduser()) if re.fullmatch(r"~(/\S.*)?", word) else word


def with_new_names(
    values: Iterable[tuple[str, list[str]]], renamed: Mapping[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """The same settings, with old names replaced; a line names each new one."""
    for name, words in values:
        if name in renamed:
            note_outdated(f"The setting {name} is called {renamed[name]} now.")
        yield renamed.get(name, name), words
