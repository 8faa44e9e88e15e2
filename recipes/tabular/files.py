"""Reading one table from a file: text with any separator and encoding, workbooks, Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.tabular.number_formats import number_evidence, numbers
from recipes.tabular.table import as_text, came_as_text
from runner.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TEXTS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}
"""Endings of text in columns, with the usual separator."""


WORKBOOKS = {".xlsx": "openpyxl", ".xls": "xlrd"}
"""Endings of Excel's files, with the package that reads them."""


COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


HEAD = 65536
"""Bytes of a file that are looked at first."""


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


def read_frame(path: Path, unread: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV, TSV, parquet or Excel file; `attrs["notes"]` tells what was guessed. Raises DataError where it is none.

    In a text file, the columns `unread` are not taken for numbers yet: "1.234" may be 1234 there.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path.")
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    ending = endings[-1] if endings else ""
    notes: list[str] = []
    try:
        if ending in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            if not isinstance(frame.index, pd.RangeIndex):
                # An index with a name is a column like others.
                frame = frame.reset_index(drop=frame.index.names == [None])
        elif ending in WORKBOOKS:
            frame = _workbook(path, WORKBOOKS[ending], notes)
        elif ending in TEXTS:
            frame = _text(path, TEXTS[ending], set(unread), notes)
        else:
            raise DataError(
                f"{path} has {f'the unknown ending {ending}' if ending else 'no ending'}; wanted: "
                f"{', '.join((*TEXTS, '.parquet', *WORKBOOKS))}.\n"
                "Rename it where it is text in columns; save it as CSV or parquet where it is not."
            )
    except (ValueError, OSError, EOFError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        hint = (
            "Check that line: cells that hold the separator need quotes."
            if "Expected" in lines[0]
            else "Check the file."
        )
        raise DataError(f"{path} cannot be read as a table: {lines[0]}\n{hint}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise _twice(path, twice[0])
    if not len(frame):
        raise DataError(
            f"{path} has a header ({', '.join(frame.columns[:6])}) and no rows.\n"
            "Check that it is the file you meant, and that it was written to its end."
        )
    frame.attrs["notes"] = tuple(f"{path}: {line}" for line in notes)
    return frame


def _twice(path: Path, name: str) -> DataError:
    return DataError(f"{path} has two columns of the name {name!r}: rename one.")


def _workbook(path: Path, package: str, notes: list[str]) -> pd.DataFrame:
    """The first sheet, where the package that reads it is there."""
    import importlib.util

    import pandas as pd

    if importlib.util.find_spec(package) is None:
        raise DataError(
            f"{path} is a workbook, and the package {package}, which reads it, is not here.\n"
            f"Type pip install {package}, or save the sheet as CSV."
        )
    try:
        with pd.ExcelFile(path) as book:
            sheets = book.sheet_names
            frame = pd.read_excel(book, sheet_name=sheets[0])
    except Exception as error:  # these packages raise what they like
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path} cannot be read as a workbook: {lines[0]}\nSave the sheet as CSV.") from error
    if len(sheets) > 1:
        notes.append(f"the first of its {len(sheets)} sheets was read, {sheets[0]}")
    return frame


def _text(path: Path, usual: str, unread: set[str], notes: list[str]) -> pd.DataFrame:
    """Columns as text, in UTF-8, UTF-16 or Windows-1252, with the separator that divides the first lines evenly."""
    import fsspec

    with fsspec.open(str(path), "rb", compression="infer") as file:
        # Whole lines: a header may be longer.
        head: bytes = file.read(HEAD) + file.readline()  # type: ignore[union-attr]
    encodings = _encodings(path, head)
    for encoding in encodings:
        try:
            frame, example = _decoded(path, head, encoding, usual, unread)
        except UnicodeError:
            continue
        if encoding == "cp1252":
            notes.append(
                f"it is not UTF-8, so it was read as Windows-1252 (Latin-1){example}; if that is wrong, type "
                f"iconv -f ENCODING -t UTF-8 {path.name} > new.csv"
            )
        return frame
    raise DataError(
        f"{path} is text of an unknown encoding; wanted: UTF-8 ({', '.join(encodings)} failed).\n"
        f"Type iconv -f ENCODING -t UTF-8 {path.name} > new.csv with the encoding that it has."
    )


def _encodings(path: Path, head: bytes) -> tuple[str, ...]:
    """What to try. Raises DataError for what is empty or no text."""
    if not head.strip():
        raise DataError(f"{path} is empty; wanted: a line of column names, and rows.")
    for start, what in NOT_TEXT.items():
        if head.startswith(start):
            raise DataError(
                f"{path} is {what}; wanted: text in columns.\nRename it to its own ending, or save it as CSV."
            )
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return (encoding,)
    if b"\0" in head:
        # Of Latin letters in UTF-16, every other byte is zero.
        zeros = np.frombuffer(head, np.uint8) == 0
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if zeros[first::2].mean() > 0.5 and not zeros[1 - first :: 2].any():
                return (encoding,)
        raise DataError(
            f"{path} is binary, no text; wanted: text in columns.\nSave it as CSV, or rename it to its own ending."
        )
    return ("utf-8", "cp1252")


def _decoded(path: Path, head: bytes, encoding: str, usual: str, unread: set[str]) -> tuple[pd.DataFrame, str]:
    """The table in an encoding, and the first word of it that is not ASCII. Raises UnicodeError where it is another."""
    import re

    import pandas as pd

    is_whole = len(head) < HEAD
    text = head.decode(encoding, errors="strict" if is_whole else "ignore")
    separator, skipped = usual, 0
    if (found := re.match(r"sep=(.)\r?\n", text)) is not None:
        # What Excel writes in front of the header for itself.
        separator, skipped = found[1], 1
        text = text[found.end() :]
    else:
        separator = _separator(text, usual, is_whole)
    records = _records(text, separator)
    names = records[0] if records else []
    twice = [name for place, name in enumerate(names) if name.strip() and name in names[:place]]
    if twice:
        # pandas renames the second silently.
        raise _twice(path, twice[0])
    options: dict[str, Any] = {"sep": separator, "encoding": encoding, "skiprows": skipped, "skipinitialspace": True}
    kinds = {name: str for name in names if name.strip() in unread}
    frame = pd.read_csv(path, low_memory=False, dtype=kinds, **options)  # type: ignore[arg-type]
    # pandas takes the first cells of rows wider than the header for an index, whose type does not tell.
    width = next((len(cells) for cells in records[1:] if len(cells) > 1 or cells[0].strip()), 0)
    if width > len(names):
        if width > len(names) + 1 or not frame.iloc[:, -1].isna().all():
            raise DataError(f"{path} has {len(names)} column names, and {width} cells in a row: name every column.")
        # A separator behind the last cell of each row.
        options["index_col"] = False
        frame = pd.read_csv(path, low_memory=False, dtype=kinds, **options)  # type: ignore[arg-type]
    words = [column for column in frame if came_as_text(frame[column])]
    fractions = [
        column for column in frame if pd.api.types.is_float_dtype(frame[column].dtype) and np.any(frame[column] % 1 > 0)
    ]
    if fractions and any(_has_decimal_commas(frame[column]) for column in words):
        # Beside decimal commas, 1.234 may be 1234: the column is looked at as text.
        again = pd.read_csv(path, dtype=str, **options)
        frame[fractions] = again[fractions]
    example = re.search(r"\w*[^\x00-\x7f]\w*", text)
    return frame, f", with {example[0]!r} in it" if example is not None else ""


def _has_decimal_commas(series: pd.Series) -> bool:
    distinct = as_text(series.iloc[:: max(1, len(series) // 2000)]).dropna().unique().tolist()
    evidence = number_evidence(distinct)
    return evidence.first > evidence.second and bool(np.isfinite(numbers(distinct, "decimal_comma")).mean() >= 0.95)


def _records(text: str, separator: str) -> list[list[str]]:
    try:
        return [
            cells
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            if cells
        ]
    except csv.Error:
        return []


def _separator(text: str, usual: str, is_whole: bool) -> str:
    """The usual one where it divides the first lines evenly, else the one that does, into the most cells."""
    cells: dict[str, int] = {}
    for separator in (usual, ";", "\t", ",", "|"):
        records = _records(text, separator)
        records = records if is_whole or len(records) == 1 else records[:-1]
        # A row may have one more, empty: a separator behind its last cell.
        even = sum(len(record) - len(records[0]) in ((0,) if record[-1].strip() else (0, 1)) for record in records)
        if records and len(records[0]) > 1 and even >= 0.9 * len(records):
            cells.setdefault(separator, len(records[0]))
    return usual if usual in cells or not cells else max(cells, key=cells.__getitem__)
