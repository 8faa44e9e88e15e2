"""Fingerprints of data, and which files each recipe names.

Run alone: python -m pytest tests/runner/parts/test_fingerprints.py
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config import parse
from runner.parts import fingerprints
from runner.parts.fingerprints import changes, fingerprint
from tests.recipes.text2sql.source_folders import write_sources


def write(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(f"the first line of {name}\nthe second line\n", encoding="utf-8")
    return [folder / "a.txt", folder / "b.txt"]


def append(folder: Path) -> list[Path]:
    with (folder / "b.txt").open("a", encoding="utf-8") as file:
        file.write("one more\n")
    return [folder / "a.txt", folder / "b.txt"]


def replace_by_equal_length(folder: Path) -> list[Path]:
    path = folder / "b.txt"
    before = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("second", "twofth"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return [folder / "a.txt", path]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (append, ["b.txt has changed"]),
        (replace_by_equal_length, ["b.txt has changed"]),
        (lambda folder: [folder / "a.txt"], ["b.txt is missing"]),
        (lambda folder: [folder / "a.txt", folder / "b.txt", folder / "c.txt"], ["c.txt is new"]),
        (lambda folder: [folder / "b.txt", folder / "a.txt"], ["the files have another order"]),
        (lambda folder: [folder / "a.txt", folder / "nowhere.txt"], ["b.txt is missing", "nowhere.txt is new"]),
    ],
)
def test_every_change_is_named(tmp_path: Path, change: Callable[[Path], list[Path]], wanted: list[str]) -> None:
    before = fingerprint(write(tmp_path))
    assert changes(before, fingerprint(change(tmp_path))) == wanted


def test_a_copy_elsewhere_is_the_same(tmp_path: Path) -> None:
    before = fingerprint(write(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deep")
    (tmp_path / "there" / "deep" / "a.txt").rename(tmp_path / "there" / "deep" / "renamed.txt")
    os.utime(tmp_path / "there" / "deep" / "b.txt", (0, 0))
    moved = [tmp_path / "there" / "deep" / name for name in ("renamed.txt", "b.txt")]
    assert changes(before, fingerprint(moved)) == []


def test_a_large_file_is_sampled_at_both_ends_and_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 16)
    path = tmp_path / "large.bin"
    content = bytearray(os.urandom(100_000))
    path.write_bytes(content)
    before = fingerprint([path])
    for place in (0, 15, 99_990, 99_999, 0 + (100_000 - 16) // 63):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert changes(before, fingerprint([path])) == ["large.bin has changed"], place


def test_folders_links_pipes_and_names_that_are_no_files(tmp_path: Path) -> None:
    write(tmp_path / "data" / "sub")
    assert [name for name, _ in fingerprint([tmp_path / "data"])] == ["a.txt", "b.txt", "c.txt"]
    os.mkfifo(tmp_path / "pipe")
    assert fingerprint([tmp_path / "pipe"]) == [["pipe", "missing"]]
    assert fingerprint(["datasets://some/id"]) == [["datasets://some/id", "datasets://some/id"]]
    url = (tmp_path / "data" / "sub" / "a.txt").as_uri()
    assert fingerprint([url])[0][1] == fingerprint([tmp_path / "data" / "sub" / "a.txt"])[0][1]


def names(*words: str, split: str = "train") -> set[str]:
    """What the recipe of a command line names, without the folders."""
    return {Path(file).name for file in parse(list(words)).recipe.data_files(split)}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_recipe_names_what_it_reads(tmp_path: Path, split: str) -> None:
    write(tmp_path)
    (tmp_path / "manifest.json").write_text('[{"name": "t", "file": "a.txt", "target": "x"}, {"openml": 3}]')
    corpus = names("--recipe", "tabular", "--data.corpus", str(tmp_path), split=split)
    assert corpus == {"manifest.json", "a.txt"}
    own = ("--recipe", "tabular", "--data.train", str(tmp_path / "b.txt"), "--data.target", "x")
    assert names(*own, split=split) == {"b.txt"}
    text = ("--recipe", "language_model", "--data.source", f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}")
    assert names(*text, split=split) == {"a.txt", "b.txt"}
    held_out = names(*text, "--data.validation_source", str(tmp_path / "c.txt"), split=split)
    assert held_out == ({"a.txt", "b.txt"} if split == "train" else {"c.txt"})
    study = {name: str(tmp_path / f"{name}.x") for name in ("table", "sequences", "tree", "metadata", "split_file")}
    words = [word for name, path in study.items() for word in (f"--data.{name}", path)]
    assert names("--recipe", "microbiome", *words, split=split) == {f"{name}.x" for name in study}


@pytest.mark.parametrize(
    ("source", "train", "validation"),
    [
        ("spider", {"train_spider.json", "shop.sqlite"}, {"dev.json", "shop.sqlite"}),
        ("bird", {"train.json", "shop.sqlite"}, {"dev.json", "shop.sqlite"}),
        ("wikisql", {"train.jsonl", "train.tables.jsonl"}, {"dev.jsonl", "dev.tables.jsonl"}),
        ("gretel", {"train.jsonl"}, {"test.jsonl"}),
    ],
)
def test_every_source_of_questions_names_what_it_reads(
    tmp_path: Path, source: str, train: set[str], validation: set[str]
) -> None:
    words = ("--recipe", "text2sql", "--data.source", source, "--data.dir", str(write_sources(tmp_path)))
    assert names(*words) == train
    assert names(*words, split="validation") == validation
    assert names("--recipe", "text2sql") == set()
