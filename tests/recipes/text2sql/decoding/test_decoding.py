"""Writing SQL: draws, votes, and the grammar of a schema."""

import dataclasses
import functools
import itertools
import json
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.text2sql.data import cache, demo
from recipes.text2sql.data.questions import Question
from recipes.text2sql.data.questions import read_demo as demo_questions
from recipes.text2sql.decoding import candidates
from recipes.text2sql.decoding.candidates import SeededSampling, as_sql, most_voted, picked, uniforms, write_candidates
from recipes.text2sql.decoding.masks import OnlyGrammatical, State, Writer, _vocabulary, _writer, writer_of
from recipes.text2sql.prompts import prompt
from recipes.text2sql.prompts.encoding import Example
from recipes.text2sql.prompts.plain import query_of
from recipes.text2sql.prompts.prompt import reveal
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.sql.schema import Schema
from runner.errors import ConfigError, DataError
from tests.launching import SHARED
from tests.recipes.text2sql.source_folders import read_questions

TEXT2SQL = SHARED / "text2sql"
# All of Spider takes half a minute: type RELAY_TEST_ALL=1.
EVERY = 1 if os.environ.get("RELAY_TEST_ALL") else 40


@pytest.fixture(scope="session")
def bookshop() -> tuple[Schema, str]:
    database = next(pair.database for pair in demo.build().train if pair.db_id == "bookshop")
    return Schema.from_database(Path(database)), str(database)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """On every fifteenth question of the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "load_questions", lambda settings, split: demo_questions(split)[::15])
        yield Recipe().prepare(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> Any:
    """Large random weights in fp64: what it writes depends on everything it reads."""
    torch.manual_seed(3)
    model = recipe.model().double().eval()
    model.set_experts_implementation("eager")  # The grouped product has no fp64.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return model


def generating(recipe: Recipe, **settings: Any) -> Recipe:
    return dataclasses.replace(recipe, generation_settings=dataclasses.replace(recipe.generation_settings, **settings))


def candidates_of(recipe: Recipe, model: Any, examples: Sequence[Example]) -> list[list[str]]:
    return write_candidates(recipe.encoder, recipe.generation_settings, model, examples)


def test_a_draw_has_the_distributions_shares() -> None:
    shares = torch.tensor([0.1, 0.6, 0.0, 0.3])
    uniforms = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    scores = shares.log().expand(len(uniforms), 4)
    drawn = SeededSampling(uniforms, 5)(torch.zeros(len(uniforms), 5), scores).argmax(-1)
    counts = Counter(drawn.tolist())
    assert counts[2] == 0
    for token, share in ((0, 0.1), (1, 0.6), (3, 0.3)):
        assert counts[token] / len(uniforms) == pytest.approx(share, abs=0.012)
    edges = SeededSampling(torch.tensor([[0.0], [1 - 2**-24], [2.0]]), 5)(torch.zeros(3, 5), scores[:3]).argmax(-1)
    assert edges.tolist() == [1, 0, 1]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"temperature": 1.5, "num_candidates": 3, "top_p": 0.95}])
def test_candidates_in_a_batch_are_those_of_one_by_one(recipe: Recipe, model: Any, settings: dict[str, Any]) -> None:
    asked = generating(recipe, max_new_tokens=10, **settings)
    examples = [asked.data("validation")[number] for number in (0, 10, 20, 40)]
    together = candidates_of(asked, model, examples)
    assert together == [candidates_of(asked, model, [example])[0] for example in examples]
    # Two candidates of different bytes that are no characters can read the same.
    assert len({text for texts in together for text in texts}) > 8
    if "temperature" in settings:
        likeliest = candidates_of(generating(recipe, max_new_tokens=10), model, examples)
        assert [texts[0] for texts in together] == [texts[0] for texts in likeliest]
        other = candidates_of(generating(asked, seed=1), model, examples)
        assert [texts[0] for texts in other] == [texts[0] for texts in together] and other != together


def decoder(kind: str) -> Any:
    """A tiny decoder of another kind in fp64, with large random weights."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, Qwen3MoeConfig

    size: dict[str, Any] = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                            "head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
    config = {
        "gemma3_text": lambda: Gemma3TextConfig(
            **size, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt2": lambda: GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=4),
        "qwen3_moe": lambda: Qwen3MoeConfig(**size, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    }[kind]()
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)
    return model


@pytest.mark.parametrize("settings", [{"num_beams": 5}, {"temperature": 1.5, "num_candidates": 5}])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gemma3_text", "gpt2"])
def test_candidates_share_the_reading_of_their_prompt(
    recipe: Recipe, model: Any, kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = model if kind == "mixtral" else decoder(kind)
    asked = generating(recipe, max_new_tokens=6, **settings)
    examples = [asked.data("validation")[number] for number in (0, 10, 20)]
    read = []
    hook = writer.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    shared = candidates_of(asked, writer, examples)
    hook.remove()
    longest = max(len(example.prompt) for example in examples)
    assert read[0] == len(examples) * (longest - 1)
    assert sum(read) <= len(examples) * (longest - 1 + 5 * 6)
    monkeypatch.setattr(candidates, "prompts_read_once", lambda *_: None)
    assert shared == candidates_of(asked, writer, examples)
    assert len({text for texts in shared for text in texts}) > 4


@pytest.mark.parametrize("vocabulary", [5, 256, 257, 3000, 20_000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_few_sorted_shares_pick_what_all_of_them_would(vocabulary: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randn(24, vocabulary, generator=generator) * spread
    # Eight rows as they are, eight with many equal shares, eight with few allowed tokens.
    scores[8:16] = scores[8:16].bfloat16().float()
    scores[16:, torch.rand(vocabulary, generator=generator) < 0.99] = -torch.inf
    scores[16:, vocabulary // 2] = 0.0
    shares, numbers = scores.softmax(-1), torch.rand(24, generator=generator)
    numbers[::4], numbers[1::8], numbers[2::8] = 2.0, 0.0, 1 - 2**-24
    sums, order = shares.sort(dim=-1, descending=True, stable=True)
    place = (sums.double().cumsum(-1) < numbers.double()[:, None]).sum(-1)
    place = torch.minimum(place, (sums > 0).sum(-1) - 1) * (numbers < 2)
    assert picked(shares, numbers).equal(order.gather(-1, place[:, None])[:, 0])


def test_a_single_draw_is_drawn() -> None:
    example = Example(None, [1, 2], [], [])  # type: ignore[arg-type]
    assert (uniforms([example], 1, 5, 0) < 1).all()
    assert (uniforms([example], 2, 5, 0) < 1).all(-1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        # Two spellings with the same rows have more votes than the first.
        (["SELECT price FROM book", "SELECT name FROM book", "SELECT t1.name FROM book AS t1"], 1),
        # An order counts only where both ask for one.
        (["SELECT price FROM book", "SELECT name FROM book", "SELECT name FROM book ORDER BY id DESC"], 1),
        (["SELECT name FROM book ORDER BY id", "SELECT id FROM book", "SELECT name FROM book ORDER BY id DESC"], 0),
        # What fails has no vote, what finds nothing none beside what finds something.
        (["SELECT shelf FROM book", "SELECT shelf FROM book", "SELECT name FROM book"], 2),
        (["SELECT name FROM book WHERE id = -1", "SELECT MAX(id) FROM book WHERE id = -1", "SELECT name FROM book"], 2),
        (["SELECT", "SELECT name FROM book WHERE id = -1"], 1),
        (["SELECT", "SELECT shelf FROM book"], 0),
    ],
)
def test_the_vote(bookshop: tuple[Schema, str], candidates: list[str], chosen: int) -> None:
    schema, database = bookshop
    assert most_voted(candidates, database, schema) == candidates[chosen]


def test_the_vote_without_a_database(bookshop: tuple[Schema, str]) -> None:
    candidates = ["SELECT id FROM book", "SELECT name FROM book", "select T.name from book as T"]
    assert most_voted(candidates, None, bookshop[0]) == candidates[1]
    assert most_voted(candidates[:2], None, bookshop[0]) == candidates[0]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"num_beams": 0}, {"temperature": 1.0, "num_beams": 2}, {"voting": True},
     {"temperature": 1.0, "voting": True}, {"num_beams": 2, "voting": True, "execution_guided": True}],
)  # fmt: skip
def test_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="generation"):
        generating(Recipe(), **settings)


# What the grammar allows ---------------------------------------------------------------------------------


def accepts(recipe: Recipe, question: Question) -> bool:
    """Whether every token of the question's query is allowed where it stands, and the end after it."""
    example = recipe.encoder.example(question)
    writer = writer_of(recipe.encoder, example)
    state = writer.state(tuple(example.target[:-1]))
    return state is not None and writer.spelling.can_end(state)


@functools.cache
def empty(schema: Schema) -> sqlite3.Connection:
    """A database with the schema's tables and no rows."""
    connection = sqlite3.connect(":memory:")
    for table, columns in schema.tables.items():
        listed = ", ".join('"' + column.replace('"', '""') + '"' for column in columns)
        connection.execute(f'CREATE TABLE "{table}" ({listed})')
    return connection


def prepares(schema: Schema, query: str) -> bool:
    try:
        empty(schema).execute(f"EXPLAIN {query}").close()
    except sqlite3.Error:
        return False
    return query.startswith("SELECT")


@pytest.mark.parametrize("schema_tokens", [False, True])
def test_the_demos_queries_are_in_the_grammar(recipe: Recipe, schema_tokens: bool, tmp_path: Path) -> None:
    if schema_tokens:
        settings = dataclasses.replace(recipe.data_settings, schema_tokens=True)
        recipe = dataclasses.replace(recipe, data_settings=settings, assets=None).prepare(tmp_path)
    questions = [*recipe.data("train").questions[::6], *recipe.data("validation").questions]
    assert [question.query for question in questions if not accepts(recipe, question)] == []


@pytest.mark.skipif(not TEXT2SQL.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("source", "splits", "every", "refused"),
    [("geography", ("train", "validation", "test"), 1, 5), ("spider", ("train", "validation"), EVERY, None)],
)
def test_the_corpora_are_in_the_grammar(
    recipe: Recipe, source: str, splits: Sequence[str], every: int, refused: int | None
) -> None:
    """All of it, but what SQLite itself does not prepare."""
    left_out, broken = [], 0
    for split in splits:
        for question in read_questions(source, str(TEXT2SQL), split)[::every]:
            example = recipe.encoder.example(question)
            if accepts(recipe, question):
                continue
            if prepares(
                question.schema, reveal(prompt.target(question.query, example.links, question.schema), example.links)
            ):
                left_out.append(question.query)
            broken += 1
    assert left_out == [] and refused in (None, broken)


def drawn_at_random(writer: Writer, room: int, rng: random.Random) -> tuple[int, ...]:
    """Tokens, each drawn from those that are allowed."""
    tokens: tuple[int, ...] = ()
    while len(tokens) < room and writer.vocabulary.end not in tokens:
        allowed = writer.mask(tokens, room - len(tokens)).nonzero().flatten().tolist()
        assert allowed, "a dead end"
        tokens += (rng.choice(allowed),)
    return tokens


def test_whatever_is_drawn_ends_in_sql_that_prepares(recipe: Recipe) -> None:
    rng = random.Random(0)
    questions = recipe.data("validation").questions
    queries, cut = set(), 0
    for question in questions:
        example = recipe.encoder.example(question)
        writer = writer_of(recipe.encoder, example)
        tokens = drawn_at_random(writer, 96, rng)
        if tokens[-1] != writer.vocabulary.end:
            cut += 1
            continue
        query = as_sql(recipe.encoder, recipe.tokenizer.decode(tokens[:-1]), example)
        assert prepares(question.schema, query), query
        queries.add(query)
    assert len(queries) > 35 and len(questions) == 41 and cut <= 2


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("SELECT name FROM book", True),
        ("SELECT price FROM author", False),  # not a column of that table
        ("SELECT shelf", False),
        ("SELECT price, city FROM book", False),  # no table has both
        ("SELECT t1.price, t2.city FROM book AS t1 JOIN author AS t2 ON t1.author_id = t2.id", True),
        ("SELECT t1.price, t2.city FROM author", False),
        ("SELECT name FROM book AS t1 JOIN author AS t2", False),  # ambiguous
        ("SELECT name FROM book WHERE MAX(", False),
        ("SELECT name FROM book ORDER BY COUNT(*)", False),
        ("SELECT genre FROM book GROUP BY genre ORDER BY COUNT(*) DESC LIMIT 1", True),
        ("SELECT SUM(MAX(", False),
        ("SELECT SUM(*", False),
        ("SELECT name, city FROM author UNION SELECT name FROM", False),
        ("SELECT name FROM author WHERE id IN (SELECT id, ", False),
        ("SELECT name FROM author WHERE id IN (SELECT author_id FROM book)", True),
        ("SELECT name FROM book LIMIT 1.", False),
        ("SELECT name FROM book WHERE price = 1.5", True),
        ("SELECT name FROM book; DROP", False),
        ("SELECT name FROM book WHERE name = 'it''s'", True),
        ("SELECT name FROM book WHERE name = 'x' 'y'", False),
        ("SELECT name FROM book WHERE price - -5 > 1", True),
        ("SELECT name FROM book WHERE price --", False),
        ("DROP TABLE book", False),
    ],
)
def test_what_is_allowed(recipe: Recipe, bookshop: tuple[Schema, str], text: str, is_allowed: bool) -> None:
    example = recipe.encoder.example(Question("which books ?", "SELECT name FROM book", *bookshop))
    state: Any = State()
    spelling = writer_of(recipe.encoder, example).spelling
    for symbol in text.encode():
        state = state and spelling.step(state, symbol)
    assert (state is not None and spelling.can_end(state)) == is_allowed


