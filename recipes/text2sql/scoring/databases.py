"""The databases that prediction files are scored on, and the time limit of a query."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.text2sql.scoring import prediction_files, spider_match
from recipes.text2sql.sql.execution import MAX_HEAP_BYTES, MAX_RESULT_BYTES, Limits, check_database, connect
from runner.errors import DataError

ScoredPair = dict[str, Any]
"""One pair: "index", "score" (None: it could not be run), "hardness", "why" it did not score, and more."""


MANY = Limits(60.0, 1_000_000, 4 * MAX_RESULT_BYTES, max_heap_bytes=4 * MAX_HEAP_BYTES)


class DatabaseFolder:
    """Databases and schemas below one folder, in the layouts of the data sets' own archives."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}: give --data.dir the one that holds the databases.")
        self.root = root

    @functools.cached_property
    def places(self) -> dict[str, list[Path]]:
        """Name of a folder with SQLite files -> all folders of that name."""
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
        """The file of a database. BIRD and Spider each have a `formula_1`; the folder layout decides which."""

        def rank(path: Path) -> tuple[bool, bool, int, tuple[str, ...]]:
            parts = path.relative_to(self.root.resolve()).parts
            bird = any("bird" in part.lower() or part.lower().startswith(("dev_", "minidev")) for part in parts[:-1])
            return "schema_only" in str(path), bird != of_bird, len(parts), parts

        folders = sorted((path for path in self.places.get(name, ()) if (path / f"{name}.sqlite").is_file()), key=rank)
        if not without_rows:
            folders = [path for path in folders if "schema_only" not in str(path)]
        return folders[0] / f"{name}.sqlite" if folders else None

    def suite(self, name: str) -> list[Path]:
        """All database files of the folder that has the most."""
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
                    return {entry["db_id"]: entry for entry in prediction_files.read_json(path)}
                except (KeyError, TypeError) as error:
                    raise DataError(f"{path} is not in the format of Spider's tables.json.") from error
        return {}

    def foreign_keys(self, name: str) -> Mapping[str, str]:
        """Columns that a foreign key makes equal, from tables.json alone, as in the official script."""
        if name not in self.entries:
            raise DataError(
                f"{name} is not in a tables.json at {self.root} or {self.root / 'spider'}.\n"
                "Spider's exact set match and its execution need the foreign keys of that file: put it there."
            )
        return linked_columns(json.dumps(self.entries[name]))

    @functools.cache  # noqa: B019  One folder a process.
    def schema(self, name: str) -> spider_match.Schema | None:
        """Tables and columns in lower case, from the database file or tables.json; None if both are missing."""
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
                entries: object = ()
                with contextlib.suppress(DataError):  # It may be anything; what is wanted here is optional.
                    entries = prediction_files.read_json(path)
                for entry in entries if isinstance(entries, list) else []:
                    if isinstance(entry, Mapping) and {"difficulty", "SQL", "db_id"} <= entry.keys():
                        found.setdefault((entry["db_id"], spaced(entry["SQL"])), entry["difficulty"])
        return found


_BESIDE = ("-wal", "-shm", "-journal")


_TABLE_INFO = "SELECT * FROM pragma_table_info(?)"


@functools.lru_cache(maxsize=1_000)
def linked_columns(entry: str) -> Mapping[str, str]:
    return spider_match.foreign_key_map(json.loads(entry))


def spaced(text: str) -> str:
    return " ".join(text.split())


def scoring_limits(**changes: object) -> Limits:
    return dataclasses.replace(MANY, **changes)
