"""From a table, a tree and metadata to micro-batches: reading, checking, splitting, rarefying, masking."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from recipes.microbiome.files import read_fasta, read_metadata, read_table, read_tree
from recipes.microbiome.unifrac import Phylogeny, as_rows
from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recipes.microbiome.settings import DataSettings

# What stands in metadata where nothing was measured.
MISSING = {"", "na", "nan", "n/a", "none", "null", "missing", "not applicable", "not collected", "not provided"}
MISSING |= {"missing: not collected", "missing: not provided", "restricted access", "unspecified", "unknown"}
TOKEN_OF = np.zeros(256, np.int8)
TOKEN_OF[[ord(letter) for letter in "ACGT"]] = [1, 2, 3, 4]


@dataclasses.dataclass(frozen=True)
class Study:
    """Samples and their ASVs, checked: every ASV has letters and, where there is a tree, a tip."""

    sample_ids: tuple[str, ...]
    sequences: tuple[str, ...]
    """The ASVs, in upper case, of A, C, G and T alone."""
    counts: Any
    """(samples, ASVs), sparse rows: reads; every sample has some."""
    phylogeny: Phylogeny | None
    """Its tips are the ASVs, in order."""
    metadata: Mapping[str, tuple[str, ...]]
    """Columns of text, one cell per sample."""
    notes: tuple[str, ...] = ()
    """What was left out, and how much of it."""


# Reading ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def read_study(settings: DataSettings) -> Study:
    """Read what the settings name, or make the embedded study. Raises DataError and ConfigError."""
    if settings.table is None:
        given = [name for name in ("sequences", "tree", "metadata") if getattr(settings, name) is not None]
        if given:
            raise ConfigError(
                f"--data.{given[0]} came without a table: type --data.table table.biom as well, or leave it out for "
                "the embedded study."
            )
        return _embedded(settings)
    return open_study(
        settings.table,
        settings.sequences,
        settings.tree,
        settings.metadata,
        needed=tuple(column for column in (settings.target, settings.group) if column is not None),
        min_reads=max(settings.min_reads, settings.rarefy_depth, 1),
    )


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


def _described_rows(
    sample_ids: Any,
    columns: dict[str, tuple[str, ...]],
    needed: Sequence[str],
    table: str,
    metadata: str,
    notes: list[str],
) -> np.ndarray:
    """The rows of the samples that the metadata describe, with a value in every column of `needed`; `notes` grows.

    Raises DataError where none is left.
    """
    rows = np.arange(len(sample_ids))
    if not columns:
        return rows
    known = {name: number for number, name in enumerate(columns[next(iter(columns))])}
    present = np.array([sample_ids[row] in known for row in rows], bool)
    if not present.any():
        raise DataError(
            f"No sample of {table} is in {metadata}: the table has ids like {sample_ids[0]!r}, the metadata like "
            f"{next(iter(known), '')!r}.\nType --data.metadata with this table's metadata."
        )
    _note(notes, int((~present).sum()), f"of {len(rows)} samples are not in {metadata}", rows[present])
    rows = rows[present]
    for column in needed:
        _check_column(columns, column, metadata)
        cells = [columns[column][known[sample_ids[row]]] for row in rows]
        has_value = np.array([cell.strip().lower() not in MISSING for cell in cells], bool)
        _note(notes, int((~has_value).sum()), f"of {len(rows)} samples have no {column}", rows[has_value])
        if not has_value.any():
            raise DataError(f"No sample of {table} has a value in the column {column!r} of {metadata}.")
        rows = rows[has_value]
    return rows


def open_study(
    table: str,
    sequences: str | None = None,
    tree: str | None = None,
    metadata: str | None = None,
    needed: Sequence[str] = (),
    min_reads: int = 1,
) -> Study:
    """Read the files of a study, and leave out what cannot be used: it is counted in `Study.notes`.

    Files are `.biom` (HDF5 or JSON), `.fasta`, `.nwk` and `.tsv`, or QIIME 2 artifacts (`.qza`) that hold them. A
    sample stays if it has `min_reads` reads of usable ASVs and a value in every column of `needed`.
    Raises DataError where nothing is left.
    """
    sample_ids, feature_ids, counts = read_table(Path(table))
    notes: list[str] = []
    letters = read_fasta(Path(sequences)) if sequences is not None else {name: name for name in feature_ids}
    columns = read_metadata(Path(metadata)) if metadata is not None else {}
    if needed and metadata is None:
        raise ConfigError(f"Column {needed[0]!r} was asked for without metadata: type --data.metadata metadata.tsv.")

    # ASVs: with a sequence, of four letters, with a tip.
    named = [name for name in feature_ids if name in letters]
    _note(notes, len(feature_ids) - len(named), f"of {len(feature_ids)} ASVs have no sequence in {sequences}", named)
    clean = {name: letters[name].strip().upper().replace("U", "T") for name in named}
    kept = [name for name in named if clean[name] and not set(clean[name]) - set("ACGT")]
    what = f"of {len(named)} ASVs have letters other than A, C, G and T"
    if not kept:
        raise DataError(
            f"All {len(named)} ASVs of {table} have other letters than A, C, G and T, like {feature_ids[0][:32]!r};\n"
            "wanted: sequences as feature ids, or their file: type --data.sequences rep-seqs.fasta."
        )
    _note(notes, len(named) - len(kept), what, kept)
    phylogeny = read_tree(Path(tree)) if tree is not None else None
    if phylogeny is not None:
        tips = set(phylogeny.names)
        on_tree = [name for name in kept if name in tips]
        if not on_tree:
            raise DataError(
                f"None of the {len(kept)} ASVs of {table} is a tip of {tree}: it has tips like "
                f"{phylogeny.names[0][:32]!r}, the table ids like {kept[0][:32]!r}.\n"
                "Type --data.tree with this table's tree."
            )
        _note(notes, len(kept) - len(on_tree), f"of {len(kept)} ASVs are no tips of {tree}", on_tree)
        kept = on_tree
        phylogeny = phylogeny.rows_of(kept)
    place = {name: number for number, name in enumerate(feature_ids)}
    counts = counts[:, [place[name] for name in kept]].tocsr()

    # Samples: in the metadata, with every value, with reads.
    rows = _described_rows(sample_ids, columns, needed, table, str(metadata), notes)
    reads = np.asarray(counts[rows].sum(1)).reshape(-1)
    enough = reads >= min_reads
    _note(notes, int((~enough).sum()), f"of {len(rows)} samples have fewer than {min_reads} reads", rows[enough])
    if not enough.any():
        raise DataError(
            f"None of {len(rows)} samples has {min_reads} reads: the most is {reads.max(initial=0):.0f}.\n"
            "Lower --data.rarefy_depth or --data.min_reads."
        )
    rows = rows[enough]
    counts = as_rows(counts[rows])
    # ASVs that only left-out samples had are no part of the study.
    used = np.flatnonzero(np.asarray((counts > 0).sum(0)).reshape(-1))
    counts = as_rows(counts[:, used])
    kept = [kept[number] for number in used]
    phylogeny = phylogeny.rows_of(kept) if phylogeny is not None else None
    chosen: dict[str, tuple[str, ...]] = {}
    if columns:
        known = {name: number for number, name in enumerate(columns[next(iter(columns))])}
        order = [known[sample_ids[row]] for row in rows]
        chosen = {column: tuple(cells[number] for number in order) for column, cells in columns.items()}
    names = tuple(sample_ids[row] for row in rows)
    return Study(names, tuple(clean[name] for name in kept), counts, phylogeny, chosen, tuple(notes))


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


def _note(notes: list[str], count: int, what: str, left: Any) -> None:
    if count and len(left):
        notes.append(f"{count} {what}: left out.")


def _check_column(columns: Mapping[str, Any], column: str | None, source: str) -> None:
    if column is not None and column not in columns:
        raise ConfigError(f"There is no column {column!r} in {source}: it has {', '.join(list(columns)[:12])}.")


# Splitting --------------------------------------------------------------------------------------------


# What is fitted on the training split -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What has been learned from the training samples alone, and travels with the model."""

    mean: float = 0.0
    """Of the target, in its unit."""
    deviation: float = 1.0
    classes: tuple[str, ...] = ()
    """None for a regression."""
    majority: tuple[int, ...] = ()
    """The most frequent letter (1 to 4) of each column of the training ASVs."""
    letters: int = 0
    """Length of the longest training ASV, as far as the model reads it."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fitted:
        """The inverse of `to_json`."""
        return dataclasses.replace(
            cls(**content), classes=tuple(content["classes"]), majority=tuple(content["majority"])
        )


def fit(study: Study, settings: DataSettings, rows: np.ndarray, wants_target: bool) -> Fitted:
    """Fit on the training samples `rows`."""
    own = as_rows(study.counts[rows])
    asvs = np.unique(own.indices)
    tokens = tokenize([study.sequences[asv] for asv in asvs], settings.max_bp)
    votes = np.stack([(tokens == letter).sum(0) for letter in range(1, 5)])
    majority = tuple(int(letter) for letter in votes.argmax(0) + 1)
    letters = tokens.shape[1]
    if not wants_target or settings.target is None:
        return Fitted(majority=majority, letters=letters)
    cells = [study.metadata[settings.target][row] for row in rows]
    numbers = _numbers(cells)
    if settings.task == "classification" or (settings.task == "auto" and numbers is None):
        classes = tuple(sorted(set(cells)))
        if len(classes) < 2:
            raise DataError(f"Every training sample has the {settings.target} {cells[0]!r}: nothing to tell apart.")
        return Fitted(classes=classes, majority=majority, letters=letters)
    if numbers is None:
        wrong = next(cell for cell in cells if _numbers([cell]) is None)
        raise DataError(
            f"The column {settings.target!r} holds {wrong!r}; wanted: numbers, or --data.task classification."
        )
    return Fitted(float(numbers.mean()), float(numbers.std()) or 1.0, (), majority, letters)


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def target_values(study: Study, settings: DataSettings, fitted: Fitted) -> np.ndarray | None:
    """(samples,): the target in its unit, or the number of its class; -1 for a class that training has not seen."""
    if settings.target is None or settings.target not in study.metadata:
        return None
    cells = study.metadata[settings.target]
    if fitted.classes:
        place = {name: number for number, name in enumerate(fitted.classes)}
        return np.array([place.get(cell, -1) for cell in cells], float)
    return np.array([float(cell) if cell.strip().lower() not in MISSING else np.nan for cell in cells])


def tokenize(sequences: Sequence[str], max_bp: int) -> np.ndarray:
    """(sequences, longest) of 1 to 4 for A, C, G, T, and 0 after the end; letters beyond `max_bp` are cut."""
    longest = max((min(len(sequence), max_bp) for sequence in sequences), default=0)
    tokens = np.zeros((len(sequences), longest), np.int8)
    for row, sequence in enumerate(sequences):
        own = TOKEN_OF[np.frombuffer(sequence[:max_bp].encode("ascii"), np.uint8)]
        tokens[row, : len(own)] = own
    return tokens


# Examples ---------------------------------------------------------------------------------------------


def rarefy(counts: np.ndarray, depth: int, random: np.random.Generator) -> np.ndarray:
    """Draw `depth` reads without replacement; as it is where the depth is 0 or all there are."""
    if not depth or counts.sum() <= depth:
        return counts
    return random.multivariate_hypergeometric(counts.astype(np.int64), depth, method="marginals").astype(counts.dtype)


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample, rarefied."""

    sample: int
    """Its row in the study."""
    asvs: np.ndarray
    """The ASVs it has, the most abundant first."""
    counts: np.ndarray
    """Their reads."""
    scored: np.ndarray | None
    """In evaluation: the ASVs whose nucleotides are scored here, each once in the whole split; None in training."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The samples of a split."""

    study: Study
    rows: np.ndarray
    depth: int
    """Reads to rarefy to; 0: as they are."""
    training: bool
    """Whether every visit draws its own rarefaction, from the generator that the runner seeds; else it is fixed."""
    seed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        scored = None if self.training else self.first_seen[index]
        return Example(int(self.rows[index]), *self.rarefied(index), scored)

    def rarefied(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A sample's ASVs and reads, the most abundant first; equals stand in the study's order."""
        row = self.rows[index]
        start, end = self.study.counts.indptr[row : row + 2]
        asvs, counts = self.study.counts.indices[start:end], self.study.counts.data[start:end]
        if self.depth:
            # The runner seeds numpy's global generator by (seed, step, lane): each visit of a sample is another draw.
            key: Any = np.random.randint(2**31) if self.training else (self.seed, int(row))
            counts = rarefy(counts, self.depth, np.random.default_rng(key))
            asvs, counts = asvs[counts > 0], counts[counts > 0]
        order = np.lexsort((asvs, -counts))
        return asvs[order], counts[order]

    @functools.cached_property
    def first_seen(self) -> list[np.ndarray]:
        """Per sample the ASVs that no sample before it in the split has."""
        seen: set[int] = set()
        first = []
        for index in range(len(self)):
            own = [int(asv) for asv in self.rarefied(index)[0] if int(asv) not in seen]
            seen.update(own)
            first.append(np.array(own, int))
        return first

    def table(self) -> Any:
        """(samples of the split, ASVs): the reads as the examples hold them; in evaluation only."""
        assert not self.training
        return counts_of([self[index] for index in range(len(self))], self.study.counts.shape[1])


def counts_of(examples: Sequence[Example], num_asvs: int) -> Any:
    """(examples, ASVs): their reads as a sparse table."""
    pointers = np.cumsum([0, *(len(example.asvs) for example in examples)])
    columns = np.concatenate([example.asvs for example in examples])
    values = np.concatenate([example.counts for example in examples])
    return scipy.sparse.csr_matrix((values, columns, pointers), shape=(len(examples), num_asvs))


def distinct_asvs(examples: Sequence[Example], token_limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct ASVs of a micro-batch, (examples, places) rows among them, and the reads there (0: nobody).

    Each example keeps its `token_limit` most abundant ASVs; there are as many places as the longest needs.
    """
    kept = [example.asvs[:token_limit] for example in examples]
    distinct, inverse = np.unique(np.concatenate(kept), return_inverse=True)
    places = max(len(own) for own in kept)
    rows = np.zeros((len(examples), places), np.int64)
    reads = np.zeros((len(examples), places), np.float32)
    start = 0
    for number, (example, own) in enumerate(zip(examples, kept, strict=True)):
        rows[number, : len(own)] = inverse[start : start + len(own)]
        reads[number, : len(own)] = example.counts[: len(own)]
        start += len(own)
    return distinct, rows, reads


def model_inputs(
    study: Study, examples: Sequence[Example], token_limit: int, max_bp: int, patch_size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The distinct ASVs of a micro-batch, and what the model reads: `tokens`, `asvs`, `is_there`, `abundance`.

    `tokens` has as many columns as the longest needs, in whole patches.
    """
    distinct, rows, reads = distinct_asvs(examples, token_limit)
    totals = np.array([[example.counts.sum()] for example in examples], np.float32)
    tokens = patched(study, distinct, max_bp, patch_size)
    return distinct, {"asvs": rows, "is_there": reads > 0, "abundance": reads / totals, "tokens": tokens}


def patched(study: Study, asvs: np.ndarray, max_bp: int, patch_size: int) -> np.ndarray:
    """(asvs, letters): tokens of these ASVs, padded to whole patches."""
    tokens = tokenize([study.sequences[asv] for asv in asvs], max_bp)
    return np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % patch_size))).astype(np.int32)


def mask_letters(tokens: np.ndarray, rate: float, random: np.random.Generator) -> np.ndarray:
    """Which letters to hide: a share `rate` of A, C, G and T, at least one of each sequence."""
    draws = np.where(tokens > 0, random.random(tokens.shape), 2.0)
    mask = draws < rate
    if rate and tokens.size:
        mask[np.arange(len(tokens)), draws.argmin(1)] = True
    return mask & (tokens > 0)
