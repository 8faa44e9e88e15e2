"""A penalised linear readout of the target, fitted in closed form on the training samples before the first step.

It reads presence and log-shares of ASVs, k-mers, and the tree's branches. Each of these blocks of features has a linear
kernel; the sum of the kernels of some blocks is used in ridge regression. Which blocks, and the penalty, are chosen by
inner folds of whole groups. Source: Hoerl and Kennard 1970, Technometrics 12:55; Saunders et al. 1998, ICML 515.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from recipes.microbiome.examples import tokenize
from recipes.microbiome.unifrac import SparseRows, as_rows

if TYPE_CHECKING:
    from recipes.microbiome.study import Study

LETTERS_OF_KMER = 6
PENALTIES = 10.0 ** np.arange(-3, 3.1, 0.5)
# Choosing needs a decomposition of samples by samples; more samples than this are sampled, whole groups at a time.
MOST_TO_CHOOSE_BY = 800
# Kernels that are tried: single blocks, and sums.
CHOICES = (
    ("presence",),
    ("shares",),
    ("presence", "shares"),
    ("kmers", "kmer_shares"),
    ("branches", "branch_shares"),
    ("presence", "shares", "branches", "branch_shares"),
    ("presence", "shares", "kmers", "kmer_shares", "branches", "branch_shares"),
)


@dataclasses.dataclass(frozen=True)
class Features:
    """Which ASVs are read, by their sequences, and the tree above them."""

    sequences: tuple[str, ...]
    max_bp: int
    ancestors: SparseRows | None
    """(ASVs, branches); None without a tree."""
    lengths: np.ndarray
    """(branches,)"""

    @classmethod
    def of(cls, study: Study, training: np.ndarray, max_bp: int) -> Features:
        """Of the ASVs that at least two training samples have."""
        common = np.flatnonzero(np.asarray((study.counts[training] > 0).sum(0)).reshape(-1) >= 2)
        ancestors, lengths = None, np.zeros(0)
        if study.phylogeny is not None:
            ancestors = as_rows(study.phylogeny.ancestors[common])
            used = np.unique(ancestors.indices)
            ancestors, lengths = as_rows(ancestors[:, used]), study.phylogeny.lengths[used]
        return cls(tuple(study.sequences[asv] for asv in common), max_bp, ancestors, lengths)

    def blocks(self, counts: SparseRows, sequences: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The features of samples, (samples, features) by block, in float32, one block at a time.

        `counts` is a sparse (samples, ASVs) of ASVs with these `sequences`.
        """
        counts = as_rows(counts)
        shares = as_rows(counts.multiply(1 / np.maximum(np.asarray(counts.sum(1)).reshape(-1, 1), 1e-300)))
        own = as_rows(shares @ _renumbering(sequences, self.sequences))
        present = as_rows(own > 0).astype(float)
        yield "presence", present.toarray().astype(np.float32)
        yield "shares", np.log1p(1000 * own.toarray()).astype(np.float32)
        kmers = kmer_table(sequences, self.max_bp)
        number = np.maximum(np.asarray((counts > 0).sum(1)).reshape(-1, 1), 1)
        yield "kmers", np.sqrt((as_rows(counts > 0).astype(float) @ kmers).toarray() / number).astype(np.float32)
        yield "kmer_shares", np.sqrt((shares @ kmers).toarray()).astype(np.float32)
        if self.ancestors is not None:
            root = np.sqrt(self.lengths)
            yield "branches", (((present @ self.ancestors).toarray() > 0) * root).astype(np.float32)
            below = np.maximum((own @ self.ancestors).toarray(), 0)
            yield "branch_shares", (np.sqrt(below) * root).astype(np.float32)


def _renumbering(sequences: Sequence[str], wanted: Sequence[str]) -> SparseRows:
    """(ASVs here, ASVs wanted): 1 where the sequences are the same."""
    place = {sequence: number for number, sequence in enumerate(wanted)}
    pairs = [(row, place[sequence]) for row, sequence in enumerate(sequences) if sequence in place]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    return scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(sequences), len(wanted)))


