"""The official scores of Spider, its test suite, BIRD and WikiSQL, on files of predictions in their own formats.

Each agrees with its program pair by pair, quirks included, with these differences, all on purpose: a prediction
that writes, attaches or asks a PRAGMA is refused and scores 0 (the programs run it); where a program would stop
(its grammar cannot read the gold query, the gold query fails, a prediction is empty or takes too long), the pair
scores 0 and says why; and a pair whose database is not there has no score and does not count.

`spider_em`   exact set match, and hardness: `recipes.text2sql.spider_match`.
`spider_exec` execution as taoyds/spider has it: columns by what they select, rows in order, one database.
`test_suite`  execution as taoyds/test-suite-sql-eval has it: columns in any order, rows in order where the gold
              query says "order by", on every database of the folder. Zhong et al. 2020, arXiv 2010.02840.
`bird_ex`     the sets of rows are equal. Li et al. 2023, arXiv 2305.03111.
`bird_ves`    of those, the root of how many times faster the prediction is (VES), and BIRD's later steps (R-VES).
`wikisql_lf`  equality of the structured query, and of its results. Zhong et al. 2017, arXiv 1709.00103.
"""

from __future__ import annotations

import contextlib
import dataclasses
import decimal
import functools
import json
import math
import os
import re
import sqlite3
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.text2sql import pairs, spider_match
from recipes.text2sql.execution import (
    MAX_HEAP_BYTES,
    MAX_RESULT_BYTES,
    NOTHING,
    Execution,
    Limits,
    check_database,
    connect,
    execute,
    time_ratios,
)
from runner.errors import ConfigError, DataError

Row = dict[str, Any]
"""One pair: "index", "score" (None: it could not be run), "hardness", "why" it did not score, and more."""

LEVELS = (*spider_match.HARDNESS, "simple", "moderate", "challenging")
MEANING = {
    "spider_em": "Spider's exact set match: literals, DISTINCT, the number of LIMIT, join conditions do not count",
    "spider_exec": "execution as taoyds/spider: columns by what they select, rows in order, one database",
    "test_suite": "execution as taoyds/test-suite-sql-eval: columns in any order, every database of the folder",
    "bird_ex": "execution as BIRD: equal sets of rows",
    "bird_ves": "BIRD's valid efficiency: 0 where the rows differ, else the root of the gold query's relative time",
    "wikisql_lf": "WikiSQL's logical form: column, aggregate and the set of conditions",
}
_MANY = Limits(60.0, 1_000_000, 4 * MAX_RESULT_BYTES, max_heap_bytes=4 * MAX_HEAP_BYTES)


def score_files(
    metric: str, gold: str, pred: str, folder: str | None, keep_distinct: bool = False, repeats: int = 100
) -> tuple[str, list[Row]]:
    """A table by hardness, and one row for each pair.

    `folder` holds the databases, `tables.json` and BIRD's questions in any of their usual places. Raises DataError
    for files that are missing or not in their format, ConfigError where `folder` is needed and not given.
    """
    if metric == "bird_ves" and repeats < 1:
        raise ConfigError(f"repeats is {repeats}: type a number of at least 1.")
    if metric == "wikisql_lf":
        found = pairs.wikisql(Path(gold), Path(pred))
        path = _wikisql_database(Path(gold), Path(folder) if folder else None)
        if path is None:
            found.notes.append(f"no {Path(gold).stem}.db beside {gold}: nothing was executed")
        judged = _wikisql(found.pairs, path)
        return _finished(metric, judged, found)
    if folder is None:
        raise ConfigError(f"{metric} needs the databases' folder: type --data.dir with the one that holds them.")
    data = _Folder(Path(folder))
    if metric.startswith("bird"):
        found = pairs.bird(Path(gold), Path(pred))
        judged = _bird(found.pairs, data, Path(gold), repeats if metric == "bird_ves" else None)
    else:
        found = pairs.spider(Path(gold), Path(pred))
        judge = {"spider_em": _exact, "spider_exec": _execution, "test_suite": _test_suite}[metric]
        judged = ({"index": index, **judge(*pair, data, keep_distinct)} for index, pair in enumerate(found.pairs))
    return _finished(metric, judged, found)


