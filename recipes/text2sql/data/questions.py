"""What a question is, the embedded questions, and the schemas that questions are about.

`recipes/text2sql/data/sources.py` reads the data sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.text2sql.data.question_files import read_text
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.text2sql.prompts.prompt import Link

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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


@functools.lru_cache(maxsize=1 << 14)
def _linked(text: str, database: str | None) -> tuple[str, list[Link]]:
    """`prompt.link`, once for all epochs; the list is not to be changed."""
    from recipes.text2sql.prompts import prompt

    return prompt.link(text, database)


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
        ready = self._ready
        text, links = (ready.text, ready.links) if ready is not None else _linked(self.text, self.database)
        return text, list(links)

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
    failing: Mapping[int, tuple[int, str]] = dataclasses.field(default_factory=dict)
    """Place in `questions` of each query that SQLite does not run -> (number of its entry, why)."""

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


def schema_of(db_id: str, queries: Sequence[str]) -> Schema:
    """The tables and columns that queries use, where each table has an alias and each column a prefix."""
    tables: dict[str, dict[str, str]] = {}
    for query in queries:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", query)
        aliases = {alias: table for table, alias in re.findall(r"\b(\w+) AS (\w+)", bare)}
        for alias, column in re.findall(r"\b([A-Za-z_]\w*)\.([A-Za-z_]\w*)", bare):
            if alias in aliases:
                tables.setdefault(aliases[alias], {}).setdefault(column, "text")
    return Schema(db_id, tables)


def folder_of(source: str, folder: str | None) -> Path:
    """The folder of a source. Raises DataError where `folder`, the setting data.dir, is missing."""
    if folder is None:
        raise DataError(f"The source {source!r} needs its files: type --data.dir FOLDER, which holds {source}/.")
    return Path(folder) / source


def database_of(db_id: str, databases: Path, known: Mapping[str, dict[str, Any]]) -> tuple[Schema, str | None]:
    """The schema of a database, and its file if that is there. Raises DataError where neither is known."""
    database = databases / db_id / f"{db_id}.sqlite"
    if database.is_file():
        return Schema.from_database(database), str(database)
    if db_id in known:
        return Schema.from_spider(known[db_id]), None
    raise DataError(f"the database {db_id!r} is neither at {database} nor in tables.json")


def tables_of(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a tables.json by the database they describe. Raises DataError where it is none."""
    try:
        entries = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    try:
        return {entry["db_id"]: entry for entry in entries}
    except (KeyError, TypeError):
        raise DataError(f"{path}: every entry is to be an object with a db_id, as in Spider's tables.json.") from None
