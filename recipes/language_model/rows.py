"""Documents from files of rows: JSON lines, JSON, tables, Parquet and `datasets` ids. One row is one document."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from runner.errors import DataError

if TYPE_CHECKING:
    import pyarrow

    from recipes.language_model.files import File
    from recipes.language_model.settings import DataSettings

EXCERPT = 60
"""Characters of a wrong value that a message shows."""


def read_rows(file: File, settings: DataSettings, skip: int = 0) -> Generator[str | int]:
    """The document of each row, empty where the row has none. A number stands for that many rows that were skipped.

    Raises DataError where the file is broken, or where its column holds anything but text.
    """
    if file.is_dataset:
        yield from _from_dataset(file, settings, skip)
    elif file.suffix == ".parquet":
        yield from _from_parquet(file, settings, skip)
    elif file.has_lines:
        with file.open() as opened, io.BufferedReader(opened, 1 << 20) as lines_of_bytes:  # type: ignore[type-var, arg-type]
            passed, rest = past_lines(lines_of_bytes, skip)
            if passed:
                yield passed
            for line in itertools.chain(io.BytesIO(rest), lines_of_bytes):
                if line.strip():
                    yield document_of_line(file, line, settings) or ""
    else:
        with file.open() as opened:
            lines = io.TextIOWrapper(opened, "utf-8-sig", newline="")
            yield from (_from_json if file.suffix == ".json" else _from_table)(file, lines, settings)


BLOCK = 1 << 20
"""Bytes in which lines are counted."""
BLANK = re.compile(rb"\n[ \t\r\x0b\x0c]*(?=\n)")
"""A blank line, from the end of the line before it. Written with `^`, it takes nine times as long to find."""


def past_lines(opened: io.BufferedReader, skip: int) -> tuple[int, bytes]:
    """Read past at most `skip` lines that are not blank; returns how many, and what was read beyond them.

    They are counted and not parsed: a run that goes on has parsed them before.
    """
    passed = 0
    while passed < skip and (block := opened.read(BLOCK)):
        block += opened.readline()
        if not block.endswith(b"\n"):
            block += b"\n"
        count = block.count(b"\n") - len(BLANK.findall(b"\n" + block))
        if passed + count > skip:
            lines = io.BytesIO(block)
            while passed < skip:
                passed += bool(lines.readline().strip())
            return passed, lines.read()
        passed += count
    return passed, b""


def document_of_line(file: File, line: bytes, settings: DataSettings) -> str | None:
    """The document of a line of JSON; None where its column is null, or the line is a byte order mark alone."""
    text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    if not text:
        return None
    try:
        row = json.loads(text)
    except ValueError:
        raise DataError(f"{file.path} holds a line that is not JSON: {text[:EXCERPT]!r}") from None
    return _document(file, row, settings)


def _document(file: File, row: object, settings: DataSettings) -> str | None:
    """The document of an object of JSON."""
    if not isinstance(row, dict):
        raise _no_column(file, type(row).__name__, settings)
    if settings.text_column not in row:
        raise _no_column(file, ", ".join(map(str, row)), settings)
    return text_of(row[settings.text_column], file, settings, row)


def _no_column(file: File, found: str, settings: DataSettings) -> DataError:
    return DataError(
        f"{file.path} has no column {settings.text_column!r} but {found}: type --data.text_column with one of these."
    )


def text_of(value: object, file: File, settings: DataSettings, row: Mapping[str, object] | None = None) -> str | None:
    """A value of the text column as text; None where it is null. Raises DataError where it is neither.

    A conversation is written as JSON where `data.chat_template` is set. `row`: for the message, the row of the value.
    """
    if settings.chat_template:
        return _conversation(value, file, settings)
    if value is None or isinstance(value, str):
        return value if value is None else without_surrogates(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise _not_text(file, settings, "bytes that are not UTF-8", value, row) from None
    is_conversation = isinstance(value, list) and bool(value) and all(map(_is_message, value))
    kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    kind = "a conversation" if is_conversation else kinds.get(type(value), f"a {type(value).__name__}")
    raise _not_text(file, settings, kind, value, row)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _not_text(
    file: File, settings: DataSettings, kind: str, value: object, row: Mapping[str, object] | None
) -> DataError:
    shown = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, default=str)
    excerpt = str(shown) if len(str(shown)) <= EXCERPT else f"{str(shown)[:EXCERPT]}..."
    others = [str(name) for name, other in (row or {}).items() if isinstance(other, str)]
    there = f" (columns of text: {', '.join(others[:8])})" if others else ""
    advice = f"Type --data.text_column with a column of text{there}, or write each row as one text first."
    if kind == "a conversation":
        advice = (
            "To train an instruct model on conversations, type --data.chat_template true with --model.pretrained.\n"
            f"For plain text, type --data.text_column with a column of text{there}."
        )
    return DataError(f"{file.path} holds {kind} in column {settings.text_column!r}, not text: {excerpt}\n{advice}")


def _conversation(value: object, file: File, settings: DataSettings) -> str | None:
    """A list of messages as JSON, for the tokenizer's chat template."""
    if value is None:
        return None
    if not (isinstance(value, list) and value and all(map(_is_message, value))):
        shown = json.dumps(value, ensure_ascii=False, default=str)[:EXCERPT]
        raise DataError(
            f"{file.path} holds no conversation in column {settings.text_column!r}: {shown}\n"
            'data.chat_template needs lists such as [{"role": "user", "content": "Hello"}]: type --data.text_column\n'
            "with their column, or leave data.chat_template out for plain text."
        )
    return without_surrogates(json.dumps(value, ensure_ascii=False, default=str))


