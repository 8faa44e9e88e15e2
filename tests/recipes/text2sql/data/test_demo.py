"""The embedded data: its databases, its pairs, and that one seed gives the same data."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from recipes.text2sql.data import demo
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.sql.schema import Schema
from tests.launching import REPOSITORY


@pytest.fixture(scope="module")
def made() -> demo.DemoData:
    """The embedded data."""
    return demo.build()


def test_the_databases_of_the_demo(made: demo.DemoData) -> None:
    databases = {pair.db_id: pair.database for pair in made.train + made.dev + made.held_out}
    assert len({pair.db_id for pair in made.train}) >= 12 and len(databases) == len(demo.DOMAINS)
    schemas = set()
    for database in databases.values():
        schema = Schema.from_database(database)
        schemas.add(json.dumps(schema.to_json()["tables"]))
        assert len(schema.tables) == 2 and len(schema.foreign_keys) == 1
        with sqlite3.connect(database) as connection:
            rows = sum(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in schema.tables)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()
        assert 100 <= rows <= 999
    assert len(schemas) == len(databases), "two domains are the same"


def test_every_pair_of_the_demo_has_an_answer(made: demo.DemoData) -> None:
    pairs = made.train + made.dev + made.held_out
    assert len(made.train) > 2000 and len(made.dev) >= 200 and len(made.held_out) >= 200
    for database in {pair.database for pair in pairs}:
        connection = sqlite3.connect(f"{Path(database).as_uri()}?mode=ro", uri=True)
        for query in {pair.query for pair in pairs if pair.database == database}:
            rows = connection.execute(query).fetchall()
            assert rows and all(value not in (None, "") for row in rows for value in row), (database, query)
        connection.close()


def test_what_the_demo_asks_in_dev_is_not_in_train(made: demo.DemoData) -> None:
    trained = {(pair.db_id, " ".join(pair.query.lower().split())) for pair in made.train}
    asked = {(pair.db_id, pair.question) for pair in made.train}
    for pair in made.dev:
        assert (pair.db_id, " ".join(pair.query.lower().split())) not in trained, pair
        assert (pair.db_id, pair.question) not in asked, pair
    assert {pair.db_id for pair in made.dev} == {pair.db_id for pair in made.train}
    held_out = {pair.db_id for pair in made.held_out}
    assert len(held_out) == 2 and not held_out & {pair.db_id for pair in made.train + made.dev}
    answers: dict[tuple[str, str], set[str]] = {}
    for pair in made.train + made.dev + made.held_out:
        answers.setdefault((pair.db_id, pair.question), set()).add(pair.query)
    assert all(len(queries) == 1 for queries in answers.values()), "one question, two answers"


def test_the_demo_is_the_same_for_its_seed(made: demo.DemoData, tmp_path: Path) -> None:
    # In another process with another hash seed. Three domains are enough: each has its own random numbers.
    program = """
import sys
from pathlib import Path
from recipes.text2sql.data import demo
demo.DOMAINS = demo.DOMAINS[:1] + demo.DOMAINS[-2:]
for seed in (0, 1):
    demo.build(Path(sys.argv[1]) / str(seed), seed)
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True)
    first = Path(made.train[0].database).parents[2]
    (again,), (other,) = ((tmp_path / seed).iterdir() for seed in ("0", "1"))
    assert again.name == first.name != other.name
    chosen = {path.name for path in (again / "database").iterdir()}
    assert len(chosen) == 3
    for split in ("train", "dev", "held_out"):
        new, old, differing = (json.loads((folder / f"{split}.json").read_text()) for folder in (again, first, other))
        assert new and new == [entry for entry in old if entry["db_id"] in chosen]
        assert new != differing
    for name in chosen:
        assert contents(demo.database_path(again, name)) == contents(demo.database_path(first, name))
        assert contents(demo.database_path(again, name)) != contents(demo.database_path(other, name))


def contents(database: Path) -> list[str]:
    """A database as SQL."""
    connection = sqlite3.connect(database)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def test_the_recipe_reads_the_demo_in_groups(made: demo.DemoData) -> None:
    recipe = Recipe()
    assert len(recipe.data("train")) == len(made.train)
    groups = Counter(question.group for question in recipe.data("validation").questions)
    assert groups == {"seen": len(made.dev), "held_out": len(made.held_out)}
