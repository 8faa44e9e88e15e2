"""The SQL side of text2sql: schemas, the executor that only reads, spellings that keep results, and the score."""

import hashlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.text2sql.scoring.metrics import score
from recipes.text2sql.sql.canonical import canonical, normalise
from recipes.text2sql.sql.execution import Execution, execute
from recipes.text2sql.sql.results import is_ordered, is_valid, same_result
from recipes.text2sql.sql.schema import Schema
from runner.errors import DataError
from tests.launching import REPOSITORY, SHARED
from tests.recipes.text2sql.databases import create_empty_database

TEXT2SQL = SHARED / "text2sql"

GEOGRAPHY = Schema(
    "geography",
    {
        "CITY": {"CITY_NAME": "text", "POPULATION": "number", "STATE_NAME": "text"},
        "STATE": {"STATE_NAME": "text", "AREA": "number", "CAPITAL": "text"},
        "BORDER_INFO": {"STATE_NAME": "text", "BORDER": "text"},
    },
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A small geography, in a folder and under a name that URIs dislike."""
    path = tmp_path / "a folder?#" / "geo %20&mode=rwc.sqlite"
    path.parent.mkdir()
    create_empty_database(GEOGRAPHY, path)
    connection = sqlite3.connect(path)
    cities = [
        ("austin", 500, "texas"),
        ("dallas", 900, "texas"),
        ("omaha", 300, "nebraska"),
        ("reno", None, "nevada"),
    ]
    connection.executemany("INSERT INTO city VALUES (?, ?, ?)", cities)
    states = [("texas", 267.5, "austin"), ("nebraska", 77.25, "lincoln"), ("nevada", 110.0, "carson city")]
    connection.executemany("INSERT INTO state VALUES (?, ?, ?)", states)
    connection.executemany(
        "INSERT INTO border_info VALUES (?, ?)",
        [("texas", "new mexico"), ("nebraska", "iowa"), ("nevada", "utah")],
    )
    connection.commit()
    connection.close()
    return path


# Schemas -----------------------------------------------------------------------------------------------


def test_a_schema_survives_a_database_and_json(tmp_path: Path) -> None:
    schema = Schema(
        "shop",
        {
            "order": {"group": "number", 'a "b"': "text", "two words": "text"},
            "items 2": {"id": "number", "order": "number"},
        },
        (("order", "group"), ("items 2", "id"), ("items 2", "order")),
        (("items 2", "order", "order", "group"),),
    )
    create_empty_database(schema, tmp_path / "shop.sqlite")
    assert Schema.from_database(tmp_path / "shop.sqlite") == schema
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert hash(Schema.from_json(schema.to_json())) == hash(schema)
    assert list(schema.tables) == ["order", "items 2"]


def test_a_reference_without_a_column_means_the_primary_key(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.sqlite")
    connection.executescript(
        "CREATE TABLE Parent (Id INTEGER PRIMARY KEY AUTOINCREMENT, born DATE, ok BOOL, photo BLOB);"
        "CREATE TABLE child (p INT REFERENCES parent, q TEXT REFERENCES nowhere(x));"
        "CREATE VIEW born AS SELECT born FROM parent; CREATE VIEW broken AS SELECT * FROM gone;"
    )
    connection.close()
    schema = Schema.from_database(tmp_path / "x.sqlite")
    assert list(schema.tables) == ["Parent", "child", "born"]  # no sqlite_sequence, no broken view
    assert schema.tables["Parent"] == {"Id": "number", "born": "time", "ok": "boolean", "photo": "others"}
    assert schema.foreign_keys == (("child", "p", "Parent", "Id"),)


def test_spider_entries_with_nested_keys() -> None:
    entry = {
        "db_id": "d",
        "table_names_original": ["Singer", "sings", "sqlite_sequence"],
        "column_names_original": [[-1, "*"], [0, "Id"], [1, "singer"], [1, "song"], [2, "name"]],
        "column_types": ["text", "number", "number", "text", "text"],
        "primary_keys": [1, [2, 3]],
        "foreign_keys": [[2, 1]],
    }
    schema = Schema.from_spider(entry)
    assert schema.tables == {"Singer": {"Id": "number"}, "sings": {"singer": "number", "song": "text"}}
    assert schema.primary_keys == (("Singer", "Id"), ("sings", "singer"), ("sings", "song"))
    assert schema.foreign_keys == (("sings", "singer", "Singer", "Id"),)
    with pytest.raises(DataError, match="'d' is not in the format"):
        Schema.from_spider({**entry, "column_types": []})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no database file"), (b"", "is empty"), (b"id,name\n1,x\n", "is not a database"),
     (b"SQLite format 3\x00" + b"\xff" * 5000, "Cannot read the database")],
)  # fmt: skip
def test_a_file_that_is_no_database_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Schema.from_database(path)
    assert str(caught.value).count("\n") < 3 and str(path) in str(caught.value)
    assert execute(path, "SELECT 1 FROM sqlite_master").error
    assert not is_valid(path, "SELECT 1 FROM sqlite_master")
    assert path.exists() == (content is not None)


def test_a_database_without_tables_is_told(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.sqlite")
    connection.executescript("CREATE TABLE t (x); DROP TABLE t")
    connection.close()
    with pytest.raises(DataError, match="holds no table"):
        Schema.from_database(tmp_path / "x.sqlite")


# Execution ---------------------------------------------------------------------------------------------


def test_execute_gives_rows_and_names(database: Path) -> None:
    result = execute(database, "SELECT city_name AS n, population AS p FROM city WHERE state_name = 'nevada'")
    assert result == Execution((("reno", None),), ("n", "p"))
    assert execute(database, "SELECT city_name AS n FROM city WHERE 0") == Execution((), ("n",))
    assert execute(database, "VALUES (1), (2)").rows == ((1,), (2,))
    assert execute(database, "SELECT * FROM city", max_rows=4).error is None
    assert "more than 3 rows" in (execute(database, "SELECT * FROM city", max_rows=3).error or "")


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
HOSTILE = [
    "DROP TABLE city",
    "DELETE FROM city",
    "INSERT INTO city VALUES ('x', 1, 'y')",
    "REPLACE INTO city VALUES ('x', 1, 'y')",
    "UPDATE city SET population = 0",
    "WITH q AS (SELECT 1) DELETE FROM city",
    "WITH q AS (SELECT 'x') INSERT INTO city SELECT 'x', 1, 'y' FROM q",
    "INSERT INTO city VALUES ('x', 1, 'y') RETURNING *",
    "SELECT 1; DROP TABLE city",
    "CREATE TABLE x (y)",
    "CREATE TEMP TABLE x (y)",
    "CREATE VIRTUAL TABLE x USING fts5(y)",
    "ALTER TABLE city RENAME TO town",
    "ATTACH 'evil.sqlite' AS e",
    "ATTACH ':memory:' AS e",
    "DETACH main",
    "PRAGMA query_only = OFF",
    "PRAGMA journal_mode = WAL",
    "SELECT * FROM pragma_database_list",
    "SELECT load_extension('evil')",
    "VACUUM",
    "VACUUM INTO 'evil.sqlite'",
    "ANALYZE",
    "REINDEX",
    "BEGIN EXCLUSIVE",
    "SAVEPOINT s",
    "EXPLAIN DROP TABLE city",
    "",
    ";",
    "-- nothing",
    "SELECT",
    "SELECT \0",
    "SELECT '\udc80'",
    "SELECT ?",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    f"{ENDLESS} SELECT count(*) FROM c",
    f"{ENDLESS} SELECT x FROM c",
    f"{ENDLESS} SELECT x FROM c ORDER BY x",
    f"{ENDLESS} SELECT count(*) FROM c AS a, c AS b",
    "SELECT zeroblob(1000000000)",
    "SELECT count(*) FROM city a, city b, city c, city d, city e, city f, city g, city h, city i, city j, city k, "
    "city l, city m, city n, city o, city p, city q, city r",
    "SELECT printf('%.*c', 2000000000, 'x')",
    f"{ENDLESS} SELECT count(DISTINCT hex(randomblob(400000)) || x) FROM c",
    f"{ENDLESS} SELECT zeroblob(900000) FROM c",
    "SELECT trim(hex(zeroblob(490000)), hex(zeroblob(400000)) || 'x') = replace(hex(zeroblob(490000)), "
    "hex(zeroblob(240000)) || '1', '')",
]  # fmt: skip


@pytest.mark.parametrize("sql", HOSTILE, ids=lambda sql: sql[:40].replace("\0", "0").replace("\udc80", "?"))
def test_hostile_sql_neither_writes_nor_stays(
    database: Path, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, files = hashlib.sha256(database.read_bytes()).digest(), sorted(tmp_path.rglob("*"))
    start = time.monotonic()
    result = execute(database, sql, timeout_seconds=0.5)
    # The deadline, and much room for a busy machine: the queries have no end.
    assert time.monotonic() - start < 60
    assert result.error and result.rows == ()
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert sorted(tmp_path.rglob("*")) == files
    is_valid(database, sql)
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_an_endless_query_leaves_no_thread_behind(database: Path) -> None:
    before = threading.active_count()
    result = execute(database, f"{ENDLESS} SELECT count(*) FROM c", timeout_seconds=0.2)
    assert "not finished after 0.2 seconds" in (result.error or "")
    for _ in range(20):
        if threading.active_count() == before:
            return
        time.sleep(0.1)
    raise AssertionError("the query still runs two seconds after its deadline")


def test_few_rows_may_still_be_too_much(database: Path) -> None:
    # Each value is allowed, and so is their number; together they are 90 MB.
    sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100)"
    result = execute(database, f"{sql} SELECT printf('%900000d', x) FROM c", timeout_seconds=60)
    wanted = "more than 50000000 bytes" if sys.version_info >= (3, 11) else "not authorized"
    assert wanted in (result.error or "")


def test_the_guards_are_what_stops_a_write(database: Path) -> None:
    """The same query through a plain connection does its harm: so the test above can fail."""
    connection = sqlite3.connect(database)
    connection.execute("DELETE FROM city")
    connection.commit()
    connection.close()
    assert execute(database, "SELECT count(*) FROM city").rows == ((0,),)


def test_reading_a_database_in_wal_mode_leaves_no_files(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("INSERT INTO city VALUES ('waco', 100, 'texas')")
    connection.commit()
    # While somebody writes, the log beside the file is part of the database.
    assert execute(database, "SELECT count(*) FROM city").rows == ((5,),)
    connection.close()
    files = sorted(database.parent.iterdir())
    assert files == [database]
    assert execute(database, "SELECT count(*) FROM city").rows == ((5,),)
    assert Schema.from_database(database).tables.keys() == GEOGRAPHY.tables.keys()
    assert sorted(database.parent.iterdir()) == files


def test_bad_utf8_is_read_and_long_values_are_refused(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute("INSERT INTO city VALUES (CAST(x'ff41' AS TEXT), zeroblob(3000000), 'blob')")
    connection.commit()
    connection.close()
    assert execute(database, "SELECT city_name FROM city WHERE state_name = 'blob'").rows == (("\ufffdA",),)
    assert execute(database, "SELECT length(population) FROM city WHERE state_name = 'blob'").rows == ((3_000_000,),)
    if sys.version_info >= (3, 11):
        assert "too big" in (execute(database, "SELECT * FROM city").error or "")


def test_names_with_spaces_quotes_and_reserved_words(tmp_path: Path) -> None:
    schema = Schema("x", {"order": {"group": "number", 'a "b"': "text", "Two Words": "text", "straße": "text"}})
    path = tmp_path / "x.sqlite"
    create_empty_database(schema, path)
    connection = sqlite3.connect(path)
    connection.execute("""INSERT INTO "order" VALUES (1, 'it''s', 'Two Words', 'X')""")
    connection.commit()
    connection.close()
    for sql in [
        'SELECT o."group", o."a ""b""", o."two words" FROM "Order" AS o WHERE o."Two Words" = "two WORDS x"',
        "SELECT o.\"group\", o.[two words] FROM [order] o WHERE o.`Two Words` = 'Two Words'",
        'SELECT "GROUP" FROM "order" WHERE "a ""b""" = "it\'s" ORDER BY "group"',
        'SELECT "Straße", "Unknown Name" FROM "order"',
    ]:
        gold = execute(path, sql)
        assert gold.error is None, sql
        for spelling in (normalise, canonical):
            assert same_result(execute(path, spelling(sql, schema)), gold, True), spelling(sql, schema)
            assert is_valid(schema, spelling(sql, schema)) and is_valid(path, spelling(sql, schema))
    assert canonical('SELECT o."group", o."Two Words" FROM "order" o', schema) == (
        'SELECT "group", "two words" FROM "order"'
    )