def plain_writer(recipe: Recipe, schema: Schema) -> Writer:
    return _writer(_vocabulary(recipe.tokenizer), schema, (), False, True)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("select Name, count(*) from BOOK group by NAME", True),
        ("SELECT T1.Price, t2.City FROM book AS T1 JOIN author AS t2 ON T1.author_id = T2.ID;\n```", True),
        ("SELECT name\nFROM book\n  WHERE genre = 'Crime'\nLIMIT 3\n```", True),
        ("SELECT name FROM book WHERE genre LIKE '%Crime%';", True),
        ("SELECT name FROM book ", True),
        ("SELECT name FROM book WHERE id IN (SELECT author_id FROM book\n)", True),
        ("SELECT name\n\nFROM book", False),  # an empty line ends an answer
        ("SELECT name  FROM book", False),
        ("SELECT name\n            FROM book", False),
        ("SELECT name\n```", False),
        ("SELECT name FROM book\n``", False),
        ("SELECT name FROM book; SELECT", False),
        ("SELECT Shelf", False),
        ("SELECT na me FROM book", False),
        ("SELECT name FROM bookJOIN", False),
    ],
)
def test_a_plain_answer_has_its_own_case_and_lines(
    recipe: Recipe, bookshop: tuple[Schema, str], text: str, is_allowed: bool
) -> None:
    state: Any = State()
    spelling = plain_writer(recipe, bookshop[0]).spelling
    for symbol in text.encode():
        state = state and spelling.step(state, symbol)
    assert (state is not None and spelling.can_end(state)) == is_allowed
    if is_allowed:
        assert prepares(bookshop[0], query_of(text).replace("select", "SELECT"))