def _finished(metric: str, judged: Iterable[Row], found: pairs.Pairs) -> tuple[str, list[Row]]:
    """The table and the rows, with a bar on a terminal where they take longer than a second."""
    from tqdm import tqdm

    rows = list(tqdm(judged, total=len(found.pairs), unit="pair", dynamic_ncols=True, disable=None, delay=1))
    return "\n".join([_table(metric, rows), *(f"  note: {note}" for note in found.notes)]), rows


# Databases ---------------------------------------------------------------------------------------------


class _Folder:
    """Databases and schemas below one folder, wherever the data sets' own archives put them."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}: give --data.dir the one that holds the databases.")
        self.root = root

    @functools.cached_property
    def places(self) -> dict[str, list[Path]]:
        """Name of a folder with SQLite files -> the folders that bear it."""
        found: dict[str, list[Path]] = defaultdict(list)
        depth = len(self.root.resolve().parts)
        # Folders are often links to where the large files are; the depth is what ends a circle of them.
        for folder, inner, files in os.walk(self.root.resolve(), followlinks=True):
            path = Path(folder)
            if any(".sqlite" in file for file in files):
                found[path.name].append(path)
            if len(path.parts) - depth >= 5:
                inner.clear()
        return found

    def database(self, name: str, *, of_bird: bool = False, without_rows: bool = False) -> Path | None:
        """The file of a database. BIRD and Spider each have a formula_1: each takes the one that looks like its own."""

        def rank(path: Path) -> tuple[Any, ...]:
            parts = path.relative_to(self.root.resolve()).parts
            bird = any("bird" in part.lower() or part.lower().startswith(("dev_", "minidev")) for part in parts[:-1])
            return "schema_only" in str(path), bird != of_bird, len(parts), parts

        folders = sorted((path for path in self.places.get(name, ()) if (path / f"{name}.sqlite").is_file()), key=rank)
        if not without_rows:
            folders = [path for path in folders if "schema_only" not in str(path)]
        return folders[0] / f"{name}.sqlite" if folders else None

    def suite(self, name: str) -> list[Path]:
        """Every file of the folder that has most of them."""
        folders = [
            sorted(path for path in folder.iterdir() if ".sqlite" in path.name and not path.name.endswith(_BESIDE))
            for folder in self.places.get(name, ())
            if "schema_only" not in str(folder)
        ]
        return max(folders, key=len, default=[])

    @functools.cached_property
    def entries(self) -> dict[str, Any]:
        """Spider's tables.json by database."""
        for folder in (self.root / "spider", self.root, self.root.parent):
            path = folder / "tables.json"
            if path.is_file():
                try:
                    return {entry["db_id"]: entry for entry in pairs.read_json(path)}
                except (KeyError, TypeError) as error:
                    raise DataError(f"{path} is not in the format of Spider's tables.json.") from error
        return {}

    def foreign_keys(self, name: str) -> Mapping[str, str]:
        """Which columns are one, from tables.json alone, as the official script has it."""
        if name not in self.entries:
            raise DataError(
                f"{name} is not in a tables.json at {self.root} or {self.root / 'spider'}.\n"
                "Spider's exact set match and its execution need the foreign keys of that file: put it there."
            )
        return _linked_columns(json.dumps(self.entries[name]))

    @functools.cache  # noqa: B019  One folder a process.
    def schema(self, name: str) -> spider_match.Schema | None:
        """Tables and columns in lower case: of the file, else of tables.json; None where neither is there."""
        path = self.database(name, without_rows=True) or next(iter(self.suite(name)), None)
        if path is not None:
            check_database(path)
            try:
                connection = connect(path)
                try:
                    tables = [
                        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                    ]
                    return {
                        table.lower(): [row[1].lower() for row in connection.execute(_TABLE_INFO, (table,))]
                        for table in tables
                    }
                finally:
                    connection.close()
            except sqlite3.Error as error:
                raise DataError(f"Cannot read the database {path}: {error}.") from error
        if name in self.entries:
            entry = self.entries[name]
            return {
                table.lower(): [column.lower() for owner, column in entry["column_names_original"] if owner == number]
                for number, table in enumerate(entry["table_names_original"])
            }
        return None

    def difficulties(self, gold: Path) -> dict[tuple[str, str], str]:
        """(database, SQL) -> BIRD's difficulty, from the files of questions that are here or beside `gold`."""
        found: dict[tuple[str, str], str] = {}
        for folder in (self.root, self.root / "bird", gold.parent):
            for path in sorted({*folder.glob("*dev*.json"), *folder.glob("*/*dev*.json")}):
                entries: Any = ()
                with contextlib.suppress(DataError):  # It may be anything; what is wanted here is optional.
                    entries = pairs.read_json(path)
                for entry in entries if isinstance(entries, list) else []:
                    if isinstance(entry, Mapping) and {"difficulty", "SQL", "db_id"} <= entry.keys():
                        found.setdefault((entry["db_id"], _spaced(entry["SQL"])), entry["difficulty"])
        return found


