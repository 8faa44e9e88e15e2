"""The recipe text2sql: prompts, batches, the loss, generated SQL, mistakes and answers."""

import dataclasses
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.text2sql.data import demo
from recipes.text2sql.data.questions import Question
from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.encoding import Example
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.results import is_ordered, is_valid, same_result
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError
from tests.launching import REPOSITORY
from tests.recipes.text2sql.slow_forms import slowly
from tests.recipes.text2sql.source_folders import read_questions

SHARED = REPOSITORY.parent / "shared" / "data" / "text2sql"


@pytest.fixture(scope="module")
def made() -> demo.DemoData:
    """The embedded data."""
    return demo.build()


TABLES = """
CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT, code TEXT, price REAL, author_id INTEGER REFERENCES author (id));
INSERT INTO author VALUES (1, 'Flann O''Brien', 'Dublin'), (2, 'Ada Costa', 'Porto'), (3, 'Zoë Åberg', 'Malmö');
INSERT INTO book VALUES (1, 'Ubik', '7', 5.5, 1), (2, 'The Third Policeman', 'B-12', 12.0, 1);
INSERT INTO book VALUES (3, 'Porto Nights', '30', 8.0, 2);
"""
PAIRS = [
    ("how many books are there ?", "SELECT count(*) FROM book"),
    ("Which books are by Flann O'Brien ?",
     "SELECT T2.title FROM author AS T1 JOIN book AS T2 ON T1.id = T2.author_id WHERE T1.name = 'Flann O''Brien'"),
    ("titles like ubik", "SELECT title FROM book WHERE title LIKE '%Ubik%'"),
    ("books cheaper than 8.5", "SELECT title FROM book WHERE price < 8.5"),
    ("code of the third policeman ?", "SELECT code FROM book WHERE title = 'The Third Policeman'"),
    ("who lives in malmö ?", "SELECT name FROM author WHERE city = 'Malmö'"),
    ("which book has the code B-12 ?", "SELECT title FROM book WHERE code = 'B-12'"),
    ("cities of authors with at least 2 books",
     "SELECT city FROM author WHERE id IN (SELECT author_id FROM book GROUP BY author_id HAVING COUNT(*) >= 2)"),
]  # fmt: skip
TABLES_JSON = {
    "db_id": "shop",
    "table_names_original": ["author", "book"],
    "column_names_original": [
        [-1, "*"], [0, "id"], [0, "name"], [0, "city"],
        [1, "id"], [1, "title"], [1, "code"], [1, "price"], [1, "author_id"],
    ],
    "column_types": ["text", "number", "text", "text", "number", "text", "text", "number", "number"],
    "primary_keys": [1, 4],
    "foreign_keys": [[8, 1]],
}  # fmt: skip


def write_folder(folder: Path, source: str = "spider", train: str = "train_spider.json") -> Path:
    """A data folder with one database; returns the path of that."""
    database = demo.database_path(folder / source, "shop")
    database.parent.mkdir(parents=True)
    connection = sqlite3.connect(database)
    connection.executescript(TABLES)
    connection.close()
    entries = [{"question": question, "query": query, "db_id": "shop"} for question, query in PAIRS]
    for name, content in ((train, entries), ("dev.json", entries[:3]), ("tables.json", [TABLES_JSON])):
        (folder / source / name).write_text(json.dumps(content), encoding="utf-8")
    return database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with one database, in Spider's format."""
    write_folder(tmp_path)
    return tmp_path


def recipe_for(folder: Path, source: str = "spider", **data: Any) -> Recipe:
    """A small recipe that reads a folder, with its tokenizer."""
    recipe = Recipe()
    settings = dataclasses.replace(recipe.data_settings, source=source, dir=str(folder), **data)
    sizes = dataclasses.replace(recipe.model_settings, hidden_size=32, intermediate_size=32, dropout=0.0)
    vocabulary = dataclasses.replace(recipe.tokenizer_settings, vocab_size=512)
    recipe = dataclasses.replace(
        recipe, data_settings=settings, model_settings=sizes, tokenizer_settings=vocabulary
    )  # fmt: skip
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    return recipe.prepare(assets)


