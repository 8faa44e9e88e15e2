"""Databases that people have: what SQLite cannot read is left out and named, and nothing is written beside the file."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.text2sql.sql import schema as schemas
from recipes.text2sql.sql.execution import execute
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError

GOOD = "CREATE TABLE city (name TEXT); INSERT INTO city VALUES ('Porto'), ('Cork');"


def made(path: Path, script: str = "") -> sqlite3.Connection:
    """A database with a table that can be read, and more; its connection knows a collation and a function."""
    connection = sqlite3.connect(path)
    connection.create_collation("german", lambda a, b: (a > b) - (a < b))
    connection.create_function("own", 1, lambda value: value, deterministic=True)
    connection.executescript(GOOD + script)
    return connection


def listed(path: Path, kind: str, name: str, sql: str) -> None:
    """Write an entry into the schema that SQLite would not create."""
    connection = made(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, 0, ?)", (kind, name, name, sql))
    connection.commit()
    connection.close()


def script(text: str) -> Callable[[Path], None]:
    return lambda path: made(path, text).close()


READABLE: dict[str, tuple[Callable[[Path], None], set[str], str]] = {
    # How it is made; its tables beside city; a part of the line about it.
    "collation": (script("CREATE TABLE t (a TEXT COLLATE german, b TEXT); CREATE INDEX i ON t (a)"), {"t"}, ""),
    "primary key": (script("CREATE TABLE t (a TEXT COLLATE german PRIMARY KEY, b) WITHOUT ROWID"), {"t"}, ""),
    "generated": (script("CREATE TABLE t (a TEXT, b TEXT AS (own(a)))"), {"t"}, ""),
    "index": (script("CREATE TABLE t (a); CREATE INDEX i ON t (own(a))"), {"t"}, ""),
    "partial index": (script("CREATE TABLE t (a); CREATE INDEX i ON t (a) WHERE own(a)"), {"t"}, ""),
    "check": (script("CREATE TABLE t (a CHECK (own(a)))"), {"t"}, ""),
    "trigger": (script("CREATE TABLE t (a); CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT own(1); END"), {"t"}, ""),
    "view": (script("CREATE VIEW v AS SELECT own(name) AS a FROM city"), set(), "v (no such function: own)"),
    "dropped": (script("CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t; DROP TABLE t"), set(), "v (no such"),
    "circle": (lambda path: listed(path, "view", "v", "CREATE VIEW v AS SELECT * FROM v"), set(), "v (view v is circ"),
    "spatial": (lambda path: listed(path, "table", "idx", "CREATE VIRTUAL TABLE idx USING VirtualSpatialIndex()"),
                set(), "idx (no such module: VirtualSpatialIndex)"),
    "endless": (script("CREATE VIEW v AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                       "SELECT i FROM n WHERE i < 0"), {"v"}, ""),
    "name": (lambda path: with_bytes_in_a_name(path), set(), "not UTF-8"),
    "blob": (script("CREATE TABLE t (a BLOB); INSERT INTO t VALUES (zeroblob(3000000))"), {"t"}, ""),
}  # fmt: skip


def with_bytes_in_a_name(path: Path) -> None:
    made(path, "CREATE TABLE cafe9 (a)").close()
    path.write_bytes(path.read_bytes().replace(b"cafe9", b"caf\xe9x"))


@pytest.mark.parametrize("name", READABLE)
def test_what_sqlite_cannot_read_is_left_out_and_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, others, line = READABLE[name]
    path = tmp_path / "x.sqlite"
    write(path)
    before = path.read_bytes()
    schemas.note.cache_clear()
    for _ in range(2):
        found = Schema.from_database(path)
        assert set(found.tables) - {"city"} == others and found.tables["city"] == {"name": "text"}
    for table, columns in found.tables.items():
        for column in columns:  # Whatever is wrong is in the error, within the deadline.
            execute(path, f'SELECT "{column}" FROM "{table}"', timeout_seconds=0.5)
    assert execute(path, "SELECT count(*) FROM city").rows == ((2,),)
    assert os.listdir(tmp_path) == ["x.sqlite"] and path.read_bytes() == before
    told = capsys.readouterr().err
    assert told.count("\n") == bool(line) and line in told and (str(path) in told) == bool(line)


def test_generated_columns_are_columns(tmp_path: Path) -> None:
    made(tmp_path / "x.sqlite", "CREATE TABLE t (a INT, b INT AS (a + 1), c INT AS (a + 2) STORED)").close()
    assert list(Schema.from_database(tmp_path / "x.sqlite").tables["t"]) == ["a", "b", "c"]


def truncated(path: Path) -> None:
    made(path, "CREATE TABLE t (a)").close()
    path.write_bytes(path.read_bytes()[:2000])


def with_other_bytes(start: int, length: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made(path).close()
        content = bytearray(path.read_bytes())
        content[start : start + length] = b"\xa5" * length
        path.write_bytes(content)

    return write


def with_a_change_to_undo(path: Path) -> None:
    """What a program leaves that was killed while it wrote."""
    connection = made(path, "CREATE TABLE t (a); PRAGMA cache_size = 1; PRAGMA synchronous = FULL;")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 200)
    for ending in ("", "-journal"):
        shutil.copy(f"{path}{ending}", f"{path}{ending}.copy")
    connection.close()
    for ending in ("", "-journal"):
        os.replace(f"{path}{ending}.copy", f"{path}{ending}")


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("name,city"), "is not a database"),
    "encrypted": (lambda path: path.write_bytes(bytes(range(256)) * 32), "or it is encrypted"),
    "head alone": (lambda path: path.write_bytes(b"SQLite format 3\x00"), "Give the path of a sound SQLite file"),
    "truncated": (truncated, "Give the path of a sound SQLite file"),
    "damaged head": (with_other_bytes(16, 84), "Give the path of a sound SQLite file"),
    "damaged schema": (with_other_bytes(100, 3900), "Give the path of a sound SQLite file"),
    "no table": (lambda path: sqlite3.connect(path).executescript("CREATE TABLE t (a); DROP TABLE t").close(),
                 "holds no table"),
    "only a view": (lambda path: sqlite3.connect(path).executescript(
        "CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t; DROP TABLE t").close(), "v (no such table"),
    "a change to undo": (with_a_change_to_undo, "open it once with that program"),
    "a folder": (lambda path: path.mkdir(), "There is no database file"),
    "nothing": (lambda path: None, "There is no database file"),
    "a pipe": (lambda path: os.mkfifo(path), "There is no database file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "There is no database file"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    write, words = UNREADABLE[name]
    path = tmp_path / "x.sqlite"
    write(path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError) as caught:
        Schema.from_database(path)
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert execute(path, "SELECT 1 FROM city").error
    assert sorted(os.listdir(tmp_path)) == before


def test_a_locked_database_says_who_has_to_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.text2sql.sql.execution._BUSY_SECONDS", 0.1)
    writer = made(tmp_path / "x.sqlite")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match="locked. Another program is writing to it: close that program"):
        Schema.from_database(tmp_path / "x.sqlite")
    writer.close()


WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE t (a)")
connection.execute("INSERT INTO t VALUES ('in the log')")
connection.commit()
print(flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("left", ["log", "log and index", "log and a writer"])
def test_a_log_is_read_and_nothing_is_written_beside_the_file(left: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        if left != "log and a writer":
            writer.kill()
            writer.wait()
        if left == "log":
            Path(f"{path}-shm").unlink()
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert set(Schema.from_database(path).tables) == {"t"}
        assert execute(path, "SELECT a FROM t").rows == (("in the log",),)
        after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert after.keys() == before.keys()
        # A reader beside a writer notes in the writer's index how far it has read.
        assert {name for name in after if after[name] != before[name]} <= (
            {"x.sqlite-shm"} if "writer" in left else set()
        )
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_a_database_in_wal_mode_is_read_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    made(folder / "x.sqlite", "PRAGMA journal_mode = WAL;").close()
    folder.chmod(0o555)
    try:
        assert set(Schema.from_database(folder / "x.sqlite").tables) == {"city"}
        assert os.listdir(folder) == ["x.sqlite"]
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    "query",
    ["ATTACH '{0}' AS other", "ATTACH ':memory:' AS other", "DETACH main", "VACUUM INTO '{0}'",
     "PRAGMA journal_mode = WAL", "SELECT 1; ATTACH '{0}' AS other", "CREATE TEMP TABLE t (a)",
     "SELECT writefile('{0}', 'x')", "EXPLAIN ATTACH '{0}' AS other",
     "WITH a AS (SELECT 1) INSERT INTO city SELECT * FROM a"],
)  # fmt: skip
def test_no_query_opens_or_writes_another_file(query: str, tmp_path: Path) -> None:
    made(tmp_path / "x.sqlite").close()
    before = (tmp_path / "x.sqlite").read_bytes()
    assert execute(tmp_path / "x.sqlite", query.format(tmp_path / "y.sqlite")).error
    assert os.listdir(tmp_path) == ["x.sqlite"] and (tmp_path / "x.sqlite").read_bytes() == before
