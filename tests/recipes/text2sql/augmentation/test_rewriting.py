"""Augmentation: paraphrased questions, equivalent SQL, renamed schemas."""

import random
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recipes.text2sql.augmentation import rewriting
from recipes.text2sql.data import sources
from recipes.text2sql.data.questions import Question
from recipes.text2sql.prompts import prompt
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.results import is_ordered, same_result
from recipes.text2sql.sql.schema import Schema
from tests.recipes.text2sql.source_folders import SHARED, SHOP_PAIRS, bound, needs_shared, read, write_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


def test_other_words_for_a_question(folder: Path) -> None:
    schema = read("spider", folder)[0].schema

    def ways(text: str) -> set[str]:
        return {rewriting.paraphrase(text, schema, random.Random(seed)) for seed in range(200)}

    assert {"show the oldest author", "give me the oldest author"} <= ways("what is the oldest author ?")
    assert {"count the books by <v0>", "what is the number of books by <v0> ?"} <= ways(
        "how many books are there by <v0> ?"
    )
    assert ways("books with more than <v0> pages") == {
        "books with more than <v0> pages", "books with greater than <v0> pages", "books with over <v0> pages",
    }  # fmt: skip
    # A word that the schema has for a name stays, and so does what no template knows.
    priced = Schema("x", {"review": {"average": "number", "at_least": "number"}})
    assert (
        rewriting.paraphrase("the average of at least two", priced, random.Random(0)) == "the average of at least two"
    )
    assert ways("borges ?") == {"borges ?"}
    for pair in SHOP_PAIRS:
        text, links = prompt.link(pair[0], read("spider", folder)[0].database)
        assert all(each.count("<v") == text.count("<v") for each in ways(text))


@pytest.mark.parametrize(
    ("query", "others"),
    [
        ("SELECT title FROM book WHERE price BETWEEN 5 AND 9", {
            "SELECT title FROM book WHERE price >= 5 AND price <= 9"}),
        ("SELECT title FROM book WHERE id = 1 OR price BETWEEN 5 AND 9", {
            "SELECT title FROM book WHERE price BETWEEN 5 AND 9 OR id = 1",
            "SELECT title FROM book WHERE id = 1 OR (price >= 5 AND price <= 9)"}),
        ("SELECT name FROM author WHERE city IN ('Dublin', 'Rome') AND id > 0", {
            "SELECT name FROM author WHERE (city = 'Dublin' OR city = 'Rome') AND id > 0",
            "SELECT name FROM author WHERE id > 0 AND city IN ('Dublin', 'Rome')"}),
        ("SELECT name FROM author WHERE NOT city IN ('Dublin', 'Rome')", set()),
        ("SELECT DISTINCT author_id FROM book", {"SELECT author_id FROM book GROUP BY author_id"}),
        ("SELECT t1.name FROM author AS t1 JOIN book AS t2 ON t1.id = t2.author_id", {
            "SELECT t1.name FROM author AS t1 JOIN book AS t2 ON t2.author_id = t1.id",
            "SELECT t2.name FROM book AS t1 JOIN author AS t2 ON t2.id = t1.author_id"}),
        ("SELECT id FROM book INTERSECT SELECT id FROM author", {
            "SELECT id FROM author INTERSECT SELECT id FROM book"}),
        # The columns would change places.
        ("SELECT * FROM author AS t1 JOIN book AS t2 ON t1.id = t2.author_id", {
            "SELECT * FROM author AS t1 JOIN book AS t2 ON t2.author_id = t1.id"}),
        # Nobody says which of two rows comes first: the check finds that another came.
        ("SELECT title FROM book LIMIT 1", set()),
    ],
)  # fmt: skip
def test_other_sql_for_the_same_rows(folder: Path, query: str, others: set[str]) -> None:
    question = read("spider", folder)[0]
    assert canonical(query, question.schema) == query
    assert set(rewriting._rewritings(query, question.schema, question.database)) == others
    # Without a database the same, but for what only rows can tell.
    assert others <= set(rewriting._rewritings(query, question.schema, None))


def test_a_wrong_rule_is_not_confirmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlglot import exp

    def wrong(node: Any) -> Any:
        return exp.LTE(this=node.this, expression=node.expression) if isinstance(node, exp.LT) else None

    question = read("spider", folder)[0]
    rewriting._rewritings.cache_clear()
    monkeypatch.setattr(rewriting, "RULES", (wrong,))
    for price, found in (("5.5", 0), ("6", 1)):
        query = f"SELECT title FROM book WHERE price < {price}"
        assert len(rewriting._rewritings(query, question.schema, question.database)) == found
    rewriting._rewritings.cache_clear()


