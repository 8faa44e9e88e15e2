"""The cache of prepared questions."""

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest

from recipes.text2sql.data import cache, sources
from runner.parts import fingerprints
from tests.recipes.text2sql.source_folders import (
    read,
    rows,
    write_sources,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Spider, BIRD, WikiSQL and Gretel, a few questions each."""
    return write_sources(tmp_path)


def test_the_cache_holds_what_reading_gives(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {name: list(read(name, folder)) for name in ("spider", "bird", "wikisql", "gretel")}
    monkeypatch.setattr(cache, "CACHED_FROM", 1)
    monkeypatch.setenv("RELAY_CACHE", str(folder / "cache"))
    for name, questions in wanted.items():
        capsys.readouterr()
        found = read(name, folder)
        assert isinstance(found.parts[name], cache.CachedQuestions)
        elsewhere = [dataclasses.replace(q, database=None, prepared=None) for q in found]
        assert elsewhere == [dataclasses.replace(q, database=None, prepared=None) for q in questions]
        assert [(q.link(), q.target(q.link()[1])) for q in found] == [
            (q.link(), q.target(q.link()[1])) for q in questions
        ]
        assert [rows(question) for question in found] == [rows(question) for question in questions]
        first = capsys.readouterr().err
        monkeypatch.setattr(cache, "_make", None)
        assert list(read(name, folder)) == list(found), "the second time it is not made again"
        monkeypatch.undo()
        monkeypatch.setattr(cache, "CACHED_FROM", 1)
        monkeypatch.setenv("RELAY_CACHE", str(folder / "cache"))
        # What was left out is told each time.
        assert (capsys.readouterr().err.count("2 questions of 7") == 1) == (name == "gretel") == ("of 7" in first)


def test_the_cache_knows_when_its_data_have_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_CACHE", str(folder / "cache"))

    def key() -> str:
        return cache.content_key(sources.entries("spider", str(folder), "train"))

    before = key()
    assert key() == before
    database = folder / "spider/database/shop/shop.sqlite"
    os.utime(database)
    assert key() == before, "only content counts"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE author SET city = 'Galway' WHERE id = 1")
    connection.commit()
    connection.close()
    assert key() != before
    after = key()
    # A large file counts by its blocks, the first of which says that it was written to.
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 100)
    before = key()
    connection = sqlite3.connect(database)
    connection.execute("UPDATE author SET city = 'Dublin' WHERE id = 1")
    connection.commit()
    connection.close()
    assert key() != before
    entries = json.loads((folder / "spider/train_spider.json").read_text())
    entries[0]["question"] += " please"
    (folder / "spider/train_spider.json").write_text(json.dumps(entries))
    assert key() not in (before, after)


def test_a_change_that_is_still_in_the_log_counts(folder: Path) -> None:
    database = folder / "spider/database/shop/shop.sqlite"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    before = cache.content_key(sources.entries("spider", str(folder), "train"))
    connection.execute("UPDATE author SET city = 'Galway' WHERE id = 1")
    connection.commit()
    assert cache.content_key(sources.entries("spider", str(folder), "train")) != before
    connection.close()


@pytest.mark.parametrize("source", ["spider", "bird", "wikisql", "gretel"])
def test_moved_data_find_their_cache_and_their_databases(
    source: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CACHED_FROM", 1)
    monkeypatch.setenv("RELAY_CACHE", str(folder / "cache"))
    wanted = [rows(question) for question in read(source, folder)]
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    folder.rename(moved)
    monkeypatch.setenv("RELAY_CACHE", str(moved / "cache"))
    monkeypatch.setattr(cache, "_make", None)
    found = read(source, moved)
    assert [rows(question) for question in found] == wanted
    assert all(str(question.database).startswith(str(moved)) for question in found)
    # The preparation counts at the new place, too: nothing is linked again.
    assert all(question._ready is not None for question in found)


@pytest.mark.parametrize("version", ["sqlglot", "SQLite"])
def test_another_version_of_what_reads_sql_prepares_again(
    version: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.content_key(sources.entries("spider", str(folder), "train"))
    if version == "sqlglot":
        monkeypatch.setattr("sqlglot.__version__", "0")
    else:
        monkeypatch.setattr(sqlite3, "sqlite_version", "0")
    assert cache.content_key(sources.entries("spider", str(folder), "train")) != before
