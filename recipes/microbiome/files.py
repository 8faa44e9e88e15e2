"""Reading a study's files: feature tables, sequences, trees and metadata, also from QIIME 2 artifacts."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from recipes.microbiome.unifrac import Phylogeny, as_rows
from runner.errors import DataError
from runner.parts.installation import pip_line


def from_artifact(path: Path, name: str) -> bytes:
    """A file's bytes: of `data/<name>` inside a QIIME 2 artifact (a zip), else of the file itself."""
    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path.")
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as artifact:
        inside = [each for each in artifact.namelist() if each.split("/")[1:] == ["data", name]]
        if not inside:
            held = [each.partition("/data/")[2] for each in artifact.namelist() if "/data/" in each][:4]
            raise DataError(f"{path} holds {', '.join(held) or 'no data'}; wanted: an artifact with {name}.")
        return artifact.read(inside[0])


def read_table(path: Path) -> tuple[list[str], list[str], Any]:
    """(sample ids, feature ids, (samples, features) reads) of a BIOM table, HDF5 or JSON, or of a `.qza` with one."""
    content = from_artifact(path, "feature-table.biom")
    try:
        # Spares the import where the file could not be one.
        if content[:8] == b"\x89HDF\r\n\x1a\n":
            import biom
            import h5py

            with h5py.File(io.BytesIO(content), "r") as file:
                table = biom.Table.from_hdf5(file)
        elif content[:1] == b"{":
            import biom

            table = biom.Table.from_json(json.loads(content))
        else:
            raise ValueError(f"it begins with {content[:12]!r}")
    except ModuleNotFoundError as error:
        raise DataError(f"Reading {path} needs the package {error.name}: type {pip_line('microbiome')}.") from None
    except Exception as error:
        summary = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path} cannot be read as BIOM: {summary}\nType --data.table with a .biom or .qza file."
        ) from None
    counts = as_rows(table.matrix_data).T.tocsr()
    counts.eliminate_zeros()
    if not counts.nnz:
        raise DataError(f"{path} holds {counts.shape[0]} samples and no reads.")
    if counts.data.min() < 0 or np.any(counts.data % 1):
        raise DataError(f"{path} holds {counts.data.min():g} to {counts.data.max():g}; wanted: counts of reads.")
    return [str(name) for name in table.ids("sample")], [str(name) for name in table.ids("observation")], counts


def read_fasta(path: Path) -> dict[str, str]:
    """Sequences by the first word of their header, of a FASTA file or a `.qza` with one; each name once."""
    found: dict[str, list[str]] = {}
    name = None
    for line in from_artifact(path, "dna-sequences.fasta").decode("utf-8", "replace").splitlines():
        if line.startswith(">"):
            name = (line[1:].split() or [""])[0]
            if name in found:
                raise DataError(f"{path} has the sequence {name[:60]!r} twice; wanted: each ASV once.")
            found[name] = []
        elif name is not None:
            found[name].append(line.strip())
    if not found:
        raise DataError(f"{path} holds no FASTA record; wanted: lines of >id, and sequences below them.")
    return {name: "".join(parts) for name, parts in found.items()}


def read_tree(path: Path) -> Phylogeny:
    """A newick file, or a `.qza` with one."""
    return Phylogeny.from_newick(from_artifact(path, "tree.nwk").decode("utf-8", "replace"), str(path))


def read_metadata(path: Path) -> dict[str, tuple[str, ...]]:
    """Columns of a tab-separated file, the samples' ids first; lines with # (QIIME 2's types, comments) are skipped."""
    if not path.is_file():
        raise DataError(f"There is no file {path}: check the path given to --data.metadata.")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = list(csv.reader(io.StringIO(text), delimiter="\t"))
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    rows = [row for row in rows if row and row[0] and not row[0].startswith("#")]
    if len(header) < 2 or not rows:
        raise DataError(
            f"{path} holds {len(rows)} samples and {len(header)} columns; wanted: tab-separated, ids first."
        )
    ids = [row[0] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"{path} has the sample {twice!r} twice; wanted: each sample in one row.")
    return {
        column.strip(): tuple(row[place].strip() if place < len(row) else "" for row in rows)
        for place, column in enumerate(header)
    }