def test_valid_means_prepares_on_the_schema_as_a_query(database: Path) -> None:
    for place in (database, GEOGRAPHY):
        assert is_valid(place, "SELECT city_name FROM city ;")
        assert is_valid(place, "WITH big AS (SELECT * FROM city) SELECT * FROM big UNION SELECT 1, 2, 3")
        for sql in ("SELECT nothing FROM city", "SELECT * FROM nothing", "SELECT city_name FORM city x", "", "VACUUM",
                    "DELETE FROM city", "EXPLAIN SELECT 1", "QUERY PLAN SELECT 1", "SELECT 1; SELECT 2",
                    "PRAGMA table_info(city)", "CREATE TABLE x AS SELECT 1"):  # fmt: skip
            assert not is_valid(place, sql), sql


# Comparing ---------------------------------------------------------------------------------------------


def rows(*values: tuple[object, ...]) -> Execution:
    return Execution(tuple(values))


@pytest.mark.parametrize(
    ("left", "right", "same", "same_in_order"),
    [
        (rows((1,), (2,)), rows((2,), (1,)), True, False),
        (rows((1,), (1,), (2,)), rows((1,), (2,), (2,)), False, False),
        (rows((1,), (1,)), rows((1,)), False, False),
        (rows(), rows(), True, True),
        (rows((None,)), rows((None,)), True, True),
        (rows((None,)), rows((0,)), False, False),
        (rows(("1",)), rows((1,)), False, False),
        (rows((b"a",)), rows(("a",)), False, False),
        (rows((1, 2)), rows((2, 1)), False, False),
        (rows((1, 2)), rows((1,)), False, False),
        (rows((3,)), rows((3.0,)), True, True),
        (rows((1.0,)), rows((1.0 + 5e-7,)), True, True),
        (rows((1.0,)), rows((1.0 + 5e-6,)), False, False),
        (rows((10**15,)), rows((10**15 + 1,)), False, False),
        (rows((float("inf"),)), rows((float("inf"),)), True, True),
        # Sorted by their numbers these do not stand opposite each other, and still match.
        (rows((1.0, 7, "x"), (1.0 + 1e-9, 5, "x")), rows((1.0, 5, "x"), (1.0 + 1e-9, 7, "x")), True, False),
        (rows((0.1 + 0.2, "a"), (1, "b")), rows((1, "b"), (0.3, "a")), True, False),
        (rows((1.0, "a"), (2.0, "b")), rows((1.0, "b"), (2.0, "a")), False, False),
        (Execution(error="x"), Execution(error="x"), False, False),
        (rows(), Execution(error="x"), False, False),
    ],
)
def test_same_result(left: Execution, right: Execution, same: bool, same_in_order: bool) -> None:
    assert same_result(left, right, False) is same and same_result(right, left, False) is same
    assert same_result(left, right, True) is same_in_order