def without_surrogates(text: str) -> str:
    r"""The text with pairs of surrogates joined and lone ones, such as JSON's "\ud83d", replaced by U+FFFD.

    No encoding has lone surrogates, so no tokenizer reads them.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _from_table(file: File, lines: io.TextIOWrapper, settings: DataSettings) -> Iterator[str]:
    # A cell may be a whole book. The limit is a setting of the process.
    csv.field_size_limit(1 << 30)
    rows = csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    names = next(rows, [])
    if settings.text_column not in names:
        raise _no_column(file, ", ".join(names), settings)
    if names.count(settings.text_column) > 1:
        raise DataError(f"{file.path} has {settings.text_column!r} as the name of several columns: rename all but one.")
    place = names.index(settings.text_column)
    for row in rows:
        cell = row[place] if place < len(row) else ""
        yield (_conversation_in_cell(cell, file, settings) if settings.chat_template else cell) or ""


def _conversation_in_cell(cell: str, file: File, settings: DataSettings) -> str | None:
    try:
        return _conversation(json.loads(cell) if cell else None, file, settings)
    except ValueError:
        return _conversation(cell, file, settings)


def _from_json(file: File, lines: io.TextIOWrapper, settings: DataSettings) -> Iterator[str]:
    """A list of objects or of texts, which is read into memory; or JSON lines in a file called .json."""
    first = next((line for line in lines if line.strip()), "")
    try:
        has_lines = isinstance(json.loads(first), dict)
    except ValueError:
        has_lines = False
    if has_lines:
        yield document_of_line(file, first.encode(), settings) or ""
        yield from (document_of_line(file, line.encode(), settings) or "" for line in lines if line.strip())
        return
    try:
        rows = json.loads(first + lines.read())
    except ValueError as error:
        raise DataError(f"{file.path} is not JSON: {error}. Relay reads it as text if its name ends in .txt.") from None
    for row in rows if isinstance(rows, list) else [rows]:
        yield (without_surrogates(row) if isinstance(row, str) else _document(file, row, settings)) or ""


def _from_parquet(file: File, settings: DataSettings, skip: int) -> Iterator[str | int]:
    import pyarrow.parquet

    with file.open() as opened:
        try:
            table = pyarrow.parquet.ParquetFile(opened)
        except (OSError, ValueError) as error:
            raise DataError(f"{file.path} is no Parquet file: {error}") from None
        _check_type(file, table.schema_arrow, settings)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if rows <= skip:
                skip -= rows
                yield rows
                continue
            for batch in table.iter_batches(1024, row_groups=[group], columns=[settings.text_column]):
                yield from (text_of(value, file, settings) or "" for value in batch.column(0).to_pylist())


def _check_type(file: File, schema: pyarrow.Schema, settings: DataSettings) -> None:
    """Raise DataError if the schema of a Parquet file says that the column holds no text."""
    from pyarrow import types

    if settings.text_column not in schema.names:
        raise _no_column(file, ", ".join(schema.names), settings)
    kind = schema.field(settings.text_column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    # The values of lists are looked at one by one: their messages say more.
    if not any(is_kind(kind) for is_kind in (*known, types.is_null, types.is_list, types.is_large_list)):
        others = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
        there = f" (columns of text: {', '.join(others[:8])})" if others else ""
        raise DataError(
            f"{file.path} holds {kind} in column {settings.text_column!r}, not text.\n"
            f"Type --data.text_column with a column of text{there}."
        )


def _from_dataset(file: File, settings: DataSettings, skip: int) -> Iterator[str | int]:
    import datasets

    name = file.path.removeprefix("datasets://")
    try:
        found = datasets.load_dataset(name, settings.config, split=settings.split, streaming=True)
    except Exception as error:
        summary = " ".join(str(error).split())[:200]
        raise DataError(
            f"There is no file {name}, and `datasets` cannot load it: {summary}\n"
            "Type --data.source with files, a folder or a datasets id, and --data.config where that has several."
        ) from None
    if skip:
        yield skip
        found = found.skip(skip)
    rows: Iterable[object] = found
    for row in rows:
        yield _document(file, row, settings) or ""
