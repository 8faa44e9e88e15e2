"""A study from its files: reads, sequences, tree and metadata, checked against each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipes.microbiome.files import read_text
from recipes.microbiome.metadata import Metadata, explain_mismatch, read_metadata
from recipes.microbiome.sequences import cleaned, read_fasta, tokenize
from recipes.microbiome.tables import Table, read_table
from recipes.microbiome.target import describe_codes, is_missing, read_target
from recipes.microbiome.unifrac import Phylogeny, SparseRows, as_rows
from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recipes.microbiome.settings import DataSettings

# A name of this many letters and more, all of nucleotides, is a sequence.
SHORTEST_SEQUENCE = 20
MOST_LETTERS = 1 << 24
"""Of studies with more letters than this, each micro-batch makes its tokens anew: a table of all would be too large."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Samples and their ASVs, checked: every ASV has letters and, where there is a tree, a tip."""

    sample_ids: tuple[str, ...]
    sequences: tuple[str, ...]
    """The ASVs, in upper case, of A, C, G and T alone."""
    counts: SparseRows
    """(samples, ASVs): reads; every sample has some."""
    phylogeny: Phylogeny | None
    """Its tips are the ASVs, in order."""
    metadata: Mapping[str, tuple[str, ...]]
    """Columns of text, one cell per sample."""
    notes: tuple[str, ...] = ()
    """What was left out, and how much of it."""
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """`numeric` or `categorical`, of the columns whose type the metadata declare."""

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """(ASVs,): letters."""
        return np.array([len(sequence) for sequence in self.sequences])

    @functools.cached_property
    def tokens(self) -> np.ndarray | None:
        """(ASVs, longest) of tokens; None where that is too much."""
        longest = int(self.lengths.max(initial=0))
        return tokenize(self.sequences, longest) if longest * len(self.sequences) <= MOST_LETTERS else None

    def tokens_of(self, asvs: np.ndarray, max_bp: int) -> np.ndarray:
        """`tokenize` of these ASVs."""
        if self.tokens is None:
            return tokenize([self.sequences[asv] for asv in asvs], max_bp)
        longest = min(max_bp, int(self.lengths[asvs].max(initial=0)))
        return self.tokens[asvs, :longest]


def read_study(settings: DataSettings) -> Study:
    """Read what the settings name, or make the embedded study. Raises DataError and ConfigError.

    A study is read again only when one of its files has changed.
    """
    files = (settings.table, settings.sequences, settings.tree, settings.metadata)
    stats = [Path(file).stat() for file in files if file is not None and Path(file).is_file()]
    return _read_study(settings, tuple((each.st_size, each.st_mtime_ns) for each in stats))


@functools.lru_cache(maxsize=4)
def _read_study(settings: DataSettings, _stamps: tuple[tuple[int, int], ...]) -> Study:
    if settings.table is not None:
        return open_study(settings)
    given = [name for name in ("sequences", "tree", "metadata") if getattr(settings, name) is not None]
    if given:
        raise ConfigError(
            f"--data.{given[0]} came without a table: type --data.table table.biom as well, or leave it out for "
            "the embedded study."
        )
    return _embedded(settings)


def _embedded(settings: DataSettings) -> Study:
    from recipes.microbiome import demo

    made = demo.make(settings.demo_seed, settings.demo_samples, settings.demo_asvs)
    metadata = {
        "target": tuple(f"{value:.3f}" for value in made.target),
        "half": tuple("high" if value > 0.5 else "low" for value in made.gradient),
        "site": tuple(made.sites),
    }
    names = tuple(f"sample-{number:04}" for number in range(len(made.target)))
    for column in (settings.target, settings.group):
        _check_column(metadata, column, "the embedded study")
    return Study(names, tuple(made.sequences), made.counts, made.phylogeny, metadata)


