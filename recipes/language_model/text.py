"""The documents of a source, divided into training and validation text.

Reading can start anywhere in plain text and JSON lines: they are cut into pieces of bytes at line ends. Everything else
is read from its start, document after document.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import itertools
import lzma
import math
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from recipes.language_model import rows
from recipes.language_model.files import ROWS, File, encoding_of
from runner.errors import DataError

if TYPE_CHECKING:
    from recipes.language_model.settings import DataSettings

PIECE = 1 << 18
"""Bytes of plain text that are read at a time."""
MOST_VALIDATION = 1_000_000
"""The most validation text that is taken from the training data, in bytes."""
FIRST_DOCUMENTS, FIRST_PARTS = 20_000, 160
"""Of a source that is read from its start, validation takes its share of the first 20,000 rows, or of the first 160
parts (64 kB each) of a text. So validation does not need to read the rest."""
FIRST_ROWS = 20
"""Rows of each file that are looked at before training."""
MOST_CHECKED = {True: 8, False: 5000}
"""Files that are looked at before training: of those at URLs, and of those on this machine."""


@dataclasses.dataclass(frozen=True)
class Passage:
    """A document, or a part of one that is too long to read at once."""

    text: str
    starts: bool = True
    """Whether the document starts here."""
    ends: bool = True
    """Whether the document ends here."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of a source, and which of them are for training."""

    files: tuple[File, ...]
    settings: DataSettings
    validation: float
    """Share that is held out: the end of each file, or, of 0.1, every tenth document."""

    @property
    def size(self) -> int:
        """Bytes of the files, where their sizes are known."""
        return sum(file.size for file in self.files)

    @property
    def can_seek(self) -> bool:
        """Whether reading can start anywhere."""
        return not any(file.is_compressed or file.suffix in ROWS or file.is_dataset for file in self.files)

    @property
    def is_long_text(self) -> bool:
        """Whether the source is plain text without a separator: its parts are as long as many documents."""
        return self.settings.document_separator is None and not any(_has_rows(file) for file in self.files)

    @property
    def share(self) -> float:
        """The share that is held out for validation, reduced where it would exceed MOST_VALIDATION."""
        return min(self.validation, MOST_VALIDATION / max(1, self.size))

    def check(self) -> None:
        """Look at the beginning of every file. Raises DataError where one holds no text, or no text in its column."""
        checked = {True: 0, False: 0}
        for file in self.files:
            if not file.size or file.is_dataset or checked[file.is_remote] >= MOST_CHECKED[file.is_remote]:
                continue
            checked[file.is_remote] += 1
            with _named(file):
                file.check_head()
                # A list in JSON is read into memory as one: a large one is looked at when it is used.
                if _has_rows(file) and (file.suffix != ".json" or file.size < 1 << 24):
                    with contextlib.closing(rows.read_rows(file, self.settings)) as first:
                        list(itertools.islice(first, FIRST_ROWS))

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
        with _named(file, first), file.open() as opened:
            opened.seek(first)
            content = opened.read(last - first)
            return self._passages(file, content, first == start, last == end)

    def _passages(self, file: File, content: bytes, starts: bool, ends: bool) -> list[Passage]:
        if file.has_lines:
            lines = (line for line in content.splitlines() if line.strip())
            found = (rows.document_of_line(file, line, self.settings) for line in lines)
            return [Passage(text) for text in found if text is not None]
        text = (content.removeprefix(codecs.BOM_UTF8) if starts else content).decode("utf-8")
        separator = self.settings.document_separator
        if separator is None:
            return [Passage(text, starts, ends)] if text else []
        parts = text.split(_unescape(separator))
        return [Passage(part) for part in parts if part]

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
        """The passages of a file. A number stands for that many that were skipped."""
        with _named(file):
            if _has_rows(file):
                for row in rows.read_rows(file, self.settings, skip):
                    yield row if isinstance(row, int) else Passage(row)
                return
            with file.open() as opened:
                # Every tenth part is for validation, so a short text needs short parts.
                part = max(256, min(1 << 16, file.size // 20))
                yield from self._from_text(io.TextIOWrapper(opened, "utf-8-sig", newline=""), part)

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
            wanted = min(len(pieces), max(1, most_bytes // PIECE))
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


def _has_rows(file: File) -> bool:
    """Whether the file holds one document per row."""
    return file.has_lines or file.suffix in ROWS or file.is_dataset


@contextlib.contextmanager
def _named(file: File, first: int | None = None) -> Iterator[None]:
    """Raise what goes wrong while a file is read as a DataError that names the file.

    `first`: the byte where reading started, where that is known.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error, first) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise DataError(f"{file.path} cannot be read: {error}\nIs it whole, and of the kind it is named?") from None


def _not_utf8(file: File, error: UnicodeDecodeError, first: int | None) -> DataError:
    text = error.object.decode("utf-8", "replace")
    wrong, beyond_ascii = text.count("\ufffd"), sum(character > "\x7f" for character in text)
    if wrong > 0.1 * beyond_ascii:
        return file.wrong_encoding(encoding_of(error.object))
    where = "" if first is None else f" near byte {first + error.start:,}"
    return DataError(
        f"{file.path} is not UTF-8 text: it has damaged characters{where}.\n"
        f"Remove them, for example: iconv -c -f utf-8 -t utf-8 {file.name} > clean-{file.name}"
    )


def _unescape(separator: str) -> str:
    """On a command line, a line end is written as backslash n."""
    return separator.replace("\\n", "\n").replace("\\t", "\t")