def kmer_table(sequences: Sequence[str], max_bp: int) -> SparseRows:
    """(ASVs, 4^6): which k-mers an ASV has, 0 or 1."""
    tokens = tokenize(sequences, max_bp).astype(np.int64)
    width = tokens.shape[1] - LETTERS_OF_KMER + 1
    codes = np.zeros((len(tokens), max(width, 0)), np.int64)
    there = np.ones(codes.shape, bool)
    for offset in range(LETTERS_OF_KMER):
        letter = tokens[:, offset : offset + codes.shape[1]]
        codes = codes * 4 + np.maximum(letter - 1, 0)
        there &= letter > 0
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], codes.shape)[there]
    table = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, codes[there])), shape=(len(tokens), 4**LETTERS_OF_KMER))
    return as_rows(table > 0).astype(float)


def inner_folds(groups: Sequence[str] | None, size: int, seed: int, number: int = 5) -> np.ndarray:
    """(samples,): the fold of each sample; groups stay together where there are at least two."""
    units = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(size)
    if units.max() == 0:
        units = np.arange(size)
    random = np.random.default_rng((seed, 11))
    order = random.permutation(units.max() + 1)
    folds, filled = np.zeros(size, int), np.zeros(min(number, len(order)), int)
    # The largest units first, each into the smallest fold.
    for unit in sorted(order, key=lambda unit: -(units == unit).sum()):
        fold = int(filled.argmin())
        folds[units == unit] = fold
        filled[fold] += (units == unit).sum()
    return folds


def held_out_scores(kernel: np.ndarray, wanted: np.ndarray, folds: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """(penalties, samples, outputs): what each sample is predicted by ridge regression on the other folds."""
    result = np.zeros((len(penalties), *wanted.shape))
    for fold in np.unique(folds):
        train, out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        own, other = kernel[np.ix_(train, train)], kernel[np.ix_(out, train)]
        mean = own.mean(0)
        # Centred by the training samples of the fold.
        other = other - other.mean(1, keepdims=True) - mean + own.mean()
        own = own - mean - mean[:, None] + own.mean()
        level = wanted[train].mean(0)
        if len(penalties) == 1:
            own[np.diag_indices(len(own))] += penalties[0]
            result[0][out] = other @ np.linalg.solve(own, wanted[train] - level) + level
            continue
        values, vectors = np.linalg.eigh(own)
        rotated = vectors.T @ (wanted[train] - level)
        towards = other @ vectors
        for number, penalty in enumerate(penalties):
            result[number][out] = towards @ (rotated / (np.maximum(values, 0) + penalty)[:, None]) + level
    return result


@dataclasses.dataclass(frozen=True)
class Readout:
    """What was fitted; see the module."""

    features: Features
    weights: Mapping[str, np.ndarray]
    """(features, outputs) of the chosen blocks."""
    level: np.ndarray
    """(outputs,): the score of a sample without any feature."""
    held_out: Mapping[str, np.ndarray]
    """(outputs,) of each training sample by its id: its score by a readout fitted without its fold."""
    note: str
    """What was chosen, in words."""

    def scores(self, study: Study) -> np.ndarray:
        """(samples, outputs): the standardised target, or the logits of the classes."""
        result = np.tile(self.level, (len(study.sample_ids), 1))
        for name, values in self.features.blocks(study.counts, study.sequences):
            if name in self.weights:
                result += values @ self.weights[name]
        return result

    def save(self, file: Path) -> None:
        """Write it as npz."""
        ancestors = self.features.ancestors
        about = {"sequences": self.features.sequences, "max_bp": self.features.max_bp, "note": self.note}
        about |= {"samples": list(self.held_out), "shape": None if ancestors is None else ancestors.shape}
        arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), "lengths": self.features.lengths}
        arrays |= {"level": self.level, "held_out": np.array(list(self.held_out.values()))}
        arrays |= {f"weights.{name}": values for name, values in self.weights.items()}
        if ancestors is not None:
            arrays |= {"indices": ancestors.indices, "indptr": ancestors.indptr}
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> Readout:
        """The inverse of `save`."""
        with np.load(file) as arrays:
            about = json.loads(arrays["about"].tobytes())
            ancestors = None
            if about["shape"] is not None:
                values = np.ones(len(arrays["indices"]), np.float32)
                parts = (values, arrays["indices"], arrays["indptr"])
                ancestors = scipy.sparse.csr_matrix(parts, shape=tuple(about["shape"]))
            features = Features(tuple(about["sequences"]), about["max_bp"], ancestors, arrays["lengths"])
            weights = {name.partition(".")[2]: arrays[name] for name in arrays if name.startswith("weights.")}
            held_out = dict(zip(about["samples"], arrays["held_out"], strict=True))
            return cls(features, weights, arrays["level"], held_out, about["note"])