@pytest.mark.parametrize(
    ("source", "train", "splits"),
    [
        ("spider", "train_spider.json", {"train": 8, "validation": 3, "test": 3}),
        ("geography", "train.json", {"train": 8, "validation": 3, "test": 2}),
    ],
)
def test_a_folder_is_read(tmp_path: Path, source: str, train: str, splits: dict[str, int]) -> None:
    database = write_folder(tmp_path, source, train)
    entries = [{"question": question, "query": query, "db_id": "shop", "more": 1} for question, query in PAIRS[:2]]
    (tmp_path / source / "test.json").write_text(json.dumps(entries), encoding="utf-8")
    for split, number in splits.items():
        questions = read_questions(source, str(tmp_path), split)
        assert [(each.text, each.query) for each in questions] == PAIRS[:number]
        assert all(each.database == str(database) and each.group is None for each in questions)
        assert list(questions[0].schema.tables) == ["author", "book"]
        assert questions[0].schema.foreign_keys == (("book", "author_id", "author", "id"),)


def test_a_schema_without_a_database_is_enough(folder: Path) -> None:
    with_database = read_questions("spider", str(folder), "train")[0]
    shutil.rmtree(folder / "spider" / "database")
    (folder / "spider" / "tables.json").write_text(json.dumps([TABLES_JSON]), encoding="utf-8")
    question = read_questions("spider", str(folder), "train")[0]
    assert question.database is None and question.schema.db_id == "shop"
    assert {table: list(columns) for table, columns in question.schema.tables.items()} == {
        table: list(columns) for table, columns in with_database.schema.tables.items()
    }
    # And such questions become examples, with numbers linked and nothing else.
    assert prompt.link("books cheaper than 8.5 by Ubik", None)[1] == [prompt.Link("8.5", ())]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(("source", "split", "number"), [("geography", "train", 549), ("spider", "validation", 1034)])
def test_the_real_folders_are_read(source: str, split: str, number: int) -> None:
    assert len(read_questions(source, str(SHARED), split)) == number


def through_placeholders(question: str, query: str, database: str) -> str:
    """The query as a perfect model's answer comes out."""
    links = prompt.link(question, database)[1]
    return prompt.reveal(prompt.target(query, links, Schema.from_database(database)), links)


def has_same_result(query: str, other: str, database: str) -> bool:
    """Whether two queries give the same rows."""
    return same_result(execute(database, other), execute(database, query), is_ordered(query))


def test_values_of_the_question_are_hidden_and_come_back(folder: Path) -> None:
    database = str(demo.database_path(folder / "spider", "shop"))
    hidden = 0
    for question, query in PAIRS:
        text, links = prompt.link(question, database)
        target = prompt.hide(query, links)
        assert prompt.reveal(target, links) == query
        # Every value of these queries is in the question, so that nothing is left to copy.
        assert not re.search(r"'[^<%]|[0-9]{2}", target.replace("T1", "").replace("T2", "")), target
        for number in range(len(links)):
            assert prompt.PLACEHOLDERS[number] in text
        hidden += len(re.findall(r"<v\d>", target))
    assert hidden == 7


