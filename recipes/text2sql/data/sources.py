"""Reading the data sets in their official formats, one entry at a time; GeoQuery and ATIS come in Spider's format.

`entries` lists what a split has, cheaply; `question` makes a question of one entry, or says why it is none, so that
many processes can do it. `wrong_query` says why SQLite does not run the query of a question. WikiSQL's structured
queries become SQL over the table's real column names. Its tables and Gretel's CREATE and INSERT statements become small
SQLite files, each named by a hash of what is in it. Sources: Yu et al. 2018, arXiv 1809.08887; Li et al. 2023, arXiv
2305.03111; Zhong et al. 2017, arXiv 1709.00103.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.text2sql.data.question_files import Fault, read_entries, repeated_ids, texts_of, with_any_ending
from recipes.text2sql.data.questions import FILES, Question, database_of, folder_of, schema_of, tables_of
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.schema import Schema, table_statements
from runner.errors import DataError

Entry = dict[str, str]
"""What `question` needs: source, text, query, db_id, database (a path), schema (as JSON), material; "" for nothing.
Of files that users may write: place (path and line), and where the entry is no question, kind and fault (see `Fault`).
"""

WIKISQL_TABLE = "wiki_table"
"""What every table of WikiSQL is called: they have numbers for names."""
AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
CONTEXT_SECONDS = 5.0
NO_DATABASE = "about databases that are not there"
UNREADABLE = "about databases that are not there or cannot be read"
DERIVED = "derived from queries"
"""The material of an entry whose schema is not that of a database."""


def entries(source: str, folder: str | None, split: str, evidence: bool = True) -> list[Entry]:
    """Every entry of a split. Raises DataError, with what was looked for, where something is missing or broken.

    evidence: whether BIRD's hint stands behind its question.
    """
    root = folder_of(source, folder)
    if source in FILES:
        found = list(_spider(source, root, split))
    elif source == "bird":
        found = list(_bird(root, split, evidence))
    elif source == "wikisql":
        found = list(_wikisql(root, split))
    else:
        found = list(_gretel(root, split))
    blank = {"source": source, "db_id": "", "database": "", "schema": "", "material": "", "text": "", "query": ""}
    blank |= {"place": "", "kind": "", "fault": ""}
    return [{**blank, **entry} for entry in found]


def files(names: Sequence[str], folder: str | None, split: str) -> list[Path]:
    """The files of a split that are there, source after source: questions, tables, databases, BIRD's descriptions."""
    found: list[Path] = []
    for source in names if folder is not None else ():
        root = Path(folder or "") / source
        if source in FILES:
            found += [*(with_any_ending(root / name) for name in FILES[source][split]), root / "tables.json"]
            found += _databases(root / "database")
        elif source == "bird":
            name = _bird_name(split)
            home = _bird_home(root, name) or root
            found += [with_any_ending(home / f"{name}.json"), home / f"{name}_tables.json"]
            found += _databases(home / f"{name}_databases")
            found += sorted((home / f"{name}_databases").glob("*/database_description/*.csv"))
        elif source == "wikisql":
            name, home = _wikisql_home(root, split)
            found += [home / f"{name}.jsonl", home / f"{name}.tables.jsonl"]
        elif source == "gretel":
            found += _gretel_files(root, split)[:1]
    return [path for path in found if path.is_file()]