def test_order_matters_only_at_the_top() -> None:
    assert is_ordered("SELECT a FROM t ORDER BY a LIMIT 3;")
    assert is_ordered("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1")
    assert not is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY a)")
    assert not is_ordered("SELECT a FROM t WHERE x = 'order by'")
    assert is_ordered("SELECT a FROM t WHERE x > ALL (SELECT 1) ORDER BY a")  # what SQLite cannot parse


# Spelling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "normal", "short"),
    [
        (
            'SELECT CITYalias0.CITY_NAME FROM CITY AS CITYalias0 WHERE CITYalias0.STATE_NAME = "Nebraska" ;',
            "SELECT cityalias0.city_name FROM city AS cityalias0 WHERE cityalias0.state_name = 'Nebraska'",
            "SELECT city_name FROM city WHERE state_name = 'Nebraska'",
        ),
        # A column's name in single quotes is a text; the name of a column that is not in sight is one too.
        ("SELECT 'CITY_NAME', \"AREA\" FROM city", "SELECT 'CITY_NAME', 'AREA' FROM city", None),
        ('SELECT "CITY" FROM city', "SELECT 'CITY' FROM city", None),
        # A SELECT list does not see its own aliases, the rest does.
        ('SELECT "Foo" AS foo FROM city ORDER BY "FOO"', "SELECT 'Foo' AS foo FROM city ORDER BY \"foo\"",
         "SELECT 'Foo' AS foo FROM city ORDER BY foo"),
        ("SELECT COUNT( DISTINCT CITY_NAME ) FROM CITY", "SELECT COUNT(DISTINCT city_name) FROM city", None),
        ("select city.* from City", "SELECT city.* FROM city", "SELECT * FROM city"),
        (
            "SELECT b.capital FROM city x JOIN state AS b ON x.state_name = b.state_name",
            "SELECT b.capital FROM city AS x JOIN state AS b ON x.state_name = b.state_name",
            "SELECT t2.capital FROM city AS t1 JOIN state AS t2 ON t1.state_name = t2.state_name",
        ),
        (
            "SELECT city.city_name FROM city JOIN state ON city.state_name = state.state_name",
            "SELECT city.city_name FROM city JOIN state ON city.state_name = state.state_name",
            "SELECT t1.city_name FROM city AS t1 JOIN state AS t2 ON t1.state_name = t2.state_name",
        ),
        # Correlated: the outer table keeps a name, since the inner one has a column called the same.
        (
            "SELECT a.capital FROM state AS a WHERE 2 <= (SELECT count(*) FROM city AS b "
            "WHERE b.state_name = a.state_name AND b.population > 100)",
            "SELECT a.capital FROM state AS a WHERE 2 <= (SELECT COUNT(*) FROM city AS b "
            "WHERE b.state_name = a.state_name AND b.population > 100)",
            "SELECT capital FROM state AS t1 WHERE 2 <= (SELECT COUNT(*) FROM city "
            "WHERE state_name = t1.state_name AND population > 100)",
        ),
        # The same, with the table itself inside.
        (
            "SELECT city_name FROM city WHERE population >= (SELECT max(c.population) FROM city AS c "
            "WHERE c.state_name = city.state_name)",
            "SELECT city_name FROM city WHERE population >= (SELECT MAX(c.population) FROM city AS c "
            "WHERE c.state_name = city.state_name)",
            "SELECT city_name FROM city AS t1 WHERE population >= (SELECT MAX(population) FROM city "
            "WHERE state_name = t1.state_name)",
        ),
        # An inner alias of the same name hides the outer one only for the columns that it has.
        (
            "SELECT x.city_name FROM city AS x WHERE x.city_name IN (SELECT x.capital FROM state AS x "
            "WHERE x.population > 100)",
            "SELECT x.city_name FROM city AS x WHERE x.city_name IN (SELECT x.capital FROM state AS x "
            "WHERE x.population > 100)",
            "SELECT city_name FROM city AS t1 WHERE city_name IN (SELECT capital FROM state "
            "WHERE t1.population > 100)",
        ),
        # An alias of the result hides a column in ORDER BY, unless it has a prefix.
        (
            "SELECT max(c.population) AS city_name FROM city AS c GROUP BY c.state_name ORDER BY c.city_name",
            "SELECT MAX(c.population) AS city_name FROM city AS c GROUP BY c.state_name ORDER BY c.city_name",
            "SELECT MAX(population) AS city_name FROM city GROUP BY state_name ORDER BY city.city_name",
        ),
        (
            "SELECT c.city_name AS city_name FROM city AS c ORDER BY c.city_name",
            "SELECT c.city_name AS city_name FROM city AS c ORDER BY c.city_name",
            "SELECT city_name AS city_name FROM city ORDER BY city_name",
        ),
        # A query in FROM.
        (
            "SELECT D.n FROM (SELECT c.state_name, count(*) AS N FROM city AS c GROUP BY c.state_name) AS D "
            "WHERE D.n > 1",
            "SELECT d.n FROM (SELECT c.state_name, COUNT(*) AS n FROM city AS c GROUP BY c.state_name) AS d "
            "WHERE d.n > 1",
            "SELECT n FROM (SELECT state_name, COUNT(*) AS n FROM city GROUP BY state_name) WHERE n > 1",
        ),
        (
            "SELECT c.state_name FROM city c EXCEPT SELECT s.state_name FROM state s ORDER BY c.state_name",
            "SELECT c.state_name FROM city AS c EXCEPT SELECT s.state_name FROM state AS s ORDER BY c.state_name",
            "SELECT state_name FROM city EXCEPT SELECT state_name FROM state ORDER BY state_name",
        ),
        (
            "WITH T1 AS (SELECT s.state_name AS x FROM state s) SELECT q.x FROM t1 q, city c WHERE c.state_name = q.X",
            "WITH t1 AS (SELECT s.state_name AS x FROM state AS s) SELECT q.x FROM t1 AS q, city AS c "
            "WHERE c.state_name = q.x",
            "WITH t1 AS (SELECT state_name AS x FROM state) SELECT t2.x FROM t1 AS t2, city AS t3 "
            "WHERE t3.state_name = t2.x",
        ),
        ("SELECT city_name FROM city WHERE population NOT IN (300, 500) /* why */ -- so",
         "SELECT city_name FROM city WHERE NOT population IN (300, 500)", None),
    ],
)  # fmt: skip
def test_spellings(database: Path, sql: str, normal: str, short: str | None) -> None:
    assert normalise(sql, GEOGRAPHY) == normal
    assert canonical(sql, GEOGRAPHY) == (short or normal)
    assert canonical(canonical(sql, GEOGRAPHY), GEOGRAPHY) == (short or normal)
    gold = execute(database, sql)
    assert gold.error is None
    assert same_result(execute(database, normal), gold, is_ordered(sql))
    assert same_result(execute(database, short or normal), gold, is_ordered(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT  , city_name   FROM city",  # sqlglot would mend these
        "SELECT city_name FROM city ORDER ;",
        "SELECT city_name FROM city; SELECT 1",
        "SELECT city_name FROM city WHERE population = population NOT IN (1)",  # ... read this otherwise
        "SELECT 'a' 'b'  FROM city",  # ... and this
        "SELECT ((((( FROM",
        "DELETE FROM city WHERE  city_name = 'Reno'",
        "nonsense <pad> \x00 é",
        "",
    ],
)
def test_what_is_not_understood_is_left_alone(sql: str) -> None:
    assert normalise(sql, GEOGRAPHY) == " ".join(sql.split())
    assert canonical(sql, GEOGRAPHY) == " ".join(sql.split()).rstrip("; ")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT c.nothing FROM city AS c",
        "SELECT s.capital FROM city AS c",
        "SELECT (SELECT s.city_name FROM state AS s) FROM city AS c",  # bare, it would find the outer column
        "SELECT city.city_name FROM city AS c",
        "SELECT [no such name] FROM city",
    ],
)
def test_a_wrong_query_does_not_become_right(database: Path, sql: str) -> None:
    assert execute(database, sql).error
    assert execute(database, normalise(sql, GEOGRAPHY)).error
    assert execute(database, canonical(sql, GEOGRAPHY)).error


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM city JOIN (VALUES (1), (2)) ON city_name = 'reno'",
        "SELECT * FROM city, (VALUES (1), (2))",
        "SELECT * FROM city JOIN (VALUES (1), (2)) AS v ON v.column1 = 1",
        'SELECT city_name FROM city UNION SELECT capital FROM state ORDER BY "CAPITAL" DESC',
        'SELECT city_name FROM city UNION SELECT * FROM (SELECT capital FROM state) ORDER BY "capital" DESC',
        "SELECT city_name FROM city UNION SELECT border FROM border_info UNION SELECT s.capital FROM state AS s "
        'ORDER BY "capital" DESC',
        # Only the ORDER BY of the compound sees the other arm.
        'SELECT city_name FROM city WHERE "capital" = \'capital\' UNION SELECT capital FROM state ORDER BY "capital"',
    ],
)
def test_values_and_the_order_of_a_compound_keep_their_rows(database: Path, sql: str) -> None:
    gold = execute(database, sql)
    assert gold.error is None and len(gold.rows) > 1
    for spelling in (normalise, canonical):
        assert same_result(execute(database, spelling(sql, GEOGRAPHY)), gold, is_ordered(sql)), spelling(sql, GEOGRAPHY)