def test_what_is_linked(folder: Path) -> None:
    database = str(demo.database_path(folder / "spider", "shop"))
    # The database's spelling; the longest match; a value twice is one; numbers without a column.
    text, links = prompt.link("Did FLANN O'BRIEN write The Third Policeman , 2.5 and the third policeman ?", database)
    assert text == "did <v0> write <v1> , <v2> and <v1> ?"
    assert [link.value for link in links] == ["Flann O'Brien", "The Third Policeman", "2.5"]
    assert [link.columns for link in links] == [("name",), ("title",), ()]
    assert links[0].literal == "'Flann O''Brien'" and links[2].literal == "2.5"
    # Of two values that begin alike the longer one.
    assert prompt.link("porto nights in porto", database)[0] == "<v0> in <v1>"
    # More values than placeholders stay words.
    text, links = prompt.link(" ".join(str(number) for number in range(100, 115)), database)
    assert len(links) == prompt.MAX_VALUES and text.split()[prompt.MAX_VALUES :] == ["110", "111", "112", "113", "114"]
    # What looks like a special token is taken apart.
    assert not set(re.findall(r"<\w+>", prompt.link("<sql> <pad> <v3> x", database)[0])) & set(prompt.SPECIAL_TOKENS)


def test_a_placeholder_without_a_value_stays() -> None:
    links = [prompt.Link("it's", ("name",)), prompt.Link("12", ())]
    assert prompt.reveal("SELECT a WHERE b = <v0> AND c > <v1> LIMIT <v2>", links) == (
        "SELECT a WHERE b = 'it''s' AND c > 12 LIMIT <v2>"
    )
    assert prompt.reveal(" WHERE b LIKE '% <v0> %' OR c LIKE '<v1>%'", links) == (
        "WHERE b LIKE '%it''s%' OR c LIKE '12%'"
    )


def test_a_number_that_is_also_a_text_value_comes_back_as_a_number(folder: Path) -> None:
    database = str(demo.database_path(folder / "spider", "shop"))
    # "7" is the code of a book, and here it is a count of letters.
    question, query = "titles with fewer than 7 letters", "SELECT title FROM book WHERE LENGTH(title) < 7"
    assert len(execute(database, query).rows) == 1
    assert has_same_result(query, through_placeholders(question, query, database), database)


def test_the_demos_queries_survive_the_placeholders(made: demo.DemoData) -> None:
    for pair in made.dev[::2] + made.held_out[::2]:
        written = through_placeholders(pair.question, pair.query, pair.database)
        assert has_same_result(pair.query, written, pair.database), (pair, written)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_geoquerys_queries_survive_the_placeholders() -> None:
    for question in read_questions("geography", str(SHARED), "test"):
        assert question.database
        if execute(question.database, question.query).error:
            continue
        written = through_placeholders(question.text, question.query, question.database)
        assert has_same_result(question.query, written, question.database), (question.text, question.query, written)


def test_the_prompt_is_the_same_whatever_the_answer(folder: Path) -> None:
    recipe = recipe_for(folder)
    for question in recipe.data("validation").questions:
        shown = recipe.encoder.example(question)
        for query in ("", "SELECT city FROM author WHERE name = 'Ada Costa'", "SELECT 30"):
            other = recipe.encoder.example(dataclasses.replace(question, query=query))
            assert (other.prompt, other.links) == (shown.prompt, shown.links)
            assert other.target != shown.target


def test_a_cut_prompt_is_the_same_whatever_the_answer(folder: Path) -> None:
    recipe = recipe_for(folder)
    question = recipe.data("validation").questions[0]
    recipe = recipe_for(folder, max_seq_length=len(recipe.encoder.example(question).prompt))
    longer = dataclasses.replace(question, query="SELECT city FROM author WHERE name = 'Ada Costa' AND id > 2")
    assert recipe.encoder.example(longer).prompt == recipe.encoder.example(question).prompt


def test_cutting_leaves_the_question(folder: Path) -> None:
    whole = recipe_for(folder)
    start_token, query_token = (whole.tokenizer.convert_tokens_to_ids(token) for token in ("<schema>", "<query>"))
    cut = 0
    for number, question in enumerate(whole.data("train").questions):
        shown = whole.data("train")[number]
        asked = shown.prompt[shown.prompt.index(query_token) :]
        written = whole.generation_settings.max_new_tokens
        for limit in (len(shown.prompt) + written - 1, len(asked) + written + 12, 10):
            example = recipe_for(folder, max_seq_length=limit).encoder.example(question)
            assert example.prompt[-len(asked) :] == asked and example.prompt[0] == start_token
            assert example.target == shown.target
            # Never too long, unless the question alone is.
            kept = len(example.prompt) - len(asked)
            assert 1 <= kept <= max(1, limit - len(asked) - written)
            cut += kept < len(shown.prompt) - len(asked)
    assert cut == 3 * len(PAIRS)