def fit_readout(
    study: Study, training: np.ndarray, wanted: np.ndarray, groups: Sequence[str] | None, max_bp: int, seed: int
) -> Readout:
    """Fit on the samples `training`.

    `wanted` is their standardised target, (samples, 1), or 1 for their class and 0 for the others, (samples, classes).
    """
    features = Features.of(study, training, max_bp)
    kernels: dict[str, np.ndarray] = {}
    centres: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    for name, values in features.blocks(study.counts[training], study.sequences):
        centres[name] = values.mean(0)
        values -= centres[name]
        kernel = (values @ values.T).astype(float)
        scales[name] = float(np.trace(kernel) / len(kernel)) or 1.0
        kernels[name] = kernel / scales[name]
    folds = inner_folds(groups, len(training), seed)
    blocks, penalty, error = _choose(kernels, wanted, folds, seed)
    kernel = sum((kernels[name] for name in blocks), np.zeros_like(kernels[blocks[0]])) / len(blocks)
    held_out = held_out_scores(kernel, wanted, folds, np.array([penalty]))[0]
    level = wanted.mean(0)
    dual = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), wanted - level)
    weights: dict[str, np.ndarray] = {}
    for name, values in features.blocks(study.counts[training], study.sequences):
        if name in blocks:
            weights[name] = ((values - centres[name]).T @ dual) / (scales[name] * len(blocks))
            level = level - centres[name] @ weights[name]
    factor = _to_logits(held_out, wanted) if wanted.shape[1] > 1 else 1.0
    weights = {name: values * factor for name, values in weights.items()}
    names = [study.sample_ids[row] for row in training]
    note = f"linear readout of {', '.join(blocks)}: R2 {1 - error:.3f} on inner folds with the penalty {penalty:.3g}"
    scores = held_out * factor
    return Readout(features, weights, level * factor, dict(zip(names, scores, strict=True)), note)


def _choose(
    kernels: Mapping[str, np.ndarray], wanted: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[tuple[str, ...], float, float]:
    """The blocks and the penalty of the smallest squared error on inner folds, and that error as a share."""
    rows = np.arange(len(wanted))
    if len(rows) > MOST_TO_CHOOSE_BY:
        rows = np.sort(np.random.default_rng((seed, 13)).permutation(rows)[:MOST_TO_CHOOSE_BY])
    best: tuple[tuple[str, ...], float, float] = (("presence",), float(PENALTIES[-1]), np.inf)
    for blocks in CHOICES:
        if all(name in kernels for name in blocks):
            kernel = sum((kernels[name][np.ix_(rows, rows)] for name in blocks), np.zeros((len(rows), len(rows))))
            scores = held_out_scores(kernel / len(blocks), wanted[rows], folds[rows], PENALTIES)
            errors = np.square(scores - wanted[rows]).mean((1, 2)) / max(wanted[rows].var(0).mean(), 1e-12)
            if errors.min() < best[2]:
                best = (blocks, float(PENALTIES[errors.argmin()]), float(errors.min()))
    return best


def _to_logits(held_out: np.ndarray, wanted: np.ndarray) -> float:
    """What to multiply scores by so that they are logits: the smallest cross-entropy of held-out samples."""
    factors = np.geomspace(0.5, 50, 40)
    right = wanted.argmax(1)
    losses = []
    for factor in factors:
        logits = held_out * factor
        top = logits.max(1, keepdims=True)
        total = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        losses.append((total - logits[np.arange(len(right)), right]).mean())
    return float(factors[int(np.argmin(losses))])
