"""What people give as text and is none: lists, numbers, hidden files, other encodings, binary files."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.language_model import files, text, tokens
from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, TokenizerSettings
from runner.errors import ConfigError, DataError

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, how are you?"}]


def corpus(source: Path | str, **settings: Any) -> text.Corpus:
    own = DataSettings(source=str(source), **settings)
    return text.Corpus(files.list_files(str(source)), own, own.validation_fraction)


def refused(one: text.Corpus) -> str:
    """The message of a corpus that both the check and the reading refuse."""
    with pytest.raises(DataError) as caught:
        one.check()
    with pytest.raises(DataError):
        list(one.passages("train"))
    message = str(caught.value)
    assert len(message.splitlines()) <= 3 and all(len(line) < 220 for line in message.splitlines()), message
    return message


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the kind that its name says."""
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Columns that hold no text ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["a", "b"], "a list"),
        ([], "a list"),
        ([1, 2], "a list"),
        (CHAT, "a conversation"),
        ([{"from": "human", "value": "Hello"}], "a list"),
        ({"en": "words", "de": "Worte"}, r"an object|struct<"),
        (5, "a number|int64"),
        (2.5, "a number|double"),
        (True, "a truth value|bool"),
    ],
)
def test_a_column_without_text_is_refused_by_name(tmp_path: Path, name: str, value: Any, kind: str) -> None:
    rows = [{"id": 1, "prompt": "Say something.", "text": value}] * 3
    message = refused(corpus(write_rows(tmp_path / name, rows)))
    assert name in message and "column 'text'" in message and "--data.text_column" in message
    assert any(each in message for each in kind.split("|")), message
    assert "prompt" in message or name.endswith("parquet") and kind.startswith("a "), message


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rows_without_text_are_left_out(tmp_path: Path, name: str) -> None:
    rows = [{"text": "words"}, {"text": None}, {"text": "more"}, {"text": None}, {"text": "end"}]
    one = corpus(write_rows(tmp_path / name, rows), validation_fraction=0.0)
    one.check()
    assert [passage.text for passage in one.passages("train")] == ["words", "more", "end"]


def test_bytes_of_a_parquet_file_are_read_as_utf8(tmp_path: Path) -> None:
    one = corpus(write_rows(tmp_path / "a.parquet", [{"text": "Zoë".encode()}] * 3), validation_fraction=0.0)
    assert {passage.text for passage in one.passages("train")} == {"Zoë"}
    message = refused(corpus(write_rows(tmp_path / "b.parquet", [{"text": "Zoë".encode("latin1")}])))
    assert "bytes that are not UTF-8" in message


def test_halves_of_characters_in_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "pair \\ud83d\\ude00"}\n')
    one = corpus(tmp_path / "a.jsonl", validation_fraction=0.0)
    assert [passage.text for passage in one.passages("train")] == ["cut \ufffd", "pair 😀"]


def test_a_later_file_is_looked_at_before_the_tokenizer_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "fit", lambda *_: pytest.fail("the tokenizer was trained first"))
    write_rows(tmp_path / "a.jsonl", [{"text": "some words"}] * 50)
    write_rows(tmp_path / "b.jsonl", [{"text": CHAT}] * 50)
    (tmp_path / "assets").mkdir()
    for settings in (
        DataSettings(source=str(tmp_path), streaming=True),
        DataSettings(source=str(tmp_path / "a.jsonl"), validation_source=str(tmp_path / "b.jsonl")),
    ):
        with pytest.raises(DataError, match=r"b\.jsonl holds a conversation"):
            Recipe(data_settings=settings).prepare(tmp_path / "assets")


# Conversations ------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"


def instruct_tokenizer(folder: Path) -> Path:
    """A tokenizer with a chat template and the marks that it needs."""
    tokenizer = tokens.byte_pairs(["user assistant Hello Hi how are you system"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_conversations_are_written_by_the_chat_template(tmp_path: Path, name: str) -> None:
    source = write_rows(tmp_path / name, [{"messages": CHAT}] * 30)
    (tmp_path / "assets").mkdir()
    recipe = Recipe(
        data_settings=DataSettings(source=str(source), text_column="messages", chat_template=True, packing="document"),
        tokenizer_settings=TokenizerSettings(kind="path", path=str(instruct_tokenizer(tmp_path / "tokenizer"))),
    ).prepare(tmp_path / "assets")
    row: Any = recipe.data("train")[0]
    expected = "<|start|>user\nHello<|end|>\n<|start|>assistant\nHi, how are you?<|end|>\n"
    assert recipe.tokenizer.decode(row.ids.tolist()) == expected
    mark = recipe.tokenizer.convert_tokens_to_ids("<|end|>")
    assert row.ids.tolist().count(mark) == 2
    # Text that spells a mark is text again afterwards.
    assert mark not in tokens.encode(recipe.tokenizer, ["<|end|>"])[0]


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": CHAT}] * 30)
    (tmp_path / "assets").mkdir()
    plain = tokens.byte_pairs(["words"], 300)
    plain.save_pretrained(tmp_path / "plain")
    settings = DataSettings(source=str(source), chat_template=True)
    for own in (TokenizerSettings(), TokenizerSettings(kind="path", path=str(tmp_path / "plain"))):
        with pytest.raises(ConfigError, match="needs a tokenizer with a chat template"):
            Recipe(data_settings=settings, tokenizer_settings=own).prepare(tmp_path / "assets")


@pytest.mark.parametrize("value", ["plain text", [], ["Hello"], {"role": "user", "content": "Hello"}, 5])
def test_what_is_no_conversation_is_refused_with_a_chat_template(tmp_path: Path, value: Any) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"text": value}] * 3)
    assert "holds no conversation in column 'text'" in refused(corpus(source, chat_template=True))


