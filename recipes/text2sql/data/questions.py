"""Reading questions and SQL: the demo, and files in Spider's format, which GeoQuery's and ATIS's copies share.

BIRD, WikiSQL and Gretel are read by recipes/text2sql/sources.py; what all readers give is a `Reading`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.text2sql.prompts.prompt import Link

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

FILES = {
    "spider": {"train": ("train_spider.json", "train_others.json"), "validation": ("dev.json",), "test": ("dev.json",)},
    "geography": {"train": ("train.json",), "validation": ("dev.json",), "test": ("test.json",)},
    "atis": {"train": ("train.json",), "validation": ("dev.json",), "test": ("test.json",)},
}
"""The first of a split's files must be there; the others are read where they are."""
WEIGHTED = {"spider": "spider", "bird": "bird_sql", "wikisql": "wiki_sql", "gretel": "gretel_synthetic"}
"""Sources that can be mixed, and what their weights are called: data.NAME_weight."""
SOURCES = ("demo", "geography", "atis", *WEIGHTED)


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
    prepared: Prepared | None = None
    """What preparation found out already."""

    def link(self) -> tuple[str, list[Link]]:
        """The question with placeholders for the values it mentions, and those values."""
        from recipes.text2sql.prompts import prompt

        ready = self._ready
        return (ready.text, list(ready.links)) if ready is not None else prompt.link(self.text, self.database)

    @property
    def canonical(self) -> str:
        """The query in its canonical spelling."""
        ready = self._ready
        return ready.canonical if ready is not None else canonical(self.query, self.schema)

    def target(self, links: list[Link]) -> str:
        """What the model is to write: the canonical query with placeholders for those values."""
        from recipes.text2sql.prompts import prompt

        return prompt.hide(self.canonical, links)

    @property
    def _ready(self) -> Prepared | None:
        ready = self.prepared
        return ready if ready is not None and ready.of == (self.text, self.query, self.database) else None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is the same at each reading of a question, and slow to find out."""

    of: tuple[str, str, str | None]
    """Text, query and database that it is true of."""
    text: str
    """The question with placeholders."""
    links: tuple[Link, ...]
    canonical: str
    """The query in its canonical spelling."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a split of a source holds."""

    questions: Sequence[Question]
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    """Why an entry is no question -> how many there are."""

    def report(self, name: str) -> str:
        """One line about it."""
        total = len(self.questions) + self.left_out.total()
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in self.left_out.most_common())
        return f"{name}: {len(self.questions):,} questions" + (f" of {total:,} ({reasons})" if reasons else "")


def read_demo(split: str) -> list[Question]:
    """The embedded questions; evaluation adds those about the held-back databases as the group `held_out`."""
    from recipes.text2sql.data.demo import build

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


def read_questions(source: str, folder: str | None, split: str) -> list[Question]:
    """The questions of a split. Raises DataError, with what was looked for, where something is missing or broken."""
    root, entries = spider_entries(source, folder, split)
    known = tables_of(root / "tables.json") if (root / "tables.json").is_file() else {}
    places: dict[str, tuple[Schema, str | None]] = {}
    if source == "atis" and not known and not (root / "database").is_dir():
        # ATIS goes around without its schema: what the training queries use stands in for it.
        trained = entries if split == "train" else spider_entries(source, folder, "train")[1]
        places["atis"] = (schema_of("atis", [entry["query"] for entry in trained]), None)
    questions = []
    for entry in entries:
        db_id = entry["db_id"]
        if db_id not in places:
            places[db_id] = database_of(db_id, root / "database", known, f"{root / FILES[source][split][0]}")
        questions.append(Question(entry["question"], entry["query"], *places[db_id]))
    return questions


def schema_of(db_id: str, queries: Sequence[str]) -> Schema:
    """The tables and columns that queries use, where each table has an alias and each column a prefix."""
    tables: dict[str, dict[str, str]] = {}
    for query in queries:
        spoken = re.sub(r"'[^']*'|\"[^\"]*\"", "''", query)
        aliases = {alias: table for table, alias in re.findall(r"\b(\w+) AS (\w+)", spoken)}
        for alias, column in re.findall(r"\b([A-Za-z_]\w*)\.([A-Za-z_]\w*)", spoken):
            if alias in aliases:
                tables.setdefault(aliases[alias], {}).setdefault(column, "text")
    return Schema(db_id, tables)


def folder_of(source: str, folder: str | None) -> Path:
    """The folder of a source. Raises DataError where nobody said it."""
    if folder is None:
        raise DataError(f"The source {source!r} needs its files: type --data.dir FOLDER, which holds {source}/.")
    return Path(folder) / source


def spider_entries(source: str, folder: str | None, split: str) -> tuple[Path, list[dict[str, str]]]:
    """The source's folder, and question, query and db_id of each entry of a split."""
    root = folder_of(source, folder)
    first, *others = (root / name for name in FILES[source][split])
    if not first.is_file():
        raise DataError(f"There is no file {first}: type --data.dir with the folder that holds {source}/{first.name}.")
    entries = []
    for path in (first, *(other for other in others if other.is_file())):
        entries += texts_of(entries_of(path), path, {"question": "question", "query": "query", "db_id": "db_id"})
    return root, entries


def texts_of(entries: list[dict[str, Any]], path: Path, names: dict[str, str]) -> list[dict[str, str]]:
    """Of each entry the texts that are called names[...] in its file. Raises DataError where one is none."""
    found = []
    for number, entry in enumerate(entries):
        try:
            found.append({name: entry[theirs] for name, theirs in names.items()})
        except (KeyError, TypeError):
            raise DataError(f"{path}: entry {number} lacks one of {', '.join(names.values())}.") from None
        if not all(isinstance(value, str) for value in found[-1].values()):
            listed = " and ".join(", ".join(names.values()).rsplit(", ", 1))
            raise DataError(f"{path}: {listed} of entry {number} are to be texts, and are not.")
    return found


def database_of(db_id: str, databases: Path, known: dict[str, dict[str, Any]], path: str) -> tuple[Schema, str | None]:
    """The schema of a database, and its file if that is there. Raises DataError where neither is known."""
    database = databases / db_id / f"{db_id}.sqlite"
    if database.is_file():
        return Schema.from_database(database), str(database)
    if db_id in known:
        return Schema.from_spider(known[db_id]), None
    raise DataError(f"{path}: the database {db_id!r} is neither at {database} nor in tables.json.")


def tables_of(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a tables.json by the database they describe."""
    try:
        return {entry["db_id"]: entry for entry in entries_of(path)}
    except (KeyError, TypeError):
        raise DataError(f"{path}: every entry is to be an object with a db_id, as in Spider's tables.json.") from None


def entries_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list. Raises DataError where it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} holds no entries: wanted a JSON list of objects with question, query, db_id.")
    return entries