def open_study(settings: DataSettings) -> Study:
    """Read the files of a study, and leave out what cannot be used: it is counted in `Study.notes`.

    Files are `.biom` (HDF5 or JSON) or text with tabs, `.fasta`, `.nwk` and `.tsv`, compressed with gzip or not, or
    QIIME 2 artifacts (`.qza`) that hold them. A sample stays if it has enough reads of usable ASVs, a target and a
    group, where these are asked for. Raises DataError where nothing is left.
    """
    for column in (settings.target, settings.group):
        if column is not None and settings.metadata is None:
            raise ConfigError(f"Column {column!r} was asked for without metadata: type --data.metadata metadata.tsv.")
    table = read_table(Path(settings.table or ""))
    metadata = read_metadata(Path(settings.metadata)) if settings.metadata is not None else None
    fasta = read_fasta(Path(settings.sequences)) if settings.sequences is not None else None
    _check_orientation(table, settings, metadata, fasta)
    notes: list[str] = []
    letters, chosen = _usable_asvs(table, settings, fasta, notes)
    phylogeny, chosen = _on_tree(table, settings, chosen, notes)
    place = {name: number for number, name in enumerate(table.feature_ids)}
    counts = table.counts[:, [place[name] for name in chosen]].tocsr()

    rows = np.arange(len(table.sample_ids))
    line_of: dict[str, int] = {}
    if metadata is not None:
        line_of = {name: number for number, name in enumerate(metadata.ids)}
        rows = _described_rows(table, metadata, line_of, settings, notes)
    rows = _with_reads(counts, rows, max(settings.min_reads, settings.rarefy_depth, 1), notes)
    counts = as_rows(counts[rows])
    # ASVs that only left-out samples had are no part of the study.
    used = np.flatnonzero(np.asarray((counts > 0).sum(0)).reshape(-1))
    counts = as_rows(counts[:, used])
    chosen = [chosen[number] for number in used]
    if phylogeny is not None:
        if len(chosen) < 2:
            raise DataError(
                f"One ASV of {settings.table} is left, so every UniFrac distance is 0; wanted: two or more."
            )
        phylogeny = phylogeny.rows_of(chosen)
    names = tuple(table.sample_ids[row] for row in rows)
    columns: dict[str, tuple[str, ...]] = {}
    if metadata is not None:
        order = [line_of[name.strip()] for name in names]
        columns = {column: tuple(cells[number] for number in order) for column, cells in metadata.columns.items()}
    if settings.target is not None and metadata is not None and settings.task == "auto":
        codes = describe_codes(columns[settings.target], settings.target)
        notes += [codes] if codes and settings.target not in metadata.types else []
    types = metadata.types if metadata is not None else {}
    return Study(names, tuple(letters[name] for name in chosen), counts, phylogeny, columns, tuple(notes), types)


def _check_orientation(
    table: Table, settings: DataSettings, metadata: Metadata | None, fasta: Mapping[str, str] | None
) -> None:
    """Raise DataError for a table whose samples are ASVs and whose ASVs are samples."""
    described = set(metadata.ids) if metadata is not None else set()

    def are_asvs(names: Sequence[str]) -> bool:
        known = fasta is not None and any(name in fasta for name in names)
        return known or all(len(name) >= SHORTEST_SEQUENCE and not set(name.upper()) - set("ACGTUN") for name in names)

    def are_samples(names: Sequence[str]) -> bool:
        return any(name.strip() in described for name in names)

    as_it_is = are_asvs(table.feature_ids) or are_samples(table.sample_ids)
    if not as_it_is and (are_asvs(table.sample_ids) or are_samples(table.feature_ids)):
        raise DataError(
            f"{settings.table} has samples and ASVs exchanged: its samples are called {table.sample_ids[0][:24]!r}, "
            f"its ASVs {table.feature_ids[0][:24]!r}.\nTranspose it, so that ASVs are the observations (in text: rows)."
        )


def _usable_asvs(
    table: Table, settings: DataSettings, fasta: Mapping[str, str] | None, notes: list[str]
) -> tuple[dict[str, str], list[str]]:
    """The sequences by ASV, cleaned, and the ASVs that have one of four letters."""
    letters = fasta if fasta is not None else {name: name for name in table.feature_ids}
    named = [name for name in table.feature_ids if name in letters]
    if not named:
        raise DataError(
            f"None of the {len(table.feature_ids)} ASVs of {settings.table} is in {settings.sequences}: the table has "
            f"ids like {table.feature_ids[0][:32]!r}, the sequences like {next(iter(letters))[:32]!r}.\n"
            "Type --data.sequences with this table's sequences."
        )
    _note_asvs(notes, table, set(table.feature_ids) - set(named), f"have no sequence in {settings.sequences}")
    clean = {name: cleaned(letters[name].strip()) for name in named}
    gaps = sum("-" in letters[name] or "." in letters[name] for name in named) if fasta is not None else 0
    if gaps:
        notes.append(f"{gaps} of {len(named)} sequences in {settings.sequences} are aligned: their gaps are removed.")
    empty = {name for name in named if not clean[name]}
    _note_asvs(notes, table, empty, "have an empty sequence")
    chosen = [name for name in named if clean[name] and not set(clean[name]) - set("ACGT")]
    if not chosen:
        raise DataError(
            f"All {len(named)} ASVs of {settings.table} have other letters than A, C, G and T, like "
            f"{letters[named[0]][:32]!r};\n"
            "wanted: sequences as feature ids, or their file: type --data.sequences rep-seqs.fasta."
        )
    _note_asvs(notes, table, set(named) - empty - set(chosen), "have letters other than A, C, G and T", len(named))
    return clean, chosen


def read_tree(settings: DataSettings) -> Phylogeny:
    """The tree that the settings name: a newick file, or a `.qza` with one."""
    text = read_text(Path(settings.tree or ""), "tree.nwk")
    return Phylogeny.from_newick(text, settings.tree or "", settings.missing_lengths, settings.tree_root)