def renamed_copy(database: str, names: dict[str, str], path: Path) -> str:
    """A copy of a database, table by table, with other names."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("ATTACH ? AS old", (database,))
    for table, columns in Schema.from_database(database).tables.items():
        listed = ", ".join(f'"{column}" AS "{names.get(column.lower(), column)}"' for column in columns)
        connection.execute(f'CREATE TABLE "{names.get(table.lower(), table)}" AS SELECT {listed} FROM old."{table}"')
    connection.commit()
    connection.close()
    return str(path)


def check_variations(question: Question, copy: Path, seed: int) -> Counter[str]:
    """Vary one question in every way and run what came out; counts what changed."""
    assert question.database
    chance, counted = random.Random(seed), Counter[str]()
    text, links = question.link()
    wanted = execute(question.database, question.query)
    ordered = is_ordered(question.query)
    for other in rewriting._rewritings(question.canonical, question.schema, question.database):
        counted["rewritten"] += 1
        assert same_result(execute(question.database, other), wanted, ordered), (question.query, other)
    counted["paraphrased"] += rewriting.paraphrase(text, question.schema, chance) != text
    target = question.target(links)
    # What goes through placeholders is tested elsewhere: here, the same before and after the renaming.
    before = execute(question.database, prompt.reveal(target, links))
    state = chance.getstate()
    found = rewriting.renamed(question.schema, links, target, chance)
    chance.setstate(state)
    names = rewriting.new_names(question.schema, target, chance)
    if found is None or not names:
        return counted
    schema, new_links, written = found
    assert set(prompt.names_of(schema)) == {names.get(name, name) for name in prompt.names_of(question.schema)}
    after = execute(renamed_copy(question.database, names, copy), prompt.reveal(written, new_links))
    assert same_result(after, before, ordered), (question.query, written, after.error)
    counted["renamed"] += 1
    counted["target renamed"] += written != target
    return counted


def test_varied_pairs_of_four_sources_find_the_same_rows(folder: Path) -> None:
    counted = Counter[str]()
    for source in ("spider", "bird", "wikisql", "gretel"):
        for question in read(source, folder):
            for seed in range(5):
                counted += check_variations(question, folder / "copy.sqlite", seed)
    assert counted["renamed"] > 40 and counted["target renamed"] > 30 and counted["rewritten"] > 5


@needs_shared
def test_varied_pairs_of_spider_find_the_same_rows(tmp_path: Path) -> None:
    entries = sources.entries("spider", str(SHARED), "train")
    chosen = random.Random(1).sample([entry for entry in entries if entry["database"]], 60)
    counted = Counter[str]()
    for number, entry in enumerate(chosen):
        question = sources.question(entry, tmp_path)
        assert isinstance(question, Question)
        counted += check_variations(question, tmp_path / "copy.sqlite", number)
    assert counted["renamed"] > 50 and counted["rewritten"] > 30 and counted["paraphrased"] > 25, counted


def test_a_name_is_not_one_that_is_taken() -> None:
    schema = Schema(
        "x", {"film": {"id": "number", "movie": "text", "t1": "text"}, "Order": {"id": "number", "a b": "text"}}
    )
    query = "SELECT movie AS flm, \"a b\" FROM film WHERE movie <> 'film id' AND t1 = <v0>"
    for seed in range(300):
        names = rewriting.new_names(schema, query, random.Random(seed))
        new = [names.get(name, name) for name in prompt.names_of(schema)]
        assert len(set(new)) == len(new), new
        changed = set(names.values())
        assert not changed & {"flm", "order", "select", "film", "movie", "id"} and "t1" not in changed
        written = rewriting.rename_query(query, names)
        assert "'film id'" in written and "<v0>" in written and " AS flm" in written
        assert ('"a b"' in written) == ("a b" not in names)


def test_training_examples_are_varied_by_the_seed_alone(folder: Path) -> None:
    plain = bound(folder, source="mix").data("train")
    varied = bound(folder, source="mix", augmentation_prob=0.6, schema_perturbation_prob=0.6).data("train")

    def shown(data: Any, seed: int) -> list[tuple[list[int], list[int]]]:
        random.seed(seed)
        return [(data[index].prompt, data[index].target) for index in range(len(data))]

    assert shown(plain, 0) == shown(plain, 1)
    assert shown(varied, 0) == shown(varied, 0) != shown(varied, 1)
    differing = sum(a != b for a, b in zip(shown(plain, 0), shown(varied, 0), strict=True))
    assert 4 <= differing <= len(plain)
    # Evaluation is never varied.
    evaluated = bound(folder, source="mix", augmentation_prob=1.0, schema_perturbation_prob=1.0).data("validation")
    assert shown(evaluated, 0) == shown(bound(folder, source="mix").data("validation"), 1)
