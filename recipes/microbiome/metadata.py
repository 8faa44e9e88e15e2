"""Metadata of samples as QIIME 2 writes them: text with tabs, comments, and types of columns.

Source: https://docs.qiime2.org, "Metadata in QIIME 2".
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from recipes.microbiome.files import first_repeated, read_text
from runner.errors import DataError

# Names of the column of ids that may begin with #, in small letters, without blanks, hyphens and underscores.
ID_NAMES = {"id", "sampleid", "featureid", "otuid", "samplename"}


class Metadata(NamedTuple):
    """Columns of text, and what the file declares of them."""

    columns: Mapping[str, tuple[str, ...]]
    """By name, one cell per sample without the blanks around it; the first column holds the ids."""
    types: Mapping[str, str]
    """`numeric` or `categorical`, of the columns for which the file has it in `#q2:types`."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The first column."""
        return next(iter(self.columns.values()))


def read_metadata(path: Path) -> Metadata:
    """Read a metadata file; lines that begin with # and empty lines are left out, wherever they are.

    Raises DataError, which names the line or column, for what would change the meaning of cells: names or ids that
    occur twice, quotation marks that are not closed, cells beyond the header, another encoding.
    """
    header: list[str] | None = None
    types: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    for number, row in _rows(path):
        first = row[0]
        if header is None and (not first.startswith("#") or _is_id_name(row)):
            header = _checked_header(path, number, row)
        elif first.lower() == "#q2:types":
            types = row
        elif header is not None and not first.startswith("#"):
            _check_row(path, number, row, header)
            rows.append((number, [*row, *[""] * (len(header) - len(row))]))
    header = header or []
    if len(header) < 2 or not rows:
        commas = " Its columns have commas between them: save it with tabs." if header and "," in header[0] else ""
        raise DataError(
            f"{path} holds {len(rows)} samples and {len(header)} columns; wanted: tab-separated, ids first.{commas}"
        )
    twice = first_repeated([row[0] for _, row in rows])
    if twice is not None:
        places = [str(number) for number, row in rows if row[0] == twice]
        raise DataError(
            f"{path} has the sample {twice!r} twice, in lines {', '.join(places[:4])}; wanted: each sample in one row."
        )
    columns = {name: tuple(row[place] for _, row in rows) for place, name in enumerate(header) if name or not place}
    return Metadata(columns, _checked_types(path, header, types))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows with a cell that is not blank, the blanks around cells removed, and the lines where they begin."""
    found: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(read_text(path, "metadata.tsv"), newline=""), "excel-tab", strict=True)
    line = 0
    try:
        for row in reader:
            start, line = line + 1, reader.line_num
            swallowed = next((cell for cell in row if "\n" in cell and "\t" in cell), None)
            if swallowed is not None:
                raise DataError(
                    f"A quotation mark that opens in line {start} of {path} closes in line {line}, so that one cell "
                    f"would hold the rows between.\nRemove the mark before {swallowed[:20].strip()!r}, or close it."
                )
            cells = [cell.strip() for cell in row]
            if any(cells):
                found.append((start, cells))
    except csv.Error as error:
        raise DataError(
            f"The quotation marks of {path} do not pair from line {line + 1} on ({error}).\n"
            'Remove the single mark, or write the cell as "..." with every mark inside doubled.'
        ) from None
    return found


def _is_id_name(row: list[str]) -> bool:
    name = row[0].lstrip("#").lower()
    return row[0].startswith("#") and len(row) > 1 and name.translate({32: "", 45: "", 95: ""}) in ID_NAMES


def _checked_header(path: Path, number: int, row: list[str]) -> list[str]:
    while len(row) > 1 and not row[-1]:
        row = row[:-1]
    twice = first_repeated(row)
    if twice:
        raise DataError(
            f"{path} has two columns called {twice!r}; wanted: each name once. Rename one of them in line {number}."
        )
    return row


def _check_row(path: Path, number: int, row: list[str], header: list[str]) -> None:
    if any(row[len(header) :]):
        raise DataError(
            f"Line {number} of {path} has {len(row)} cells, the header {len(header)}: {row[-1][:30]!r} has no column.\n"
            "Remove the tab too many, or name the column."
        )
    if not row[0]:
        raise DataError(f"Line {number} of {path} has no sample id in its first column.")
    if row[: len(header)] == header:
        raise DataError(f"Line {number} of {path} repeats the header: remove it.")
    for place, (name, cell) in enumerate(zip(header, row, strict=False)):
        if not name and place and cell:
            raise DataError(f"Column {place + 1} of {path} has no name, and holds {cell[:30]!r} in line {number}.")


def _checked_types(path: Path, header: list[str], declared: list[str]) -> dict[str, str]:
    types: dict[str, str] = {}
    for name, given in zip(header[1:], declared[1:], strict=False):
        if given.lower() not in ("", "numeric", "categorical"):
            raise DataError(
                f"{path} declares {given!r} as the type of {name!r} in #q2:types; wanted: numeric or categorical."
            )
        if given:
            types[name] = given.lower()
    return types


def explain_mismatch(table_ids: list[str], metadata: Metadata) -> str:
    """Why ids of a table that are not in the metadata may be missing there: what looks almost alike, or nothing."""
    known = {_bare(name): name for name in metadata.ids}
    for name in table_ids:
        other = known.get(_bare(name))
        if other is not None:
            return f" The table has {name!r}, the metadata {other!r}: write them alike."
    wanted = set(table_ids)
    for column, cells in list(metadata.columns.items())[1:]:
        if wanted.intersection(cells):
            return f" The column {column!r} holds ids of the table: make it the first column."
    return ""


def _bare(name: str) -> str:
    """An id without what spreadsheets and scripts change: case, signs, and zeros that do not change a number."""
    name = re.sub(r"(?<=\d)\.0*$|(?<=\.\d)0+$", "", name.lower())
    return re.sub(r"(?<!\d)0+(?=\d)", "", "".join(sign for sign in name if sign.isalnum()))