_BESIDE = ("-wal", "-shm", "-journal")
_TABLE_INFO = "SELECT * FROM pragma_table_info(?)"


@functools.lru_cache(maxsize=1_000)
def _linked_columns(entry: str) -> Mapping[str, str]:
    return spider_match.foreign_key_map(json.loads(entry))


def _spaced(text: str) -> str:
    return " ".join(text.split())


# Spider ------------------------------------------------------------------------------------------------


def _read_pair(predicted: str, gold: str, schema: spider_match.Schema | None) -> tuple[Any, Any, str, str]:
    """Both queries, or what stands for the one that cannot be read; the gold one's hardness; and why."""
    if schema is None:
        return None, None, "unknown", "its database is neither a file nor in tables.json"
    try:
        wanted = spider_match.parse(gold, schema)
        level = spider_match.hardness(wanted)
    except (spider_match.Unparsable, IndexError, TypeError) as error:
        return None, None, "unknown", f"the official grammar cannot read the gold query: {error}"
    try:
        return spider_match.parse(predicted, schema), wanted, level, ""
    except spider_match.Unparsable as error:
        return spider_match.Query(), wanted, level, f"the official grammar cannot read it: {error}"


def _exact(predicted: str, gold: str, name: str, data: _Folder, _: bool) -> Row:
    schema = data.schema(name)
    ours, theirs, level, why = _read_pair(predicted, gold, schema)
    row: Row = {"score": 0, "hardness": level, "why": why, "db_id": name}
    if schema is None or theirs is None:
        return row | ({"score": None} if schema is None else {})
    keys = data.foreign_keys(name)
    try:
        same, parts = spider_match.exact_match(
            spider_match.comparable(ours, schema, keys), spider_match.comparable(theirs, schema, keys)
        )
    except (TypeError, ValueError, IndexError):
        return row | {"why": "conditions without AND or OR between them, at which the official script stops"}
    differing = [part for part, agrees in parts.items() if not agrees]
    if not same and not why:
        row["why"] = f"differs in {', '.join(differing)}" if differing else "other tables"
    return row | {"score": int(same), "parts": {part: int(agrees) for part, agrees in parts.items()}}


def _execution(predicted: str, gold: str, name: str, data: _Folder, _: bool) -> Row:
    schema, path = data.schema(name), data.database(name)
    ours, theirs, level, why = _read_pair(predicted, gold, schema)
    row: Row = {"score": 0, "hardness": level, "why": why, "db_id": name}
    if schema is None or path is None:
        return row | {"score": None, "why": why or "no database"}
    if why:
        # Without a SELECT that could be read there are no columns to compare, however well it runs.
        return row
    keys = data.foreign_keys(name)
    limits = _limits(bad_text="strict")
    results = []
    for sql, query in ((predicted, ours), (gold, theirs)):
        result = _remembered(path, sql, limits)
        if result.error is not None:
            return row | {"why": f"{'the gold query' if query is theirs else 'it'} fails: {result.error}"}
        columns = {}
        try:
            for place, unit in enumerate(spider_match.comparable(query, schema, keys).select):
                # Aggregates are no part of what names a column; of two with one name, the last counts.
                expression = unit[1]
                columns[expression if expression[2] else expression[1]] = [values[place] for values in result.rows]
        except (IndexError, TypeError, ValueError):
            return row | {"why": "the official grammar sees more columns in it than there are, and the script stops"}
        results.append(columns)
    same = results[0] == results[1]
    return row | {"score": int(same), "why": "" if same else "other columns, rows or order"}


# The test suite ----------------------------------------------------------------------------------------


