"""Reading values from the databases that people have: what cannot be read has no values, and nothing waits or fails."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.text2sql.prompts import prompt, schema_text, values
from recipes.text2sql.prompts.schema_text import Style
from recipes.text2sql.sql.schema import Schema

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'x' || i AS name FROM n WHERE i < 0"


def made(path: Path, script: str = "") -> sqlite3.Connection:
    """A database with one table that can be read, and more."""
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE city (name TEXT); INSERT INTO city VALUES ('Porto'), ('Cork');" + script)
    return connection


def with_collation(path: Path) -> None:
    connection = made(path)
    connection.create_collation("umlauts", lambda a, b: (a > b) - (a < b))
    connection.executescript("CREATE TABLE t (a TEXT COLLATE umlauts); INSERT INTO t VALUES ('Graz'), ('Ulm')")
    connection.close()


def with_function(path: Path) -> None:
    connection = made(path)
    connection.create_function("own", 1, lambda a: a, deterministic=True)
    connection.executescript(
        "CREATE TABLE t (a TEXT, b TEXT AS (own(a))); CREATE VIEW v AS SELECT own(name) a FROM city"
    )
    connection.close()


def with_endless_view(path: Path) -> None:
    made(path, f"CREATE VIEW v AS {ENDLESS}").close()


def with_broken_view(path: Path) -> None:
    made(path, "CREATE TABLE t (a TEXT); CREATE VIEW v AS SELECT a FROM t; DROP TABLE t").close()


def with_damaged_pages(path: Path) -> None:
    made(path, "CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('Ulm')").close()
    content = bytearray(path.read_bytes())
    content[-4096:] = b"\xff" * 4096
    path.write_bytes(content)


def with_bytes_that_are_no_text(path: Path) -> None:
    made(path, "CREATE TABLE t (a TEXT); INSERT INTO t VALUES (CAST(x'ff414200' AS TEXT)), ('Ulm')").close()


def with_odd_names(path: Path) -> None:
    names = ("group", 'date of ""birth', "a]b", "größe", "", "'")
    columns = ", ".join(f'"{name}" TEXT' for name in names)
    places = "('Ulm', 'Graz', 'Linz', 'Bonn', 'Kiel', 'Trier')"
    made(path, f'CREATE TABLE "order" ({columns}); INSERT INTO "order" VALUES {places}').close()


def with_a_table_of_documents(path: Path) -> None:
    made(path, "CREATE TABLE t (a TEXT)").close()
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO t VALUES (?)", [(f"{number} " * 100_000,) for number in range(20)])
    connection.commit()
    connection.close()


DATABASES: list[Callable[[Path], None]] = [
    with_collation,
    with_function,
    with_endless_view,
    with_broken_view,
    with_damaged_pages,
    with_bytes_that_are_no_text,
    with_odd_names,
    with_a_table_of_documents,
]


@pytest.mark.parametrize("write", DATABASES, ids=lambda write: write.__name__)
def test_what_can_be_read_is_linked_and_nothing_fails(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "STEPS_PER_COLUMN", 2_000_000)
    path = tmp_path / "x.sqlite"
    write(path)
    before = path.read_bytes()
    text, links = prompt.link("who lives in porto ?", str(path))
    assert text == "who lives in <v0> ?" and [link.value for link in links] == ["Porto"]
    described = schema_text.describe(Schema.from_database(path), Style(samples=2), str(path))
    assert "( Porto ; Cork )" in described
    assert os.listdir(tmp_path) == ["x.sqlite"] and path.read_bytes() == before


@pytest.mark.parametrize("name", ["Ulm", "Graz", "Linz", "Bonn", "Kiel", "Trier"])
def test_columns_with_odd_names_are_read(name: str, tmp_path: Path) -> None:
    with_odd_names(tmp_path / "x.sqlite")
    assert [link.value for link in prompt.link(f"in {name.lower()} ?", str(tmp_path / "x.sqlite"))[1]] == [name]


def test_nothing_is_written_beside_a_database_with_a_log(tmp_path: Path) -> None:
    made(tmp_path / "x.sqlite", "").execute("PRAGMA journal_mode = WAL").close()
    for path in tmp_path.glob("x.sqlite-*"):
        path.unlink()
    assert prompt.link("in cork ?", str(tmp_path / "x.sqlite"))[0] == "in <v0> ?"
    assert os.listdir(tmp_path) == ["x.sqlite"]


def test_a_column_that_takes_too_long_has_no_values_and_the_others_have_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "x.sqlite", "CREATE TABLE big (a TEXT)").close()
    connection = sqlite3.connect(tmp_path / "x.sqlite")
    connection.executemany("INSERT INTO big VALUES (?)", [("Ulm",), ("Graz",)] * 50_000)
    connection.commit()
    connection.close()
    monkeypatch.setattr(values, "STEPS_PER_COLUMN", 100_000)
    found = values.texts_of(str(tmp_path / "x.sqlite"))
    assert found == {("city", "name"): ["Porto", "Cork"], ("big", "a"): []}
    monkeypatch.setattr(values, "STEPS_PER_COLUMN", 100_000_000)
    assert values.texts_of(str(tmp_path / "x.sqlite"))["big", "a"] == ["Ulm", "Graz"]
    monkeypatch.setattr(values, "SECONDS_PER_DATABASE", -1.0)
    assert values.texts_of(str(tmp_path / "x.sqlite"))["big", "a"] == []


def test_a_locked_database_is_not_waited_for(tmp_path: Path) -> None:
    writer = made(tmp_path / "x.sqlite")
    with values.reading(str(tmp_path / "x.sqlite")) as reader:
        writer.execute("BEGIN EXCLUSIVE")
        assert reader.connection.execute("PRAGMA busy_timeout").fetchone() == (0,)
        assert reader.values("SELECT name FROM city") == []
        writer.rollback()
        assert reader.values("SELECT name FROM city") == ["Porto", "Cork"]
    writer.close()


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    connection = made(tmp_path / "x.sqlite")
    assert prompt.link("in ulm ?", str(tmp_path / "x.sqlite"))[1] == []
    connection.execute("INSERT INTO city VALUES ('Ulm')")
    connection.commit()
    connection.close()
    os.utime(tmp_path / "x.sqlite", (1, 1))
    assert [link.value for link in prompt.link("in ulm ?", str(tmp_path / "x.sqlite"))[1]] == ["Ulm"]
    assert values.samples_of(str(tmp_path / "x.sqlite"), 3) == {("city", "name"): ["Porto", "Cork", "Ulm"]}


@pytest.mark.parametrize(
    "content", [b"\x00" * 50, b"\xff\xfe\x00", b'original_column_name,column_description\n"', b"x" * 200_000]
)
def test_a_file_of_descriptions_that_is_none_describes_nothing(content: bytes, tmp_path: Path) -> None:
    made(tmp_path / "x.sqlite").close()
    (tmp_path / "database_description").mkdir()
    (tmp_path / "database_description/city.csv").write_bytes(content)
    assert schema_text.descriptions_of(str(tmp_path / "x.sqlite")) == {}


@pytest.mark.parametrize("details", [False, True])
def test_the_schema_text_quotes_what_sqlite_needs_in_quotes(details: bool, tmp_path: Path) -> None:
    with_odd_names(tmp_path / "x.sqlite")
    connection = sqlite3.connect(tmp_path / "x.sqlite")
    connection.execute("CREATE TABLE Fluss (Name TEXT, länge INTEGER, [2nd] TEXT, year TEXT, a$b TEXT)")
    connection.close()
    schema, style = Schema.from_database(tmp_path / "x.sqlite"), Style(details=details)
    text = schema_text.describe(schema, style, str(tmp_path / "x.sqlite"))
    for name in ('"order"', '"group"', '"date of ""birth"', '"a]b"', '""', '"\'"', '"2nd"'):
        assert f" {name} " in f" {text} ", name
    for name in ("city", "fluss", "name", "größe", "länge", "year"):
        assert f" {name} " in f" {text} ", name
    # Every name of the text is one that SQLite reads back.
    with sqlite3.connect(tmp_path / "x.sqlite") as connection:
        for part in schema_text.describe(schema, Style(), None).split(" | "):
            table, _, columns = part.partition(" : ")
            connection.execute(f"SELECT {columns} FROM {table}").fetchall()
    # What the question mentions is spelled in the same way.
    assert '<v0> "date of ""birth"' in prompt.mentioned(prompt.link("in graz ?", str(tmp_path / "x.sqlite"))[1])


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (with_collation, "t.a (no such collation sequence: umlauts)"),
        (with_function, "t.b (unknown function: own())"),
        (with_endless_view, "v.name (it takes too long)"),
        (with_damaged_pages, "t.a (database disk image is malformed)"),
        (with_odd_names, ""),
    ],
)
def test_columns_without_values_are_named_in_one_line(
    write: Callable[[Path], None],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(values, "STEPS_PER_COLUMN", 2_000_000)
    path = tmp_path / "x.sqlite"
    write(path)
    for question in ("who lives in porto ?", "who lives in cork ?"):
        assert len(prompt.link(question, str(path))[1]) == 1
    printed = [each for each in capsys.readouterr().err.splitlines() if "no values" in each]
    assert len(printed) == bool(line) and all(f"{path}: no values are read from {line}." == each for each in printed)
