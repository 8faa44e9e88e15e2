"""Every name that SQLite allows, from the schema through prompt, target and constrained decoding to execution."""

import dataclasses
import os
import random
import sqlite3
from pathlib import Path

import pytest

from recipes.text2sql.data.questions import Question
from recipes.text2sql.decoding.candidates import as_sql
from recipes.text2sql.decoding.masks import Writer, writer_of
from recipes.text2sql.prompts.encoding import Encoder, Example, train_tokenizer
from recipes.text2sql.settings import DataSettings
from recipes.text2sql.sql.canonical import canonical, normalise, plain
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.names import is_bare, keywords, quoted, spelled
from recipes.text2sql.sql.results import is_valid
from recipes.text2sql.sql.schema import Schema

# All words with all queries take five minutes: type RELAY_TEST_ALL=1.
EVERY = 1 if os.environ.get("RELAY_TEST_ALL") else 6
WORDS = ("count", "max", "date", "datetime", "length", "replace", "values", "rowid", "oid", "t1", "t2", "select from")
ODD = (
    "date of birth", "Straße", "GRÖSSE", "größe", "Ünïcode", "a b", " a", "a ", " ", "", "\t", "a\nb", "\r\n", "it's",
    "'", "''", '"', '""', 'a"b', "a`b", "[a]", "a]b", "a.b", ".", "1st", "2020", "3.5", "-", "--", "/*", "*/", ";", "%",
    "%s", "?", "?1", ":a", "@a", "$a", "a$b", "#", "*", "a,b", "(", ")", "\\", "a\\nb", "\u00a0", "a\u00a0b", "\u2003",
    "\ufeff", "\u200b", "\u0301", "e\u0301", "😀", "a😀", "日本", "١", "²", "<v0>", "<t0>", "<c1>", "<sql>", "<eos>",
    "CamelCase", "UPPER", "x'00'", "null ", "NULL", "True", "t1.a", "x" * 200,
)  # fmt: skip


def random_names(count: int) -> list[str]:
    """Names of up to eight characters, most of them odd."""
    chance = random.Random(0)
    alphabet = [*"abzAZ09_ '\"`[].,;:%$-+*/()<>=!?#@&|~^\\\t\n", "ä", "Ä", "ß", "é", "日", "😀", "\u00a0"]
    return ["".join(chance.choices(alphabet, k=chance.randint(1, 8))) for _ in range(count)]


def known_words() -> list[str]:
    """What SQLite or sqlglot may read as something else than a name."""
    words = (word.lower() for word in sorted(keywords()) if word.isidentifier())
    return [word for word in words if not word.startswith("sqlite_")]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    """Without and with tokens for the names of a schema."""
    found = []
    for tokens in (False, True):
        settings = DataSettings(schema_tokens=tokens)
        schema = Schema("x", {"singer": {"name": "text", "age": "number"}})
        questions = [Question("how old is ada ?", "SELECT age FROM singer WHERE name = 'ada'", schema, None)]
        folder = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer(questions, settings, 500).save_pretrained(folder)
        found.append(Encoder(settings, 128, folder))
    return found


@dataclasses.dataclass(frozen=True)
class Named:
    """A database with a name at a table and at two columns."""

    name: str
    schema: Schema
    path: Path


def named(name: str, path: Path) -> Named:
    connection = sqlite3.connect(path)
    place = quoted(name)
    connection.execute(f"CREATE TABLE {place} ({place} TEXT, plain_id INTEGER)")
    connection.execute(f"CREATE TABLE other_table (other_id INTEGER, {place} TEXT)")
    connection.execute(f"INSERT INTO {place} VALUES ('here', 1), ('there', 2)")
    connection.execute("INSERT INTO other_table VALUES (1, 'here')")
    connection.commit()
    connection.close()
    schema = Schema.from_database(path)
    assert set(schema.tables) == {name, "other_table"} and name in schema.tables[name]
    return Named(name, schema, path)


def queries(name: str) -> dict[str, list[tuple[object, ...]]]:
    """Queries with the name in many places, and their rows."""
    q = quoted(name)
    found: dict[str, list[tuple[object, ...]]] = {
        f"SELECT {q} FROM {q} WHERE {q} = 'here'": [("here",)],
        f"SELECT plain_id, MAX({q}) FROM {q} GROUP BY {q}, plain_id ORDER BY {q} DESC LIMIT 1": [(2, "there")],
        f"SELECT a.{q} FROM {q} AS a JOIN other_table AS b ON a.{q} = b.{q} WHERE b.other_id = 1": [("here",)],
        f"SELECT other_id FROM other_table WHERE {q} IN (SELECT {q} FROM {q})": [(1,)],
        f"SELECT {q} FROM {q} UNION SELECT {q} FROM other_table ORDER BY {q}": [("here",), ("there",)],
        f"SELECT COUNT(DISTINCT {q}) FROM {q} WHERE NOT {q} IS NULL AND {q} LIKE 'th%'": [(1,)],
    }
    if name:  # sqlglot reads "". as no prefix.
        found[f"SELECT {q}.{q} FROM {q} ORDER BY plain_id"] = [("here",), ("there",)]
    return found