def _test_suite(predicted: str, gold: str, name: str, data: _Folder, keep_distinct: bool) -> Row:
    schema = data.schema(name)
    level = _read_pair(predicted, gold, schema)[2]
    row: Row = {"score": 0, "hardness": level, "why": "", "db_id": name}
    paths = data.suite(name)
    if not paths:
        return row | {"score": None, "why": "no database"}
    if not predicted:
        return row | {"why": "it is empty"}
    # The script's way with models that do not write values.
    predicted = _mended(predicted.replace("value", "1"), keep_distinct)
    gold = _mended(gold, keep_distinct)
    ordered = "order by" in gold.lower()
    limits = _limits(bad_text="ignore")
    for path in paths:
        wanted = _remembered(path, gold, limits)
        found = _rows_of(execute(path, predicted, limits=limits))
        if wanted.error is not None:
            return row | {"why": f"the gold query fails on {path.name}: {wanted.error}"}
        if found.error is not None:
            return row | {"why": f"it fails on {path.name}: {found.error}"}
        if not same_denotation(wanted.rows, found.rows, ordered):
            return row | {"why": f"other rows on {path.name}"}
    return row | {"score": 1, "databases": len(paths)}


_THIS_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)
_LEXEMES = re.compile(
    r"""
    (?:--|\#[ ])[^\n]*?(?:\r\n|\r|\n|$) | /\*.*?\*/          # comments
    | `(?:``|[^`])*` | ´(?:´´|[^´])*´                        # names
    | '(?:''|\\'|[^'])*' | "(?:""|\\"|[^"])*" | (?<![\w\])])\[[^\]\[]+\]
    | (?<!\w)[$:?]\w+ | \\\w+ | (?:@|\#\#|\#)[^\W\d_]\w+      # placeholders and such
    | \w[$\#\w]* | .
    """,
    re.VERBOSE | re.DOTALL,
)


def _mended(sql: str, keep_distinct: bool) -> str:
    """The query as the script runs it: operators in one piece, and without DISTINCT only its first statement."""
    for apart, whole in (("> =", ">="), ("< =", "<="), ("! =", "!=")):
        sql = sql.replace(apart, whole)
    if not keep_distinct:
        kept, level, ended = [], 0, False
        for lexeme in _LEXEMES.findall(sql):
            level += {"(": 1, ")": -1}.get(lexeme, 0)
            if ended and not lexeme.isspace() and not lexeme.startswith(("--", "# ")):
                break
            kept += [] if lexeme.lower() == "distinct" else [lexeme]
            # Blanks and a comment behind the semicolon are still of the first statement.
            ended = ended or (lexeme == ";" and level <= 0)
        sql = "".join(kept)
    return _THIS_YEAR.sub("2020", sql)


def same_denotation(left: Sequence[tuple[Any, ...]], right: Sequence[tuple[Any, ...]], ordered: bool) -> bool:
    """Whether some order of the right side's columns makes its rows those of the left side, repeats counted.

    As in the official script, values of one row that are equal but written apart (1 and 1.0) can keep two rows
    from being compared at all.
    """
    if not left and not right:
        return True
    if len(left) != len(right) or len(left[0]) != len(right[0]):
        return False
    ours, theirs = map(_without_column_order, left), map(_without_column_order, right)
    if not (list(ours) == list(theirs) if ordered else set(ours) == set(theirs)):
        return False
    if ordered:
        return Counter(zip(*left, strict=True)) == Counter(zip(*right, strict=True))
    # A column can only stand for one with the same values; a prefix of columns that does not fit needs no more. Of
    # columns that are equal row for row one is enough: ten of nothing but NULL have millions of orders.
    columns = list(zip(*right, strict=True))
    values = [Counter(column) for column in columns]
    candidates = [
        [place for place, there in enumerate(values) if there == here]
        for here in (Counter(column) for column in zip(*left, strict=True))
    ]

    def fits(chosen: list[int]) -> bool:
        if len(chosen) > 1:
            width = len(chosen)
            if Counter(row[:width] for row in left) != Counter(tuple(row[place] for place in chosen) for row in right):
                return False
        if len(chosen) == len(candidates):
            return True
        rest = {columns[place]: place for place in candidates[len(chosen)] if place not in chosen}
        return any(fits([*chosen, place]) for place in rest.values())

    return all(candidates) and fits([])


