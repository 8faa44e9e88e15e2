"""The official scores by execution, and the files they read."""

import json
import random
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.text2sql.scoring import official, spider_match
from recipes.text2sql.scoring.databases import DatabaseFolder, scoring_limits
from runner.__main__ import main
from runner.errors import ConfigError, DataError
from tests.recipes.text2sql.scoring.school import TABLES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A school and its test suite: in the second database the two cities are one."""
    home = tmp_path / "data" / "spider"
    (home / "database" / "school").mkdir(parents=True)
    (home / "tables.json").write_text(json.dumps([TABLES]))
    for name, city in (("school", "Bonn"), ("school_other", "Rome")):
        connection = sqlite3.connect(home / "database" / "school" / f"{name}.sqlite")
        connection.executescript(f"""
            CREATE TABLE Student (Id INTEGER, Name TEXT, Age INTEGER, City TEXT);
            CREATE TABLE Club (Club_Id INTEGER, Name TEXT, City TEXT);
            CREATE TABLE Member (Id INTEGER, Club_Id INTEGER, Since INTEGER);
            INSERT INTO Student VALUES (1, 'Ann', 20, 'Rome'), (2, 'Bob', 22, '{city}'), (3, 'Cid', 20, 'Rome');
            INSERT INTO Club VALUES (7, 'Chess', 'Rome');
            INSERT INTO Member VALUES (1, 7, 2000), (2, 7, 2001);
        """)
        connection.close()
    return tmp_path / "data"


# Gold, predicted, and what taoyds/spider, the test suite with both databases, and BIRD make of it: 1, 0, or -
# where a program stops.
EXECUTED = [
    ("SELECT name FROM student", "SELECT name FROM student", "111"),
    ("SELECT name, age FROM student", "SELECT age, name FROM student", "110"),
    ("SELECT name FROM student", "SELECT name FROM student ORDER BY name DESC", "011"),
    ("SELECT name FROM student ORDER BY age", "SELECT name FROM student ORDER BY name", "001"),
    ("SELECT city FROM student WHERE age = 20", "SELECT city FROM club", "001"),
    ("SELECT DISTINCT age FROM student", "SELECT age FROM student", "011"),
    ("SELECT count(DISTINCT age) FROM student", "SELECT count(age) FROM student", "010"),
    ("SELECT max(age) FROM student", "SELECT min(age) + 2 FROM student", "011"),
    ("SELECT max(age) FROM student", "SELECT max(age) AS m FROM student", "011"),
    ("SELECT name FROM student WHERE city = 'Bonn'", "SELECT name FROM student WHERE age > 21", "101"),
    ("SELECT name FROM student WHERE age > = 22", "SELECT name FROM student WHERE age >= 22", "-1-"),
    ("SELECT name FROM student WHERE age > 99", "SELECT city FROM student WHERE age > 99", "011"),
    ("SELECT name FROM student WHERE age > 99", "", "0-1"),
    ("SELECT name FROM student WHERE age > 99", "SELECT nothing FROM student", "000"),
    ("SELECT name FROM student WHERE age > 99", "SELECT name FROM student; SELECT 1", "000"),
    ("SELECT name FROM student", "SELECT DISTINCT name FROM student; SELECT 1", "010"),
    ("SELECT min(age), max(age) FROM student", "SELECT max(age), max(age) FROM student", "100"),
    ("SELECT name FROM student", "SELECT name FROM student WHERE name != 'value'", "111"),
    ("SELECT name FROM student WHERE age = 1", "SELECT name FROM student WHERE age = value", "010"),
]


@pytest.mark.parametrize(("gold", "predicted", "wanted"), EXECUTED, ids=lambda text: text[-40:])
def test_execution_is_that_of_each_program(gold: str, predicted: str, wanted: str, folder: Path) -> None:
    data = DatabaseFolder(folder)
    spider = official._execution(predicted, gold, "school", data, False)
    suite = official._test_suite(predicted, gold, "school", data, False)
    (bird,) = official._bird([(predicted, gold, "school")], data, folder / "gold.sql", None)
    found = [row["score"] for row in (spider, suite, bird)]
    # Where a program stops, the pair scores 0.
    assert found == [int(letter == "1") for letter in wanted], (spider, suite, bird)
    assert all(row["why"] for row in (spider, suite, bird) if not row["score"])


def test_distinct_is_compared_when_asked_for(folder: Path) -> None:
    data = DatabaseFolder(folder)
    pair = ("SELECT age FROM student", "SELECT DISTINCT age FROM student", "school", data)
    assert official._test_suite(*pair, False)["score"] == 1
    assert official._test_suite(*pair, True)["score"] == 0


@pytest.mark.parametrize(
    "predicted",
    ["DELETE FROM student", "DROP TABLE student", "PRAGMA table_info(student)", "ATTACH 'x.sqlite' AS x",
     "INSERT INTO student VALUES (9, 'x', 1, 'y')"],
)  # fmt: skip
def test_what_a_prediction_would_break_stays_whole(predicted: str, folder: Path) -> None:
    data, gold = DatabaseFolder(folder), "SELECT name FROM student WHERE age > 99"
    before = [path.read_bytes() for path in data.suite("school")]
    for judge in (official._execution, official._test_suite):
        assert judge(predicted, gold, "school", data, False)["score"] == 0
    (row,) = official._bird([(predicted, gold, "school")], data, folder / "gold.sql", None)
    assert row["score"] == 0 and row["why"]
    assert [path.read_bytes() for path in data.suite("school")] == before


def test_columns_may_stand_in_any_order() -> None:
    left = [(1, "a", 2.0, None), (2, "b", 1.0, None), (1, "a", 2.0, None)]
    right = [(row[2], row[3], row[1], row[0]) for row in left]
    assert official.same_denotation(left, right, True)
    assert official.same_denotation(left, right[::-1], False)
    assert not official.same_denotation(left, [right[1], right[0], right[0]], True)
    # Each column has the other's values, but no row has them together.
    assert not official.same_denotation([(1, 2), (3, 4)], [(1, 4), (3, 2)], False)
    assert not official.same_denotation([(1,), (1,), (2,)], [(1,), (2,), (2,)], False)
    assert official.same_denotation([(1,)], [(1.0,)], True)
    # Sorted as text, 1 stands before 1.2, and 1.0 after it.
    assert official.same_denotation([(1, 1.2)], [(1, 1.2)], True)
    assert not official.same_denotation([(1, 1.2)], [(1.0, 1.2)], True)


def test_every_order_of_columns_is_found() -> None:
    rng = random.Random(0)
    for _ in range(300):
        width, height = rng.randint(1, 5), rng.randint(1, 6)
        left = [tuple(rng.randint(0, 1) for _ in range(width)) for _ in range(height)]
        order = rng.sample(range(width), width)
        right = [tuple(row[place] for place in order) for row in rng.sample(left, height)]
        assert official.same_denotation(left, right, False)
        right[0] = (*right[0][:-1], 7)
        assert not official.same_denotation(left, right, False)


def test_many_equal_columns_are_no_riddle() -> None:
    # The rows are the same as sets, so that only an order of the columns could tell: there are eleven factorial.
    left, right = [(None,) * 11 + (value,) for value in "aab"], [(None,) * 11 + (value,) for value in "abb"]
    start = time.process_time()
    assert not official.same_denotation(left, right, False)
    assert official.same_denotation(left, [(row[11], *row[:11]) for row in left], False)
    # Two columns change places, and stand among the equal ones.
    pairs = [(*pair, *(None,) * 9) for pair in ("ab", "bb", "ba", "ca")]
    assert official.same_denotation(pairs, [(None, row[1], *row[3:], row[0]) for row in pairs], False)
    assert time.process_time() - start < 5


def test_distinct_goes_from_the_query_and_not_from_its_strings() -> None:
    sql = "SELECT DISTINCT a, 'distinct', count(distinct(b)) FROM \"distinct\" -- distinct\n WHERE distincts = 1; x"
    assert official._mended(sql, False) == (
        "SELECT  a, 'distinct', count((b)) FROM \"distinct\" -- distinct\n WHERE distincts = 1; "
    )
    assert official._mended("SELECT year(CurDate( ) ) > = 1", True) == "SELECT 2020>= 1"


def test_a_comment_behind_the_semicolon_is_of_the_first_statement() -> None:
    assert official._mended("SELECT 1 ; # so; SELECT 2", False) == "SELECT 1 ; # so; SELECT 2"
    assert official._mended("SELECT DISTINCT 1; SELECT 2", False) == "SELECT  1; "


def test_efficiency_is_birds() -> None:
    steady = [1.0, 1.02, 0.98] * 20
    assert official.efficiency([*steady, 500.0])["score"] == pytest.approx(1.0, abs=0.01)
    for ratio, reward in ((2.5, 1.25), (1.5, 1.0), (0.7, 0.75), (0.3, 0.5), (0.1, 0.25)):
        row = official.efficiency([ratio, ratio * 1.001])
        assert row["reward"] == reward**0.5 and row["score"] == pytest.approx(ratio**0.5, rel=1e-3)
    # Equal to the last digit: none lies strictly within three deviations of nothing, as in the program.
    assert official.efficiency([1.0, 1.0])["score"] == 0
    assert official.efficiency([])["score"] == 0


WANTED = {"sel": 1, "agg": 0, "conds": [[0, 0, "Ann"], [2, 1, "1,200 kg"]]}


@pytest.mark.parametrize(
    ("query", "scores"),
    [
        (WANTED, (1, 1, 1)),
        ({**WANTED, "conds": [[2, 1, "1,200 KG"], [0, 0, "ann"]]}, (1, 0, 1)),
        ({**WANTED, "conds": [[2, 1, 1200], [0, 0, "ann"]]}, (0, 0, 1)),
        ({**WANTED, "conds": [[0, 0, "Ann"], [2, 1, "1,200 kg"], [0, 0, "ANN"]]}, (1, 0, 1)),
        ({**WANTED, "agg": 1}, (0, 0, 1)),
        ({**WANTED, "sel": 0}, (0, 0, 0)),
        # Two conditions on one column share their last value.
        ({**WANTED, "conds": [[0, 0, "Bob"], [0, 0, "Ann"]]}, (0, 0, 1)),
        ({**WANTED, "conds": [[0, 3, "Ann"]]}, (0, 0, 0)),
        ({"sel": 1}, (0, 0, 0)),
        (None, (0, 0, 0)),
        ("SELECT 1", (0, 0, 0)),
    ],
)
def test_wikisql(query: Any, scores: tuple[int, int, int], tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "dev.db")
    connection.executescript(
        "CREATE TABLE table_1_2 (col0 text, col1 text, col2 real);"
        "INSERT INTO table_1_2 VALUES ('ann', 'rome', 1500.0), ('bob', 'bonn', 100.0)"
    )
    connection.close()
    (tmp_path / "dev.jsonl").write_text(json.dumps({"table_id": "1-2", "question": "?", "sql": WANTED}) + "\n")
    (tmp_path / "pred.jsonl").write_text(json.dumps({"query": query, **({} if query else {"error": "no"})}) + "\n")
    _, (row,) = official.score_files("wikisql_lf", str(tmp_path / "dev.jsonl"), str(tmp_path / "pred.jsonl"), None)
    assert (row["score"], row["ordered"], row["execution"]) == scores
    assert bool(row["why"]) != bool(scores[0])


def test_a_line_of_wikisql_without_a_query_is_a_bad_prediction(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text(ASKED * 3)
    (tmp_path / "pred.jsonl").write_text(json.dumps({"query": WANTED}) + '\n{}\n{"error": "none"}\n')
    _, rows = official.score_files("wikisql_lf", str(tmp_path / "gold.jsonl"), str(tmp_path / "pred.jsonl"), None)
    assert [row["score"] for row in rows] == [1, 0, 0]
    assert [row["why"] for row in rows] == ["", "it has no query with sel, agg and conds", "none"]


def evaluate(folder: Path, metric: str, gold: str, pred: str, *flags: str, suffix: str = ".sql") -> list[Any]:
    """The rows that `relay evaluate` writes."""
    (folder / f"gold{suffix}").write_text(gold)
    (folder / f"pred{suffix}").write_text(pred)
    status = main([
        "evaluate", "--recipe", "text2sql", f"--metric={metric}", "--gold", str(folder / f"gold{suffix}"), "--pred",
        str(folder / f"pred{suffix}"), "--data.dir", str(folder), "--output", str(folder / "rows.jsonl"), *flags,
    ])  # fmt: skip
    assert status == 0
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_row_for_each_pair_and_a_line_for_each_hardness(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = (
        "SELECT name FROM student\tschool\nSELECT name ,  age FROM student\tschool\nSELECT name FROM student\tschool\n"
    )
    # The prediction in the middle is empty; the database may stand behind a prediction.
    rows = evaluate(folder, "spider_em", gold, "SELECT name FROM student\tschool\n\nSELECT name FROM\n")
    assert [(row["index"], row["score"], row["hardness"]) for row in rows] == [
        (0, 1, "easy"), (1, 0, "medium"), (2, 0, "easy")]  # fmt: skip
    assert rows[0]["why"] == "" and "grammar cannot read it" in rows[2]["why"]
    assert set(rows[0]["parts"]) == set(spider_match.COMPONENTS)
    shown = capsys.readouterr().out
    assert re.search(r"easy +2 +0\.5000\n +medium +1 +0\.0000\n +all +3 +0\.3333", shown), shown
    assert "2 predictions the official grammar cannot read" in shown
    assert [row["score"] for row in evaluate(folder, "spider_exec", gold, "SELECT name FROM student\n\n\n")] == [
        1,
        0,
        0,
    ]
    rows = evaluate(
        folder, "test_suite", gold, "SELECT name FROM student\n\nSELECT name FROM student", "--keep_distinct"
    )
    assert [row["score"] for row in rows] == [1, 0, 1] and rows[0]["databases"] == 2


def test_birds_files_with_their_difficulty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [
        {"SQL": "SELECT name\nFROM student", "db_id": "school", "difficulty": "simple"},
        {"SQL": "SELECT age FROM student", "db_id": "school", "difficulty": "challenging"},
    ]
    (folder / "dev.json").write_text(json.dumps(questions))
    gold = "SELECT name FROM student\tschool\nSELECT age FROM student\tschool\nSELECT city FROM student\tgone\n"
    predictions = {"0": "SELECT Name FROM Student\t----- bird -----\tother", "7": "SELECT 1, 2", "8": 0}
    rows = evaluate(folder, "bird_ex", gold, json.dumps(predictions))
    assert [(row["score"], row["hardness"]) for row in rows] == [(1, "simple"), (0, "challenging"), (None, "unknown")]
    assert re.search(r"all +2 +0\.5000\n +1 more pairs could not be scored", capsys.readouterr().out)
    rows = evaluate(folder, "bird_ves", gold, json.dumps(predictions), "--repeats", "5")
    assert rows[0]["score"] > 0 and rows[1]["score"] == 0 and "reward" in rows[0]


def test_the_rows_of_a_trained_model_are_predictions_too(folder: Path) -> None:
    row = {"predicted": "SELECT name\nFROM student", "gold": "x", "db_id": "school"}
    gold = json.dumps({"query": "SELECT name FROM student", "db_id": "school"})
    (folder / "gold.json").write_text(f"[{gold}]")
    (folder / "pred.jsonl").write_text(json.dumps(row) + "\n")
    for metric in ("spider_em", "bird_ex"):
        _, rows = official.score_files(metric, str(folder / "gold.json"), str(folder / "pred.jsonl"), str(folder))
        assert [row["score"] for row in rows] == [1]


def test_a_byte_order_mark_is_no_part_of_gold_or_of_json(folder: Path) -> None:
    def scores(metric: str, gold: str, pred: str, mark: str) -> list[Any]:
        (folder / "gold.sql").write_text("\ufeff" + gold, encoding="utf-8")
        (folder / "pred.sql").write_text(mark + pred, encoding="utf-8")
        _, rows = official.score_files(metric, str(folder / "gold.sql"), str(folder / "pred.sql"), str(folder))
        return [row["score"] for row in rows]

    query, gold = "SELECT name FROM student\n", "SELECT name FROM student\tschool\n"
    wanted = json.dumps({"table_id": "1-2", "sql": WANTED}) + "\n"
    assert scores("bird_ex", gold, json.dumps({"0": query}), "\ufeff") == [1]
    assert scores("wikisql_lf", wanted, json.dumps({"query": WANTED}), "\ufeff") == [1]
    assert scores("spider_em", gold * 2, query * 2, "") == [1, 1]
    # The official program reads the mark as a part of the first prediction.
    assert scores("spider_em", gold * 2, query * 2, "\ufeff") == [0, 1]


def test_each_data_set_takes_its_own_database_of_a_name(folder: Path) -> None:
    place = folder / "bird" / "dev_databases" / "school"
    place.mkdir(parents=True)
    (place / "school.sqlite").write_bytes((folder / "spider/database/school/school.sqlite").read_bytes())
    empty = folder / "spider" / "database_schema_only" / "gone"
    empty.mkdir(parents=True)
    (empty / "gone.sqlite").write_bytes((place / "school.sqlite").read_bytes())
    data = DatabaseFolder(folder)
    assert data.database("school", of_bird=True) == place / "school.sqlite"
    assert data.database("school") == folder / "spider/database/school/school.sqlite"
    assert [path.name for path in data.suite("school")] == ["school.sqlite", "school_other.sqlite"]
    # It has no rows: good enough to read queries by, not to run them on.
    assert data.schema("gone") == data.schema("school") and data.database("gone") is None and not data.suite("gone")


def test_databases_behind_a_link_are_found(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "database").symlink_to(folder / "spider" / "database")
    # A link that leads back to where it stands ends somewhere.
    (tmp_path / "linked" / "around").symlink_to(tmp_path / "linked")
    data = DatabaseFolder(tmp_path / "linked")
    found = data.database("school")
    assert found is not None and found.is_file() and len(data.suite("school")) == 2


GOLD = "SELECT name FROM student\tschool\n"
ASKED = json.dumps({"table_id": "1-2", "sql": WANTED}) + "\n"
JSON_LINES = '{"query": "SELECT 1"}\n' * 2

# Metric, gold, predictions, and what the error says: of the file, of what it looks like, of what is wanted.
REFUSED = [
    ("spider_em", GOLD, "SELECT 1\nSELECT 2\nSELECT 3\n", "pred has 3 predictions, and .*gold has 1 queries"),
    ("spider_em", GOLD * 3, "SELECT 1\n", "has 1 predictions, and .* has 3 queries.*\n.*the first 1 and say nothing"),
    # The line was not ended, so that it is not one whose successor is empty.
    ("spider_em", GOLD * 2, "SELECT 1", "has 1 predictions, and .* has 2 queries"),
    ("spider_em", GOLD * 2, JSON_LINES, "like .*WikiSQL.*\nWanted is one query .*; type --metric wikisql_lf"),
    ("spider_em", GOLD * 2, '{"sql": "SELECT 1"}\n' * 2, "looks like JSON lines with sql"),
    ("spider_em", GOLD, '{"predicted": "SELECT 1"}\n{"sql": 1}\n', 'a line without "predicted"'),
    ("spider_em", GOLD, '{"predicted": "SELECT 1"}\n' * 2, "has 2 predictions.*\n.*max_eval_examples"),
    ("spider_em", GOLD, '{"0": "SELECT 1"}', "looks like a JSON object .*BIRD.*\n.*; type --metric bird_ex"),
    ("spider_em", GOLD, "", "pred is empty: type --pred with a file that has predictions in it"),
    ("spider_em", "\n\n", "SELECT 1", "gold is empty: type --gold with"),
    ("spider_em", "SELECT 1\n", "SELECT 1\n", r"Line 1 of .*gold has no database: 'SELECT 1'.\n.*each other's place"),
    ("spider_em", '[{"question": "?"}]', "SELECT 1\n", "no list of questions with query"),
    ("bird_ex", GOLD, "SELECT 1\n", "looks like one query .*\nWanted is a JSON object .* --metric spider_em"),
    ("bird_ex", GOLD, '{"0": "SELECT 1",', "looks like broken JSON"),
    ("bird_ex", GOLD, '[{"SQL": "SELECT 1"}]', "looks like a JSON list of objects.\nWanted is a JSON object"),
    ("bird_ex", GOLD, "[]", "has no predictions"),
    ("bird_ex", GOLD * 3, '["SELECT 1"]', "has 1 predictions, and .* has 3 queries"),
    ("bird_ex", "SELECT 1\n", '["SELECT 1"]', "Line 1 of .*gold has no database"),
    ("wikisql_lf", ASKED, "SELECT 1\n", "Line 1 of .*pred is not in .*\nWanted is .*; type --metric spider_em"),
    ("wikisql_lf", GOLD, "{}", "Line 1 of .*gold is not in the format"),
    ("wikisql_lf", '{"table_id": "1-2", "sql": {"sel": 1}}', "{}", "Line 1 of .*gold is not in the format"),
    ("wikisql_lf", ASKED, '\n{"predicted": "SELECT 1"}\n', "No line of .*pred is in the format"),
    ("wikisql_lf", ASKED * 2, json.dumps({"query": WANTED}), "has 1 predictions, and .* has 2 queries"),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "gold", "pred", "wanted"), REFUSED, ids=lambda text: text[:30])
def test_files_that_do_not_fit_are_said_so(metric: str, gold: str, pred: str, wanted: str, folder: Path) -> None:
    (folder / "gold").write_text(gold)
    (folder / "pred").write_text(pred)
    with pytest.raises(DataError, match=wanted) as error:
        official.score_files(metric, str(folder / "gold"), str(folder / "pred"), str(folder))
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize("metric", ["spider_em", "bird_ex", "wikisql_lf"])
@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("SELECT 1\nSELECT 'é'\n".encode("latin-1"), "not UTF-8: line 2 has the byte 0xe9"),
        ("SELECT 1\n".encode("utf-16"), "is UTF-16.*\n.*iconv -f UTF-16"),
        (b"SQLite format 3\0 and more", "is a SQLite database"),
    ],
)
def test_a_file_in_another_encoding_is_refused(metric: str, data: bytes, wanted: str, folder: Path) -> None:
    (folder / "gold").write_text(ASKED if metric == "wikisql_lf" else GOLD)
    (folder / "pred").write_bytes(data)
    for first, second in (("gold", "pred"), ("pred", "gold")):
        with pytest.raises(DataError, match=wanted):
            official.score_files(metric, str(folder / first), str(folder / second), str(folder))


def test_what_is_not_there_is_said_so(folder: Path) -> None:
    (folder / "one.sql").write_text(GOLD)
    (folder / "list.json").write_text('["SELECT 1"]')

    def score(metric: str, gold: str, pred: str, root: Path | None = folder, repeats: int = 1) -> None:
        official.score_files(metric, str(folder / gold), str(folder / pred), root and str(root), repeats=repeats)

    with pytest.raises(ConfigError, match="--data.dir"):
        score("spider_em", "one.sql", "one.sql", None)
    with pytest.raises(ConfigError, match="repeats is 0"):
        score("bird_ves", "one.sql", "list.json", repeats=0)
    with pytest.raises(DataError, match="There is no folder"):
        score("spider_em", "one.sql", "one.sql", folder / "nowhere")
    for gold, pred in (("missing.sql", "one.sql"), ("one.sql", "missing.sql"), (".", "one.sql")):
        with pytest.raises(DataError, match="Cannot read"):
            score("test_suite", gold, pred)
    (folder / "gone.sql").write_text("SELECT name FROM student\tgone\n")
    with pytest.raises(DataError, match="None of the databases is there: gone"):
        score("test_suite", "gone.sql", "one.sql")
    (folder / "spider" / "tables.json").unlink()
    with pytest.raises(DataError, match=r"not in a tables.json"):
        score("spider_em", "one.sql", "one.sql")


# Gold, predictions, scores, and what the table says of them.
NOTED = [
    (GOLD * 2, "SELECT name FROM student\n", [1, 0], "one line less than there are queries: .* taken for empty"),
    (GOLD * 2, "SELECT name FROM student\n\nSELECT name FROM student\n", [1, 1], "blank lines left out \\(3 predict"),
    # A gold of dialogues has blank lines between them.
    (GOLD * 2 + "\n" + GOLD, "SELECT name FROM student\n" * 3, [1, 1, 1], "blank lines left out \\(3 predict"),
    (GOLD * 2, "SELECT name FROM student\n\n\n\n", [1, 0], None),
    (GOLD * 2, "SELECT name FROM student\r\nSELECT age FROM student\r\n", [1, 0], None),
    (GOLD * 2 + "\n\n", "{\nSELECT name FROM student", [0, 1], None),
    (GOLD * 2, "SELECT 1\tschool\nSELECT 1\tother\n", [0, 0], "1 predictions name another .* pair 1 .other"),
    (GOLD + "SELECT 1\tgone\n", "SELECT 1\nSELECT 1\n", [0, None], "1 more pairs could not .*: no database gone"),
    (GOLD * 2, "\ufeffSELECT name FROM student\n" * 2, [0, 0], "begin with a byte order mark"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "pred", "scores", "note"), NOTED)
def test_what_was_guessed_is_told(gold: str, pred: str, scores: list[Any], note: str | None, folder: Path) -> None:
    (folder / "gold.sql").write_bytes(gold.encode())
    (folder / "pred.sql").write_bytes(pred.encode())
    table, rows = official.score_files("spider_em", str(folder / "gold.sql"), str(folder / "pred.sql"), str(folder))
    assert [(row["index"], row["score"]) for row in rows] == list(enumerate(scores))
    assert re.search(note, table) if note else "note:" not in table, table


def test_birds_predictions_may_be_a_list_or_have_no_database(folder: Path) -> None:
    (folder / "gold.sql").write_text(GOLD * 2)
    queries = ["SELECT name FROM student", "SELECT age FROM student"]
    whole = {str(place): f"{query}\t----- bird -----\tschool" for place, query in enumerate(queries)}
    for pred in (queries, dict(enumerate(queries)), whole):
        (folder / "pred.json").write_text(json.dumps(pred, indent=1))
        table, rows = official.score_files("bird_ex", str(folder / "gold.sql"), str(folder / "pred.json"), str(folder))
        assert [row["score"] for row in rows] == [1, 0] and "note:" not in table
    (folder / "pred.json").write_text(json.dumps({"1": queries[0], "0": None}))
    table, rows = official.score_files("bird_ex", str(folder / "gold.sql"), str(folder / "pred.json"), str(folder))
    assert [row["score"] for row in rows] == [1, 0]
    assert "keys of the predictions are not 0, 1, 2" in table and "1 predictions are no text" in table


def test_a_damaged_database_is_no_wrong_prediction(folder: Path) -> None:
    (folder / "gold.sql").write_text(GOLD * 2)
    (folder / "pred.json").write_text('["SELECT name FROM student", "SELECT nothing"]')
    path = folder / "spider/database/school/school.sqlite"

    def score() -> str:
        return official.score_files("bird_ex", str(folder / "gold.sql"), str(folder / "pred.json"), str(folder))[0]

    path.write_bytes(path.read_bytes()[:1000])
    assert "2 pairs score 0 because their gold query fails" in score()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="is not a database"):
        score()


def test_where_rows_cannot_be_written_nothing_is_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gold", "pred"):
        (folder / f"{name}.sql").write_text(GOLD)
    words = ["evaluate", "--recipe", "text2sql", "--metric", "spider_em", "--data.dir", str(folder)]
    words += ["--gold", str(folder / "gold.sql"), "--pred", str(folder / "pred.sql"), "--output"]
    for output in (folder, folder / "nowhere" / "rows.jsonl"):
        assert main([*words, str(output)]) == 2
        shown = capsys.readouterr()
        assert "--output" in shown.err and not shown.out


def test_control_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runner.commands.evaluate.main", interrupted)
    assert main(["evaluate"]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_rows_of_other_questions_are_noticed(folder: Path) -> None:
    (folder / "gold.sql").write_text(GOLD)
    (folder / "pred.jsonl").write_text(json.dumps({"predicted": "SELECT name FROM student", "db_id": "other"}))
    table, _ = official.score_files("spider_em", str(folder / "gold.sql"), str(folder / "pred.jsonl"), str(folder))
    assert "1 predictions name another database than their gold query, first pair 0 (other, not school)" in table


def test_large_results_are_not_kept(folder: Path) -> None:
    limits = scoring_limits()
    path = folder / "spider/database/school/school.sqlite"
    many = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT {}) SELECT n FROM c"
    official._kept.clear()
    assert len(official._remembered(path, many.format(official.KEPT_ROWS + 1), limits).rows) == official.KEPT_ROWS + 1
    assert not official._kept
    for number in range(official.KEPT_RESULTS + 5):
        assert official._remembered(path, f"SELECT {number}", limits).rows == ((number,),)
    assert len(official._kept) == official.KEPT_RESULTS


@pytest.mark.parametrize("metric", ["spider_em", "spider_exec", "test_suite", "bird_ex", "bird_ves", "wikisql_lf"])
def test_a_bar_on_a_terminal_only(
    metric: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pred = {"bird": '["SELECT 1", "SELECT 1"]', "wikisql": '{"error": "none"}\n' * 2}
    texts = {"gold": (ASKED if metric == "wikisql_lf" else GOLD) * 2}
    texts["pred"] = pred.get(metric.split("_")[0], "SELECT 1\nSELECT 1\n")
    for name, text in texts.items():
        (folder / name).write_text(text)
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        # A second at each look at the clock: long enough for a bar.
        times = iter(range(1_000_000))
        monkeypatch.setattr("tqdm.std.time", lambda times=times: float(next(times)))
        official.score_files(metric, str(folder / "gold"), str(folder / "pred"), str(folder), repeats=1)
        assert ("2/2" in capsys.readouterr().err) == terminal


def test_help_names_the_flags_and_the_recipes_that_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words, wanted in (
        (["--help"], ["--checkpoint", "relay evaluate --recipe text2sql", "--metric"]),
        (
            ["--recipe", "text2sql", "--help"],
            ["spider_em,spider_exec,test_suite,bird_ex,bird_ves,wikisql_lf", "--pred"],
        ),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", *words])
        shown = capsys.readouterr().out
        assert all(word in shown for word in wanted), shown
    assert main(["evaluate", "--recipe", "tabular", "--metric", "x"]) == 2
    assert "scores no files" in capsys.readouterr().err
    assert main(["evaluate", "--recipe", "text2sql", "--metric", "spider", "--gold", "a", "--pred", "b"]) == 2
