"""More pairs from few, and the choice among candidates by running them."""

import dataclasses
import itertools
import random
import sqlite3
from pathlib import Path

import pytest

from recipes.text2sql.augmentation import recombination
from recipes.text2sql.data.demo import build
from recipes.text2sql.prompts import prompt
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings
from recipes.text2sql.sql.canonical import canonical
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.results import first_that_finds
from recipes.text2sql.sql.schema import Schema
from tests.launching import SHARED
from tests.recipes.text2sql.source_folders import read_questions

TEXT2SQL = SHARED / "text2sql"
PAIRS = [
    ("what is the largest city", "SELECT city_name FROM city WHERE population = (SELECT MAX(population) FROM city)"),
    ("what is the smallest city", "SELECT city_name FROM city WHERE population = (SELECT MIN(population) FROM city)"),
    (
        "who is the mayor of the largest city",
        "SELECT mayor FROM city WHERE population = (SELECT MAX(population) FROM city)",
    ),
    ("what is the largest state", "SELECT state_name FROM state WHERE area = (SELECT MAX(area) FROM state)"),
    ("how large is the largest state", "SELECT area FROM state WHERE area = (SELECT MAX(area) FROM state)"),
]


@pytest.fixture
def rivers(tmp_path: Path) -> str:
    path = tmp_path / "rivers.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE river (river_name TEXT, state TEXT, length INTEGER)")
    connection.executemany(
        "INSERT INTO river VALUES (?, ?, ?)",
        [("ohio", "ohio", 9), ("creek", "new york", 8), ("red", "texas", 3), ("red", "red oak", 3)],
    )
    connection.execute("CREATE TABLE point (lowest TEXT)")
    connection.execute("INSERT INTO point VALUES ('ohio river')")
    connection.commit()
    connection.close()
    return str(path)


def test_phrases_are_exchanged_with_their_sql() -> None:
    made = recombination.recombine(PAIRS, lambda number, query: True)
    assert made[2] == [
        (
            "who is the mayor of the smallest city",
            "SELECT mayor FROM city WHERE population = (SELECT MIN(population) FROM city)",
        )
    ]


def test_a_phrase_is_exchanged_only_before_a_word_that_it_stood_before() -> None:
    asked = {question for own in recombination.recombine(PAIRS, lambda number, query: True) for question, _ in own}
    # Nothing says what "smallest" is before "state", and no pair is made that is there already.
    assert "what is the smallest state" not in asked
    assert not asked & {question for question, _ in PAIRS}


def test_what_does_not_run_is_not_kept() -> None:
    assert recombination.recombine(PAIRS, lambda number, query: False) == [[] for _ in PAIRS]


def test_the_same_pairs_are_made_each_time() -> None:
    once, again = (recombination.recombine(PAIRS, lambda number, query: True) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    "query",
    [query for _, query in PAIRS]
    + ["SELECT COUNT(DISTINCT t1.a) FROM b AS t1 LIMIT 3"]
    + ['SELECT t1."date of birth", MAX("a , (b) ""c") FROM "order" AS t1 WHERE "it\'s" IN (SELECT "1st" FROM "no. 1")'],
)
def test_queries_are_spelt_as_they_were(query: str) -> None:
    assert recombination.spell(recombination.tokens_of(query)) == query


def test_values_are_swapped_within_their_column(rivers: str) -> None:
    _, links = prompt.link("rivers in texas longer than 4", rivers)
    target = "SELECT river_name FROM river WHERE state = <v0> AND length > <v1>"
    swapped = [recombination.swap_values(links, target, rivers, random.Random(seed)) for seed in range(20)]
    assert {each[0].value for each in swapped} >= {"new york", "texas"}
    assert all("state" in each[0].columns and each[1] == links[1] for each in swapped)


def test_values_of_columns_with_odd_names_are_swapped(tmp_path: Path) -> None:
    database = tmp_path / "people.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute('CREATE TABLE "order" ("group" TEXT, "Place of Birth" TEXT)')
        connection.execute("INSERT INTO \"order\" VALUES ('red', 'rome'), ('blue', 'oslo')")
    _, links = prompt.link("red ones from rome", str(database))
    target = 'SELECT COUNT(*) FROM "order" AS t1 WHERE t1."group" = <v0> AND t1."place of birth" = <v1>'
    swapped = [recombination.swap_values(links, target, str(database), random.Random(seed)) for seed in range(20)]
    assert {tuple(link.value for link in each) for each in swapped} == set(itertools.product(
        ("red", "blue"), ("rome", "oslo")))  # fmt: skip


def test_a_word_that_names_the_column_stays_in_the_question(rivers: str) -> None:
    text, (found,) = prompt.link("how long is the ohio river", rivers)
    assert text == "how long is the <v0> river" and "river_name" in found.columns
    assert prompt.link("where is red oak", rivers)[0] == "where is <v0>"