def _without_column_order(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


# BIRD --------------------------------------------------------------------------------------------------


def _bird(found: Iterable[tuple[str, str, str]], data: _Folder, gold: Path, repeats: int | None) -> Iterator[Row]:
    levels = data.difficulties(gold)
    limits = _limits(timeout_seconds=30.0, bad_text="strict", distinct=True)
    for index, (predicted, query, name) in enumerate(found):
        row: Row = {"index": index, "score": 0, "hardness": levels.get((name, _spaced(query)), "unknown"), "why": ""}
        row["db_id"] = name
        path = data.database(name, of_bird=True)
        if path is None:
            yield row | {"score": None, "why": "no database"}
            continue
        check_database(path)
        wanted, ours = _remembered(path, query, limits), _rows_of(execute(path, predicted, limits=limits))
        if wanted.error is not None:
            row["why"] = f"the gold query fails: {wanted.error}"
        elif ours.error is not None:
            row["why"] = f"it fails: {ours.error}"
        elif set(ours.rows) != set(wanted.rows):
            row["why"] = "other rows"
        elif repeats is None:
            row["score"] = 1
        else:
            # Thirty seconds for each turn, as the program has it.
            row |= efficiency(time_ratios(path, predicted, query, repeats, 30.0 * repeats))
        yield row


def efficiency(ratios: Sequence[float]) -> Row:
    """Score (VES) and reward (R-VES) of a correct prediction, from the gold query's times over its own."""
    if ratios:
        mean, spread = statistics.fmean(ratios), statistics.pstdev(ratios)
        ratios = [ratio for ratio in ratios if abs(ratio - mean) < 3 * spread]
    if not ratios:
        return {"score": 0, "reward": 0, "why": "it could not be timed"}
    ratio = statistics.fmean(ratios)
    reward = next((step for least, step in ((2, 1.25), (1, 1), (0.5, 0.75), (0.25, 0.5)) if ratio >= least), 0.25)
    return {"score": math.sqrt(ratio), "reward": math.sqrt(reward), "ratio": ratio}


# WikiSQL -----------------------------------------------------------------------------------------------

_AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
_COMPARISONS = ("=", ">", "<", "OP")
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


def _wikisql(found: Iterable[tuple[Any, Any, str]], path: Path | None) -> Iterator[Row]:
    for index, (answer, question, table) in enumerate(found):
        wanted, error = _Structured(question), answer.get("error")
        row: Row = {"index": index, "score": 0, "hardness": f"{len(wanted.conditions)} conditions", "why": ""}
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
            results = [_wikisql_rows(path, table, query) for query in (wanted, ours)]
            row["execution"] = int(results[0] is not None and results[0] == results[1])
        yield row


class _Structured:
    """A query of WikiSQL; equal to another if the column, the aggregate and the set of conditions are."""

    def __init__(self, query: Mapping[str, Any]) -> None:
        self.column, self.aggregate, self.conditions = query["sel"], query["agg"], list(query["conds"])

    @functools.cached_property
    def compared(self) -> list[tuple[Any, Any, str]]:
        return [(column, operator, str(value).lower()) for column, operator, value in self.conditions]

    def differing(self, other: _Structured) -> list[str]:
        """The parts that are not equal."""
        equal = {
            "sel": self.column == other.column,
            "agg": self.aggregate == other.aggregate,
            "conds": set(self.compared) == set(other.compared),
        }
        return [part for part, same in equal.items() if not same]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structured) and not self.differing(other)

    def is_in_order(self, other: _Structured) -> bool:
        """Whether they are equal and the conditions stand in one order (`--ordered` of the official script)."""
        return self == other and self.compared == other.compared


def _wikisql_database(gold: Path, folder: Path | None) -> Path | None:
    places = [place for place in (gold.parent, folder, folder and folder / "wikisql") if place]
    return next((path for place in places if (path := place / f"{gold.stem}.db").is_file()), None)


def _wikisql_rows(path: Path, table: str, query: _Structured | None) -> list[Any] | None:
    """The result column, or None where the query cannot be run."""
    if query is None:
        return None
    name = table if table.startswith("table") else f"table_{table.replace('-', '_')}"
    schema = _wikisql_schemas(str(path)).get(name)
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
    result = execute(path, sql, limits=_limits(bad_text="strict"))
    return None if result.error is not None else [row[0] for row in result.rows]