def test_a_column_called_like_a_function_is_told_from_it(recipe: Recipe) -> None:
    schema = Schema("clinic", {"visit": {"count": "number", "max": "number", "country_id": "number"}})
    spelling = plain_writer(recipe, schema).spelling
    for text, is_allowed in (
        ("SELECT count(*) FROM visit", True),
        ('SELECT "Count", MAX("max") FROM visit', True),
        ("SELECT count FROM visit", False),
        ("SELECT COUNTRY_ID FROM visit", True),
    ):
        state: Any = State()
        for symbol in text.encode():
            state = state and spelling.step(state, symbol)
        assert (state is not None and spelling.can_end(state)) == is_allowed, text


def test_a_plain_answer_drawn_at_random_prepares(recipe: Recipe) -> None:
    rng, whole = random.Random(1), 0
    for question in recipe.data("validation").questions[::2]:
        writer = plain_writer(recipe, question.schema)
        tokens = drawn_at_random(writer, 96, rng)
        for cut in range(0, len(tokens), 7):
            seen = writer.state(tokens[:cut])
            if seen is not None:
                slow = [token for token in writer.vocabulary.symbols if writer._after(seen, token) is not None]
                mask = writer._mask(seen)
                mask[writer.vocabulary.end] = False
                assert mask.nonzero().flatten().tolist() == sorted(slow)
        if tokens[-1] == writer.vocabulary.end:
            query = query_of(recipe.tokenizer.decode(tokens[:-1]))
            assert prepares(question.schema, query[:6].upper() + query[6:]), query
            whole += 1
    assert whole > 15