def real_queries(source: str, *files: str) -> Iterator[tuple[str, Schema, Path]]:
    folder = TEXT2SQL / source
    if not folder.is_dir():
        pytest.skip(f"there is no real data at {folder}")
    schemas = {entry["db_id"]: Schema.from_spider(entry) for entry in json.loads((folder / "tables.json").read_text())}
    for file in files:
        for row in json.loads((folder / file).read_text()):
            path = folder / "database" / row["db_id"] / f"{row['db_id']}.sqlite"
            if path.exists():
                yield row["query"], schemas[row["db_id"]], path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "files", "number", "failing"),
    [
        ("spider", ["dev.json"], 972, 0),
        ("spider", ["train_spider.json"], 3465, 0),
        # Two gold queries of the training split do not run on SQLite: `> ALL (...)`, and an alias out of sight.
        ("geography", ["train.json", "dev.json", "test.json"], 877, 2),
    ],
)
def test_real_gold_queries_keep_their_rows(source: str, files: list[str], number: int, failing: int) -> None:
    queries = list(real_queries(source, *files))
    assert len(queries) == number
    failed = set()
    for sql, schema, path in queries:
        gold = execute(path, sql)
        for spelling in (normalise, canonical):
            again = execute(path, spelling(sql, schema))
            if gold.error is not None:
                failed.add(sql)
                assert again.error is not None
            else:
                assert same_result(again, gold, is_ordered(sql)), f"{sql}\n{spelling(sql, schema)}\n{again.error}"
        if gold.error is None:
            assert canonical(canonical(sql, schema), schema) == canonical(sql, schema)
            assert is_valid(schema, sql)
    assert len(failed) == failing


