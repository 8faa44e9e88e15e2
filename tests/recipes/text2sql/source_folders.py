"""Small copies of the data sets of text2sql in their official formats, and how tests read them."""

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from recipes.text2sql.data import cache, sources
from recipes.text2sql.data.cache import load_questions
from recipes.text2sql.data.questions import Question
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings
from recipes.text2sql.sql.execution import execute
from runner.errors import DataError
from tests.launching import REPOSITORY

SHARED = REPOSITORY.parent / "shared" / "data" / "text2sql"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")

SHOP = """
CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, price REAL, author_id INTEGER REFERENCES author (id));
INSERT INTO author VALUES (1, 'Flann O''Brien', 'Dublin'), (2, 'Ada Costa', 'Porto');
INSERT INTO book VALUES (1, 'Ubik', 5.5, 1), (2, 'The Third Policeman', 12.0, 1), (3, 'Porto Nights', 8.0, 2);
"""
SHOP_PAIRS = [
    ("how many books are there ?", "SELECT count(*) FROM book"),
    ("which books cost less than 8.5 ?", "SELECT title FROM book WHERE price < 8.5"),
    ("books by Ada Costa ?", "SELECT T2.title FROM author AS T1 JOIN book AS T2 ON T1.id = T2.author_id "
     "WHERE T1.name = 'Ada Costa'"),
    ("who lives in dublin ?", 'SELECT name FROM author WHERE city = "Dublin"'),
]  # fmt: skip
WIKI_TABLE = {
    "id": "1-10-2",
    "header": ["Player", "No.", "School/Club Team", "no."],
    "types": ["text", "real", "text", "text"],
    "rows": [["Amir Johnson", 15, "Westchester HS", "x"], ["Jalen Rose", 5.5, "Michigan", "y"]],
}
WIKI_PAIRS = [
    ("who is number 15 ?", {"sel": 0, "agg": 0, "conds": [[1, 0, "15"]]}),
    ("how many play for michigan ?", {"sel": 0, "agg": 3, "conds": [[2, 0, "MICHIGAN"]]}),
    ("which school is above 5 and not y ?", {"sel": 2, "agg": 0, "conds": [[1, 1, 5], [3, 0, "x"]]}),
]
BEDS = "CREATE TABLE beds (state TEXT, beds INT); INSERT INTO beds VALUES ('Texas', 85), ('Ohio', 70);"
GRETEL = [
    ("beds in each state ?", BEDS, "SELECT state, SUM(beds) FROM beds GROUP BY state;"),
    ("most beds ?", BEDS, "-- the most\nSELECT MAX(beds) FROM beds"),
    ("add a state", BEDS, "INSERT INTO beds VALUES ('Utah', 3);"),
    ("delete it", BEDS, "DELETE FROM beds"),
    ("which doctor ?", BEDS, "SELECT doctor FROM beds"),
    ("who ?", "CREATE TABLE a (b ENUM('x'", "SELECT b FROM a"),
    ("who else ?", "ATTACH 'other.db' AS other", "SELECT 1"),
]


def write_shop(path: Path) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(SHOP)
    connection.close()


def lines(path: Path, entries: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def write_sources(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    write_shop(tmp_path / "spider/database/shop/shop.sqlite")
    entries = [{"question": text, "query": query, "db_id": "shop"} for text, query in SHOP_PAIRS]
    (tmp_path / "spider/train_spider.json").write_text(json.dumps(entries))
    (tmp_path / "spider/dev.json").write_text(json.dumps(entries[:2]))
    for part, name, number in (("train", "train", 4), ("dev", "dev_20240627", 3)):
        write_shop(tmp_path / f"bird/{name}/{part}_databases/shop/shop.sqlite")
        entries = [
            {"question": text, "SQL": query, "db_id": "shop", "evidence": "cheap refers to price < 6"}
            for text, query in SHOP_PAIRS[:number]
        ]
        (tmp_path / f"bird/{name}/{part}.json").write_text(json.dumps(entries))
    for part in ("train", "dev"):
        lines(tmp_path / f"wikisql/{part}.tables.jsonl", [WIKI_TABLE])
        lines(
            tmp_path / f"wikisql/{part}.jsonl",
            [{"phase": 1, "table_id": "1-10-2", "question": text, "sql": sql} for text, sql in WIKI_PAIRS],
        )
    for part in ("train", "test"):
        lines(
            tmp_path / f"gretel/{part}.jsonl",
            [{"sql_prompt": text, "sql_context": context, "sql": query} for text, context, query in GRETEL],
        )
    return tmp_path


def read(source: str, folder: Path, split: str = "train", **settings: Any) -> Any:
    """The questions of a source, as the recipe reads them in a process of its own."""
    cache.note.cache_clear()
    return load_questions(DataSettings(source=source, dir=str(folder), **settings), split)


def read_questions(source: str, folder: Path | str | None, split: str) -> list[Question]:
    """The questions of a split as its files have them, without anything prepared."""
    found = []
    for entry in sources.entries(source, None if folder is None else str(folder), split):
        if entry["fault"]:
            raise DataError(f"{entry['place']}: {entry['fault']}.")
        result = sources.question(entry, Path("nowhere"))
        assert isinstance(result, Question)
        found.append(result)
    return found


def bound(folder: Path, **settings: Any) -> Any:
    """A small recipe with its tokenizer."""
    recipe = Recipe(data_settings=DataSettings(dir=str(folder), **settings))
    vocabulary = dataclasses.replace(recipe.tokenizer_settings, vocab_size=512)
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    return dataclasses.replace(recipe, tokenizer_settings=vocabulary).prepare(assets)


def rows(question: Question) -> list[tuple[Any, ...]]:
    """What the query of a question finds."""
    assert question.database
    result = execute(question.database, question.query)
    assert result.error is None, (question, result.error)
    return sorted(result.rows)