@pytest.mark.parametrize("part", range(4))
def test_every_name_comes_back_from_the_model_as_sql_that_runs(
    part: int, encoders: list[Encoder], tmp_path: Path
) -> None:
    # The tokenizer reads its own special tokens in any text.
    odd = [name for name in (*WORDS, *ODD, *random_names(80)) if "<" not in name]
    tried = [*odd, *known_words()[::EVERY]][part::4]
    for number, name in enumerate(tried):
        base = named(name, tmp_path / f"{number}.sqlite")
        asked = list(queries(name).items())
        for query, rows in asked if name in ODD or EVERY == 1 else asked[number % len(asked) :][:1]:
            short = canonical(query, base.schema)
            assert canonical(short, base.schema) == short, (name, short)
            for spelling in (short, normalise(query, base.schema), plain(short)):
                assert list(execute(base.path, spelling).rows) == rows, (name, query, spelling)
            for encoder in encoders:
                example = encoder.example(Question("which one is here ?", query, base.schema, str(base.path)))
                writer = writer_of(encoder, example)
                state = writer.state(tuple(example.target[:-1]))
                assert state is not None and writer.spelling.can_end(state), (name, query, short)
                written = as_sql(encoder, str(encoder.tokenizer.decode(example.target[:-1])), example)
                assert list(execute(base.path, written).rows) == rows, (name, query, written)


def drawn(writer: Writer, room: int, chance: random.Random) -> tuple[int, ...]:
    """Tokens, each chosen at random from the allowed ones."""
    tokens: tuple[int, ...] = ()
    while len(tokens) < room and writer.vocabulary.end not in tokens:
        allowed = writer.mask(tokens, room - len(tokens)).nonzero().flatten().tolist()
        assert allowed, "a dead end"
        tokens += (chance.choice(allowed),)
    return tokens


def test_whatever_is_decoded_under_the_grammar_runs_with_any_name(encoders: list[Encoder], tmp_path: Path) -> None:
    chance = random.Random(1)
    finished = 0
    tried = [*WORDS, *ODD[::2], *known_words()[::20], *random_names(10)]
    for number, name in enumerate(tried):
        base = named(name, tmp_path / f"{number}.sqlite")
        encoder = encoders[number % 2]
        example = Example(Question("", "", base.schema, None), [], [], [])
        tokens = drawn(writer_of(encoder, example), 100, chance)
        if tokens[-1] == encoder.tokenizer.eos_token_id:
            finished += 1
            query = as_sql(encoder, str(encoder.tokenizer.decode(list(tokens[:-1]))), example)
            assert is_valid(base.path, query), (name, query)
    assert finished > 0.9 * len(tried)


def sqlite_takes(name: str) -> bool:
    """Whether SQLite reads the name without quotes as a table and as a column."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE TABLE {quoted(name)} ({quoted(name)})")
        connection.execute(f"INSERT INTO {quoted(name)} VALUES ('row')")
        found = connection.execute(
            f"SELECT {name} FROM {name} WHERE {name} = 'row' AND {name} IN ('row') GROUP BY {name} "
            f"HAVING MAX({name}) LIKE {name} ORDER BY {name} DESC LIMIT 1"
        ).fetchall()
        connection.execute(f"SELECT {name} FROM {name}")
        connection.execute(f"SELECT t1.{name} FROM {name} AS t1 JOIN {name} AS t2 ON t1.{name} = t2.{name}")
        return found == [("row",)]
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def test_only_names_that_need_quotes_have_them() -> None:
    tried = [*WORDS, *ODD, *known_words()[:: EVERY // 2 or 1], *random_names(80)]
    differing = [name for name in tried if is_bare(name) != sqlite_takes(name)]
    assert [name for name in differing if is_bare(name)] == []
    # SQLite reads these as names without quotes, but sqlglot, with which queries are compared, does not.
    assert len(differing) < 45, differing
    assert all(name.upper() in keywords() or not name.isascii() for name in differing), differing
    for name in ("name", "author_id", "date", "key", "year", "count", "straße", "😀", "_x", "a1"):
        assert spelled(name) == name
    for name in ("order", "group", "ORDER", "Table", "date of birth", "1st", "", 'a"b', "a-b", "null", "true"):
        assert spelled(name) == quoted(name)


@pytest.mark.parametrize(
    ("written", "runs"),
    [
        ("SELECT date of birth FROM order", 'SELECT "date of birth" FROM "order"'),
        ("SELECT t1.group FROM order AS t1 ORDER BY t1.date of birth", None),
        ("SELECT 1st, a-b FROM order WHERE group = 'group'", None),
        ("SELECT COUNT(*) FROM order GROUP BY group ORDER BY group", None),
        ("SELECT it's FROM order", None),
        ('SELECT "group" FROM order', None),
        ("SELECT name FROM plain", "SELECT name FROM plain"),
        ("SELECT name FROM plain WHERE name = 'order'", "SELECT name FROM plain WHERE name = 'order'"),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_names_that_a_model_writes_without_quotes_get_them(
    written: str, runs: str | None, with_file: bool, encoders: list[Encoder], tmp_path: Path
) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE "order" ("group", "date of birth", "1st", "a-b", "it\'s")')
        connection.execute("CREATE TABLE plain (name)")
    question = Question("", "", Schema.from_database(path), str(path) if with_file else None)
    query = as_sql(encoders[0], written, Example(question, [], [], []))
    assert execute(path, query).error is None, query
    assert runs in (None, query)
    # What no quotes can repair stays as it was written.
    for wrong in ("SELECT group FROM nowhere", "SELECT", "SELECT shelf FROM plain"):
        assert as_sql(encoders[0], wrong, Example(question, [], [], [])) == wrong
