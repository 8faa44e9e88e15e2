"""Whether a query runs, and whether two queries give the same rows."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from recipes.text2sql.sql.execution import Execution, Row, execute
from recipes.text2sql.sql.parsing import parsed
from recipes.text2sql.sql.schema import Schema, table_statements


def first_that_finds(candidates: Sequence[str], database: Path | str) -> str:
    """The first query that returns a value other than NULL, else the first that runs, else the first.

    No expected answer is used. Source: Wang et al. 2018 (execution-guided decoding), arXiv 1807.03100.
    """
    runs = None
    for candidate in dict.fromkeys(candidates):
        result = execute(database, candidate, timeout_seconds=2.0)
        if result.error is None and any(value is not None for row in result.rows for value in row):
            return candidate
        if result.error is None and runs is None:
            runs = candidate
    return candidates[0] if runs is None else runs


def is_valid(database: Path | str | Schema, sql: str) -> bool:
    """Whether SQLite prepares the query as one that only reads, on a file or on an empty database."""
    place = table_statements(database) if isinstance(database, Schema) else database
    # With QUERY PLAN, neither "EXPLAIN SELECT 1" nor "QUERY PLAN SELECT 1" passes for a query.
    return execute(place, f"EXPLAIN QUERY PLAN {sql}").error is None


@functools.lru_cache(maxsize=20_000)
def is_ordered(sql: str) -> bool:
    """Whether the outermost query has an ORDER BY, so that the order of its rows is part of its result."""
    tree = parsed(sql)
    if tree is not None:
        return tree.args.get("order") is not None
    return re.search(r"\border\s+by\b[^)]*$", sql, re.IGNORECASE) is not None


def same_result(predicted: Execution, gold: Execution, ordered: bool) -> bool:
    """Whether two results hold the same rows: as lists if `ordered`, else as multisets.

    The i-th column is compared with the i-th column and names are ignored; repeated rows count. Numbers are
    equal within a relative 1e-6 where either is a float, exactly otherwise; a text never equals a number;
    NULL equals NULL. Two empty results are equal. An error equals nothing, itself included. So this is
    stricter than BIRD's sets (no repeats, no order) and than Spider's test suite (columns in any order).
    """
    if predicted.error is not None or gold.error is not None or len(predicted.rows) != len(gold.rows):
        return False
    if ordered:
        return all(map(_same_row, predicted.rows, gold.rows))
    left, right = Counter(predicted.rows), Counter(gold.rows)
    if left == right:
        return True
    # Only rows that differ by rounding can still be equal; sorted, they nearly always stand opposite each
    # other.
    ours = sorted((left - right).elements(), key=_sort_key)
    theirs = sorted((right - left).elements(), key=_sort_key)
    if all(map(_same_row, ours, theirs)):
        return True
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in theirs:
        groups[_exact_part(row)].append(row)
    for row in ours:
        candidates = groups[_exact_part(row)]
        place = next((i for i, candidate in enumerate(candidates) if _same_row(row, candidate)), None)
        if place is None:
            return False
        del candidates[place]
    return True


def _same_row(left: Row, right: Row) -> bool:
    return len(left) == len(right) and all(map(_same_value, left, right))


def _same_value(left: object, right: object) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        return _is_number(left) and _is_number(right) and math.isclose(left, right, rel_tol=1e-6)
    return left == right


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _exact_part(row: Row) -> tuple[object, ...]:
    return tuple("number" if _is_number(value) else (type(value).__name__, value) for value in row)


def _sort_key(row: Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    exact = tuple("" if _is_number(value) else f"{type(value).__name__} {value!r}" for value in row)
    return exact, tuple(float(value) for value in row if _is_number(value))