def test_a_conversation_that_the_template_refuses_is_shown(tmp_path: Path) -> None:
    tokenizer: Any = tokens.from_path(instruct_tokenizer(tmp_path))
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(DataError, match=r"Roles must alternate\nIt is: \[") as caught:
        tokens.encode_conversations(tokenizer, [json.dumps(CHAT)])
    assert len(str(caught.value).splitlines()) == 2


# Files that are no data ---------------------------------------------------------------------------------

LITTER = """
._a.txt .DS_Store Thumbs.db desktop.ini ~$b.txt #c.txt# d.txt~ .e.txt.swp e.txt.swp f.txt.bak g.txt.part
h.txt.crdownload .ipynb_checkpoints/a-checkpoint.txt __MACOSX/._a.txt __MACOSX/a.txt .git/description.txt
sub/.hidden/deep/a.txt sub/._b.txt _delta_log/00.jsonl .venv/lib/LICENSE.txt @eaDir/a.txt
""".split()


def litter(folder: Path) -> Path:
    """Two files of text among hidden, backup and unfinished ones."""
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7 not text")
    (folder / "a.txt").write_text("some words\n")
    (folder / "sub" / "#1 ~ first.txt").write_text("more words\n")
    return folder


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*", "/**/*.txt"])
def test_hidden_and_backup_files_are_no_data(tmp_path: Path, pattern: str) -> None:
    folder = litter(tmp_path / ".cache" / "texts [1], new")
    # What a user types is meant, though it is hidden or has brackets.
    source = (
        f"{folder}{pattern}" if not pattern else f"{str(folder).replace('[1]', '[[]1]').replace(',', '?')}{pattern}"
    )
    found = files.list_files(source)
    assert sorted(Path(file.path).name for file in found) == ["#1 ~ first.txt", "a.txt"]


def test_hidden_files_of_a_bucket_are_no_data() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in (*LITTER, "a.txt", "sub/b.txt"):
        with system.open(f"/litter/{name}", "wb") as opened:
            opened.write(b"words\n")
    for source in ("memory://litter", "memory://litter/", "memory://litter/**/*.txt"):
        assert [file.path.rpartition("litter/")[2] for file in files.list_files(source)] == ["a.txt", "sub/b.txt"]


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / ".hidden.txt").write_text("some words\n")
    assert files.list_files(str(tmp_path / ".hidden.txt"))[0].name == ".hidden.txt"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "._a.txt").write_bytes(b"\0")
    with pytest.raises(DataError, match="has no text in it"):
        files.list_files(str(tmp_path / "folder"))
    with pytest.raises(DataError, match="No file is named"):
        files.list_files(str(tmp_path / "folder" / "*"))


# Encodings and binary files -----------------------------------------------------------------------------

GREEK = "Ἄνδρα μοι ἔννεπε, Μοῦσα\n" * 40
GERMAN = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich\n" * 40


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", GREEK.encode("utf-16"), "it seems to be utf-16"),
        ("a.txt", GERMAN.encode("utf-16-le"), "it seems to be utf-16le"),
        ("a.txt", GERMAN.encode("utf-16-be"), "it seems to be utf-16be"),
        ("a.txt", GERMAN.encode("utf-32"), "it seems to be utf-32"),
        ("a.txt", GERMAN.encode("latin1"), "it seems to be latin1"),
        ("a.txt", "“Zwölf” – Straße\n".encode("windows-1252"), "it seems to be windows-1252"),
        ("a.csv", ("text\n" + GERMAN).encode("utf-16"), "it seems to be utf-16"),
        ("a.jsonl", (json.dumps({"text": "ö"}, ensure_ascii=False) + "\n").encode("latin1"), "seems to be latin1"),
        ("a.txt", GREEK.encode() * 2 + b"\xff\n" + GREEK.encode(), "damaged characters near byte 3,"),
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF file"),
        ("a.docx", b"PK\x03\x04\x14\0\6\0", "it is a zip archive, or a .docx"),
        ("a.txt", b"\x1f\x8b\x08\0", "its name must end in .gz"),
        ("a.txt", b"PAR1\x15\4", "its name must end in .parquet"),
        ("a.jsonl", b"SQLite format 3\0", "it is an SQLite database"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("a.txt", bytes(range(256)) * 9, "it is a binary file"),
        ("a.txt", b"a.txt".ljust(257, b"\0") + b"ustar\0", "it is a tar archive"),
    ],
)
def test_files_that_are_not_utf8_text_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    one = corpus(tmp_path / name)
    with pytest.raises(DataError) as caught:
        one.check()
        list(one.passages("train"))
    assert message in str(caught.value) and name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.txt.gz", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    import gzip

    lines = {"txt": "Zoë\n", "jsonl": '{"text": "Zoë"}\n', "csv": "text\nZoë\n", "json": '[{"text": "Zoë"}]'}
    content = lines[name.split(".")[1]].encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    one = corpus(tmp_path / name, validation_fraction=0.0)
    one.check()
    assert "".join(passage.text for passage in one.passages("train")).strip() == "Zoë"


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_among_others_is_passed_over_and_alone_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_text('{"text": "some words"}\n' * 20)
    one = corpus(f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}")
    one.check()
    assert len(list(one.passages("train"))) == 18
    (tmp_path / "assets").mkdir()
    with pytest.raises(DataError, match=r"empty|holds no text"):
        Recipe(data_settings=DataSettings(source=str(tmp_path / "a.jsonl"))).prepare(tmp_path / "assets")
