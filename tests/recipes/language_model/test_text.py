"""Text that is broken, packed or at `datasets`: read as it should be, or refused in three lines."""

import codecs
import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from recipes.language_model import answering, files, text, tokens
from recipes.language_model import rows as rows_of_files
from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, TokenizerSettings
from runner.errors import ConfigError, DataError


def corpus(source: Path | str, **settings: Any) -> text.Corpus:
    own = DataSettings(source=str(source), **settings)
    return text.Corpus(files.list_files(str(source)), own, own.validation_fraction)


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
    passages = corpus(tmp_path / "a.txt.zst", validation_fraction=0.0).passages("train")
    assert "".join(each.text for each in passages) == content


def test_validation_is_taken_from_the_beginning_of_what_cannot_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def endless(file: files.File, settings: DataSettings, skip: int) -> Any:
        nonlocal read
        for number in itertools.count(skip):
            read += 1
            yield f"document {number}"

    monkeypatch.setattr(rows_of_files, "_from_dataset", endless)
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
        with pytest.raises(DataError, match="validation_fraction"):
            read()


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="document_separator"):
        DataSettings(document_separator="")
    with pytest.raises(ConfigError, match="temperature"):
        Recipe.Request(temperature=float("nan"))


ROWS = [{"id": number, "body": f'row {number}: "so",\nhe said é\t'} for number in range(40)]


def tables(folder: Path) -> dict[str, Path]:
    """The same rows in every kind of file that has rows and is no Parquet."""
    found = {
        name: folder / name for name in ("list.json", "texts.json", "lines.json", "rows.csv", "rows.tsv", "a.csv.gz")
    }
    found["list.json"].write_text(json.dumps(ROWS, indent=1))
    found["texts.json"].write_text(json.dumps([row["body"] for row in ROWS]))
    found["lines.json"].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, delimiter in (("rows.csv", ","), ("rows.tsv", "\t")):
        # As a spreadsheet saves it: with a byte order mark.
        with found[name].open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(ROWS)
    found["a.csv.gz"].write_bytes(gzip.compress(found["rows.csv"].read_bytes()))
    return found


def test_json_and_tables_are_rows(tmp_path: Path) -> None:
    for path in tables(tmp_path).values():
        rows = corpus(path, text_column="body")
        read = [*rows.passages("train"), *rows.passages("validation")]
        assert sorted(each.text for each in read) == sorted(row["body"] for row in ROWS), path
        assert len(list(rows.passages("validation"))) == 4
        # A resumed stream is entered in the middle.
        assert [number for number, _ in rows.sequence("train", 17)] == [n for n in range(17, 40) if n % 10 != 9]


