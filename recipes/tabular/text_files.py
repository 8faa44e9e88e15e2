"""Text in columns: find the encoding, separator and quotation marks of a file, and refuse what is not a table."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np

from recipes.tabular.number_formats import numbers
from runner.errors import DataError

TEXTS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}
"""Endings of text in columns, with the usual separator."""

Quoting = Literal[0, 3]
"""`csv.QUOTE_MINIMAL` or `csv.QUOTE_NONE`."""
SEPARATORS = (";", "\t", ",", "|")

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")

HEAD = 65536
"""Characters, or bytes, of a file that decide its separator and its encoding."""

MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks."""

NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "compressed by gzip",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
"""How files begin that are often called .csv by mistake."""


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A text file whose rows all have the cells that the header names."""

    text: str
    """From the header on, decoded."""
    separator: str
    quoting: Quoting
    """`csv.QUOTE_NONE` where quotation marks are part of the cells."""
    names: list[str]
    """The header, without blanks around the names."""
    records: list[list[str]]
    """Rows of cells as text, without blanks in front of them."""
    extra_separator: bool
    """Whether every row ends with one separator more than the header has."""
    notes: tuple[str, ...]
    """What was guessed about the file."""

    def exact_records(self) -> list[list[str]]:
        """The rows again, with the blanks that stand in front of a cell."""
        if re.search(rf'{re.escape(self.separator)}[ ]+"', self.text) and self.quoting == csv.QUOTE_MINIMAL:
            # A quotation mark behind blanks still quotes.
            return self.records
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.separator, quoting=self.quoting)
        width = len(self.names)
        return [cells[:width] for cells in reader if any(cell.strip() for cell in cells) or len(cells) > 1][1:]


def read_text(path: Path, usual_separator: str) -> TextTable:
    """Read a text file with cells. Raises DataError where its rows are not those of one table."""
    import fsspec
    from fsspec.utils import infer_compression

    if path.suffix.lower() in COMPRESSED and infer_compression(path.name.lower()) is None:
        raise ValueError(f"no package here reads {path.suffix} (for .zst: pip install zstandard)")
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:
            content: bytes = file.read()  # type: ignore[union-attr]
    except Exception as error:  # each compression has errors of its own
        raise ValueError(str(error) or type(error).__name__) from error
    text, notes = _decode(path, content)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}, line {line}: a NUL byte, which no text has. The file is damaged, or binary.\n"
            f"Write it again, or type tr -d '\\000' < {path.name} > new.csv where the rest is right."
        )
    text, first_line, separator = _from_header(text, usual_separator)
    separator = separator or _separator(text, usual_separator)
    quoting, records, lines = _records(path, text, separator, first_line, notes)
    names = [name.strip() for name in records[0]]
    rows, lines = records[1:], lines[1:]
    _check_names(path, names, rows, first_line)
    names, rows, extra = _check_widths(path, names, rows, lines)
    return TextTable(text, separator, quoting, names, rows, extra, tuple(notes))


# Encoding --------------------------------------------------------------------------------------------


def _decode(path: Path, content: bytes) -> tuple[str, list[str]]:
    """The text of a file, and a note where its encoding was guessed. Raises DataError where it is empty or no text."""
    if not content.strip():
        raise DataError(f"{path} is empty; wanted: a line of column names, and rows.")
    for start, what in NOT_TEXT.items():
        if content.startswith(start):
            raise DataError(
                f"{path} is {what}; wanted: text in columns.\nRename it to its own ending, or save it as CSV."
            )
    mark = next((encoding for start, encoding in MARKS.items() if content.startswith(start)), None)
    encoding = mark or _without_mark(path, content)
    try:
        return content.decode(encoding or "utf-8"), []
    except UnicodeError as error:
        if encoding is not None:
            raise DataError(
                f"{path} begins like {encoding.upper()}, and is not: {error}.\nSave it again as UTF-8."
            ) from None
    return _other_encoding(path, content)


def _without_mark(path: Path, content: bytes) -> str | None:
    """UTF-16 without a byte order mark, or None. Raises DataError where the file is binary."""
    head = content[:HEAD]
    if b"\0" not in head:
        return None
    # In UTF-16, every other byte of Latin letters is zero.
    zeros = np.frombuffer(head, np.uint8) == 0
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if zeros[first::2].mean() > 0.5 and not zeros[1 - first :: 2].any():
            return encoding
    if zeros.sum() < head.count(b"\n"):
        return None
    raise DataError(
        f"{path} is binary, no text; wanted: text in columns.\nSave it as CSV, or rename it to its own ending."
    )


def _other_encoding(path: Path, content: bytes) -> tuple[str, list[str]]:
    """A file that is not UTF-8: in a script other than Latin as charset-normalizer finds it, else Windows-1252.

    The measurement behind this choice is in docs/logbook.md.
    """
    from charset_normalizer import from_bytes

    odd = [(place, line) for place, line in enumerate(content.splitlines(), 1) if not line.isascii()]
    utf_8 = [place for place, line in odd if _is(line, "utf-8")]
    advice = f"type iconv -f ENCODING -t UTF-8 {path.name} > new.csv"
    if utf_8 and len(utf_8) >= 0.2 * len(odd):
        other = next(place for place, line in odd if not _is(line, "utf-8"))
        raise DataError(
            f"{path} is in two encodings: line {utf_8[0]} is UTF-8, and line {other} is not, so that equal words would "
            f"differ.\nWrite all lines in UTF-8; for the others, {advice}."
        )
    guess = from_bytes(b"\n".join(line for _, line in odd)[:HEAD]).best()
    found = guess.encoding if guess is not None else None
    for encoding in (found, "cp1252", None):
        if encoding is None or not _is(content, encoding):
            continue
        text = content.decode(encoding)
        letters = [letter for letter in text if not letter.isascii() and letter.isalpha()]
        latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
        if encoding == "cp1252" or latin < len(letters) / 2:
            example = re.search(r"\w*[^\x00-\x7f]\w*", text)
            shown = f", with {example[0]!r} in it" if example is not None else ""
            name = "Windows-1252 (Latin-1)" if encoding == "cp1252" else encoding
            return text, [f"it is not UTF-8, so it was read as {name}{shown}; if that is wrong, {advice}"]
    raise DataError(
        f"{path} is text of an unknown encoding; wanted: UTF-8.\n"
        f"{advice[0].upper()}{advice[1:]} with the encoding that it has."
    )


def _is(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


# Header and separator --------------------------------------------------------------------------------


def _from_header(text: str, usual: str) -> tuple[str, int, str | None]:
    """The text from its header on, the number of that line, and the separator where the file names it."""
    if (found := re.match(r"sep=(.)\r?\n", text)) is not None:
        # Excel writes this line for itself.
        return text[found.end() :], 2, found[1]
    lines = text[:HEAD].splitlines(keepends=True)
    count = 0
    while count < len(lines) and (lines[count].startswith("#") or not lines[count].strip()):
        count += 1
    comments = [place for place in range(count) if lines[place].startswith("#")]
    if not comments or count == len(lines):
        return text, 1, None
    # The last such line is the header where it has the cells of the row below: "#SampleID" is a usual first name.
    separators = (usual, *SEPARATORS)
    last = lines[comments[-1]]
    is_header = any(sep in last and last.count(sep) == lines[count].count(sep) for sep in separators)
    first = comments[-1] if is_header else count
    return text[sum(map(len, lines[:first])) :], first + 1, None


def _separator(text: str, usual: str) -> str:
    """The usual one where it divides the first lines evenly, else the one that does, into the most cells."""
    is_all = len(text) <= HEAD
    # Complete lines: a header may be longer.
    end = len(text) if is_all else text.find("\n", HEAD) + 1 or len(text)
    head = text[:end]
    cells: dict[str, int] = {}
    for separator in (usual, *SEPARATORS):
        records = _loose_records(head, separator)
        records = records if is_all or len(records) == 1 else records[:-1]
        # A row may have one more, empty: a separator behind its last cell.
        even = sum(len(record) - len(records[0]) in ((0,) if record[-1].strip() else (0, 1)) for record in records)
        if records and len(records[0]) > 1 and even >= 0.9 * len(records):
            cells.setdefault(separator, len(records[0]))
    return usual if usual in cells or not cells else max(cells, key=cells.__getitem__)


def _loose_records(text: str, separator: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        return [cells for cells in reader if cells]
    except csv.Error:
        return []


# Rows ------------------------------------------------------------------------------------------------


def _parse(text: str, separator: str, quoting: Quoting, strict: bool) -> tuple[list[list[str]], list[int]]:
    """Records without blank lines, and the line on which each begins, from 1. Raises csv.Error with `strict`."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, quoting=quoting, strict=strict
    )  # type: ignore[call-overload]
    records: list[list[str]] = []
    lines: list[int] = []
    before = 0
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                records.append(cells)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise csv.Error(before + 1, reader.line_num, str(error)) from None
    return records, lines


