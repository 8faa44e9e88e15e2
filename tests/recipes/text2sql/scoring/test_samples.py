"""Right and wrong answers for people. Run alone: python -m pytest tests/recipes/text2sql/scoring/test_samples.py"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from recipes.text2sql.scoring.samples import samples


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE book (name TEXT)")
        connection.executemany("INSERT INTO book VALUES (?)", [(name,) for name in "abcde"])
    return str(path)


def row(number: int, right: bool | None, group: str | None, database: str | None = None, exact: bool = False) -> Any:
    predicted = "SELECT name FROM book" if right else "SELECT title FROM book"
    return {
        "question": f"question {number}",
        "predicted": predicted,
        "gold": "SELECT COUNT(*) FROM book",
        "db_id": "shop",
        "database": database,
        "group": group,
        "exact_match": exact,
        "execution_accuracy": right,
    }


def test_three_of_each_from_every_group_with_the_rows_of_both(database: str) -> None:
    rows = [row(number, number % 2 == 0, "held_out" if number > 15 else "seen", database) for number in range(20)]
    found = samples(rows)
    assert [sample["right"] for sample in found] == [True] * 3 + [False] * 3
    assert [sample["question"] for sample in found[:3]] == ["question 16", "question 0", "question 18"]
    assert found[0]["database"] == "shop (held_out)" and found[1]["database"] == "shop (seen)"
    assert found[0]["rows"] == "a; b; c; ... (5 rows)" and found[0]["gold rows"] == "5"
    assert "no such column: title" in str(found[3]["rows"])


@pytest.mark.parametrize(("exact", "right"), [(True, True), (False, False)])
def test_without_a_database_the_text_decides(exact: bool, right: bool) -> None:
    (found,) = samples([row(1, None, None, exact=exact)])
    assert found["right"] is right and "rows" not in found and found["database"] == "shop"


def test_where_all_is_right_there_is_no_wrong_answer(database: str) -> None:
    assert [sample["right"] for sample in samples([row(1, True, None, database)])] == [True]
    assert samples([]) == []
