"""The schema in the prompt: what is written, and what is cut."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes.text2sql.prompts import prompt, schema_text
from recipes.text2sql.prompts.schema_text import Style
from recipes.text2sql.sql.schema import Schema
from tests.recipes.text2sql.source_folders import (
    SHARED,
    bound,
    needs_shared,
    read,
    write_sources,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


def test_what_is_said_of_a_schema(folder: Path) -> None:
    question = read("spider", folder)[0]
    schema, database = question.schema, question.database
    assert schema_text.describe(schema, Style(), database) == prompt.describe(schema)
    assert schema_text.describe(schema, Style(details=True), database) == (
        "author : id number key , name , city | "
        "book : id number key , title , price number , author_id number -> author . id"
    )
    assert schema_text.describe(schema, Style(tokens=True, details=True), database) == (
        "<t0> author : <c0> id number key , <c1> name , <c2> city | "
        "<t1> book : <c0> id number key , <c3> title , <c4> price number , <c5> author_id number -> <t0> . <c0>"
    )
    assert "price ( 5.5 ; 12.0 )" in schema_text.describe(schema, Style(samples=2), database)
    assert "city ( Dublin ; Porto )" in schema_text.describe(schema, Style(samples=9), database)
    # Without the file there are no values.
    assert schema_text.describe(schema, Style(samples=2), None) == prompt.describe(schema)


def test_descriptions_of_birds_columns(folder: Path) -> None:
    home = folder / "bird/train/train_databases/shop"
    (home / "database_description").mkdir()
    (home / "database_description/Book.csv").write_bytes(
        b"\xef\xbb\xbforiginal_column_name,column_name,column_description,data_format,value_description\r\n"
        b'price,price,"what it costs \x92 in ""euros"", one two three four five six seven eight",real,\r\n'
        b"title,the name on the cover,,text,\r\nid,id,id,integer,\r\n"
    )
    question = read("bird", folder)[0]
    text = schema_text.describe(question.schema, Style(descriptions=True), question.database)
    assert text == (
        'author : id , name , city | book : id , title " the name on the cover " , '
        'price " what it costs \ufffd in euros , one two three four five " , author_id'
    )


@needs_shared
def test_descriptions_of_birds_real_columns() -> None:
    found = schema_text.descriptions_of(str(SHARED / "bird/dev_databases/superhero/superhero.sqlite"))
    assert found["superhero", "height_cm"] == "the height of the superhero"
    assert found["superhero", "eye_colour_id"] == "the id of the superhero's eye color"
    assert len(found) > 20


WIDE = Schema(
    "wide",
    {
        f"table{number}": {"id": "number", f"kind_{number}": "text", "PlantHeight" if number == 7 else f"x{number}": ""}
        for number in range(12)
    } | {"city": {"id": "number", "name": "text", "mayor": "text"}},
    primary_keys=(("city", "id"),),
)  # fmt: skip


def fit(words: int, question: str, links: Sequence[prompt.Link] = (), style: Style = Style()) -> str:  # noqa: B008
    """The schema in so many words, where each word counts as one token."""
    return schema_text.fitting(
        WIDE,
        style,
        None,
        question,
        links,
        lambda text: len(text.split()) - words,
        lambda texts: [len(text.split()) for text in texts],
    )


def test_columns_that_match_the_question_are_kept() -> None:
    whole = fit(1000, "anything")
    assert whole == prompt.describe(WIDE)
    for words in range(0, len(whole.split()), 5):
        assert len(fit(words, "how high are the plants ?").split()) <= words
    # By the words of a name, whatever their form; then what shares their table.
    assert fit(3, "heights of plants in cities") == "table7 : plantheight"
    assert fit(9, "the mayors of all cities") == "city : id , name , mayor"
    assert "city : id" in fit(9, "how many cities ?") and len(fit(9, "how many cities ?").split()) > 4
    # A value of the question that the column holds.
    assert fit(3, "who is <v0> ?", [prompt.Link("Ann", ("x3",))]) == "table3 : x3"
    # In the schema's order.
    assert fit(7, "x9 and x2") == "table2 : x2 | table9 : x9"
    # Without a match, the beginning.
    assert fit(7, "zzz") == "table0 : id , kind_0 , x0"
    assert fit(0, "zzz") == ""


def test_what_does_not_fit_loses_samples_first(folder: Path) -> None:
    question = read("spider", folder)[0]
    style = Style(details=True, samples=2)

    def fitted(words: int) -> str:
        return schema_text.fitting(
            question.schema, style, question.database, "cheap price", [],
            lambda text: len(text.split()) - words, lambda texts: [len(text.split()) for text in texts],
        )  # fmt: skip

    whole = fitted(1000)
    shorter = fitted(len(whole.split()) - 1)
    # Nobody asked for authors; the columns are all there.
    assert "name ( Flann" in whole and "name , city" in shorter and "price number ( 5.5 ; 12.0 )" in shorter
    assert fitted(10) == "book : price number ( 5.5 ; 12.0 )"


@needs_shared
def test_cutting_real_schemas_keeps_what_the_queries_need() -> None:
    # Not a promise, but what matching by words is for: of Spider's dev questions, with a third of the schema's words.
    kept, by_order, all_of_them = 0, 0, 0
    for number, question in enumerate(read("spider", SHARED, "validation")):
        if number % 10:
            continue
        text, links = question.link()
        words = len(prompt.describe(question.schema).split()) // 3
        used = set(prompt.names_of(question.schema)) & set(question.prepared.canonical.replace(".", " ").split())

        def surplus(text: str, words: int = words) -> int:
            return len(text.split()) - words

        text = schema_text.fitting(
            question.schema, Style(), None, text, links, surplus, lambda texts: [len(each.split()) for each in texts]
        )
        all_of_them += len(used)
        kept += len(used & set(text.split()))
        by_order += len(used & set(prompt.describe(question.schema).split()[:words]))
    assert kept > 0.8 * all_of_them and kept > 1.3 * by_order, (kept, by_order, all_of_them)


def test_a_long_schema_in_the_recipe_is_cut_by_the_question(folder: Path) -> None:
    whole = bound(folder, source="spider")
    for question in whole.data("train").questions:
        longest = len(whole.encoder.example(question).prompt)
        short = bound(folder, source="spider", max_seq_length=longest + whole.generation_settings.max_new_tokens - 8)
        shown = short.encoder.example(question)
        assert len(shown.prompt) <= longest - 8
        again = short.encoder.example(dataclasses.replace(question, query="SELECT city FROM author"))
        assert shown.prompt == again.prompt, "the answer changes nothing"
        text = short.tokenizer.decode(shown.prompt)
        if "cost" in question.text:
            assert "book" in text
