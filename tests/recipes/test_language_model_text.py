"""Text that is broken, packed or at `datasets`: read as it should be, or refused in three lines."""

import gzip
import itertools
from pathlib import Path
from typing import Any

import pytest

from recipes.language_model import text
from recipes.language_model.recipe import DataSettings, Recipe
from runner.errors import ConfigError, DataError


def corpus(source: Path | str, **settings: Any) -> text.Corpus:
    own = DataSettings(source=str(source), **settings)
    return text.Corpus(text.list_files(str(source)), own, own.validation_split)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.txt.gz", gzip.compress(b"words " * 9000)[:60], "cannot be read"),
        ("plain.txt.gz", b"not compressed", "cannot be read"),
        ("plain.txt.zst", b"not compressed", "cannot be read"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "words"}\n' * 9000)[:60], "cannot be read"),
        ("latin.txt.gz", gzip.compress("ä".encode("latin1") * 100), "UTF-8"),
    ],
)
def test_a_broken_compressed_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(corpus(tmp_path / name).passages("train"))
    assert name in str(caught.value) and len(str(caught.value).splitlines()) <= 3


def test_zst_is_read_without_another_package(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    content = "".join(f"line {number}\n" for number in range(5000))
    (tmp_path / "a.txt.zst").write_bytes(pyarrow.compress(content.encode(), codec="zstd", asbytes=True))
    assert "".join(each.text for each in corpus(tmp_path / "a.txt.zst").passages("train")) == content


def test_validation_is_taken_from_the_beginning_of_what_cannot_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def endless(self: text.Corpus, name: str, skip: int) -> Any:
        nonlocal read
        for number in itertools.count(skip):
            read += 1
            yield text.Passage(f"document {number}")

    monkeypatch.setattr(text.Corpus, "_from_datasets", endless)
    rows = corpus("somebody/endless-1.0")
    assert len(list(rows.passages("validation"))) == text.FIRST_DOCUMENTS // 10
    assert read <= text.FIRST_DOCUMENTS + 1
    # Training has all others, wherever it is entered.
    numbers = [number for number, _ in itertools.islice(rows.sequence("train"), 30_000)]
    assert len(numbers) == len(set(numbers)) and numbers[-1] == 30_000 + text.FIRST_DOCUMENTS // 10 - 1
    assert next(rows.sequence("train", 25_009))[0] == 25_009


def test_a_split_by_name_is_for_datasets_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words\n" * 50)
    recipe = Recipe(data_settings=DataSettings(source=str(tmp_path / "a.txt"), val_split="0"))
    for read in (recipe._corpus, recipe._validation_corpus):
        with pytest.raises(DataError, match="validation_split"):
            read()


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="document_separator"):
        DataSettings(document_separator="")
    with pytest.raises(ConfigError, match="temperature"):
        Recipe.Request(temperature=float("nan"))
