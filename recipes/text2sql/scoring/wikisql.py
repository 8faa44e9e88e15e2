"""WikiSQL's logical form, scored as by its official program."""

from __future__ import annotations

import decimal
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.text2sql.scoring.databases import ScoredPair, scoring_limits
from recipes.text2sql.sql.execution import Value, check_database, connect, execute

_AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")


_COMPARISONS = ("=", ">", "<", "OP")


_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


def logical_form(found: Iterable[tuple[Any, Any, str]], path: Path | None) -> Iterator[ScoredPair]:
    for index, (answer, question, table) in enumerate(found):
        wanted, error = _Structured(question), answer.get("error")
        row: ScoredPair = {"index": index, "score": 0, "hardness": f"{len(wanted.conditions)} conditions", "why": ""}
        row["ordered"] = 0
        try:
            ours = None if error else _Structured(answer["query"])
            row["score"], row["ordered"] = int(ours == wanted), int(ours is not None and ours.is_in_order(wanted))
        except (ValueError, KeyError, TypeError, AttributeError):
            ours = None
        if ours is None:
            row["why"] = str(error or "it has no query with sel, agg and conds")
        elif not row["score"]:
            row["why"] = "differs in " + ", ".join(ours.differing(wanted))
        if path is not None:
            results = [wikisql_rows(path, table, query) for query in (wanted, ours)]
            row["execution"] = int(results[0] is not None and results[0] == results[1])
        yield row


class _Structured:
    """A query of WikiSQL. Two are equal if column, aggregate and the set of conditions are equal."""

    def __init__(self, query: Mapping[str, Any]) -> None:
        self.column, self.aggregate, self.conditions = query["sel"], query["agg"], list(query["conds"])

    @functools.cached_property
    def compared(self) -> list[tuple[object, object, str]]:
        return [(column, operator, str(value).lower()) for column, operator, value in self.conditions]

    def differing(self, other: _Structured) -> list[str]:
        """The names of the parts that differ."""
        equal = {
            "sel": self.column == other.column,
            "agg": self.aggregate == other.aggregate,
            "conds": set(self.compared) == set(other.compared),
        }
        return [part for part, same in equal.items() if not same]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structured) and not self.differing(other)

    def is_in_order(self, other: _Structured) -> bool:
        """Whether both are equal, with the conditions in the same order (`--ordered` of the official script)."""
        return self == other and self.compared == other.compared


def wikisql_database(gold: Path, folder: Path | None) -> Path | None:
    places = [place for place in (gold.parent, folder, folder and folder / "wikisql") if place]
    return next((path for place in places if (path := place / f"{gold.stem}.db").is_file()), None)


def wikisql_rows(path: Path, table: str, query: _Structured | None) -> list[Value] | None:
    """The column of the result; None if the query cannot be run."""
    if query is None:
        return None
    name = table if table.startswith("table") else f"table_{table.replace('-', '_')}"
    schema = wikisql_schemas(str(path)).get(name)
    if schema is None:
        return None
    try:
        select = f"col{query.column}"
        aggregate = _AGGREGATES[query.aggregate]
        select = f"{aggregate}({select})" if aggregate else select
        clauses, values = [], {}
        for column, operator, value in query.conditions:
            value = value.lower() if isinstance(value, str) else value
            if schema[f"col{column}"] == "real" and not isinstance(value, int | float):
                value = _as_number(value)
            clauses.append(f"col{column} {_COMPARISONS[operator]} ")
            # Conditions on one column share one value, the last: the script binds by the column's name.
            values[f"col{column}"] = value
        where = [clause + _literal(values[clause.split()[0]]) for clause in clauses]
    except (LookupError, ValueError, TypeError, AttributeError):
        return None
    sql = f"SELECT {select} AS result FROM {name}" + (f" WHERE {' AND '.join(where)}" if where else "")
    result = execute(path, sql, limits=scoring_limits(bad_text="strict"))
    return None if result.error is not None else [row[0] for row in result.rows]


@functools.lru_cache(maxsize=8)
def wikisql_schemas(path: str) -> dict[str, dict[str, str]]:
    """Table -> column -> type, from the statements that created the tables."""
    check_database(path)
    connection = connect(Path(path))
    try:
        statements = connection.execute("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        connection.close()
    return {name: dict(re.findall(r"(\w+) (\w+)", sql.partition("(")[2])) for name, sql in statements}


def _as_number(text: str) -> float:
    """A number as babel reads it in English, without commas; otherwise the first number in the text."""
    try:
        return float(decimal.Decimal(text.replace(",", "")))
    except decimal.InvalidOperation:
        return float(_NUMBER.findall(text)[0])


def _literal(value: object) -> str:
    """The value as SQLite binds it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if value is None or value != value:
        return "NULL"
    if isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63:
        return repr(value + 0).replace("inf", "9e999")
    raise TypeError(f"{type(value).__name__} is no value of a condition")
