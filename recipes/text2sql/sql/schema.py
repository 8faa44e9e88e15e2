"""The tables, columns and keys of a database."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.text2sql.sql.execution import check_database, connect
from recipes.text2sql.sql.names import fold, quoted
from runner.errors import DataError


@dataclasses.dataclass(frozen=True)
class Schema:
    """Tables, columns and keys of one database, in their order and with their own spelling."""

    db_id: str
    tables: Mapping[str, Mapping[str, str]]
    """Table -> column -> type: "text", "number", "time", "boolean" or "others" (Spider's words)."""
    primary_keys: tuple[tuple[str, str], ...] = ()
    """(table, column); a composite key is several of them."""
    foreign_keys: tuple[tuple[str, str, str, str], ...] = ()
    """(table, column, table it points to, column there)."""

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        # The mappings cannot be hashed; equal schemas still have equal keys here.
        return hash((self.db_id, tuple((table, tuple(columns)) for table, columns in self.tables.items())))

    @functools.cached_property
    def num_characters(self) -> int:
        """The characters of all names of tables and columns, with some around each of them."""
        return sum(len(name) + 3 for table, columns in self.tables.items() for name in (table, *columns))

    @classmethod
    def from_database(cls, path: Path | str) -> Schema:
        """Read the schema of a SQLite file: its tables and views, without SQLite's own.

        Raises DataError where there is no such file, or it is empty, damaged or not a database.
        """
        path = Path(path)
        check_database(path)
        tables: dict[str, dict[str, str]] = {}
        primary: list[tuple[str, str]] = []
        foreign: list[tuple[str, str, str | None, str | None]] = []
        left_out: list[str] = []
        try:
            with contextlib.closing(connect(path)) as connection:
                names = connection.execute(
                    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY type, rowid"
                ).fetchall()
                for (table,) in names:
                    if table is None or is_reserved(table):
                        continue
                    try:
                        columns = _columns(connection, table)
                        keys = connection.execute(f"PRAGMA foreign_key_list({quoted(table)})").fetchall()
                    except sqlite3.OperationalError as error:
                        # No query can read it: a view of a dropped table, a virtual table whose module is not here.
                        left_out.append(f"{table} ({error})")
                        continue
                    if not columns:
                        left_out.append(f"{table} (its name or those of its columns are not UTF-8)")
                        continue
                    tables[table] = {column: _type_word(declared) for column, declared, _ in columns}
                    marked = sorted((place, column) for column, _, place in columns if place)
                    primary += [(table, column) for _, column in marked]
                    # SQLite lists keys last to first.
                    for key in sorted(keys, key=lambda key: (-key[0], key[1])):
                        foreign.append((table, key[3], key[2], key[4]))
        except sqlite3.Error as error:
            raise DataError(f"Cannot read the database {path}: {error}. {_remedy(error)}") from error
        listed = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        if not tables:
            reason = f"holds no table that can be read: {listed}" if left_out else "holds no table"
            raise DataError(f"The database {path} {reason}. Give the path of a SQLite file with tables in it.")
        if left_out:
            note(f"{path}: left out, because SQLite cannot read it here: {listed}")
        return cls(path.stem, tables, tuple(primary), tuple(_existing(foreign, tables, primary)))

    @classmethod
    def from_spider(cls, entry: Mapping[str, Any]) -> Schema:
        """One entry of Spider's tables.json, by its original names. Raises DataError where it is not one."""
        try:
            names = entry["table_names_original"]
            columns = entry["column_names_original"]
            # SQLite's own bookkeeping tables (sqlite_sequence) are listed too; they cannot be created.
            place = [
                (names[table], column) if table >= 0 and not is_reserved(names[table]) else None
                for table, column in columns
            ]
            tables: dict[str, dict[str, str]] = {name: {} for name in names if not is_reserved(name)}
            for position, kind in zip(place, entry["column_types"], strict=True):
                if position is not None:
                    tables[position[0]][position[1]] = kind
            # Later releases nest the columns of a composite primary key.
            flat = [key for keys in entry["primary_keys"] for key in (keys if isinstance(keys, list) else [keys])]
            primary = tuple(position for position in map(place.__getitem__, flat) if position is not None)
            foreign = tuple(
                (*start, *end)
                for a, b in entry["foreign_keys"]
                if (start := place[a]) is not None and (end := place[b]) is not None
            )
            return cls(entry["db_id"], tables, primary, foreign)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            name = entry.get("db_id", "?") if isinstance(entry, Mapping) else "?"
            raise DataError(
                f"The schema of {name!r} is not in the format of Spider's tables.json "
                f"({type(error).__name__}: {error})."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON; lists, not objects, carry the order."""
        return {
            "db_id": self.db_id,
            "tables": [[table, [[column, kind] for column, kind in columns.items()]]
                       for table, columns in self.tables.items()],
            "primary_keys": [list(key) for key in self.primary_keys],
            "foreign_keys": [list(key) for key in self.foreign_keys],
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        """What `to_json` gave."""
        return cls(
            value["db_id"],
            {table: {column: kind for column, kind in columns} for table, columns in value["tables"]},
            tuple((table, column) for table, column in value["primary_keys"]),
            tuple((a, b, c, d) for a, b, c, d in value["foreign_keys"]),
        )

    @functools.cached_property
    def folded(self) -> dict[str, frozenset[str]]:
        """Table -> columns, both in lower case as SQLite folds it, with the names of the row number."""
        rowid = {"rowid", "oid", "_rowid_"}
        return {fold(table): frozenset(map(fold, columns)) | rowid for table, columns in self.tables.items()}


def table_statements(schema: Schema) -> tuple[str, ...]:
    """CREATE TABLE for each of the schema's tables."""
    declared = {"number": "NUMERIC", "text": "TEXT", "time": "TEXT", "boolean": "BOOLEAN"}
    statements = []
    for table, columns in schema.tables.items():
        lines = [f"{quoted(column)} {declared.get(kind, '')}" for column, kind in columns.items()]
        primary = [quoted(column) for owner, column in schema.primary_keys if owner == table]
        if primary:
            lines.append(f"PRIMARY KEY ({', '.join(primary)})")
        lines += [
            f"FOREIGN KEY ({quoted(column)}) REFERENCES {quoted(other)} ({quoted(target)})"
            for owner, column, other, target in schema.foreign_keys
            if owner == table
        ]
        statements.append(f"CREATE TABLE {quoted(table)} ({', '.join(lines)})")
    return tuple(statements)


def _columns(connection: sqlite3.Connection, table: str) -> list[tuple[str, str, int]]:
    """Name, declared type and place in the primary key (from 1; 0: none) of each column that a query can name."""
    rows = connection.execute(f"PRAGMA table_xinfo({quoted(table)})").fetchall()
    # Hidden columns of virtual tables are no data; generated columns are. No query can hold a name that is not UTF-8.
    return [(name, declared, place) for _, name, declared, _, _, place, hidden in rows
            if hidden != 1 and "\ufffd" not in name]  # fmt: skip


def _remedy(error: sqlite3.Error) -> str:
    """What the user can do about it."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return "Another program is writing to it: close that program, or give the path of a copy."
    if "readonly" in text or "unable to open" in text:
        return "It may hold an unfinished change of another program: open it once with that program, or give a copy."
    return "Give the path of a sound SQLite file."


@functools.cache
def note(line: str) -> None:
    """Print a line for the user once in a process, and in the first of several processes of a run only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _existing(
    keys: list[tuple[str, str, str | None, str | None]],
    tables: Mapping[str, Mapping[str, str]],
    primary: list[tuple[str, str]],
) -> Iterator[tuple[str, str, str, str]]:
    """The foreign keys whose two ends exist, in the tables' own spelling."""
    spelling = {fold(table): table for table in tables}
    for table, column, other, target in keys:
        owner = spelling.get(fold(other or ""))
        if owner is None:
            continue
        if target is None:
            # `REFERENCES other` without a column means other's primary key.
            heads = [name for place, name in primary if place == owner]
            target = heads[0] if len(heads) == 1 else None
        columns = {fold(name): name for name in tables[owner]}
        if target is not None and fold(target) in columns:
            yield table, column, owner, columns[fold(target)]


def _type_word(declared: str | None) -> str:
    word = (declared or "").lower()
    if "bool" in word or word == "bit":
        return "boolean"
    if any(part in word for part in ("date", "time", "year")):
        return "time"
    if any(part in word for part in ("int", "real", "num", "dec", "doub", "float", "money")):
        return "number"
    return "others" if "blob" in word or "binary" in word else "text"


def is_reserved(table: str) -> bool:
    return fold(table).startswith("sqlite_")