def test_a_question_without_a_number_has_no_limit_by_a_placeholder(
    recipe: Recipe, bookshop: tuple[Schema, str]
) -> None:
    for question, wanted in (("novel books of ada adler", False), ("the 3 cheapest novel books", True)):
        example = recipe.encoder.example(Question(question, "SELECT name FROM book", *bookshop))
        writer = writer_of(recipe.encoder, example)
        state: Any = State()
        for symbol in b"SELECT name FROM book LIMIT ":
            state = writer.spelling.step(state, symbol)
        ids = [writer.vocabulary.special[token] - 256 for token in prompt.PLACEHOLDERS[: len(example.links)]]
        mask = writer._mask(state)
        assert any(mask[ids].tolist()) == wanted and not mask[ids].all()


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"temperature": 1.5, "num_candidates": 3}])
def test_constrained_writing_in_a_batch_is_that_of_one_by_one(
    recipe: Recipe, model: Any, settings: dict[str, Any]
) -> None:
    asked = generating(recipe, max_new_tokens=40, constrained=True, **settings)
    examples = [asked.data("validation")[number] for number in (0, 20, 40)]
    together = candidates_of(asked, model, examples)
    assert together == [candidates_of(asked, model, [example])[0] for example in examples]
    for texts, example in zip(together, examples, strict=True):
        # A model that knows nothing writes what prepares all the same.
        assert all(prepares(example.question.schema, text) for text in texts), texts
    assert not prepares(
        examples[0].question.schema, candidates_of(generating(asked, constrained=False), model, examples)[0][0]
    )