@pytest.mark.slow
def test_lowering_the_whole_text_would_change_results() -> None:
    """Why normalising leaves literals alone: the shortcut changes at least one result in ten of Spider dev."""
    queries = list(real_queries("spider", "dev.json"))[::5]
    changed = sum(
        not same_result(execute(path, sql.lower()), execute(path, sql), is_ordered(sql)) for sql, _, path in queries
    )
    assert changed > len(queries) / 10


# Scoring -----------------------------------------------------------------------------------------------


def test_score_counts_each_metric_and_group(database: Path) -> None:
    schema = GEOGRAPHY.to_json()
    gold = 'SELECT c.city_name FROM city AS c WHERE c.state_name = "texas"'

    def row(predicted: str, **more: object) -> dict[str, object]:
        return {"predicted": predicted, "gold": gold, "db_id": "geography", "database": str(database),
                "schema": schema, **more}  # fmt: skip

    rows = [
        row("select city_name from city where state_name = 'texas';"),  # all three
        row("SELECT city_name FROM city WHERE population > 400", group="held_out"),  # runs, same rows by chance
        row("SELECT city_name FROM city WHERE state_name = 'Texas'", group="held_out"),  # runs, other rows
        row("SELECT city_name FORM city"),  # nothing
        row("SELECT town FROM city", database=None),
        row(gold, database=str(database) + ".gone"),
    ]
    result = score(json.loads(json.dumps(rows)))
    assert result == {
        "exact_match": pytest.approx(2 / 6),
        # Literals do not count: "Texas" is as good as "texas".
        "exact_set_match": pytest.approx(3 / 6),
        "exact_set_match/easy": pytest.approx(3 / 6),
        "exact_set_match/held_out": 0.5,
        "valid_sql": pytest.approx(4 / 6),
        "execution_accuracy": pytest.approx(2 / 4),
        "exact_match/held_out": 0.0,
        "valid_sql/held_out": 1.0,
        "execution_accuracy/held_out": 0.5,
        "without_database": 2.0,
    }
    assert "execution_accuracy" not in score(rows[4:])
    # Gold that fails is told, and equals nothing.
    broken = score([row("SELECT nope FROM city", gold="SELECT nope FROM city")])
    assert broken["execution_accuracy"] == 0 and broken["gold_errors"] == 1 and broken["exact_match"] == 1
    # Spider's grammar cannot read it either.
    assert "exact_set_match" not in broken


