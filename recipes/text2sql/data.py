"""Reading questions and SQL: Spider's format, which GeoQuery's copy here shares."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from recipes.text2sql.sql import Schema
from runner.errors import DataError

FILES = {
    "spider": {"train": "train_spider.json", "validation": "dev.json", "test": "dev.json"},
    "geography": {"train": "train.json", "validation": "dev.json", "test": "test.json"},
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with the query that answers it."""

    text: str
    query: str
    schema: Schema
    database: str | None
    """Path of the SQLite file; None where only the schema is known."""
    group: str | None = None
    """Scored apart under this name, too."""


def read_demo(split: str) -> list[Question]:
    """The embedded questions; evaluation adds those about the held-back databases as the group `held_out`."""
    from recipes.text2sql.demo import build

    demo = build()
    groups = {"seen": demo.dev, "held_out": demo.held_out} if split != "train" else {None: demo.train}
    schemas: dict[str, Schema] = {}
    questions = []
    for group, pairs in groups.items():
        for pair in pairs:
            if pair.database not in schemas:
                schemas[pair.database] = Schema.from_database(Path(pair.database))
            questions.append(Question(pair.question, pair.query, schemas[pair.database], pair.database, group))
    return questions


def read(source: str, folder: str | None, split: str) -> list[Question]:
    """The questions of a split. Raises DataError, with what was looked for, where something is missing or broken."""
    if folder is None:
        raise DataError(f"The source {source!r} needs its files: type --data.dir FOLDER, which holds {source}/.")
    root = Path(folder) / source
    path = root / FILES[source][split]
    if not path.is_file():
        raise DataError(f"There is no file {path}: type --data.dir with the folder that holds {source}/{path.name}.")
    entries = _entries(path)
    known = _tables(root / "tables.json") if (root / "tables.json").is_file() else {}
    places: dict[str, tuple[Schema, str | None]] = {}
    questions = []
    for number, entry in enumerate(entries):
        try:
            text, query, db_id = entry["question"], entry["query"], entry["db_id"]
        except (KeyError, TypeError):
            raise DataError(f"{path}: entry {number} lacks one of question, query, db_id.") from None
        if not all(isinstance(value, str) for value in (text, query, db_id)):
            raise DataError(f"{path}: question, query and db_id of entry {number} are to be texts, and are not.")
        if db_id not in places:
            database = root / "database" / db_id / f"{db_id}.sqlite"
            if database.is_file():
                places[db_id] = (Schema.from_database(database), str(database))
            elif db_id in known:
                places[db_id] = (Schema.from_spider(known[db_id]), None)
            else:
                raise DataError(f"{path}: the database {db_id!r} is neither at {database} nor in tables.json.")
        questions.append(Question(text, query, *places[db_id]))
    return questions


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a tables.json by the database they describe."""
    try:
        return {entry["db_id"]: entry for entry in _entries(path)}
    except (KeyError, TypeError):
        raise DataError(f"{path}: every entry is to be an object with a db_id, as in Spider's tables.json.") from None


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no entries: wanted a JSON list of objects with question, query, db_id.")
    return entries
