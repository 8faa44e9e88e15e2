"""What the columns of a database hold: values to link questions to, and samples to show, read within limits.

Users bring any SQLite file. A column that cannot be read (a collation or a function that is not there, damaged pages, a
locked file) has no values. A column that takes too long has none either: SQLite counts its steps, so that this does not
depend on the machine. Nothing is written beside the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.text2sql.sql.execution import connect
from recipes.text2sql.sql.names import quoted
from recipes.text2sql.sql.schema import Schema, note

MAX_VALUES_PER_COLUMN = 5_000
CONSTANT_FROM_ROWS = 20
"""A text that all of a column's rows hold, and these are at least so many, tells none of them from another."""
LONGEST_VALUE = 500
"""Letters of a text that a question can mention."""
LONGEST_SAMPLE = 30
"""Letters of a sample value; longer ones are not shown."""
ROWS_LOOKED_AT = 1_000
"""Sample values are those of a table's first rows."""
STEPS_PER_COLUMN = 200_000_000
"""Of SQLite's virtual machine; a few seconds."""
STEPS_BETWEEN_LOOKS = 10_000
SECONDS_PER_DATABASE = 120.0
"""Columns that are not read by then have no values: a disk or a network that does not answer."""

Column = tuple[str, str]
"""Table and column, as the database spells them."""


def texts_of(database: str) -> dict[Column, list[str]]:
    """The distinct texts of each column; none where all rows of the column hold the same one."""
    found: dict[Column, list[str]] = {}
    with reading(database) as reader:
        for table, column in reader.columns:
            name, source = quoted(column), quoted(table)
            texts = reader.values(
                f"SELECT DISTINCT {name} FROM {source} WHERE typeof({name}) = 'text' AND length({name}) <= "
                f"{LONGEST_VALUE} LIMIT {MAX_VALUES_PER_COLUMN}",
                (table, column),
            )
            if len(texts) == 1:
                rows = reader.values(f"SELECT count(*) FROM {source}", (table, column))
                texts = [] if not rows or rows[0] >= CONSTANT_FROM_ROWS else texts
            found[table, column] = texts
    return found


def samples_of(database: str, most: int) -> dict[Column, list[str]]:
    """The first `most` different values of each column, as texts; long ones and NULL are passed over."""
    return _samples_of(database, most, *file_state(database))


def file_state(database: str) -> tuple[int, int]:
    """What differs once the file was written to: its time and its size."""
    found = os.stat(database)
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=512)
def _samples_of(database: str, most: int, changed: int, size: int) -> dict[Column, list[str]]:
    found: dict[Column, list[str]] = {}
    with reading(database) as reader:
        for table, column in reader.columns:
            values = reader.values(
                f"SELECT DISTINCT value FROM (SELECT {quoted(column)} AS value FROM {quoted(table)} LIMIT "
                f"{ROWS_LOOKED_AT}) WHERE typeof(value) IN ('text', 'integer', 'real') AND length(value) BETWEEN 1 "
                f"AND {LONGEST_SAMPLE} LIMIT {most}",
                (table, column),
            )
            texts = [" ".join(str(value).split()) for value in values]
            # No sample may look like a part of the prompt.
            found[table, column] = [text for text in texts if text and not re.search(r"<\w+>", text)]
    return found


@contextlib.contextmanager
def reading(database: str) -> Iterator[Reader]:
    """Open a database to read its columns. Raises DataError where the file is no database."""
    schema = Schema.from_database(database)
    columns = [(table, column) for table, columns in schema.tables.items() for column in columns]
    with contextlib.closing(connect(Path(database))) as connection:
        # Wait for no lock, column after column; sort in memory; views run nothing that could do harm.
        for pragma in ("busy_timeout = 0", "temp_store = MEMORY", "query_only = ON", "trusted_schema = OFF"):
            with contextlib.suppress(sqlite3.Error):
                connection.execute(f"PRAGMA {pragma}").close()
        reader = Reader(connection, columns)
        yield reader
        reader.report(database)


class Reader:
    """A connection that reads one column after another, each within the limits."""

    def __init__(self, connection: sqlite3.Connection, columns: list[Column]) -> None:
        self.connection, self.columns = connection, columns
        self.steps, self.deadline = 0, time.monotonic() + SECONDS_PER_DATABASE
        self.unread: dict[str, str] = {}
        """Column -> why it was not read."""
        connection.set_progress_handler(self._is_too_long, STEPS_BETWEEN_LOOKS)

    def values(self, query: str, column: Column = ("", "")) -> list[Any]:
        """The first column of the rows; none where the query fails or takes too long, with the reason in `unread`."""
        self.steps = 0
        try:
            return [value for (value,) in self.connection.execute(query)]
        except (sqlite3.Error, sqlite3.Warning, OverflowError, MemoryError) as error:
            reason = "it takes too long" if str(error) == "interrupted" else str(error)
            self.unread[".".join(column)] = reason or "out of memory"
            return []

    def report(self, database: str) -> None:
        """Print one line about the columns that were not read."""
        if self.unread:
            listed = [f"{column} ({reason})" for column, reason in self.unread.items()]
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            note(f"{database}: no values are read from {', '.join(listed[:3])}{more}.")

    def _is_too_long(self) -> bool:
        self.steps += STEPS_BETWEEN_LOOKS
        return self.steps > STEPS_PER_COLUMN or time.monotonic() > self.deadline
