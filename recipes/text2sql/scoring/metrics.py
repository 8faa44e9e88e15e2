"""How good predicted SQL is: four metrics as `evaluate` modules, without a network, and `score` over rows.

`exact_match`         the two texts are equal in the canonical spelling of `recipes.text2sql.sql.canonical`.
                      It compares literals, join conditions and the order of conditions; it is not Spider's
                      exact set match, which ignores those, and the two numbers must not be compared.
`exact_set_match`     Spider's exact set match (`recipes.text2sql.spider_match`), with the foreign keys of the
                      schema, over the gold queries that its grammar can read.
`valid_sql`           SQLite prepares the prediction, as a query that only reads, on the database (or on an
                      empty one with its schema).
`execution_accuracy`  both queries run on the database and give the same rows as
                      `recipes.text2sql.sql.same_result` defines it, in order where the gold query has an
                      outermost ORDER BY. Neither may fail.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.text2sql.scoring import spider_match
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.results import is_ordered, is_valid, same_result
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError

if TYPE_CHECKING:
    import evaluate


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric over the rows, and over each group of them as "metric/group".

    A row is a JSON object: "predicted" and "gold" (SQL), "db_id", "database" (path of the SQLite file, or
    None), "schema" (a `Schema`, or what `Schema.to_json` gave; may be absent where the database is there) and
    "group" (optional). "without_database" counts the rows that could not be run; execution accuracy is over
    the others, and absent where there is none. "gold_errors", only where not zero, counts gold queries that
    fail: they score 0.
    """
    parts: dict[str, list[dict[str, Any]]] = {"": [_completed(row) for row in rows]}
    for row in parts[""]:
        if row["group"]:
            parts.setdefault(f"/{row['group']}", []).append(row)
    result: dict[str, float] = {}
    for ending, members in parts.items():
        if not members:
            continue
        predicted, gold = [row["predicted"] for row in members], [row["gold"] for row in members]
        schemas, databases = [row["schema"] for row in members], [row["database"] or "" for row in members]
        found = metrics()
        result |= _named(found["exact_match"].compute(predictions=predicted, references=gold, schemas=schemas), ending)
        texts = {"predictions": predicted, "references": gold, "schemas": schemas}
        result |= _named(found["exact_set_match"].compute(**texts), ending)
        if not ending:
            by_hardness: dict[str, list[bool]] = {}
            for level, hit in filter(None, map(set_match, predicted, gold, schemas)):
                by_hardness.setdefault(level, []).append(hit)
            result |= {f"exact_set_match/{level}": _mean(hits) for level, hits in sorted(by_hardness.items())}
        result |= _named(
            found["valid_sql"].compute(predictions=predicted, schemas=schemas, databases=databases), ending
        )
        run = [row for row in members if row["database"]]
        if run:
            value = found["execution_accuracy"].compute(
                predictions=[row["predicted"] for row in run],
                references=[row["gold"] for row in run],
                databases=[row["database"] for row in run],
            )
            result |= _named(value, ending)
    result["without_database"] = float(sum(not row["database"] for row in parts[""]))
    failed = sum(_run(row["database"], row["gold"]).error is not None for row in parts[""] if row["database"])
    return result | ({"gold_errors": float(failed)} if failed else {})


@functools.cache
def metrics() -> dict[str, evaluate.Metric]:
    """The four metrics by name, each with `.compute(predictions=..., ...)` as `evaluate` has it.

    `schemas` are JSON texts of `Schema.to_json`, `databases` paths of SQLite files, empty where there is none.
    Made on the first call, since importing `evaluate` takes seconds.
    """
    import datasets
    import evaluate

    def describe(description: str, *names: str) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=description,
            citation="",
            inputs_description=", ".join(names) + ": lists of texts of one length.",
            features=datasets.Features({name: datasets.Value("string") for name in names}),
        )

    class ExactMatch(evaluate.Metric):
        """The fraction of predictions that spell the gold query, both in canonical spelling."""

        def _info(self) -> evaluate.MetricInfo:
            return describe(
                "Equality of the canonical spellings of two queries. Not Spider's exact set match.",
                "predictions", "references", "schemas",
            )  # fmt: skip

        def _compute(self, predictions: list[str], references: list[str], schemas: list[str]) -> dict[str, float]:
            return {"exact_match": _mean(map(is_exact_match, predictions, references, schemas))}

    class ExactSetMatch(evaluate.Metric):
        """The fraction of predictions whose components are the gold query's; nothing where no gold query is read."""

        def _info(self) -> evaluate.MetricInfo:
            return describe(
                "Spider's exact set match, over the gold queries that its grammar can read.",
                "predictions", "references", "schemas",
            )  # fmt: skip

        def _compute(self, predictions: list[str], references: list[str], schemas: list[str]) -> dict[str, float]:
            found = [pair for pair in map(set_match, predictions, references, schemas) if pair]
            return {"exact_set_match": _mean(hit for _, hit in found)} if found else {}

    class ValidSql(evaluate.Metric):
        """The fraction of predictions that SQLite prepares."""

        def _info(self) -> evaluate.MetricInfo:
            return describe(
                "Whether SQLite prepares the query, as one that only reads, on the database or its schema.",
                "predictions", "schemas", "databases",
            )  # fmt: skip

        def _compute(self, predictions: list[str], schemas: list[str], databases: list[str]) -> dict[str, float]:
            places = [database or _schema(schema) for database, schema in zip(databases, schemas, strict=True)]
            return {"valid_sql": _mean(map(is_valid, places, predictions))}

    class ExecutionAccuracy(evaluate.Metric):
        """The fraction of predictions whose rows are those of the gold query."""

        def _info(self) -> evaluate.MetricInfo:
            return describe(
                "Equality of the rows that two queries give on a SQLite database.",
                "predictions", "references", "databases",
            )  # fmt: skip

        def _compute(self, predictions: list[str], references: list[str], databases: list[str]) -> dict[str, float]:
            return {"execution_accuracy": _mean(map(is_same_execution, predictions, references, databases))}

    made = {
        "exact_match": ExactMatch,
        "exact_set_match": ExactSetMatch,
        "valid_sql": ValidSql,
        "execution_accuracy": ExecutionAccuracy,
    }
    # In memory: the usual way writes a file into the home folder and takes a lock on it, per process.
    return {name: kind(config_name=name, keep_in_memory=True) for name, kind in made.items()}


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


def _completed(row: Mapping[str, Any]) -> dict[str, Any]:
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
    entry = {
        "table_names_original": names,
        "column_names_original": [(names.index(table), column) for table, column in places],
        "foreign_keys": keys,
    }
    columns = {table.lower(): [column.lower() for column in columns] for table, columns in schema.tables.items()}
    return columns, spider_match.foreign_key_map(entry)


@functools.lru_cache(maxsize=1_000)
def _schema_of(database: str) -> Schema:
    return Schema.from_database(database)


def _named(values: Mapping[str, float] | None, ending: str) -> dict[str, float]:
    return {f"{name}{ending}": value for name, value in (values or {}).items()}


def _mean(hits: Any) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)