def _records(
    path: Path, text: str, separator: str, first_line: int, notes: list[str]
) -> tuple[Quoting, list[list[str]], list[int]]:
    """How quotation marks are used, the records, and the file's line of each.

    Raises DataError where a quotation mark takes rows into its cell.
    """
    if '"' not in text:
        records, lines = _parse(text, separator, csv.QUOTE_NONE, strict=False)
        return csv.QUOTE_MINIMAL, records, [line + first_line - 1 for line in lines]
    try:
        records, lines = _parse(text, separator, csv.QUOTE_MINIMAL, strict=True)
    except csv.Error as error:
        begin, end, _ = error.args
        literal, literal_lines = _parse(text, separator, csv.QUOTE_NONE, strict=False)
        if separator == "\t" and len({len(cells) for cells in literal}) == 1:
            notes.append(f"quotation marks are part of the cells, as on line {begin + first_line - 1}")
            return csv.QUOTE_NONE, literal, [line + first_line - 1 for line in literal_lines]
        records, lines = _parse(text, separator, csv.QUOTE_MINIMAL, strict=False)
        crosses = any(later - line != 1 for line, later in zip(lines, lines[1:], strict=False))
        if crosses or len(records) != len(literal) or len({len(cells) for cells in records}) != 1:
            raise _swallowed(path, begin + first_line - 1, end + first_line - 1) from None
        notes.append(f"line {begin + first_line - 1} has text behind a closing quotation mark; the mark was left out")
        return csv.QUOTE_MINIMAL, records, [line + first_line - 1 for line in lines]
    found = _looks_swallowed(text, separator, records, lines)
    if found is not None:
        raise _swallowed(path, *(line + first_line - 1 for line in found))
    return csv.QUOTE_MINIMAL, records, [line + first_line - 1 for line in lines]