def test_names_as_tokens_and_back(folder: Path) -> None:
    schema = read_questions("spider", str(folder), "train")[0].schema
    target = "SELECT title FROM book WHERE code LIKE 'author%' AND id > <v0>"
    hidden = prompt.hide_names(target, schema)
    names = prompt.names_of(schema)
    assert not re.search(r"title|book|code|id", hidden) and "'author%'" in hidden and "<v0>" in hidden
    assert len(set(names.values())) == len(names) == 9
    assert prompt.reveal_names(hidden, schema) == target


def test_a_text_in_quotes_survives_names_as_tokens(folder: Path) -> None:
    schema = read_questions("spider", str(folder), "train")[0].schema
    # No question spells this value, so that it is no placeholder.
    target = "SELECT id FROM author WHERE city = 'St. Louis  Park'"
    assert prompt.reveal_names(prompt.hide_names(target, schema), schema) == target


def test_a_name_that_is_not_there_is_no_valid_query(folder: Path) -> None:
    schema = read_questions("spider", str(folder), "train")[0].schema
    assert not is_valid(schema, prompt.reveal_names("SELECT <c99> FROM <t1>", schema))


def test_a_prompt_without_the_schema(folder: Path) -> None:
    question = read_questions("spider", str(folder), "train")[3]
    shown = recipe_for(folder).tokenizer.decode(
        recipe_for(folder, schema_in_prompt=False).encoder.example(question).prompt
    )
    assert "book" in shown and "author" not in shown and shown.count("<query>") == 1


def test_only_the_sql_is_scored(folder: Path) -> None:
    recipe = recipe_for(folder)
    data = recipe.data("train")
    examples = [data[0], data[1], data[3]]
    batch = recipe.collate(examples)
    assert len({len(example.prompt) + len(example.target) for example in examples}) == 3
    lengths = [len(example.prompt) + len(example.target) for example in examples]
    assert batch.tokens == sum(lengths)
    assert batch.weight == sum(len(example.target) for example in examples) == (batch["labels"] != -100).sum()
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        assert batch["input_ids"][row, :length].tolist() == example.prompt + example.target
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)
        # Each token of the SQL and the end after it, where it stands, and nothing else.
        scored = batch["labels"][row]
        assert scored[len(example.prompt) : length].tolist() == example.target
        assert (scored[: len(example.prompt)] == -100).all() and (scored[length:] == -100).all()
        assert example.target[-1] == recipe.tokenizer.eos_token_id


def wild_model(recipe: Recipe) -> Any:
    """A model in fp64 with large random weights, so that what it writes depends on everything it reads."""
    torch.manual_seed(3)
    model = recipe.model().double().eval()
    # The grouped product has no fp64.
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return model


