"""Feature tables: BIOM in HDF5 or JSON, and text with tabs, also inside QIIME 2 artifacts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recipes.microbiome.files import first_repeated, read_bytes, read_text
from recipes.microbiome.unifrac import SparseRows, as_rows
from runner.errors import DataError, UserError
from runner.parts.installation import require

if TYPE_CHECKING:
    import biom

# Columns that programs append to the samples of a table in text.
DESCRIPTIONS = {"taxonomy", "taxon", "consensus lineage", "consensuslineage", "confidence", "sequence"}


class Table(NamedTuple):
    """A feature table as it came."""

    sample_ids: list[str]
    feature_ids: list[str]
    counts: SparseRows
    """(samples, features): reads."""


def read_table(path: Path) -> Table:
    """Read a BIOM table, HDF5 or JSON, or a text table with ASVs in rows; each also as `.gz`, or inside a `.qza`.

    Raises DataError for another format, for names that occur twice, and for values that are not counts of reads.
    """
    content = read_bytes(path, "feature-table.biom")
    try:
        if content[:8] == b"\x89HDF\r\n\x1a\n":
            table = _from_hdf5(content)
        elif content.lstrip()[:1] == b"{":
            table = _from_json(content)
        elif b"\t" in content[:100_000] and b"\0" not in content[:1000]:
            table = _from_text(path)
        else:
            raise ValueError(f"it begins with {content[:12]!r}")
    except UserError:
        raise
    except Exception as error:
        summary = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path} cannot be read as BIOM: {summary}\n"
            "Type --data.table with a .biom or .qza file, or a text table with tabs and ASVs in rows."
        ) from None
    for kind, names in (("sample", table.sample_ids), ("ASV", table.feature_ids)):
        twice = first_repeated(names)
        if twice is not None:
            raise DataError(f"{path} has the {kind} {twice[:60]!r} twice; wanted: each {kind} once.")
    table.counts.eliminate_zeros()
    _check_counts(path, table.counts)
    return table


def _from_hdf5(content: bytes) -> Table:
    require(("biom", "h5py"), "Reading a BIOM table", "microbiome")
    import biom
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        return _of_biom(biom.Table.from_hdf5(file))


def _from_json(content: bytes) -> Table:
    require(("biom",), "Reading a BIOM table", "microbiome")
    import biom

    return _of_biom(biom.Table.from_json(json.loads(content)))


def _of_biom(table: biom.Table) -> Table:
    names = [[str(name) for name in table.ids(axis)] for axis in ("sample", "observation")]
    return Table(names[0], names[1], as_rows(as_rows(table.matrix_data).T))


def _from_text(path: Path) -> Table:
    """A table in text: comment lines, the samples' names (`#OTU ID` first), and a row for each ASV."""
    lines = [(number, line) for number, line in enumerate(read_text(path, "").split("\n"), 1) if line.strip()]
    comments = 0
    while comments < len(lines) and lines[comments][1].startswith("#"):
        comments += 1
    # The names stand in the last line with #, where it has columns, else in the first line without.
    start = comments - 1 if comments and "\t" in lines[comments - 1][1] else comments
    header, rows = _cells(lines[start][1]), [(number, _cells(line)) for number, line in lines[start + 1 :]]
    if not rows:
        raise DataError(f"{path} holds no ASV below its header.")
    # A tab at the end of each line, as some programs write it, makes a column without name and content.
    while (
        len(header) > 1
        and not header[-1].strip()
        and all(not "".join(row[len(header) - 1 :]).strip() for _, row in rows)
    ):
        header, rows = header[:-1], [(number, row[: len(header) - 1]) for number, row in rows]
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"Line {number} of {path} has {len(row)} columns, its header {len(header)}; wanted: as many. A header "
                "that R wrote lacks a name: write.table(..., col.names = NA)."
            )
    columns = [place for place in range(1, len(header)) if header[place].strip().lower() not in DESCRIPTIONS]
    counts = np.zeros((len(rows), len(columns)))
    for line, (number, row) in enumerate(rows):
        for column, place in enumerate(columns):
            counts[line, column] = _number(row[place], path, number, header[place])
    features = [row[0] for _, row in rows]
    return Table([header[place] for place in columns], features, as_rows(counts.T))


def _cells(line: str) -> list[str]:
    return [cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell for cell in line.split("\t")]


def _number(cell: str, path: Path, line: int, column: str) -> float:
    try:
        if "_" not in cell:
            return float(cell)
    except ValueError:
        pass
    raise DataError(
        f"Line {line} of {path} has {cell.strip()[:30]!r} in the column {column[:40]!r}; wanted: a count of reads."
    )


def _check_counts(path: Path, counts: SparseRows) -> None:
    if not counts.nnz:
        raise DataError(f"{path} holds {counts.shape[0]} samples and no reads.")
    low, high = counts.data.min(), counts.data.max()
    if low < 0 or not np.isfinite(counts.data).all():
        raise DataError(f"{path} holds {low:g} to {high:g}; wanted: counts of reads, none negative or missing.")
    if np.any(counts.data % 1):
        raise DataError(
            f"{path} holds {low:g} to {high:g}, such as shares have; wanted: counts of reads.\n"
            "Type --data.table with the table before it was turned into relative abundances."
        )