def _swallowed(path: Path, begin: int, end: int) -> DataError:
    lines = f"line {begin}" if begin == end else f"lines {begin} to {end}"
    return DataError(
        f"{path}, {lines}: a quotation mark opens a cell and is not closed where the cell ends, so that the lines "
        'behind it become part of the cell.\nClose it, or write "" for a quotation mark inside a quoted cell.'
    )


def _looks_swallowed(text: str, separator: str, records: list[list[str]], lines: list[int]) -> tuple[int, int] | None:
    """First and last line of a cell that seems to hold rows of the table, because a quotation mark is not closed.

    Every line of such a record, cut at the separators, has the cells of a row, with numbers where the others have them.
    """
    width = len(records[0])
    spans = [
        (place, begin, end - 1)
        for place, (begin, end) in enumerate(zip(lines, [*lines[1:], None], strict=True))
        if end is not None and end - begin > 1 and any("\n" in cell or "\r" in cell for cell in records[place])
    ]
    if any("\n" in cell or "\r" in cell for cell in records[-1]):
        spans.append((len(records) - 1, lines[-1], lines[-1] + sum(cell.count("\n") for cell in records[-1])))
    if not spans or width < 2:
        return None
    several = {place for place, _, _ in spans}
    plain = [cells for place, cells in enumerate(records[1:1001], 1) if place not in several and len(cells) == width]
    is_number = [
        bool(plain) and bool(np.isfinite(numbers([cells[place] or "0" for cells in plain], "")).mean() >= 0.95)
        and any(cells[place] for cells in plain)
        for place in range(width)
    ]  # fmt: skip
    every = io.StringIO(text, newline="").readlines()
    suspects = []
    for _, begin, end in spans:
        rows = [line.replace('"', "").split(separator) for line in every[begin - 1 : end] if line.strip()]
        if (
            len(rows) > 1
            and all(len(cells) == width for cells in rows)
            and all(
                not is_number[place] or np.isfinite(numbers([cells[place].strip() or "0"], ""))[0]
                for cells in rows
                for place in range(width)
            )
        ):
            suspects.append((begin, end))
    if suspects and (any(is_number) or (len(suspects) == len(spans) and width > 2)):
        return suspects[0]
    return None


def _check_names(path: Path, names: list[str], rows: list[list[str]], line: int) -> None:
    twice = [name for place, name in enumerate(names) if name and name in names[:place]]
    if twice:
        # pandas renames the second silently.
        raise two_columns(path, twice[0])
    used = max((place for cells in rows[:1000] for place, cell in enumerate(cells) if cell.strip()), default=0) + 1
    unnamed = [place for place, name in enumerate(names[:used], 1) if not name]
    if len(unnamed) > 1:
        raise unnamed_columns(path, unnamed, len(names), f"Line {line}")


def two_columns(path: Path, name: str) -> DataError:
    """The message for two columns of one name."""
    return DataError(f"{path} has two columns of the name {name!r}: rename one.")


def unnamed_columns(path: Path, unnamed: list[int], count: int, where: str) -> DataError:
    """The message for a header with gaps: a title above the table, or merged cells."""
    shown = ", ".join(map(str, unnamed[:5])) + (" ..." if len(unnamed) > 5 else "")
    return DataError(
        f"{path}: {len(unnamed)} of {count} columns have no name ({shown}).\n"
        f"{where} should name every column once: delete titles above it, and write merged names out."
    )


def _check_widths(
    path: Path, names: list[str], rows: list[list[str]], lines: list[int]
) -> tuple[list[str], list[list[str]], bool]:
    """Names and rows of one width, and whether each row ended with one more separator. Raises DataError."""
    width = len(names)
    first = len(rows[0]) if rows else width
    if first > width:
        if first == width + 1 and all(len(cells) == first and not cells[-1].strip() for cells in rows):
            return names, [cells[:width] for cells in rows], True
        if first > width + 1 or rows[0][-1].strip():
            raise DataError(f"{path} has {width} column names, and {first} cells in a row: name every column.")
    for cells, line in zip(rows, lines, strict=True):
        if len(cells) != width:
            what = (
                "Write the cells that are missing, empty between two separators; delete the line where it is no row."
                if len(cells) < width
                else "Check that line: cells that hold the separator need quotes."
            )
            raise DataError(
                f"{path} cannot be read as a table: line {line} has {len(cells)} cells, and the header names {width}.\n"
                f"{what}"
            )
    return names, rows, False