def test_the_loss_against_a_slow_form(folder: Path) -> None:
    recipe = recipe_for(folder)
    recipe = dataclasses.replace(recipe, router_aux_loss_coef=0.3, router_z_loss_coef=0.07)
    model = wild_model(recipe)
    examples = [recipe.data("train")[number] for number in (0, 1, 3)]
    with torch.no_grad():
        found = recipe.loss(model, recipe.collate(examples))
    # What the gates are given, whatever transformers calls their logits.
    routed: list[list[Tensor]] = [[] for _ in model.model.layers]
    for layer, seen in zip(model.model.layers, routed, strict=True):
        layer.mlp.gate.register_forward_hook(lambda gate, given, _, seen=seen: seen.append(given[0] @ gate.weight.T))
    total = 0.0
    for example in examples:
        # One by one, without padding.
        with torch.no_grad():
            output = model(input_ids=torch.tensor([example.prompt + example.target]))
        probabilities = output.logits[0].log_softmax(-1)
        for place, token in enumerate(example.target, len(example.prompt)):
            total -= probabilities[place - 1, token].item()
    assert found.sum.item() == pytest.approx(total, rel=1e-6)
    top_k = recipe.model_settings.num_experts_per_tok
    gates: list[Tensor] = [torch.cat([logits.flatten(0, -2) for logits in layer]) for layer in routed]
    slow = [slowly(logits, torch.ones(len(logits)), top_k) for logits in gates]
    balance, z = (sum(map(float, values)) / len(slow) for values in list(zip(*slow, strict=True))[:2])
    assert found.auxiliary is not None
    assert found.auxiliary.item() == pytest.approx(0.3 * balance + 0.07 * z, rel=1e-5)
    assert found.logs["router/balance_loss"].item() == pytest.approx(balance, rel=1e-5)
    assert found.logs["expert/tokens_per_expert"].tolist() == [counts for *_, counts in slow]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_writing_in_batches_is_writing_one_by_one(folder: Path, num_beams: int) -> None:
    recipe = recipe_for(folder)
    settings = dataclasses.replace(recipe.generation_settings, max_new_tokens=12, num_beams=num_beams)
    recipe = dataclasses.replace(recipe, generation_settings=settings)
    model = wild_model(recipe)
    examples = [recipe.data("train")[number] for number in range(6)]
    together = recipe.predict(model, recipe.collate(examples))
    one_by_one = [recipe.predict(model, recipe.collate([example]))[0] for example in examples]
    assert together == one_by_one
    assert len({row["predicted"] for row in together}) == 6, "what is written says nothing about what was read"
    assert [row["gold"] for row in together] == [query for _, query in PAIRS[:6]]


@pytest.mark.parametrize(
    ("number", "predicted", "wanted"),
    [
        # exact_match, exact_set_match, valid_sql, execution_accuracy
        (0, "SELECT COUNT(*) FROM book", (True, True, True, True)),
        (0, "SELECT COUNT(id) FROM book", (False, False, True, True)),
        (0, "SELECT COUNT(*) FROM author WHERE id > 7", (False, False, True, False)),
        (0, "SELECT COUNT(*) FROM shelf", (False, False, False, False)),
        (0, "", (False, False, False, False)),
        # Spider's exact set match ignores literals.
        (3, "SELECT title FROM book WHERE price < 100", (False, True, True, False)),
    ],
)
def test_a_row_has_the_question_and_whether_it_was_right(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, predicted: str, wanted: tuple[bool, ...]
) -> None:
    recipe = recipe_for(folder)
    monkeypatch.setattr(Recipe, "write", lambda *_: [predicted])
    (row,) = recipe.predict(None, recipe.collate([recipe.data("train")[number]]))
    assert (row["question"], row["gold"], row["db_id"]) == (*PAIRS[number], "shop") and row["predicted"] == predicted
    names = ("exact_match", "exact_set_match", "valid_sql", "execution_accuracy")
    assert tuple(row[name] for name in names) == wanted
    scores = recipe.score([row])
    assert tuple(scores[name] == 1.0 for name in names) == wanted, "a row says what the score counts"
    assert json.loads(json.dumps(row)) == row


def test_a_metric_that_does_not_apply_to_a_row_is_null(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "spider" / "database")
    recipe = recipe_for(folder)
    monkeypatch.setattr(Recipe, "write", lambda *_: ["SELECT 1"])
    (row,) = recipe.predict(None, recipe.collate([recipe.data("train")[0]]))
    assert row["execution_accuracy"] is None and row["exact_set_match"] is False and row["valid_sql"] is True
    question = dataclasses.replace(recipe.data("train").questions[0], query="SELECT CASE WHEN 1 THEN 2 END FROM book")
    (row,) = recipe.predict(None, recipe.collate([recipe.encoder.example(question)]))
    assert row["exact_set_match"] is None and row["exact_match"] is False