def test_tables_of_a_folder_are_read_where_it_has_no_text(tmp_path: Path) -> None:
    tables(tmp_path)
    assert len(files.list_files(str(tmp_path))) == 6
    (tmp_path / "book.txt").write_text("some words\n")
    assert [Path(file.path).name for file in files.list_files(f"{tmp_path},")] == ["book.txt"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "id,words\n1,some\n", "has no column 'body' but id, words: type --data.text_column"),
        ("empty.csv", "\n", "has no column 'body'"),
        ("rows.csv", 'body\n"never closed', "cannot be read: unexpected end of data"),
        ("cut.json", '[{"body": "some words"}, {"bo', "is not JSON"),
        ("cut.json", '{"body": "some words"}\n{"bo', "not JSON"),
        ("number.json", "5", "has no column 'body' but int"),
        ("list.json", '[{"words": "some"}]', "has no column 'body' but words"),
        ("latin.csv", "body\nä\n".encode("latin1"), "is not UTF-8"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: Any, said: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = corpus(tmp_path / name, text_column="body")
    with pytest.raises(DataError, match=said) as caught:
        list(rows.passages("train"))
    assert name in str(caught.value) and len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [("rows.tsv", "body", []), ("object.json", '{\n"body": "some words"\n}', ["some words"])],
)
def test_odd_files_of_rows_are_read(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows = corpus(tmp_path / name, text_column="body")
    assert [passage.text for split in ("train", "validation") for passage in rows.passages(split)] == texts


@pytest.mark.parametrize("end", [b"", b"\n", b" \n\n", b"\n \r\n\t"])
@pytest.mark.parametrize("block", [1, 7, 40, 1 << 20])
def test_lines_that_a_run_has_read_are_counted_and_not_parsed(
    tmp_path: Path, end: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_of_files, "BLOCK", block)
    wanted = [f"text {number}" for number in range(12)]
    lines = [json.dumps({"text": text}).encode() for text in wanted]
    content = codecs.BOM_UTF8 + b"\n".join([*lines[:3], b"", b" \t", b"", *lines[3:7], b"\r", *lines[7:]]) + end
    for name, opened in (("rows.jsonl", open), ("rows.jsonl.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as file:
            file.write(content)
        (found,) = files.list_files(str(tmp_path / name))
        settings = DataSettings(source=str(tmp_path / name))
        assert list(rows_of_files.read_rows(found, settings)) == wanted
        for skip in range(1, 15):
            parsed = []
            monkeypatch.setattr(
                rows_of_files, "text_of", lambda value, *_, parsed=parsed: parsed.append(value) or value
            )
            passed, *rest = rows_of_files.read_rows(found, settings, skip)
            assert passed == min(skip, 12) and rest == wanted[skip:] == parsed


@pytest.mark.parametrize("lines", [300, 30_000])
def test_a_short_compressed_text_has_a_validation_fraction(tmp_path: Path, lines: int) -> None:
    content = "".join(f"line {number} of the text\n" for number in range(lines))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
    rows = corpus(tmp_path / "a.txt.gz")
    # Together they are the text, in its order.
    numbered = [*rows.sequence("train"), *rows.sequence("validation")]
    assert "".join(passage.text for _, passage in sorted(numbered, key=lambda pair: pair[0])) == content
    kept = sum(len(passage.text) for passage in rows.passages("validation"))
    assert 0.05 < kept / len(content) < 0.15


def test_a_source_too_short_for_validation_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.csv").write_text("text\nsome words\nmore words\n")
    (tmp_path / "many.csv").write_text("text\n" + "some words\n" * 20)
    settings = TokenizerSettings(kind="char")
    for name, share in (("few", 0.1), ("many", 0.1), ("few", 0.0)):
        (tmp_path / f"{name}{share}").mkdir()
        source = DataSettings(source=str(tmp_path / f"{name}.csv"), validation_fraction=share)
        bound = Recipe(data_settings=source, tokenizer_settings=settings).prepare(tmp_path / f"{name}{share}")
        told = capsys.readouterr().err
        assert ("the validation split is empty" in told) == (name == "few" and share > 0), told
        assert bool(len(bound.data("validation"))) == (name == "many")


def test_characters_of_the_validation_text_that_training_lacks_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("some words\n" * 100)
    (tmp_path / "other.txt").write_text("some words, é\n")
    source = DataSettings(source=str(tmp_path / "train.txt"), validation_source=str(tmp_path / "other.txt"))
    for kind in ("char", "bpe"):
        (tmp_path / kind).mkdir()
        Recipe(data_settings=source, tokenizer_settings=TokenizerSettings(kind=kind)).prepare(tmp_path / kind)
        wanted = (
            "note: the model reads these characters as <unk>, because training had none of them: ',' 'é'\n"
            if kind == "char"
            else ""
        )
        assert capsys.readouterr().err == wanted


# Tokenizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["100", "258", "-5", "0", "two", "1e4", "", "99999999999999999999", "1000001"])
def test_a_vocabulary_that_cannot_be_is_refused(size: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"vocab_size is .*: type --tokenizer.vocab_size with a whole number from 259 to 1000000, or auto",
    ):
        TokenizerSettings(vocab_size=size)
    assert TokenizerSettings(vocab_size="259").vocab_size == "259"
    wrong: list[dict[str, Any]] = [{"max_vocab_size": 3}, {"train_examples": 0}, {"path": "somewhere"}]
    for settings in wrong:
        with pytest.raises(ConfigError, match=next(iter(settings))):
            TokenizerSettings(**settings)


def test_a_vocabulary_that_the_text_does_not_fill_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("some words\n" * 100)
    tokenizer = tokens.fit(TokenizerSettings(vocab_size="5000"), corpus(tmp_path / "a.txt"), 0, 8, True)
    assert f"5000 is more than the text has: {len(tokenizer)} tokens" in capsys.readouterr().out


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    whole = tokens.characters(["some words"])
    for name in ("whole", "cut", "binary", "other"):
        whole.save_pretrained(tmp_path / name)
    content = (tmp_path / "whole" / "tokenizer.json").read_bytes()
    (tmp_path / "cut" / "tokenizer.json").write_bytes(content[:200])
    (tmp_path / "binary" / "tokenizer.json").write_bytes(b"\0\xff")
    (tmp_path / "other" / "tokenizer.json").write_text('{"some": "thing"}')
    (tmp_path / "whole" / "merges.txt").write_text("")
    assert tokens.from_path(tmp_path / "whole").get_vocab() == whole.get_vocab()
    for name in ("cut", "binary", "other"):
        for read, path in (
            (tokens.from_path, tmp_path / name),
            (tokens.from_path, tmp_path / name / "tokenizer.json"),
            (tokens.load, tmp_path / name),
        ):
            with pytest.raises(DataError, match=f"tokenizer at .*{name}.* cannot be read") as caught:
                read(path)
            assert len(str(caught.value).splitlines()) <= 3


def test_characters_never_seen_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    told: set[str] = set()
    tokenizer = tokens.characters(["some words"])
    answering.report_unknown(tokenizer, "some swords", told)
    assert not capsys.readouterr().err
    answering.report_unknown(tokenizer, "some é and ß, é", told)
    assert (
        capsys.readouterr().err
        == "note: the model reads these characters as <unk>, because training had none of them: ',' 'a' 'n' 'ß' 'é'\n"
    )
    answering.report_unknown(tokenizer, "é!", told)
    assert (
        capsys.readouterr().err
        == "note: the model reads these characters as <unk>, because training had none of them: '!'\n"
    )
    # Byte pairs know everything.
    answering.report_unknown(tokens.byte_pairs(["some words"], 259), "é", set())
    assert not capsys.readouterr().err