def test_of_the_candidates_the_first_that_finds_something_is_taken(rivers: str) -> None:
    wrong, empty = "SELECT nothing FROM river", "SELECT length FROM river WHERE state = 'x'"
    good, better = "SELECT length FROM river WHERE river_name = 'ohio'", "SELECT length FROM river"
    null = "SELECT MAX(length) FROM river WHERE state = 'x'"
    assert first_that_finds([wrong, empty, null, good, better], rivers) == good
    assert first_that_finds([wrong, empty], rivers) == empty
    assert first_that_finds([wrong, "DROP TABLE river"], rivers) == wrong
    assert execute(rivers, better).rows


def test_augmented_examples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    settings = DataSettings(value_swap_prob=1.0, word_dropout=0.3)
    data = dataclasses.replace(Recipe(), data_settings=settings).prepare(tmp_path).data("train")
    shown = []
    for seed in (0, 0, 1):
        random.seed(seed)
        shown.append([data[index].prompt for index in range(8)])
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.skipif(not (TEXT2SQL / "geography").is_dir(), reason="the shared data are not there")
def test_recombined_questions_of_geoquery_run() -> None:
    questions = read_questions("geography", str(TEXT2SQL), "train")[:120]
    made = recombination.recombine_questions(questions)
    assert sum(map(len, made)) > 100
    for question, own in zip(questions, made, strict=True):
        _, links = prompt.link(question.text, question.database)
        for text, query in own[:2]:
            assert "|" not in text and question.database
            assert execute(question.database, prompt.reveal(query, links)).rows


SHOP = Schema("shop", {"Book": {"id": "number", "Name": "text", "year_printed": "number"}, "Author": {"name": "text"}})


def test_tables_and_columns_are_hidden_and_come_back() -> None:
    query = "SELECT t1.name, COUNT(*) FROM book AS t1 WHERE t1.year_printed > <v0> AND t1.name <> 'year_printed name'"
    hidden = prompt.hide_names(query, SHOP)
    assert hidden == ("SELECT t1.<c1>, COUNT(*) FROM<t0>AS t1 WHERE t1.<c2>> <v0> AND t1.<c1><> 'year_printed name'")
    assert canonical(prompt.reveal_names(hidden, SHOP).replace("<v0>", "7"), SHOP) == canonical(
        query.replace("<v0>", "7"), SHOP
    )


def test_the_question_says_which_words_are_names() -> None:
    assert (
        prompt.mark("names of all books by year printed", SHOP) == "names <c1> of all books <t0> by year printed <c2>"
    )
    assert prompt.describe(SHOP, with_tokens=True) == (
        "<t0> book : <c0> id , <c1> name , <c2> year_printed | <t1> author : <c1> name"
    )
    assert prompt.prompt("which books <t0> ?", [], SHOP, with_tokens=True) == "<query>which books <t0> ? ; <sql>"
    assert prompt.prompt("why ?", [], SHOP, repeats=2) == "<query>why ? ; <query>why ? ; <sql>"


def test_words_that_training_hardly_has_are_hidden() -> None:
    known = {"which", "books", "cost"}
    assert prompt.hide_words("which dear books <t0> cost <v0>", known, 0.0) == "which <unk> books <t0> cost <v0>"
    assert prompt.hide_words("which books <t0> cost <v0>", known, 1.0) == "<unk> <unk> <t0> <unk> <v0>"


def test_hidden_words_are_one_token_in_training_and_in_use(tmp_path: Path) -> None:
    settings = DataSettings(word_dropout=0.5)
    recipe = dataclasses.replace(Recipe(), data_settings=settings).prepare(tmp_path)
    unknown = recipe.tokenizer.convert_tokens_to_ids(prompt.UNKNOWN)
    assert recipe.tokenizer.convert_ids_to_tokens(unknown) == prompt.UNKNOWN
    assert any(unknown in recipe.data("train")[index].prompt for index in range(4))
    question = recipe.data("train").questions[0]
    asked = dataclasses.replace(question, text="kindly")
    assert recipe.encoder.example(asked).prompt.count(unknown) == 1
    known = dataclasses.replace(question, text="which")
    assert "which" in recipe.encoder.known_words and unknown not in recipe.encoder.example(known).prompt


def test_every_demo_query_survives_the_names_tokens() -> None:
    for pair in random.Random(0).sample(build().train, 200):
        schema = Schema.from_database(Path(pair.database))
        back = prompt.reveal_names(prompt.hide_names(canonical(pair.query, schema), schema), schema)
        assert execute(pair.database, back).rows == execute(pair.database, pair.query).rows