def _on_tree(
    table: Table, settings: DataSettings, chosen: list[str], notes: list[str]
) -> tuple[Phylogeny | None, list[str]]:
    """The tree, and the ASVs that are its tips; UniFrac is not defined on the others."""
    if settings.tree is None:
        return None, chosen
    phylogeny = read_tree(settings)
    tips = set(phylogeny.names)
    on_tree = [name for name in chosen if name in tips]
    missing = set(chosen) - tips
    if not on_tree:
        raise DataError(
            f"None of the {len(chosen)} ASVs of {settings.table} is a tip of {settings.tree}: it has tips like "
            f"{phylogeny.names[0][:32]!r}, the table ids like {chosen[0][:32]!r}.\n"
            "Type --data.tree with this table's tree."
        )
    if missing and settings.missing_tips == "refuse":
        raise DataError(
            f"{len(missing)} of {len(chosen)} ASVs of {settings.table} are no tips of {settings.tree}, like "
            f"{min(missing)[:32]!r}.\nType --data.tree with this table's tree, or --data.missing_tips leave_out."
        )
    _note_asvs(notes, table, missing, f"are no tips of {settings.tree}", len(chosen))
    return phylogeny, on_tree


def _described_rows(
    table: Table, metadata: Metadata, line_of: Mapping[str, int], settings: DataSettings, notes: list[str]
) -> np.ndarray:
    """The rows of the samples that the metadata describe, with a target and a group where these are asked for.

    Raises DataError where none is left.
    """
    source = str(settings.metadata)
    names = [name.strip() for name in table.sample_ids]
    missing = [name for name in names if name not in line_of]
    if len(missing) == len(names):
        hint = explain_mismatch(missing, metadata)
        raise DataError(
            f"No sample of {settings.table} is in {source}: the table has ids like {names[0]!r}, the metadata like "
            f"{metadata.ids[0]!r}.\nType --data.metadata with this table's metadata.{hint}"
        )
    rows = np.array([row for row, name in enumerate(names) if name in line_of])
    if missing:
        listed = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        hint = explain_mismatch(missing, metadata)
        notes.append(f"{len(missing)} of {len(names)} samples are not in {source}: left out ({listed}).{hint}")
    known = set(names)
    others = [name for name in metadata.ids if name not in known]
    if others:
        notes.append(f"{len(others)} of {len(metadata.ids)} rows of {source} match no sample, like {others[0]!r}.")
    for column in (settings.target, settings.group):
        if column is None:
            continue
        _check_column(metadata.columns, column, source)
        own = [metadata.columns[column][line_of[names[row]]] for row in rows]
        if column == settings.target:
            has_value = read_target(own, source, metadata.types.get(column), settings).has_value
        else:
            has_value = np.array([not is_missing(cell, settings.missing_values) for cell in own], bool)
        if not has_value.any():
            raise DataError(f"No sample of {settings.table} has a value in the column {column!r} of {source}.")
        if not has_value.all():
            words = sorted({cell or "empty" for cell, there in zip(own, has_value, strict=True) if not there})
            notes.append(
                f"{(~has_value).sum()} of {len(rows)} samples have no {column}: left out ({', '.join(words[:4])})."
            )
        rows = rows[has_value]
    return rows


def _with_reads(counts: SparseRows, rows: np.ndarray, wanted: int, notes: list[str]) -> np.ndarray:
    """The rows with so many reads. Raises DataError where none has."""
    reads = np.asarray(counts[rows].sum(1)).reshape(-1)
    enough = reads >= wanted
    if not enough.any():
        raise DataError(
            f"None of {len(rows)} samples has {wanted} reads: the most is {reads.max(initial=0):.0f}.\n"
            "Lower --data.rarefy_depth or --data.min_reads."
        )
    if not enough.all():
        what = f"fewer than {wanted} reads" if wanted > 1 else "no reads"
        notes.append(f"{(~enough).sum()} of {len(rows)} samples have {what}: left out.")
    return rows[enough]


def _note_asvs(notes: list[str], table: Table, names: set[str], what: str, of: int | None = None) -> None:
    """Note ASVs that are left out, how many of all they are, and the share of reads that goes with them."""
    if names:
        lost = [number for number, name in enumerate(table.feature_ids) if name in names]
        share = table.counts[:, lost].sum() / table.counts.sum()
        notes.append(
            f"{len(names)} of {of or len(table.feature_ids)} ASVs {what}: left out, with {share:.2%} of the reads."
        )


def _check_column(columns: Mapping[str, Sequence[str]], column: str | None, source: str) -> None:
    if column is not None and column not in columns:
        raise ConfigError(f"There is no column {column!r} in {source}: it has {', '.join(list(columns)[:12])}.")


def unread(study: Study, max_bp: int, token_limit: int) -> list[str]:
    """What of a study the model's limits cut off, in words."""
    longer = sum(len(sequence) > max_bp for sequence in study.sequences)
    fuller = int((np.diff(study.counts.indptr) > token_limit).sum())
    found = [f"{longer} of {len(study.sequences)} ASVs are longer than max_bp {max_bp}: their ends are not read."]
    found += [
        f"{fuller} of {len(study.sample_ids)} samples have more ASVs than token_limit {token_limit}: their rarest are "
        "not read."
    ]
    return [note for note, count in zip(found, (longer, fuller), strict=True) if count]