@pytest.mark.parametrize("needed", [1, 4])
def test_the_best_allowed_tokens_are_those_of_the_mask(recipe: Recipe, needed: int) -> None:
    """Of tokens that are looked at one by one, with every budget, from the first token to the last."""
    examples = [recipe.data("validation")[number] for number in (0, 20, 40)]
    writers = [writer_of(recipe.encoder, example) for example in examples]
    size = writers[0].vocabulary.size
    torch.manual_seed(0)
    quick = 0
    for number, (example, writer) in enumerate(zip(examples, writers, strict=True)):
        for length in range(len(example.target)):
            for budget in (length + 2, length + 14, length + 200):
                ids = torch.tensor([example.target[:length]], dtype=torch.int64)
                scores = torch.randn(1, size + 3)
                # A trained model's best token is the right one; equal scores are not rare in bf16.
                scores[0, example.target[length]] += 4 * (length % 3)
                scores = scores.bfloat16().float()
                whole = OnlyGrammatical([writer], 1, 0, budget)(ids, scores)
                best = OnlyGrammatical([writer], 1, 0, budget, needed)(ids, scores)
                wanted = whole[0].topk(needed).values
                assert best[0].topk(needed).values.equal(wanted) and int(best.argmax()) == int(whole.argmax())
                assert bool(((best == whole) | best.isinf()).all()), number
                quick += int((~best.isinf()).sum()) < int((~whole.isinf()).sum())
    assert quick > (40 if needed == 1 else 3)
    # After the end, anything may come.
    ended = torch.tensor([[*examples[0].target, 5]])
    scores = torch.randn(1, size)
    assert OnlyGrammatical(writers[:1], 1, 0, 300, needed)(ended, scores).equal(scores)


