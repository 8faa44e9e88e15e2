"""What each column is worth: by how much the score falls when the cells of a column are shuffled among the rows.

It is measured for the linear part with its trees, on validation rows, before training. Source: Breiman 2001, Random
forests, section 10.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.tabular.score import MOST_TABLES, macro_auroc, r2
from runner.parts.figures import Figure
from runner.parts.figures import Table as FigureTable

if TYPE_CHECKING:
    from recipes.tabular.linear import Linear
    from recipes.tabular.table import Cells, Table

MOST_ROWS = 500
"""Validation rows that are read."""
SHUFFLES = 3
"""Shuffles of each column; their mean counts."""
MOST_CELLS = 20_000
"""A table of more cells, among the rows that are read, has fewer rows read."""
MOST_COLUMNS = 20
"""Columns of a table in the report."""

Falls = dict[str, float]
"""Column -> fall of AUROC or R2; below 0 where the score rises."""


def falls(table: Table, own: Linear, cells: Cells, targets: np.ndarray, vectors: np.ndarray | None, seed: int) -> Falls:
    """The fall of each column. `targets` (rows,) are classes or numbers, NaN or -1 where unknown.

    It is empty where the score has no value: with one class, or with equal targets.
    """
    known = np.flatnonzero(np.isfinite(targets) & (targets >= 0 if table.classes else True))
    known = known[: max(1, min(MOST_ROWS, MOST_CELLS // max(1, len(table.used))))]
    cells = dataclasses.replace(cells, strings=cells.strings[known], numbers=cells.numbers[known])
    truth, random = targets[known], np.random.default_rng(seed)
    before = _score(own.scores(table, cells, vectors), truth, bool(table.classes)) if len(known) else np.nan
    if np.isnan(before):
        return {}
    found = {}
    for place, column in enumerate(table.used):
        after = []
        for _ in range(SHUFFLES):
            order, strings, numbers = random.permutation(len(known)), cells.strings.copy(), cells.numbers.copy()
            strings[:, place], numbers[:, place] = strings[order, place], numbers[order, place]
            shuffled = dataclasses.replace(cells, strings=strings, numbers=numbers)
            after.append(_score(own.scores(table, shuffled, vectors), truth, bool(table.classes)))
        found[column.name] = before - float(np.mean(after))
    return found


def _score(scores: np.ndarray, truth: np.ndarray, is_classes: bool) -> float:
    """AUROC of (rows, classes) logits, or R2 of (rows, 1) numbers."""
    from recipes.tabular.linear import log_softmax

    return macro_auroc(truth.astype(int), np.exp(log_softmax(scores))) if is_classes else r2(truth, scores[:, 0])


def write(file: Path, found: dict[str, Falls]) -> None:
    """Write the falls of each table."""
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def read(file: Path) -> dict[str, Falls]:
    """The falls of each table; none where an older version has written none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def tables(asked: dict[str, Falls]) -> list[Figure]:
    """The columns of each table with their falls, the largest first, for the report."""
    found: list[Figure] = []
    for name, own in [(name, own) for name, own in asked.items() if own][:MOST_TABLES]:
        largest = sorted(own, key=lambda column: -own[column])
        rows = [[column, f"{own[column]:+.4f}"] for column in largest[:MOST_COLUMNS]]
        title = f"{name}: fall of the score when a column is shuffled (linear part and trees, validation rows)"
        found.append(FigureTable(title, ["column", "fall"], rows))
    return found
