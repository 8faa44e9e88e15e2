"""Types of settings that say more than `int`, `float` or `str`: the range of a number, a list of names, a position.

`hidden_size: AtLeast1 = 128` is an `int` to every reader. Relay refuses other numbers by the setting's name.
"""

import dataclasses
import math
import re
import typing
from typing import Annotated

from runner.errors import ConfigError

MOST = 2**31 - 1
"""The largest count that a setting may have: more examples, steps or units than anything here can hold."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, from `low` to `high`."""

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()
    """Those of the two ends that it may not have."""
    beside: tuple[float, ...] = ()
    """Numbers outside the range that mean something of their own, such as -1 for "not set"."""

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range. Infinity and NaN are in none."""
        is_inside = math.isfinite(value) and self.low <= value <= self.high and value not in self.without
        return is_inside or value in self.beside

    def wanted_instead(self, value: float) -> str:
        """What to type in place of a number outside the range: also the largest count, where it is above that."""
        return f"of at most {self.high}" if self.high == MOST and value > MOST else str(self)

    def __str__(self) -> str:
        if not math.isfinite(self.high) or self.high == MOST:
            words = f"above {self.low:g}" if self.low in self.without else f"of at least {self.low:g}"
        else:
            start = f"above {self.low:g}" if self.low in self.without else f"from {self.low:g}"
            words = f"{start} {'to below' if self.high in self.without else 'to'} {self.high:.17g}"
        return words + "".join(f", or {value:g}" for value in self.beside)


@dataclasses.dataclass(frozen=True)
class CommaList:
    """Marks a text that holds several names or numbers with commas between them."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Marks a setting that may also be typed without its flag, by its place: `relay report RUN`."""

    shown: str
    """What the usage line calls it."""
    example: str
    """What somebody would type there."""
    what: str
    """What it is, for messages."""


AtLeast0 = Annotated[int, Range(0, MOST)]
AtLeast1 = Annotated[int, Range(1, MOST)]
Workers = Annotated[int, Range(0, 256)]
"""Processes that each training process starts beside itself: a typing mistake must not fill the machine with them."""
AtLeast2 = Annotated[int, Range(2, MOST)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, without=(0,))]
PositiveShare = Annotated[float, Range(0, 1, without=(0,))]
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, without=(1,))]
LEAST_VOCABULARY, MOST_VOCABULARY = 259, 1_000_000
"""Byte-level BPE starts with 256 bytes and three special tokens."""
VocabularySize = Annotated[int, Range(LEAST_VOCABULARY, MOST_VOCABULARY)]
Commas = Annotated[str, CommaList()]


@dataclasses.dataclass(frozen=True)
class ByteSize:
    """Marks a text that is a number of bytes."""


Size = Annotated[str, ByteSize()]
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def bytes_of(size: str, name: str) -> float:
    """The bytes of a size such as 5GB or 300MB. Raises ConfigError with the setting's name."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", size.strip().upper())
    if found is None or not float(found[1]):
        raise ConfigError(f"{name} is {size!r}: type --{name} with a size such as 5GB or 300MB.")
    return float(found[1]) * UNITS[found[2] or ""]


def marks_of(hint: object) -> list[object]:
    """What annotations add to a type, also inside of `X | None`."""
    found = list(getattr(hint, "__metadata__", ()))
    return found + [mark for part in typing.get_args(hint) if not isinstance(part, str) for mark in marks_of(part)]


def range_of(hint: object) -> Range | None:
    """The range that an annotated type has."""
    return next((mark for mark in marks_of(hint) if isinstance(mark, Range)), None)


def _holds_float(hint: object) -> bool:
    return hint is float or any(_holds_float(part) for part in typing.get_args(hint))


def check_ranges(owner: object, prefix: str = "") -> None:
    """Raises ConfigError where a number of a settings dataclass, or of a group in it, is out of its range.

    `prefix` stands in front of the names: `model.` for the group `model`.
    """
    hints = typing.get_type_hints(type(owner), include_extras=True)
    for field in dataclasses.fields(owner):  # type: ignore[arg-type]
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{field.name.removesuffix('_settings')}.")
            continue
        if value is not None and any(isinstance(mark, ByteSize) for mark in marks_of(hints[field.name])):
            bytes_of(str(value), prefix + field.name)
        allowed = range_of(hints[field.name])
        if allowed is not None and isinstance(value, (int, float)) and not allowed.holds(value):
            name = prefix + field.name
            kind = "a number" if _holds_float(hints[field.name]) else "a whole number"
            raise ConfigError(f"{name} is {value}: type --{name} with {kind} {allowed.wanted_instead(value)}.")
