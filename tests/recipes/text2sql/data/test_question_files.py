"""Files of questions as people write them: every mistake is named with its line, or left out and counted when asked."""

import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.text2sql import answering
from recipes.text2sql.data import cache
from recipes.text2sql.data.question_files import read_entries
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.sql.execution import Execution
from runner.config import parse
from runner.errors import DataError
from tests.recipes.text2sql.source_folders import SHARED, SHOP_PAIRS, needs_shared, read, write_sources

ENTRIES = [{"question": text, "query": query, "db_id": "shop"} for text, query in SHOP_PAIRS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


def written(path: Path, entries: list[dict[str, str]], encoding: str = "utf-8") -> None:
    """Write a file of questions in the format that its name says."""
    with path.open("w", encoding=encoding, newline="") as file:
        if path.suffix == ".json":
            json.dump(entries, file, indent=1, ensure_ascii=False)
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        else:
            delimiter = {".csv": ",", ".tsv": "\t", ".CSV": ";"}[path.suffix]
            table = csv.DictWriter(file, ["question", "query", "db_id"], delimiter=delimiter, restval="")
            table.writeheader()
            table.writerows(entries)


def of_spider(folder: Path, name: str, entries: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    """Replace the training questions."""
    (folder / "spider/train_spider.json").unlink(missing_ok=True)
    written(folder / "spider" / name, entries, encoding)
    return folder / "spider" / name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv"])
def test_every_format_and_mark_gives_the_same_questions(folder: Path, ending: str, encoding: str) -> None:
    entries = [*ENTRIES, {"question": "wer wohnt in Köln,\nund wo ?", "query": "SELECT 'Köln'", "db_id": "shop"}]
    of_spider(folder, f"train_spider{ending}", entries, encoding)
    found = read("spider", folder)
    assert [(each.text, each.query) for each in found] == [(each["question"], each["query"]) for each in entries]


def test_semicolons_are_a_table_too(folder: Path) -> None:
    written(folder / "x.CSV", ENTRIES)
    assert [entry.values["query"] for entry in read_entries(folder / "x.CSV")] == [query for _, query in SHOP_PAIRS]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train_spider.json", "größe ?".encode("latin-1"), ["not UTF-8", "line 1", "0xf6", "iconv"]),
        ("train_spider.jsonl", b'{"question": "?"}\n{"question": "\xe9"}\n', ["not UTF-8", "line 2", "0xe9"]),
        ("train_spider.json", b'[\n {"question": "?"},\n {"question": }\n]', ["not JSON", "line 3"]),
        ("train_spider.json", b'[\n {"question": "?"}\n {"question": "?"}\n]', ["not JSON", "line 3"]),
        ("train_spider.json", b'{"question": "?"}\n{"question": "?"}\n', ["not JSON", ".jsonl"]),
        ("train_spider.json", b"[1] [2]", ["not JSON", "behind the list"]),
        ("train_spider.csv", b"quesion,query,db_id\nx,SELECT 1,shop\n", ["no column question", "quesion, query"]),
        ("train_spider.csv", b'question,query,db_id\n"x,SELECT 1,shop\ny,SELECT 2,shop\n', ["no table", "line 2"]),
        ("train_spider.csv", b"", ["no entries"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    folder: Path, name: str, content: bytes, words: list[str]
) -> None:
    (folder / "spider/train_spider.json").unlink()
    (folder / "spider" / name).write_bytes(content)
    for bad_questions in ("auto", "skip"):
        with pytest.raises(DataError) as caught:
            read("spider", folder, bad_questions=bad_questions)
        assert str(folder / "spider" / name) in str(caught.value) and len(str(caught.value).splitlines()) <= 3
        assert all(word in str(caught.value) for word in words), caught.value


WRONG: list[tuple[str, dict[str, object], list[str], str]] = [
    # (its name, the entry, what the message says, how it is counted)
    ("no query", {"question": "?", "db_id": "shop"}, ["no query", "question, db_id"], "without query"),
    ("empty query", {"question": "?", "query": " ", "db_id": "shop"}, ["query is empty"], "without query"),
    ("no db_id", {"question": "?", "query": "SELECT 1"}, ["no db_id"], "without db_id"),
    ("empty question", {"question": "", "query": "SELECT 1", "db_id": "shop"}, ["question is empty"], "question"),
    ("a number", {"question": 7, "query": "SELECT 1", "db_id": "shop"}, ["to be a text, and is 7"], "is no text"),
    ("a list", {"question": "?", "query": ["SELECT 1"], "db_id": "shop"}, ["to be a text"], "is no text"),
    ("no database", {"question": "?", "query": "SELECT 1", "db_id": "shp"}, ["'shp'", "shp.sqlite"], "databases"),
    ("syntax", {"question": "?", "query": "SELEC 1", "db_id": "shop"}, ["syntax error"], "does not run"),
    ("half", {"question": "?", "query": "SELECT 1 FROM", "db_id": "shop"}, ["incomplete input"], "does not run"),
    (
        "a column",
        {"question": "?", "query": "SELECT titel FROM book", "db_id": "shop"},
        ["no such column: titel"],
        "run",
    ),
    ("a table", {"question": "?", "query": "SELECT 1 FROM books", "db_id": "shop"}, ["no such table: books"], "run"),
    ("writing", {"question": "?", "query": "DELETE FROM book", "db_id": "shop"}, ["does not run"], "does not run"),
    ("two", {"question": "?", "query": "SELECT 1; SELECT 2", "db_id": "shop"}, ["one statement"], "does not run"),
    ("an id twice", {**ENTRIES[0], "id": 3}, ["id 3 is also that of line 3"], "an id that an earlier one has"),
]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(("wrong", "words", "kind"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
@pytest.mark.parametrize("cached", [False, True], ids=["in memory", "cached"])
def test_an_entry_that_is_no_question_is_named_or_left_out_and_counted(
    folder: Path, ending: str, wrong: dict[str, object], words: list[str], kind: str, cached: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if cached:
        monkeypatch.setattr(cache, "CACHED_FROM", 1)
        monkeypatch.setenv("RELAY_CACHE", str(folder / "cache"))
    (folder / "spider/train_spider.json").unlink()
    path = folder / f"spider/train_spider{ending}"
    lines = [json.dumps(each) for each in (ENTRIES[0], ENTRIES[1], {**ENTRIES[2], "id": "3"}, ENTRIES[3], wrong)]
    text = "\n".join(lines) if ending == ".jsonl" else "[" + ",\n".join(lines) + "]"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read("spider", folder)
    message = str(caught.value)
    assert f"{path}, line 5: " in message and "--data.bad_questions skip" in message, message
    assert all(word in message for word in words) and len(message.splitlines()) <= 3, message
    capsys.readouterr()
    found = read("spider", folder, bad_questions="skip")
    assert [question.query for question in found] == [query for _, query in SHOP_PAIRS]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "questions of" in line]
    assert "spider (train): 4 questions of 5 (1 " in line and kind in line, line


def test_several_mistakes_are_three_lines(folder: Path) -> None:
    path = of_spider(folder, "train_spider.json", [{**entry, "query": ""} for entry in ENTRIES])
    with pytest.raises(DataError) as caught:
        read("spider", folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}, line 2: query is empty." and lines[1].startswith("3 more: line 7: query is")
    assert len(lines) == 3
    with pytest.raises(DataError, match=r"4 without query.*\n?Nothing is left"):
        read("spider", folder, bad_questions="skip")


def test_a_damaged_database_is_named_or_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "spider/database/torn").mkdir()
    (folder / "spider/database/torn/torn.sqlite").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    of_spider(folder, "train_spider.jsonl", [*ENTRIES, {**ENTRIES[0], "db_id": "torn"}])
    with pytest.raises(DataError, match=r"line 5: .*torn.sqlite is not a .*database"):
        read("spider", folder)
    assert len(read("spider", folder, bad_questions="skip")) == 4
    assert "1 about databases that are not there or cannot be read" in capsys.readouterr().err


def test_few_queries_that_do_not_run_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Spider's own training file has three such queries.
    wrong = {"question": "?", "query": "SELECT shelf FROM book", "db_id": "shop"}
    for number, is_refused in ((20, True), (120, False)):
        path = of_spider(folder, "train_spider.jsonl", [ENTRIES[0]] * number + [wrong])
        if is_refused:
            with pytest.raises(DataError, match=f"line {number + 1}: SQLite does not run the query: no such column"):
                read("spider", folder)
            continue
        capsys.readouterr()
        assert len(read("spider", folder)) == number + 1
        shown = capsys.readouterr().err
        assert "SQLite does not run 1 of 121 queries" in shown and f"{path}, line 121: " in shown
        with pytest.raises(DataError, match="line 121"):
            read("spider", folder, bad_questions="stop")
    # Data sets that others wrote are only reported.
    written(folder / "bird/train/train.json", [{**ENTRIES[0], "query": "SELECT shelf FROM book"}])
    assert len(read("bird", folder)) == 1 and "train.json, line 2: " in capsys.readouterr().err


@needs_shared
@pytest.mark.parametrize(("source", "split", "left"), [("geography", "train", 547), ("atis", "test", 447)])
def test_the_published_files_are_read_without_a_flag(
    source: str, split: str, left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / source).symlink_to(SHARED / source, target_is_directory=True)
    assert len(read(source, tmp_path, split)) == {"geography": 549, "atis": 447}[source]
    assert ("SQLite does not run 2 of 549" in capsys.readouterr().err) == (source == "geography")
    assert len(read(source, tmp_path, split, bad_questions="skip")) == left


def test_the_setting_has_no_effect_on_the_demo() -> None:
    config = parse(["--recipe", "text2sql", "--data.bad_questions", "skip"])
    assert config.recipe.setting_notes(config.changed) == ["data.bad_questions has no effect with data.source demo."]


# Questions to answer -------------------------------------------------------------------------------------


def test_questions_to_answer_come_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("wo ?\tshop\nwer ?\n".encode("utf-16"))
    (tmp_path / "q.csv").write_bytes("\ufeffid,question,db_id\n007,wo ?,shop\n008,wer ?,\n".encode())
    (tmp_path / "q.jsonl").write_text('{"question": "wo ?", "db_id": "shop"}\n\n{"question": "wer ?"}\n')
    (tmp_path / "q.json").write_text('[{"question": "wo ?", "db_id": "shop"}, {"question": "wer ?", "db_id": null}]')
    for path in sorted(tmp_path.glob("q.*")):
        found = answering.read_questions(path)
        assert [(each.text, each.db_id) for each in found] == [("wo ?", "shop"), ("wer ?", None)], path
    assert [each.ids for each in answering.read_questions(tmp_path / "q.csv")] == [{"id": "007"}, {"id": "008"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.jsonl", b'{"question": "?"}\n{"frage": "?"}\n', ["line 2", "no question", "frage"]),
        ("q.jsonl", b'{"question": "?"}\n{"question": \n', ["line 2", "not JSON"]),
        ("q.csv", b"question\n?\n\n!,x\n", ["line 4", "2 cells"]),
        ("q.csv", b"frage\n?\n", ["no column question", "frage"]),
        ("q.csv", b"id,question\n1,?\n1,!\n", ["line 3", "id 1 is also that of line 2"]),
        ("q.json", b'[{"question": "?"},\n{"question": 3}]', ["line 2", "to be a text"]),
        ("q.txt", b"gr\xf6\xdfe ?\n", ["not UTF-8", "line 1"]),
        ("q.txt", b"\n \n", ["no question"]),
        ("q.txt", b"?\tshop\n \tshop\n", ["line 2", "empty"]),
    ],
)
def test_a_wrong_question_to_answer_is_named_with_its_line(
    folder: Path, name: str, content: bytes, words: list[str]
) -> None:
    (folder / name).write_bytes(content)

    def ask() -> None:
        request = Recipe.Request(db=str(folder / "spider/database"), questions=str(folder / name))
        Recipe().answer(None, request)  # type: ignore[arg-type]

    with pytest.raises(DataError) as caught:
        ask()
    assert name in str(caught.value) and len(str(caught.value).splitlines()) <= 3
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_an_answer_has_the_id_of_its_question(folder: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "q.csv").write_text("question_id,question\n00123,how many ?\n", encoding="utf-8")
    answers: Callable[..., object] = lambda *_: [("SELECT 1", Execution(((1,),), ("1",)))]  # noqa: E731
    monkeypatch.setattr(answering, "answers", answers)
    request = Recipe.Request(
        db=str(folder / "spider/database/shop/shop.sqlite"),
        questions=str(folder / "q.csv"),
        output=str(folder / f"out.{ending}"),
    )
    Recipe().answer(None, request)  # type: ignore[arg-type]
    text = (folder / f"out.{ending}").read_text(encoding="utf-8")
    if ending == "csv":
        (row,) = csv.DictReader(text.splitlines())
    else:
        row = json.loads(text)
    assert row["question_id"] == "00123" and row["question"] == "how many ?" and row["sql"] == "SELECT 1"


def test_a_database_that_nobody_can_open_is_no_traceback(folder: Path) -> None:
    shutil.copy(folder / "spider/database/shop/shop.sqlite", folder / "whole.sqlite")
    sqlite3.connect(folder / "whole.sqlite").close()
    (folder / "half.sqlite").write_bytes((folder / "whole.sqlite").read_bytes()[:1500])
    with pytest.raises(DataError, match=r"half.sqlite"):
        Recipe().answer(None, Recipe.Request(db=str(folder / "half.sqlite")))  # type: ignore[arg-type]
