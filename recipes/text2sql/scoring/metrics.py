"""The metrics of generated SQL, over the rows that `Recipe.predict` returns.

`exact_match`         the two queries have the same canonical spelling (`recipes.text2sql.sql.canonical`). It compares
                      literals, join conditions and the order of conditions. Spider's exact set match ignores those,
                      so the two numbers are not comparable.
`exact_set_match`     Spider's exact set match (`recipes.text2sql.scoring.spider_match`), with the foreign keys of the
                      schema, over the gold queries that its grammar can read.
`valid_sql`           SQLite prepares the prediction, as a query that only reads, on the database (or on an empty one
                      with its schema).
`execution_accuracy`  both queries run on the database without an error and return the same rows, as
                      `recipes.text2sql.sql.results.same_result` defines it: in order if the gold query has an
                      outermost ORDER BY.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from recipes.text2sql.scoring import spider_match
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.results import is_ordered, is_valid, same_result
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric over the rows, and over each group of them as "metric/group".

    A row is a JSON object: "predicted" and "gold" (SQL), "db_id", "database" (path of the SQLite file, or
    None), "schema" (a `Schema`, or what `Schema.to_json` gave; may be absent where the database is there) and
    "group" (optional). "without_database" counts the rows that could not be run; execution accuracy is over
    the others, and absent where there is none. "gold_errors", only where not zero, counts gold queries that
    fail: they score 0.
    """
    groups: dict[str, list[CompleteRow]] = {"": [_completed(row) for row in rows]}
    for row in groups[""]:
        if row["group"]:
            groups.setdefault(f"/{row['group']}", []).append(row)
    result: dict[str, float] = {}
    for suffix, members in groups.items():
        if members:
            result |= {f"{name}{suffix}": value for name, value in _metrics(members, by_hardness=not suffix).items()}
    result["without_database"] = float(sum(not row["database"] for row in groups[""]))
    failed = sum(_run(row["database"], row["gold"]).error is not None for row in groups[""] if row["database"])
    return result | ({"gold_errors": float(failed)} if failed else {})


class CompleteRow(TypedDict):
    """A row with everything that the metrics read."""

    predicted: str
    gold: str
    schema: str
    """JSON text of `Schema.to_json`."""
    database: str | None
    """Path of the SQLite file; None if it does not exist."""
    group: str | None


def _metrics(rows: Sequence[CompleteRow], by_hardness: bool) -> dict[str, float]:
    """The metrics of some rows; a metric that none of them has is left out."""
    matched = [found for row in rows if (found := set_match(row["predicted"], row["gold"], row["schema"]))]
    run = [(row["predicted"], row["gold"], row["database"]) for row in rows if row["database"]]
    result = {"exact_match": _mean(is_exact_match(row["predicted"], row["gold"], row["schema"]) for row in rows)}
    if matched:
        result["exact_set_match"] = _mean(hit for _, hit in matched)
    if by_hardness:
        for level in sorted({level for level, _ in matched}):
            result[f"exact_set_match/{level}"] = _mean(hit for own, hit in matched if own == level)
    result["valid_sql"] = _mean(is_valid(row["database"] or _schema(row["schema"]), row["predicted"]) for row in rows)
    if run:
        result["execution_accuracy"] = _mean(is_same_execution(*each) for each in run)
    return result


def verdicts(row: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether one prediction is right, by each metric; None where a metric does not apply to the row."""
    complete = _completed(row)
    predicted, gold = complete["predicted"], complete["gold"]
    schema, database = complete["schema"], complete["database"]
    matched = set_match(predicted, gold, schema)
    return {
        "exact_match": is_exact_match(predicted, gold, schema),
        "exact_set_match": None if matched is None else matched[1],
        "valid_sql": is_valid(database or _schema(schema), predicted),
        "execution_accuracy": is_same_execution(predicted, gold, database) if database else None,
    }


def is_exact_match(predicted: str, gold: str, schema: str) -> bool:
    """Whether two queries have one canonical spelling; `schema` is the JSON text of `Schema.to_json`."""
    return canonical(predicted, _schema(schema)) == canonical(gold, _schema(schema))


@functools.lru_cache(maxsize=20_000)
def set_match(predicted: str, gold: str, schema: str) -> tuple[str, bool] | None:
    """Hardness and exact set match of a pair; None where the official grammar cannot read the gold query."""
    columns, keys = _spider_schema(schema)
    try:
        wanted = spider_match.parse(gold, columns)
        level = spider_match.hardness(wanted)
    except (spider_match.Unparsable, IndexError, TypeError):
        return None
    try:
        ours, theirs = (
            spider_match.comparable(query, columns, keys) for query in (spider_match.parse(predicted, columns), wanted)
        )
        return level, spider_match.exact_match(ours, theirs)[0]
    except (spider_match.Unparsable, IndexError, TypeError, ValueError):
        return level, False


def is_same_execution(predicted: str, gold: str, database: str) -> bool:
    """Whether two queries give the same rows on a SQLite file."""
    wanted = _run(database, gold)
    return wanted.error is None and same_result(_run(database, predicted), wanted, is_ordered(gold))


def _completed(row: Mapping[str, Any]) -> CompleteRow:
    """The row with its schema as text, and its database only if there is one."""
    database = row.get("database")
    database = str(database) if database and Path(database).is_file() else None
    schema = row.get("schema")
    if isinstance(schema, Schema):
        schema = schema.to_json()
    elif schema is None and database:
        schema = _schema_of(database).to_json()
    elif schema is None:
        raise DataError(
            f"A row of {row.get('db_id')!r} has neither a schema nor a database file.\n"
            'Give "schema" (as Schema.to_json makes it) or "database" (the path of a SQLite file).'
        )
    return {
        "predicted": str(row["predicted"]),
        "gold": str(row["gold"]),
        "schema": json.dumps(schema),
        "database": database,
        "group": row.get("group"),
    }


def _run(database: str, sql: str) -> Execution:
    """One execution, remembered until the file changes: gold queries return at every evaluation."""
    state = os.stat(database)
    return _run_once(database, sql, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=10_000)
def _run_once(database: str, sql: str, changed: int, size: int) -> Execution:
    return execute(database, sql)


@functools.lru_cache(maxsize=1_000)
def _schema(text: str) -> Schema:
    return Schema.from_json(json.loads(text))


@functools.lru_cache(maxsize=1_000)
def _spider_schema(text: str) -> tuple[spider_match.Schema, Mapping[str, str]]:
    """Tables with their columns in lower case, and which columns foreign keys make one."""
    schema = _schema(text)
    places = [(table, column) for table, columns in schema.tables.items() for column in columns]
    names = list(schema.tables)
    keys = [(places.index((a, b)), places.index((c, d))) for a, b, c, d in schema.foreign_keys]
    entry: spider_match.SpiderTables = {
        "table_names_original": names,
        "column_names_original": [(names.index(table), column) for table, column in places],
        "foreign_keys": keys,
    }
    columns = {table.lower(): [column.lower() for column in columns] for table, columns in schema.tables.items()}
    return columns, spider_match.foreign_key_map(entry)


@functools.lru_cache(maxsize=1_000)
def _schema_of(database: str) -> Schema:
    return Schema.from_database(database)


def _mean(hits: Iterable[bool]) -> float:
    values = list(hits)
    return sum(values) / len(values)