class Perfect:
    """Stands for a model that writes the right tokens, then noise after the end."""

    device = torch.device("cpu")

    def __init__(self, recipe: Recipe, examples: Sequence[Example]) -> None:
        self.targets = [example.target for example in examples]
        self.pad = recipe.tokenizer.pad_token_id

    def generate(self, input_ids: Tensor, **_: Any) -> Tensor:
        """(batch, prompt) -> (targets, prompt + longest target); as many targets for each prompt as there are."""
        longest = max(map(len, self.targets))
        rows = [target + [self.pad] * (longest - len(target)) for target in self.targets]
        return torch.cat([input_ids.repeat_interleave(len(rows) // len(input_ids), 0), torch.tensor(rows)], dim=1)


def written_by_a_perfect_model(recipe: Recipe, questions: Sequence[Question]) -> list[str]:
    examples = [recipe.encoder.example(question) for question in questions]
    return [row["predicted"] for row in recipe.predict(Perfect(recipe, examples), recipe.collate(examples))]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        (["SELECT shelf FROM book", "SELECT title FROM book WHERE id = 9", "SELECT title FROM book"], 2),
        (["SELECT shelf FROM book", "SELECT title FROM book WHERE id = 9", "SELECT MAX(id) FROM book WHERE id > 9"], 1),
        (["SELECT shelf FROM book", "DROP TABLE book", "SELECT"], 0),
    ],
)
def test_of_the_candidates_the_first_that_finds_something_is_taken(
    folder: Path, candidates: list[str], chosen: int
) -> None:
    recipe = recipe_for(folder)
    questions = recipe.data("train").questions[:2]
    examples = [recipe.encoder.example(question) for question in questions]
    likeliest_first = [
        recipe.encoder.example(dataclasses.replace(question, query=query))
        for question in questions
        for query in candidates
    ]
    for guided, wanted in ((True, candidates[chosen]), (False, candidates[0])):
        settings = dataclasses.replace(recipe.generation_settings, num_beams=3, execution_guided=guided)
        asked = dataclasses.replace(recipe, generation_settings=settings)
        rows = asked.predict(Perfect(recipe, likeliest_first), recipe.collate(examples))
        assert [row["predicted"] for row in rows] == [wanted, wanted]


@pytest.mark.parametrize("schema_tokens", [False, True])
def test_a_perfect_model_is_read_rightly(folder: Path, schema_tokens: bool) -> None:
    recipe = recipe_for(folder, schema_tokens=schema_tokens)
    questions = recipe.data("train").questions
    for question, written in zip(questions, written_by_a_perfect_model(recipe, questions), strict=True):
        assert question.database and has_same_result(question.query, written, question.database), written
        assert execute(question.database, written).rows


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_a_perfect_model_of_geoquery_is_read_rightly(tmp_path: Path) -> None:
    (tmp_path / "geography").symlink_to(SHARED / "geography", target_is_directory=True)
    recipe = recipe_for(tmp_path, "geography")
    questions = recipe.data("validation").questions
    scored = 0
    for question, written in zip(questions, written_by_a_perfect_model(recipe, questions), strict=True):
        assert question.database
        # One of the 49 is no SQL that SQLite knows.
        if not execute(question.database, question.query).error:
            assert has_same_result(question.query, written, question.database), written
            scored += 1
    assert scored == 48


def says(call: Callable[[], Any], *words: str) -> None:
    """Asserts a DataError of at most three lines with the words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) <= 3, message
    for word in words:
        assert word in message, message


def test_a_data_folder_that_is_not_there(tmp_path: Path) -> None:
    says(lambda: read_questions("spider", None, "train"), "--data.dir")
    says(
        lambda: read_questions("spider", str(tmp_path / "nowhere"), "train"),
        "--data.dir",
        "nowhere",
        "train_spider.json",
    )
    says(lambda: read_questions("geography", str(tmp_path), "test"), "--data.dir", "geography/test.json")
    recipe = Recipe()
    recipe = dataclasses.replace(recipe, data_settings=dataclasses.replace(recipe.data_settings, source="spider"))
    says(lambda: recipe.prepare(tmp_path), "--data.dir")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not JSON"),
        (b"[]", "no entries"),
        (b"{}", "no entries"),
        (b'[{"question": "?"', "not JSON"),
        (b"\xff\xfe\x00", "not UTF-16"),
        (b"[1, 2]", "line 1"),
        (b'[{"question": "?", "db_id": "shop"}]', "line 1"),
        (b'[{"question": "?", "query": "SELECT 1", "db_id": "none"}]', "'none'"),
        # Of the wrong kind.
        (b'[{"question": null, "query": "SELECT 1", "db_id": "shop"}]', "line 1"),
        (b'[{"question": "?", "query": 7, "db_id": "shop"}]', "line 1"),
        (b'[{"question": "?", "query": "SELECT 1", "db_id": ["shop"]}]', "line 1"),
    ],
)
def test_a_training_file_that_is_empty_or_broken(folder: Path, content: bytes, word: str) -> None:
    (folder / "spider" / "train_spider.json").write_bytes(content)
    says(lambda: recipe_for(folder), "train_spider.json", word)


@pytest.mark.parametrize("content", ['[{"tables": 1}]', '["shop"]'])
def test_a_file_of_tables_that_is_broken(folder: Path, content: str) -> None:
    (folder / "spider" / "tables.json").write_text(content, encoding="utf-8")
    says(lambda: recipe_for(folder), "tables.json")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b"not a database, but long enough", "not a database"),
        (b"SQLite format 3\x00" + bytes(500), "shop.sqlite"),
        (None, "holds no table"),
    ],
)
def test_a_database_that_is_none(folder: Path, content: bytes | None, word: str) -> None:
    database = demo.database_path(folder / "spider", "shop")
    database.unlink()
    if content is None:
        connection = sqlite3.connect(database)
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
        connection.close()
    else:
        database.write_bytes(content)
    says(lambda: read_questions("spider", str(folder), "train"), str(database), word)
    says(lambda: Recipe().answer(None, Recipe.Request(db=str(database))), str(database), word)


def test_a_database_that_is_asked_and_not_there(folder: Path) -> None:
    says(lambda: Recipe().answer(None, Recipe.Request(db=str(folder / "none.sqlite"))), "none.sqlite")
    says(lambda: Recipe().answer(None, Recipe.Request(db="demo:bookshp")), "demo:bookshp", "bookshop", "museum")


def test_an_answer_is_shown_as_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, database = recipe_for(folder), demo.database_path(folder / "spider", "shop")

    def answer(query: str) -> list[str]:
        monkeypatch.setattr(Recipe, "write", lambda *_: [query])
        return recipe.answer(None, Recipe.Request(db=str(database), question="which books ?")).splitlines()

    shown = answer("SELECT id, title FROM book")
    assert shown[:2] == ["question: which books ?", "SQL:      SELECT id, title FROM book"]
    assert [line.split(maxsplit=1) for line in shown[2:5]] == [
        ["id", "title".ljust(19)],
        ["1", "Ubik".ljust(19)],
        ["2", "The Third Policeman"],
    ]
    crowd = answer("SELECT b.id FROM book, book AS b, book AS c")
    assert crowd[-1] == "... and 7 more rows" and len(crowd) == 2 + 1 + 20 + 1
    assert answer("SELECT shelf FROM book")[-1] == "error:    no such column: shelf"
    assert answer("DROP TABLE book")[-1].startswith("error:") and len(execute(database, "SELECT * FROM book").rows) == 3
