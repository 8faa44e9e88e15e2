"""Cells of metadata as a target: numbers or classes, and what is missing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runner.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.microbiome.settings import DataSettings

# What stands in metadata where nothing was measured.
MISSING = {"", "na", "nan", "n/a", "#n/a", "null", "missing", "not applicable", "not collected", "not provided"}
MISSING |= {"missing: not collected", "missing: not provided", "restricted access", "missing: restricted access"}
# The same among numbers; among words these can be classes, such as no antibiotic.
MISSING_NUMBERS = {"none", "unspecified", "unknown"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
NUMBER_WITH_COMMAS = re.compile(r"[+-]?\d+(,\d+)+(\.\d+)?")


class Column(NamedTuple):
    """How the cells of a column are understood."""

    is_number: bool
    has_value: np.ndarray
    """(samples,) of bool."""


def is_missing(cell: str, listed: str | None) -> bool:
    """Whether a cell says that nothing was measured; `listed` are the user's words for it, with commas between."""
    word = cell.strip().lower()
    return word in MISSING or word in {each.strip().lower() for each in (listed or "").split(",")}


def is_number(cell: str) -> bool:
    """Whether a cell is a finite decimal number."""
    return NUMBER.fullmatch(cell.strip()) is not None and bool(np.isfinite(float(cell)))


def read_target(cells: Sequence[str], source: str, declared: str | None, settings: DataSettings) -> Column:
    """Decide whether a target is a number or a class.

    `source` is the file's name, `declared` its type in the file. Raises DataError for a column that is neither: words
    among numbers, numbers with commas, nearly as many classes as samples, classes of two spellings.
    """
    name = f"The column {settings.target!r} of {source}"
    has_value = np.array([not is_missing(cell, settings.missing_values) for cell in cells], bool)
    present = [cell.strip() for cell, there in zip(cells, has_value, strict=True) if there]
    if settings.task == "auto" and declared == "categorical":
        _check_spelling(name, present)
        return Column(False, has_value)
    if settings.task == "classification" or not present:
        return Column(False, has_value)
    words = [cell for cell in present if not is_number(cell) and cell.lower() not in MISSING_NUMBERS]
    numbers = sum(map(is_number, present))
    wants_numbers = settings.task == "regression" or declared == "numeric"
    if numbers and not words:
        said = np.array([cell.strip().lower() not in MISSING_NUMBERS for cell in cells], bool)
        return Column(True, has_value & said)
    classes = len(set(present))
    with_commas = [word for word in words if NUMBER_WITH_COMMAS.fullmatch(word)]
    if with_commas and all(word in with_commas or words.count(word) < 3 for word in words):
        raise DataError(
            f"{name} holds numbers with a comma, like {with_commas[0]!r}: a decimal comma, or one between thousands?\n"
            f"Write them with a decimal point and no comma, or type --data.task classification for {classes} classes."
        )
    if numbers or wants_numbers:
        listed = ", ".join(f"{word!r} ({count})" for word, count in Counter(words).most_common(4)) or "only words"
        leave = [word for word, _ in Counter(words).most_common() if "," not in word][:8]
        raise DataError(
            f"{name} holds {numbers} numbers and {len(words)} other values: {listed}.\n"
            f"Type --data.missing_values {','.join(leave)!r} if they mean that nothing was measured, or "
            f"--data.task classification for {classes} classes."
        )
    if classes > 2 and 2 * classes > len(present) and settings.task == "auto":
        raise DataError(
            f"{name} holds {classes} different values in {len(present)} samples, like {present[0][:30]!r}: neither "
            "numbers nor classes that repeat.\nCorrect the column, or type --data.task classification."
        )
    if settings.task == "auto":
        _check_spelling(name, present)
    return Column(False, has_value)


def _check_spelling(name: str, cells: Sequence[str]) -> None:
    """Raise DataError for classes that differ in capitals, or in blanks within, alone."""
    spellings: dict[str, str] = {}
    for cell in cells:
        other = spellings.setdefault(" ".join(cell.lower().split()), cell)
        if other != cell:
            raise DataError(
                f"{name} holds {other!r} ({list(cells).count(other)}) and {cell!r} ({list(cells).count(cell)}), which "
                "would be two classes.\nWrite them alike, or type --data.task classification if they differ."
            )


def describe_codes(cells: Sequence[str], target: str) -> str | None:
    """A line about a target of a few different whole numbers, which can be codes of classes."""
    values = {float(cell) for cell in cells if is_number(cell)}
    if 1 < len(values) <= 5 and 2 * len(values) < len(cells) and all(value == int(value) for value in values):
        return (
            f"{target} holds {len(values)} different whole numbers and is predicted as a number. If they are codes of "
            "classes, type --data.task classification."
        )
    return None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What is fitted on the training samples alone, and travels with the model."""

    mean: float = 0.0
    """Of the target, in its unit."""
    deviation: float = 1.0
    classes: tuple[str, ...] = ()
    """None for a regression."""
    majority: tuple[int, ...] = ()
    """The most frequent letter (1 to 4) of each column of the training ASVs."""
    letters: int = 0
    """Length of the longest training ASV, as far as the model reads it."""

    def in_unit(self, output: Tensor) -> Tensor:
        """What a head gives, as probabilities (samples, classes) or in the target's unit (samples,)."""
        return output.softmax(1) if self.classes else output.squeeze(1) * self.deviation + self.mean

    def to_json(self) -> dict[str, object]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Fitted:
        """The inverse of `to_json`."""
        lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
        return cls(**{**content, **lists})  # type: ignore[arg-type]