def _databases(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.sqlite") if path.stem == path.parent.name)


def question(entry: Entry, made: Path) -> Question | str:
    """The question of one entry, or why it is none. Small databases are written below `made`."""
    text, query = entry["text"], entry["query"]
    if entry["source"] == "wikisql":
        table = json.loads(entry["material"])
        path = write_database(made / "wikisql", entry["material"], lambda connection: _fill(connection, table))
        if path is None:
            return "about a table that SQLite cannot hold"
        return Question(text, query, _schema(str(path), WIKISQL_TABLE), str(path))
    if entry["source"] == "gretel":
        if not re.match(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|with|values)\b", query, re.IGNORECASE | re.DOTALL):
            return "asks for writing, not for a query"
        context = entry["material"]
        path = write_database(made / "gretel", context, lambda connection: connection.executescript(context))
        if path is None:
            return "has a context that SQLite does not run"
        if execute(path, query).error is not None:
            return "has a query that SQLite does not run"
        try:
            return Question(text, query, _schema(str(path), "synthetic"), str(path))
        except DataError:
            return "has a context without a table"
    if entry["database"]:
        return Question(text, query, _schema(entry["database"], entry["db_id"]), entry["database"])
    if entry["schema"]:
        return Question(text, query, _parsed_schema(entry["schema"]), None)
    return NO_DATABASE


@functools.lru_cache(maxsize=512)
def _schema(path: str, db_id: str) -> Schema:
    import dataclasses

    return dataclasses.replace(Schema.from_database(path), db_id=db_id)


@functools.lru_cache(maxsize=512)
def _parsed_schema(text: str) -> Schema:
    return Schema.from_json(json.loads(text))


# Spider and BIRD -----------------------------------------------------------------------------------------


def _spider(source: str, root: Path, split: str) -> Iterator[Entry]:
    first, *others = (with_any_ending(root / name) for name in FILES[source][split])
    if not first.is_file():
        raise DataError(f"There is no file {first}: type --data.dir with the folder that holds {source}/{first.name}.")
    known = tables_of(root / "tables.json") if (root / "tables.json").is_file() else {}
    found = [entry for path in (first, *others) if path.is_file() for entry in file_entries(path)]
    places: dict[str, Entry] = {}
    if source == "atis" and not known and not (root / "database").is_dir():
        # ATIS goes around without its schema: what the training queries use stands in for it.
        trained = found if split == "train" else file_entries(with_any_ending(root / FILES[source]["train"][0]))
        schema = schema_of("atis", [entry["query"] for entry in trained if not entry.get("fault")])
        places["atis"] = {"schema": json.dumps(schema.to_json()), "material": DERIVED}
    for entry in found:
        db_id = entry["db_id"]
        if db_id and db_id not in places:
            try:
                schema, database = database_of(db_id, root / "database", known)
                places[db_id] = {"database": database or "", "schema": "" if database else json.dumps(schema.to_json())}
            except DataError as error:
                places[db_id] = {"kind": UNREADABLE, "fault": str(error).rstrip(".")}
        yield entry | places.get(db_id, {})


def file_entries(path: Path, with_evidence: bool = False) -> list[Entry]:
    """The entries of a file in Spider's or BIRD's format. Raises DataError where it cannot be read at all.

    with_evidence: BIRD's hint stands behind its question.
    """
    found: list[Entry] = []
    entries = read_entries(path)
    repeated = repeated_ids(entries)
    for number, entry in enumerate(entries):
        texts = repeated.get(number) or texts_of(entry, ("question", "query", "db_id"))
        place = {"place": f"{path}, line {entry.line}"}
        if isinstance(texts, Fault):
            found.append({**place, "text": "", "query": "", "db_id": "", "kind": texts.kind, "fault": texts.detail})
            continue
        hint = str(entry.values.get("evidence") or "").strip() if with_evidence else ""
        text = f"{texts['question'].strip()} ; {hint}" if hint else texts["question"]
        found.append({**place, "text": text, "query": texts["query"], "db_id": texts["db_id"]})
    return found


def wrong_query(question: Question, entry: Entry) -> str:
    """Why SQLite does not run the query of a question; "" where it does. The query is prepared, not run."""
    place = question.database or table_statements(question.schema)
    error = execute(place, f"EXPLAIN QUERY PLAN {question.query}").error or ""
    # A schema that was derived from queries does not have every table and column.
    return "" if entry["material"] == DERIVED and error.startswith("no such") else error


def _bird(root: Path, split: str, evidence: bool) -> Iterator[Entry]:
    name = _bird_name(split)
    home = _bird_home(root, name)
    if home is None:
        raise DataError(
            f"There is no file {root / name / f'{name}.json'}, nor {root / f'{name}.json'}: type --data.dir with the "
            "folder that holds bird/, or relay data text2sql --sources bird."
        )
    tables = home / f"{name}_tables.json"
    known = tables_of(tables) if tables.is_file() else {}
    places: dict[str, Entry] = {}
    for entry in file_entries(with_any_ending(home / f"{name}.json"), evidence):
        db_id = entry["db_id"]
        if db_id and db_id not in places:
            database = home / f"{name}_databases" / db_id / f"{db_id}.sqlite"
            places[db_id] = {"database": str(database) if database.is_file() else ""}
            if not database.is_file() and db_id in known:
                places[db_id]["schema"] = json.dumps(Schema.from_spider(known[db_id]).to_json())
        yield entry | places.get(db_id, {})


def _bird_name(split: str) -> str:
    return "train" if split == "train" else "dev"


def _bird_home(root: Path, name: str) -> Path | None:
    # The archives unpack into train/ and dev_20240627/; some keep the files right here.
    folders = [root / name, *sorted(root.glob(f"{name}_20*"), reverse=True), root]
    return next((folder for folder in folders if with_any_ending(folder / f"{name}.json").is_file()), None)


# WikiSQL -------------------------------------------------------------------------------------------------


def _wikisql(root: Path, split: str) -> Iterator[Entry]:
    name, home = _wikisql_home(root, split)
    tables_path = home / f"{name}.tables.jsonl"
    for path in (home / f"{name}.jsonl", tables_path):
        if not path.is_file():
            raise DataError(
                f"There is no file {path}: type --data.dir with the folder that holds wikisql/{path.name}, or "
                "relay data text2sql --sources wikisql."
            )
    path = home / f"{name}.jsonl"
    tables: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(json_lines(tables_path)):
        if not {"id", "header", "types", "rows"} <= table.keys():
            raise DataError(f"{tables_path}: line {number + 1} lacks one of id, header, types, rows.")
        tables[table["id"]] = {name: table[name] for name in ("header", "types", "rows")}
    columns = {id_: column_names(table["header"]) for id_, table in tables.items()}
    material = {id_: json.dumps(table) for id_, table in tables.items()}
    for number, entry in enumerate(json_lines(path)):
        try:
            id_ = entry["table_id"]
            query = wikisql_query(entry["sql"], columns[id_], tables[id_]["types"])
            yield {"text": entry["question"], "query": query, "db_id": id_, "material": material[id_]}
        except (KeyError, IndexError, TypeError, ValueError):
            raise DataError(
                f"{path}: line {number + 1} is no question about a table of {tables_path.name}: wanted table_id, "
                "question and sql with sel, agg, conds."
            ) from None


def _wikisql_home(root: Path, split: str) -> tuple[str, Path]:
    """What the split's files are called, and their folder."""
    name = {"validation": "dev"}.get(split, split)
    return name, next((folder for folder in (root, root / "data") if (folder / f"{name}.jsonl").is_file()), root)


def column_names(header: Sequence[str]) -> list[str]:
    """A table's column names; SQLite wants some, and no two that differ in nothing but their case."""
    names: list[str] = []
    taken: set[str] = set()
    for number, cell in enumerate(header):
        name = " ".join(str(cell).replace('"', "").split()) or f"column {number + 1}"
        unique, again = name, 2
        while unique.lower() in taken:
            unique, again = f"{name} {again}", again + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


def wikisql_query(structure: dict[str, Any], columns: Sequence[str], types: Sequence[str]) -> str:
    """WikiSQL's {sel, agg, conds} as SQL over the columns' real names."""

    def quoted(number: int) -> str:
        if number < 0:
            raise IndexError(number)
        return f'"{columns[number]}"'

    selected, aggregate = quoted(structure["sel"]), AGGREGATES[structure["agg"]]
    query = f"SELECT {f'{aggregate}({selected})' if aggregate else selected} FROM {WIKISQL_TABLE}"
    conditions = []
    for column, operator, value in structure["conds"]:
        number = _number(value) if types[column] == "real" else None
        literal = f"{number:.12g}" if number is not None else "'" + str(value).replace("'", "''") + "'"
        conditions.append(f"{quoted(column)} {OPERATORS[operator]} {literal}")
    return f"{query} WHERE {' AND '.join(conditions)}" if conditions else query


def _number(value: object) -> float | None:
    """A condition's value as the number that the official script reads in it."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(str(value).replace(",", ""))
    except ValueError:
        inside = NUMBER.findall(str(value))
        return float(inside[0]) if inside else None


def _fill(connection: sqlite3.Connection, table: dict[str, Any]) -> None:
    # The official files hold everything in lower case; here texts keep theirs and are compared without it.
    declared = [
        f'"{name}" {"REAL" if kind == "real" else "TEXT COLLATE NOCASE"}'
        for name, kind in zip(column_names(table["header"]), table["types"], strict=True)
    ]
    connection.execute(f"CREATE TABLE {WIKISQL_TABLE} ({', '.join(declared)})")
    marks = ", ".join("?" * len(declared))
    connection.executemany(f"INSERT INTO {WIKISQL_TABLE} VALUES ({marks})", table["rows"])


# Gretel --------------------------------------------------------------------------------------------------


def _gretel(root: Path, split: str) -> Iterator[Entry]:
    found = _gretel_files(root, split)
    if not found:
        name = "train" if split == "train" else "test"
        raise DataError(
            f"There is no file {root / f'synthetic_text_to_sql_{name}.snappy.parquet'}, nor {name}.jsonl beside it: "
            "type --data.dir with the folder that holds gretel/, or relay data text2sql --sources gretel."
        )
    path = found[0]
    wanted = {"text": "sql_prompt", "query": "sql", "material": "sql_context"}
    if path.suffix == ".jsonl":
        yield from _texts(list(json_lines(path)), path, wanted)
        return
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows = read_table(path, columns=list(wanted.values())).to_pylist()
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    yield from _texts(rows, path, wanted)


def _texts(rows: Sequence[Mapping[str, object]], path: Path, names: Mapping[str, str]) -> Iterator[Entry]:
    """Of each row the texts that are called names[...] in its file. Raises DataError where one is none."""
    for number, row in enumerate(rows, 1):
        found = {name: row.get(theirs) for name, theirs in names.items()}
        texts = {name: value for name, value in found.items() if isinstance(value, str)}
        if len(texts) < len(names):
            listed = ", ".join(names.values())
            raise DataError(f"{path}: row {number} is to have the texts {listed}, and lacks one of them.")
        yield texts


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one on each line, or none. Raises DataError where a line holds no object."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: line {number + 1} is not JSON: {error}.") from None
            if not isinstance(entry, dict):
                raise DataError(f"{path}: line {number + 1} is to be a JSON object.")
            yield entry


# Small databases -----------------------------------------------------------------------------------------


def write_database(folder: Path, content: str, fill: Callable[[sqlite3.Connection], object]) -> Path | None:
    """A SQLite file filled by `fill`, named by a hash of `content`; None where SQLite refuses, or takes too long."""
    key = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    path = folder / key[:2] / f"{key}.sqlite"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{key}.{os.getpid()}.unfinished")
    unfinished.unlink(missing_ok=True)
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        # Small pages: there are a hundred thousand such files. A crash leaves the unfinished name.
        for pragma in ("page_size = 512", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}").close()
        deadline = time.monotonic() + CONTEXT_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        connection.set_authorizer(_authorise)
        fill(connection)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError):
        connection.close()
        unfinished.unlink(missing_ok=True)
        return None
    connection.close()
    os.replace(unfinished, path)
    return path


def _authorise(action: int, *_: str | None) -> int:
    # A script of the data set may neither reach other files nor change how this one is written.
    refused = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA)
    return sqlite3.SQLITE_DENY if action in refused else sqlite3.SQLITE_OK


def _gretel_files(root: Path, split: str) -> list[Path]:
    name = "train" if split == "train" else "test"
    paths = (root / f"synthetic_text_to_sql_{name}.snappy.parquet", root / f"{name}.jsonl")
    return [path for path in paths if path.is_file()]