def test_score_reads_the_schema_from_the_database_or_says_what_lacks(database: Path) -> None:
    row = {
        "predicted": "SELECT 1 FROM city",
        "gold": "SELECT 1 FROM city c",
        "db_id": "g",
        "database": str(database),
    }
    assert score([row])["exact_match"] == 1
    with pytest.raises(DataError, match="neither a schema nor a database"):
        score([{**row, "database": None}])


def test_gold_results_follow_the_file(database: Path) -> None:
    row = {
        "predicted": "SELECT 4",
        "gold": "SELECT count(*) FROM city",
        "db_id": "g",
        "database": str(database),
    }
    assert score([row])["execution_accuracy"] == 1
    connection = sqlite3.connect(database)
    connection.execute("DELETE FROM city")
    connection.commit()
    connection.close()
    assert score([row])["execution_accuracy"] == 0


def test_scoring_does_not_import_evaluate(database: Path) -> None:
    # Its import takes seconds.
    program = (
        "import sys; from recipes.text2sql.scoring.metrics import score\n"
        f"score([{{'predicted': 'SELECT 1', 'gold': 'SELECT 1', 'db_id': 'g', 'database': {str(database)!r}}}])\n"
        "assert not {'evaluate', 'datasets', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_white_space_in_quotes_stays_where_a_query_does_not_parse() -> None:
    schema = Schema("x", {"t": {"a  b": "text"}})
    broken = "SELECT  \"a  b\"\n FROM t WHERE x = 'c \n d' AND ;"
    assert canonical(broken, schema) == "SELECT \"a  b\" FROM t WHERE x = 'c \n d' AND"
    assert normalise(broken, schema) == "SELECT \"a  b\" FROM t WHERE x = 'c \n d' AND ;"
