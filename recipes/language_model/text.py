"""Reading text: files, folders, globs, URLs, JSON, Parquet, tables, compressed files and `datasets` ids, as documents.

Plain text and JSON lines can be entered anywhere: they are cut into pieces of bytes, at line ends. Everything else
is read from its start, document after document.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import glob
import io
import itertools
import json
import lzma
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.language_model.settings import DataSettings

PIECE = 1 << 18
"""Bytes of a piece: what is read of plain text at a time."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
LINES = (".jsonl", ".ndjson")
TABLES = (".json", ".csv", ".tsv")
"""Rows, of which one column is text. Of a folder only where it has nothing of KNOWN: often they tell of the others."""
ROWS = (".parquet", *TABLES)
"""Read from their start, row by row."""
KNOWN = (".txt", ".text", ".md", *LINES, ".parquet")
MOST_VALIDATION = 1_000_000
"""Bytes: the most that is cut off the training data for validation."""
FIRST_DOCUMENTS, FIRST_PARTS = 20_000, 160
"""What is read from its start gives validation none beyond these: rows, and parts of 64 kB of a text. Validation can
then be read without reading all of it."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A document, or a part of one that was too long to be read at once."""

    text: str
    starts: bool = True
    """Whether this is the beginning of a document."""
    ends: bool = True
    """Whether this is the end of one."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the source, or a `datasets` id."""

    path: str
    size: int

    @property
    def suffix(self) -> str:
        """Its kind, without the compression: .txt, .jsonl, .parquet; empty for a `datasets` id."""
        name = self.path.lower().rpartition("/")[2]
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        return name[name.rindex(".") :] if "." in name else ""

    @property
    def is_compressed(self) -> bool:
        """Whether it has to be read from its start for that reason."""
        return self.path.lower().endswith(COMPRESSED)

    @property
    def has_lines(self) -> bool:
        """Whether every line is a JSON object."""
        return self.suffix in LINES

    def open(self) -> BinaryIO:
        """The file's bytes, decompressed. Raises DataError where it cannot be read."""
        try:
            if "://" not in self.path and not self.is_compressed:
                return open(self.path, "rb")
            import fsspec

            if self.path.lower().endswith(".zst"):
                # fsspec needs one more package for these.
                import pyarrow

                packed: Any = fsspec.open(self.path, "rb")
                return io.BufferedReader(pyarrow.CompressedInputStream(packed.open(), "zstd"), 1 << 20)
            opened: Any = fsspec.open(self.path, "rb", compression="infer")
            return opened.open()
        except (OSError, ImportError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None


@functools.lru_cache(maxsize=64)
def list_files(source: str) -> tuple[File, ...]:
    """The files that a source names: paths, folders, globs and URLs, with commas between them.

    Raises DataError where there is none.
    """
    files = [file for word in source.split(",") if word.strip() for file in _list_one(word.strip())]
    if not files:
        raise DataError(
            f"data.source {source!r} names no file: type --data.source with text files, a folder or a glob."
        )
    if not sum(file.size for file in files):
        raise DataError(f"The files of data.source {source!r} are empty: give some that hold text.")
    return tuple(files)


def _list_one(word: str) -> list[File]:
    if "://" in word:
        return _list_url(word)
    if any(mark in word for mark in "*?["):
        paths = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_file())
        if not paths:
            raise DataError(f"No file is named {word!r}: check the pattern given to --data.source.")
    elif Path(word).is_dir():
        found = sorted(path for path in Path(word).rglob("*") if path.is_file())
        paths = _readable([str(path) for path in found])
        if not paths:
            kinds = ", *".join((*KNOWN, *TABLES))
            raise DataError(f"The folder {word} has no text in it: wanted are files called *{kinds}.")
    elif Path(word).is_file():
        paths = [word]
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", word) and not re.match(r"\.\D", File(word, 0).suffix):
        # A `datasets` id; its size is not known.
        return [File(f"datasets://{word}", 1 << 40)]
    else:
        raise DataError(f"There is no {word}: type --data.source with text files, a folder, a glob or a URL.")
    return [File(path, Path(path).stat().st_size) for path in paths]


