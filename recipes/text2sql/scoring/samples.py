"""Right and wrong answers of an evaluation, for people: question, SQL, gold query and the rows of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.text2sql.sql.execution import Execution, execute

EACH = 3
"""Right answers, and wrong ones."""
MOST_ROWS = 3
"""Rows of a result that are shown."""


def samples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Up to three right and three wrong answers, of the rows of `Recipe.predict`; of each group, such as seen and
    held_out databases, about as many."""
    chosen = []
    for is_right in (True, False):
        by_group: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if is_right_answer(row) is is_right:
                by_group.setdefault(row.get("group") or "", []).append(row)
        # Groups in turn, so that none takes all places.
        longest = max((len(group) for group in by_group.values()), default=0)
        groups = [by_group[name] for name in sorted(by_group)]
        turns = [group[place] for place in range(longest) for group in groups if place < len(group)]
        chosen += [shown(row, is_right) for row in turns[:EACH]]
    return chosen


def is_right_answer(row: Mapping[str, Any]) -> bool:
    """Whether the rows are the right ones; where there is no database, whether the text is."""
    by_rows = row.get("execution_accuracy")
    return bool(row["exact_match"] if by_rows is None else by_rows)


def shown(row: Mapping[str, Any], is_right: bool) -> dict[str, object]:
    """One answer, in words."""
    texts: dict[str, object] = {"right": is_right, "question": row["question"]}
    texts |= {"database": f"{row['db_id']} ({row['group']})" if row.get("group") else row["db_id"]}
    texts |= {"SQL": row["predicted"], "gold": row["gold"]}
    if row.get("database"):
        texts["rows"] = rows_in_words(execute(row["database"], row["predicted"]))
        texts["gold rows"] = rows_in_words(execute(row["database"], row["gold"]))
    return texts


def rows_in_words(result: Execution) -> str:
    """The first rows of a result, and how many there are."""
    if result.error is not None:
        return f"error: {result.error}"
    first = "; ".join(", ".join(map(str, row)) for row in result.rows[:MOST_ROWS])
    if len(result.rows) > MOST_ROWS:
        return f"{first}; ... ({len(result.rows):,} rows)"
    return first or "no rows"