def test_a_budget_that_is_nearly_used_up_ends_the_query(recipe: Recipe) -> None:
    rng = random.Random(1)
    for question in recipe.data("validation").questions[::5]:
        writer = writer_of(recipe.encoder, recipe.encoder.example(question))
        tokens: tuple[int, ...] = ()
        while writer.vocabulary.end not in tokens:
            ordered = [
                (token, -float(place)) for place, token in enumerate(rng.sample(range(writer.vocabulary.size), 64))
            ]
            few = writer.best_allowed(tokens, ordered, 1, 90 - len(tokens))
            allowed = writer.mask(tokens, 90 - len(tokens))
            first = next((token for token, _ in ordered if allowed[token]), None)
            assert few is None or few == [first]
            tokens += (few[0] if few else rng.choice(allowed.nonzero().flatten().tolist()),)
        assert len(tokens) <= 90


def test_a_name_that_sqlite_takes_for_a_keyword_is_quoted(recipe: Recipe, tmp_path: Path) -> None:
    database = tmp_path / "odd.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute('CREATE TABLE "order" (id, "group" TEXT, "no. of seats" INT, "TRUE", "a""b", date, "left")')
    schema = Schema.from_database(database)
    names = {'"order"', '"no. of seats"', '"a""b"', " date"}
    for tokens in (False, True):
        rng, unseen = random.Random(1), set(names)
        settings = dataclasses.replace(recipe.data_settings, schema_tokens=tokens)
        asked = dataclasses.replace(recipe, data_settings=settings)
        writer = writer_of(asked.encoder, asked.encoder.example(Question("what ?", "SELECT 1", schema, None)))
        for number in itertools.count():
            # What is drawn depends on the vocabulary, so on sqlite's and the tokenizer's versions.
            if number >= 15 and not unseen:
                break
            assert number < 300, f"never written: {unseen}"
            drawn = drawn_at_random(writer, 80, rng)
            query = as_sql(asked.encoder, asked.tokenizer.decode(drawn[:-1]), Example(
                Question("", "", schema, None), [], [], []))  # fmt: skip
            assert prepares(schema, query), query
            unseen -= {name for name in unseen if name in query}


# Asking --------------------------------------------------------------------------------------------------


class Scripted(Recipe):
    """Generates the query that stands in its question after a colon."""

    def write(self, model: Any, examples: list[Example]) -> list[str]:
        return [example.question.text.partition(": ")[2] for example in examples]


@pytest.fixture(scope="module")
def scripted(recipe: Recipe) -> Recipe:
    return Scripted(assets=recipe.assets)


@pytest.fixture
def databases(bookshop: tuple[Schema, str], tmp_path: Path) -> Path:
    """A folder of two, in the two layouts."""
    folder = tmp_path / "databases"
    (folder / "shop").mkdir(parents=True)
    shutil.copy(bookshop[1], folder / "shop" / "shop.sqlite")
    with sqlite3.connect(folder / "club.db") as connection:
        connection.executescript("CREATE TABLE member (name TEXT); INSERT INTO member VALUES ('Ada'), ('Zoë')")
    return folder