def _readable(paths: list[str]) -> list[str]:
    """Of a folder's files, those that hold text."""
    return next((some for kinds in (KNOWN, TABLES) if (some := [p for p in paths if File(p, 0).suffix in kinds])), [])


def _list_url(url: str) -> list[File]:
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
        if any(mark in path for mark in "*?["):
            paths = sorted(system.glob(path))
        elif system.isdir(path):
            paths = _readable(sorted(system.find(path)))
        else:
            paths = [path]
        scheme = url.partition("://")[0]
        return [File(f"{scheme}://{str(each).removeprefix(f'{scheme}://')}", int(system.size(each))) for each in paths]
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be read: {error}\nCheck the URL and the credentials of your cloud.") from None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of a source, and which of them are for training."""

    files: tuple[File, ...]
    settings: DataSettings
    validation: float
    """Share that is kept from training: the ends of the files, or each so-manieth document."""

    @property
    def size(self) -> int:
        """Bytes, as far as known."""
        return sum(file.size for file in self.files)

    @property
    def can_seek(self) -> bool:
        """Whether reading can begin anywhere."""
        return not any(
            file.is_compressed or file.suffix in ROWS or file.path.startswith("datasets://") for file in self.files
        )

    @property
    def is_long_text(self) -> bool:
        """Whether there is nothing but text without a separator: its parts are as large as many documents."""
        return self.settings.document_separator is None and not any(
            file.has_lines or file.suffix in ROWS or file.path.startswith("datasets://") for file in self.files
        )

    @property
    def share(self) -> float:
        """The share kept from training, so that it is not larger than it need be."""
        return min(self.validation, MOST_VALIDATION / max(1, self.size))

    # Plain text and JSON lines ------------------------------------------------------------------------

    def span(self, file: File, split: str) -> tuple[int, int]:
        """First byte and end of a split in a file."""
        if not self.share:
            return (0, file.size) if split == "train" else (file.size, file.size)
        cut = self._align(file, int(file.size * (1 - self.share)), exact=True)
        return (0, cut) if split == "train" else (cut, file.size)

    def pieces(self, split: str, piece: int = PIECE) -> list[tuple[File, int, int]]:
        """(file, first byte, end) of every piece, before they are moved to line ends."""
        found = []
        for file in self.files:
            first, end = self.span(file, split)
            found += [(file, at, min(at + piece, end)) for at in range(first, end, piece)]
        return found

    def read_piece(self, split: str, piece: tuple[File, int, int]) -> list[Passage]:
        """The passages of a piece: together, pieces hold every byte once."""
        file, first, last = piece
        start, end = self.span(file, split)
        first = first if first == start else min(end, self._align(file, first))
        last = last if last == end else min(end, self._align(file, last))
        if first >= last:
            return []
        with file.open() as opened:
            opened.seek(first)
            content = opened.read(last - first)
        return self._passages(file, content, first == start, last == end)

    def _passages(self, file: File, content: bytes, starts: bool, ends: bool) -> list[Passage]:
        if file.has_lines:
            return [self._from_json(file, line) for line in content.splitlines() if line.strip()]
        text = _decode(file, content)
        separator = self.settings.document_separator
        if separator is None:
            return [Passage(text, starts, ends)] if text else []
        parts = text.split(_unescape(separator))
        return [Passage(part) for part in parts if part]

    def _from_json(self, file: File, line: bytes) -> Passage:
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{file.path} holds a line that is not JSON: {line[:60]!r}") from None
        return Passage(self._column(file.path, row))

    def _column(self, name: str, row: Any) -> str:
        column = self.settings.text_column
        if not isinstance(row, dict) or column not in row:
            there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{name} has no column {column!r} but {there}: type --data.text_column with one of these.")
        return str(row[column] or "")

    def _align(self, file: File, position: int, exact: bool = False) -> int:
        """The first place at or after `position` where a piece may begin: after a line, or after a separator.

        exact: between two characters is enough, where a file is one document.
        """
        if position <= 0 or position >= file.size:
            return min(max(position, 0), file.size)
        separator = None if file.has_lines else self.settings.document_separator
        mark = _unescape(separator).encode() if separator else b"\n"
        must = file.has_lines or separator is not None
        with file.open() as opened:
            if not exact or must:
                opened.seek(max(0, position - len(mark)))
                at, window = max(0, position - len(mark)), b""
                while chunk := opened.read(1 << 16):
                    window += chunk
                    found = window.find(mark)
                    if found >= 0:
                        return at + found + len(mark)
                    if not must:
                        break
                    keep = len(mark) - 1
                    at, window = at + len(window) - keep, window[len(window) - keep :] if keep else b""
                else:
                    return file.size
            opened.seek(position)
            following = opened.read(4)
        # The bytes 10xxxxxx go on with a character that has begun.
        return position + sum(1 for _ in itertools.takewhile(lambda byte: byte & 0xC0 == 0x80, following))

    # Whatever is read from its start --------------------------------------------------------------------

    def sequence(self, split: str, skip: int = 0) -> Iterator[tuple[int, Passage]]:
        """(number, passage) of a split from passage number `skip` on; the numbers are those of the whole source."""
        every = max(2, round(1 / self.validation)) if self.validation else 0
        most = FIRST_PARTS if self.is_long_text else FIRST_DOCUMENTS
        number = 0
        for file in self.files:
            for passage in self._sequence_of(file, max(0, skip - number)):
                if split != "train" and number >= (most if every else 0):
                    return
                if isinstance(passage, int):
                    number += passage
                    continue
                is_validation = bool(every) and number % every == every - 1 and number < most
                if number >= skip and passage.text and is_validation == (split != "train"):
                    yield number, passage
                number += 1

    def _sequence_of(self, file: File, skip: int) -> Iterator[Passage | int]:
        """The passages of a file; a number stands for so many that were passed over."""
        try:
            yield from self._passages_of(file, skip)
        except UnicodeDecodeError as error:
            raise _not_utf8(file, error) from None
        except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
            raise DataError(f"{file.path} cannot be read: {error}\nIs it whole, and of the kind it is named?") from None

    def _passages_of(self, file: File, skip: int) -> Iterator[Passage | int]:
        if file.path.startswith("datasets://"):
            yield from self._from_datasets(file.path.removeprefix("datasets://"), skip)
        elif file.suffix == ".parquet":
            yield from self._from_parquet(file, skip)
        elif file.suffix in TABLES:
            with file.open() as opened:
                lines = io.TextIOWrapper(opened, "utf-8-sig", newline="")
                yield from (self._from_json_file if file.suffix == ".json" else self._from_table)(file, lines)
        elif file.has_lines:
            with file.open() as opened:
                for line in io.BufferedReader(opened, 1 << 20):  # type: ignore[type-var, arg-type]
                    if line.strip():
                        yield self._from_json(file, line)
        else:
            with file.open() as opened:
                # Each tenth part is for validation: a short text has short parts.
                part = max(256, min(1 << 16, file.size // 20))
                yield from self._from_text(io.TextIOWrapper(opened, "utf-8", newline=""), part)

    def _from_text(self, opened: io.TextIOWrapper, part: int) -> Iterator[Passage]:
        """The passages of text that can only be read on: ends are known once nothing follows."""
        separator, waiting, starts = self.settings.document_separator, "", True
        while chunk := opened.read(1 << 16):
            waiting += chunk
            if separator is not None:
                *whole, waiting = waiting.split(_unescape(separator))
                yield from (Passage(document) for document in whole)
            while separator is None and len(waiting) >= 2 * part:
                line_end = waiting.rfind("\n", 0, part) + 1 or part
                yield Passage(waiting[:line_end], starts, False)
                waiting, starts = waiting[line_end:], False
        yield Passage(waiting, starts or separator is not None)

    def _from_table(self, file: File, lines: io.TextIOWrapper) -> Iterator[Passage]:
        # A cell may be a whole book; its limit is one of the process.
        csv.field_size_limit(1 << 30)
        rows = csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        names = next(rows, [])
        if self.settings.text_column not in names:
            self._column(file.path, dict.fromkeys(names))
        place = names.index(self.settings.text_column)
        for row in rows:
            yield Passage(row[place] if place < len(row) else "")

    def _from_json_file(self, file: File, lines: io.TextIOWrapper) -> Iterator[Passage]:
        """A list of objects or of texts, which is read whole; or JSON lines, for all the file's name."""
        first = next((line for line in lines if line.strip()), "")
        try:
            has_lines = isinstance(json.loads(first), dict)
        except ValueError:
            has_lines = False
        if has_lines:
            yield self._from_json(file, first.encode())
            yield from (self._from_json(file, line.encode()) for line in lines if line.strip())
            return
        try:
            rows = json.loads(first + lines.read())
        except ValueError as error:
            raise DataError(f"{file.path} is not JSON: {error}. Text in it is read where it is called .txt.") from None
        for row in rows if isinstance(rows, list) else [rows]:
            yield Passage(row if isinstance(row, str) else self._column(file.path, row))

    def _from_parquet(self, file: File, skip: int) -> Iterator[Passage | int]:
        import pyarrow.parquet

        with file.open() as opened:
            try:
                table = pyarrow.parquet.ParquetFile(opened)
            except (OSError, ValueError) as error:
                raise DataError(f"{file.path} is no Parquet file: {error}") from None
            names = table.schema_arrow.names
            column = self.settings.text_column
            if column not in names:
                self._column(file.path, dict.fromkeys(names))
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if rows <= skip:
                    skip -= rows
                    yield rows
                    continue
                for batch in table.iter_batches(1024, row_groups=[group], columns=[column]):
                    yield from (Passage(str(value or "")) for value in batch.column(0).to_pylist())

    def _from_datasets(self, name: str, skip: int) -> Iterator[Passage | int]:
        import datasets

        try:
            rows: Any = datasets.load_dataset(name, self.settings.config, split=self.settings.split, streaming=True)
        except Exception as error:
            summary = " ".join(str(error).split())[:200]
            raise DataError(
                f"There is no file {name}, and `datasets` cannot load it: {summary}\n"
                "Type --data.source with files, a folder or a datasets id, and --data.config where that has several."
            ) from None
        if skip:
            yield skip
            rows = rows.skip(skip)
        for row in rows:
            yield Passage(self._column(name, row))

    # All of it, or a sample -------------------------------------------------------------------------------

    def passages(self, split: str) -> Iterator[Passage]:
        """Every passage of a split, in the source's order."""
        if self.can_seek:
            for piece in self.pieces(split):
                yield from self.read_piece(split, piece)
        else:
            for _, passage in self.sequence(split):
                yield passage

    def sample(self, examples: int, most_bytes: int = 4_000_000) -> list[str]:
        """Texts of the training split, spread over the whole of it where it can be entered anywhere."""
        if self.can_seek:
            pieces = self.pieces("train")
            wanted = max(1, min(len(pieces), most_bytes // PIECE))
            chosen = [pieces[math.floor(number * len(pieces) / wanted)] for number in range(wanted)]
            found = (passage for piece in chosen for passage in self.read_piece("train", piece))
        else:
            found = (passage for _, passage in self.sequence("train"))
        texts, size = [], 0
        for passage in found:
            texts.append(passage.text)
            size += len(passage.text)
            if len(texts) >= examples or size >= most_bytes:
                break
        return texts


def _decode(file: File, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None


def _not_utf8(file: File, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{file.path} is not UTF-8 text ({error.reason} near byte {error.start} of a piece).\n"
        "Convert it first, for example with iconv -f latin1 -t utf-8."
    )


def _unescape(separator: str) -> str:
    """On a command line, a line end is written as backslash n."""
    return separator.replace("\\n", "\n").replace("\\t", "\t")