@functools.lru_cache(maxsize=8)
def _wikisql_schemas(path: str) -> dict[str, dict[str, str]]:
    """Table -> column -> type, as the statements say that made them."""
    check_database(path)
    connection = connect(Path(path))
    try:
        statements = connection.execute("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        connection.close()
    return {name: dict(re.findall(r"(\w+) (\w+)", sql.partition("(")[2])) for name, sql in statements}


def _as_number(text: str) -> float:
    """As babel reads a number in English, which takes out all commas; else the first number in the text."""
    try:
        return float(decimal.Decimal(text.replace(",", "")))
    except decimal.InvalidOperation:
        return float(_NUMBER.findall(text)[0])


def _literal(value: Any) -> str:
    """The value as SQLite binds it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if value is None or value != value:
        return "NULL"
    if isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63:
        return repr(value + 0).replace("inf", "9e999")
    raise TypeError(f"{type(value).__name__} is no value of a condition")


# Both --------------------------------------------------------------------------------------------------


def _limits(**changes: Any) -> Limits:
    return dataclasses.replace(_MANY, **changes)


def _rows_of(result: Execution) -> Execution:
    """A text without a statement runs, and finds nothing."""
    return Execution() if result.error == NOTHING else result


_kept: dict[tuple[Path, str, Limits], Execution] = {}
KEPT_RESULTS, KEPT_ROWS = 64, 10_000


def _remembered(path: Path, sql: str, limits: Limits) -> Execution:
    # Gold queries come back: most of Spider's have a neighbour that asks the same in other words. Large results are
    # not kept: sixty of a million rows are six gigabytes.
    key = (path, sql, limits)
    if key in _kept:
        return _kept[key]
    result = _rows_of(execute(path, sql, limits=limits))
    if len(result.rows) <= KEPT_ROWS:
        if len(_kept) >= KEPT_RESULTS:
            del _kept[next(iter(_kept))]
        _kept[key] = result
    return result


def _table(metric: str, rows: Sequence[Row]) -> str:
    """The mean of each hardness and of all, over the rows that have a score."""
    scored = [row for row in rows if row["score"] is not None]
    if rows and not scored:
        names = sorted({row["db_id"] for row in rows})
        raise DataError(
            f"None of the databases is there: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.\n"
            "Type --data.dir with the folder that has DB_ID/DB_ID.sqlite in it, or in folders below it."
        )
    columns: dict[str, Callable[[Row], Any]] = {metric: lambda row: row["score"]}
    if metric == "bird_ves":
        columns = {"VES": lambda row: 100 * row["score"], "R-VES": lambda row: 100 * row.get("reward", 0)}
        columns["bird_ex"] = lambda row: float("ratio" in row)
    if metric == "wikisql_lf":
        columns["ordered"] = lambda row: row.get("ordered", 0)
        if any("execution" in row for row in rows):
            columns["execution"] = lambda row: row.get("execution", 0)
    levels = [level for level in LEVELS if any(row["hardness"] == level for row in scored)]
    levels += sorted({row["hardness"] for row in scored} - set(levels))
    lines = [f"{metric}: {MEANING[metric]}", f"  {'':14}{'pairs':>7}" + "".join(f"{name:>13}" for name in columns)]
    for level in [*levels, "all"]:
        members = scored if level == "all" else [row for row in scored if row["hardness"] == level]
        means = [statistics.fmean(map(value, members)) if members else 0.0 for value in columns.values()]
        lines.append(f"  {level:14}{len(members):>7,}" + "".join(f"{mean:>13.4f}" for mean in means))
    if len(scored) < len(rows):
        names = sorted({row["db_id"] for row in rows if row["score"] is None})
        which = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        lines.append(f"  {len(rows) - len(scored):,} more pairs could not be scored: no database {which}")
    unread = sum("cannot read it" in row["why"] for row in rows)
    if unread:
        lines.append(f"  {unread:,} predictions the official grammar cannot read")
    broken = sum("the gold query" in row["why"] for row in rows)
    if broken:
        lines.append(f"  {broken:,} pairs score 0 because their gold query fails or cannot be read")
    return "\n".join(lines)