def test_a_file_of_questions_about_a_folder_of_databases(scripted: Recipe, databases: Path, tmp_path: Path) -> None:
    asked = [
        ("all: SELECT name FROM member", "club"),
        ("few: SELECT COUNT(*) FROM book", "shop"),
        ("no: SELEC", "club"),
    ]
    lines, spider = tmp_path / "asked.txt", tmp_path / "dev.json"
    lines.write_text("".join(f"{text}\t{db_id}\n\n" for text, db_id in asked), encoding="utf-8")
    spider.write_text(json.dumps([{"question": text, "db_id": db_id} for text, db_id in asked]), encoding="utf-8")
    found = []
    for file in (lines, spider):
        output = tmp_path / "answers.jsonl"
        request = Recipe.Request(db=str(databases), questions=str(file), output=str(output), batch_size=2)
        assert scripted.answer(None, request).endswith("the SQL of 2 runs")
        found.append([json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()])
    assert found[0] == found[1]
    assert [(row["db_id"], row["sql"], row["row_count"]) for row in found[0]] == [
        ("club", "SELECT name FROM member", 2),
        ("shop", "SELECT COUNT(*) FROM book", 1),
        ("club", "SELEC", 0),
    ]
    assert found[0][0]["rows"] == [["Ada"], ["Zoë"]] and "syntax error" in found[0][2]["error"]
    table = tmp_path / "answers.csv"
    scripted.answer(None, Recipe.Request(db=str(databases), questions=str(lines), output=str(table)))
    assert (
        table.read_text(encoding="utf-8").splitlines()[1]
        == "all: SELECT name FROM member,club,SELECT name FROM member,,2"
    )
    printed = scripted.answer(None, Recipe.Request(db=str(databases / "club.db"), questions=str(lines)))
    assert printed.count("question: ") == 3 and "Zoë" in printed


@pytest.mark.parametrize(
    ("db", "content", "words"),
    [
        ("nowhere", b"which ?\tclub", ("nowhere", "give the path")),
        (".", b"which ?", ("asked.txt, line 1", "QUESTION<TAB>NAME")),
        (".", b"which ?\tpub", ("'pub'", "club, shop")),
        ("club.db", b"", ("holds no question", "one on each line")),
        ("club.db", b"\tclub", ("line 1: the question is empty",)),
        ("club.db", "welche Bücher ?".encode("latin-1"), ("not UTF-8", "Save it as UTF-8")),
        ("shop", b"which ?\tclub", ("'club'", "holds shop")),
        ("demo:bookshp", b"which ?", ("demo:bookshp", "bookshop")),
    ],
)
def test_mistakes_in_asking(scripted: Recipe, databases: Path, db: str, content: bytes, words: Sequence[str]) -> None:
    file = databases.parent / "asked.txt"
    file.write_bytes(content)
    place = db if db.startswith("demo:") else str(databases / db)
    with pytest.raises(DataError) as caught:
        scripted.answer(None, Recipe.Request(db=place, questions=str(file)))
    assert all(word in str(caught.value) for word in words) and str(caught.value).count("\n") < 3, caught.value


def test_more_mistakes_in_asking(scripted: Recipe, databases: Path, tmp_path: Path) -> None:
    for content in ("[1]", "{}", "[]", "nonsense", '[{"question": 3}]'):
        file = tmp_path / "asked.json"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match="asked.json"):
            scripted.answer(None, Recipe.Request(db=str(databases), questions=str(file)))
    with pytest.raises(DataError, match="cannot be read"):
        scripted.answer(None, Recipe.Request(questions=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match="holds no database"):
        (tmp_path / "bare").mkdir()
        scripted.answer(None, Recipe.Request(db=str(tmp_path / "bare"), question="which ?"))
    with pytest.raises(ConfigError, match="--questions"):
        Recipe.Request(output="answers.jsonl")
    with pytest.raises(ConfigError, match="One candidate cannot vote"):
        scripted.answer(None, Recipe.Request(voting=True))


def test_a_conversation(
    scripted: Recipe, databases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["all: SELECT name FROM member", "", "/num_beams 4", "/voting true", "/num_beams many", "/beams 2",
             f"/db {databases / 'none.sqlite'}", f"/db {databases / 'shop' / 'shop.sqlite'}",
             "few: SELECT COUNT(*) FROM book", "/quit", "never"]  # fmt: skip
    typed = iter(lines)
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert scripted.answer(None, Recipe.Request(db=str(databases / "club.db"), interactive=True)) == ""
    printed = capsys.readouterr().out
    for words in ("Zoë", "num_beams = 4", "voting = True", "There is no database file", "COUNT(*)"):
        assert words in printed
    assert printed.count("Wanted: /db FILE") == 2 and next(typed) == "never"
