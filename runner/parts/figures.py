"""Figures of an evaluation's rows for the report: what `Recipe.figures` returns.

They hold numbers and texts alone, so that the runner can write them into samples.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

MOST_POINTS = 1000
"""Points of a group; of more, evenly spread ones are taken."""
MOST_CLASSES = 12
"""Classes of a confusion matrix; of more, the most frequent ones are shown."""

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Points, in one or several groups."""

    title: str
    axes: tuple[str, str]
    """What lies across and up."""
    groups: Mapping[str, Sequence[tuple[float, float]]]
    is_square: bool = False
    """Whether both axes span the same values, with a line where they are equal."""
    is_line: bool = False
    """Whether a line connects the points of a group."""
    kind: str = "scatter"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each its name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | int]]
    kind: str = "table"


Figure = Scatter | Table


def predicted_against_true(title: str, true: Sequence[float], predicted: Sequence[float]) -> Scatter:
    """A point for each example: the true number across, the predicted one up."""
    pairs = [(float(x), float(y)) for x, y in zip(true, predicted, strict=True)]
    return Scatter(title, ("true", "predicted"), {"examples": some(pairs)}, is_square=True)


def calibration(title: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 10) -> Scatter:
    """For each part, how often the most probable class is right, over how probable the model takes it to be.

    A part is (labels (rows,), probabilities (rows, classes)). A point is the mean of a bin that has rows.
    Source: Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    groups = {}
    for name, (labels, probabilities) in parts.items():
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        groups[name] = [
            (float(confidence[place == each].mean()), float(right[place == each].mean())) for each in np.unique(place)
        ]
    return Scatter(title, ("confidence", "share right"), groups, is_square=True, is_line=True)


def confusion(title: str, labels: np.ndarray, guesses: np.ndarray, names: Sequence[str]) -> Table:
    """How many rows of each true class (down) were taken for each class (across); (rows,) numbers of classes."""
    frequent: list[int] = sorted(
        np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")[:MOST_CLASSES].tolist()
    )
    rows: list[list[str | int]] = []
    heads = [str(names[each]) for each in frequent]
    for true in frequent:
        counts = np.bincount(guesses[labels == true], minlength=len(names))
        rows.append([str(names[true]), *(int(counts[each]) for each in frequent)])
    return Table(title, ["true class", *heads], rows)


def some(items: Sequence[Item], most: int = MOST_POINTS) -> list[Item]:
    """At most so many of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]
