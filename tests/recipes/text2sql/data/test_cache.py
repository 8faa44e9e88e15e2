"""The cache of prepared questions."""

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest

from recipes.text2sql.data import cache, sources
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
    # A large file counts by its ends, and its ends say that it was written to.
    monkeypatch.setattr(cache, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(cache, "END_BYTES", 100)
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
