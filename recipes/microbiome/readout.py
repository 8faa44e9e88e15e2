"""A penalised linear readout of the target, fitted on the training samples before the first step.

It reads presence and log-shares of ASVs, k-mers, and the tree's branches. Each of these blocks of features has a linear
kernel. The sum of the kernels of some blocks is used: for a number in ridge regression, which has a closed form, for
classes in logistic regression. Which blocks, and the penalty, are chosen by inner folds of whole groups.
Source: Hoerl and Kennard 1970, Technometrics 12:55; Saunders et al. 1998, ICML 515.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from recipes.microbiome.sequences import tokenize
from recipes.microbiome.unifrac import SparseRows, as_rows

if TYPE_CHECKING:
    from recipes.microbiome.study import Study

LETTERS_OF_KMER = 6
PENALTIES = 10.0 ** np.arange(-3, 3.1, 0.5)
# Logistic regression takes longer than ridge regression, and depends less on the penalty.
PENALTIES_OF_CLASSES = 10.0 ** np.arange(-2, 0.1)
# Choosing needs a decomposition of samples by samples; more samples than this are sampled.
MOST_TO_CHOOSE_BY = 800
# Logistic regression works in the directions of the kernel; of more samples than this, in so many largest ones.
MOST_DIRECTIONS = 1000
# The logit of a class that no training sample of a fold has.
UNSEEN = -3.0
# Scales that are tried for logits.
FACTORS = np.geomspace(0.05, 20, 50)
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


Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
"""From a centred kernel (samples, samples), what is wanted (samples, outputs), and penalties: for each penalty the
samples' weights (samples, outputs), and the intercepts (outputs,)."""


def ridge(kernel: np.ndarray, wanted: np.ndarray, penalties: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ridge regression, a Solver. Source: Saunders et al. 1998, ICML 515."""
    level = wanted.mean(0)
    if len(penalties) == 1:
        # Of thousands of samples, a decomposition takes many times as long.
        yield np.linalg.solve(kernel + penalties[0] * np.eye(len(kernel)), wanted - level), level
        return
    values, vectors = np.linalg.eigh(kernel)
    rotated = vectors.T @ (wanted - level)
    for penalty in penalties:
        yield vectors @ (rotated / (np.maximum(values, 0) + penalty)[:, None]), level


def logistic(kernel: np.ndarray, wanted: np.ndarray, penalties: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logistic regression in which all classes weigh the same, a Solver; the outputs are logits.

    Squared errors ask for the same score of every sample of a class. So ridge regression spends its weights on what the
    many samples of one subject share, and a subject of another fold gets little of the rest. Logistic regression asks
    for a margin. Weighing the classes alike keeps the share of a class in the training samples out of the scores: where
    whole subjects are held out, that share is lowest for the class that is held out.
    """
    from sklearn.linear_model import LogisticRegression

    values, vectors = _directions(kernel)
    roots = np.sqrt(values)
    labels = wanted.argmax(1)
    there = np.unique(labels)
    # From the largest penalty on, each fit begins at the one before.
    model = LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-4, warm_start=True)
    found = []
    for penalty in np.sort(penalties)[::-1]:
        weights, level = np.zeros((len(values), wanted.shape[1])), np.full(wanted.shape[1], UNSEEN)
        level[there] = 0.0
        # Where all samples have the same features, no direction is left.
        if len(there) > 1 and len(values):
            model.set_params(C=1 / penalty).fit(vectors * roots, labels)
            signs = np.array([[-0.5], [0.5]]) if len(there) == 2 else np.eye(len(there))
            weights[:, there] = (signs @ model.coef_).T
            level[there] = signs @ model.intercept_
        found.append((vectors @ (weights / roots[:, None]), level))
    order = np.argsort(np.argsort(-penalties))
    yield from (found[place] for place in order)


def _directions(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of a kernel (samples, samples), and their eigenvectors (samples, directions).

    All that are not 0, or MOST_DIRECTIONS of many samples: all of 10,000 would take minutes for each fold.
    Source: Halko et al. 2011, SIAM Review 53:217.
    """
    from sklearn.utils.extmath import randomized_svd

    if len(kernel) > MOST_DIRECTIONS:
        vectors, values, _ = randomized_svd(kernel, MOST_DIRECTIONS, random_state=0)
    else:
        values, vectors = np.linalg.eigh(kernel)
    used = values > 1e-6 * max(values.max(), 1e-12)
    return values[used], vectors[:, used]


def held_out_scores(
    kernel: np.ndarray, wanted: np.ndarray, folds: np.ndarray, penalties: np.ndarray, solve: Solver = ridge
) -> np.ndarray:
    """(penalties, samples, outputs): what each sample is predicted by a fit on the other folds."""
    result = np.zeros((len(penalties), *wanted.shape))
    for fold in np.unique(folds):
        train, out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        own, other = kernel[np.ix_(train, train)], kernel[np.ix_(out, train)]
        mean = own.mean(0)
        # Centred by the training samples of the fold.
        other = other - other.mean(1, keepdims=True) - mean + own.mean()
        own = own - mean - mean[:, None] + own.mean()
        for number, (weights, level) in enumerate(solve(own, wanted[train], penalties)):
            result[number][out] = other @ weights + level
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
    is_number = wanted.shape[1] == 1
    solve, penalties = (ridge, PENALTIES) if is_number else (logistic, PENALTIES_OF_CLASSES)
    parts, note = _choose(kernels, wanted, folds, seed, solve, penalties)
    held_out, level = np.zeros(wanted.shape), np.zeros(wanted.shape[1])
    duals: dict[str, np.ndarray] = {}
    for blocks, penalty in parts:
        kernel = sum((kernels[name] for name in blocks), np.zeros_like(kernels[blocks[0]])) / len(blocks)
        own = held_out_scores(kernel, wanted, folds, np.array([penalty]), solve)[0]
        dual, intercept = next(solve(kernel, wanted, np.array([penalty])))
        # Each part of several weighs the same.
        size = 1.0 if len(parts) == 1 else max(float(own.std()), 1e-6) * len(parts)
        held_out, level = held_out + own / size, level + intercept / size
        for name in blocks:
            duals[name] = duals.get(name, 0) + dual / (size * scales[name] * len(blocks))
    weights: dict[str, np.ndarray] = {}
    for name, values in features.blocks(study.counts[training], study.sequences):
        if name in duals:
            weights[name] = (values - centres[name]).T @ duals[name]
            level = level - centres[name] @ weights[name]
    if not is_number:
        factor, shift = _calibrate(held_out, wanted, groups)
        weights = {name: values * factor for name, values in weights.items()}
        level, held_out = level * factor + shift, held_out * factor + shift
    names = [study.sample_ids[row] for row in training]
    return Readout(features, weights, level, dict(zip(names, held_out, strict=True)), f"linear readout of {note}")


Part = tuple[tuple[str, ...], float]
"""The blocks whose kernels are added, and the penalty."""


def _choose(
    kernels: Mapping[str, np.ndarray],
    wanted: np.ndarray,
    folds: np.ndarray,
    seed: int,
    solve: Solver,
    penalties: np.ndarray,
) -> tuple[list[Part], str]:
    """What is to be fitted, and how well it does on inner folds, in words.

    It is the blocks and the penalty of the smallest error on inner folds. For classes, presence of ASVs comes beside
    them, and the two logits are averaged: with some twenty subjects, which blocks are best on inner folds is mostly
    chance, and a wrong choice alone can be worse than no model.
    """
    rows = np.arange(len(wanted))
    if len(rows) > MOST_TO_CHOOSE_BY:
        rows = np.sort(np.random.default_rng((seed, 13)).permutation(rows)[:MOST_TO_CHOOSE_BY])
    found: list[tuple[float, Part]] = []
    for blocks in CHOICES:
        if all(name in kernels for name in blocks):
            kernel = sum((kernels[name][np.ix_(rows, rows)] for name in blocks), np.zeros((len(rows), len(rows))))
            scores = held_out_scores(kernel / len(blocks), wanted[rows], folds[rows], penalties, solve)
            errors = [error_of(each, wanted[rows]) for each in scores]
            number = int(np.argmin(errors))
            found.append((errors[number], (blocks, float(penalties[number]))))
    error, best = min(found, key=lambda each: each[0])
    of_best = f"{', '.join(best[0])}: "
    if wanted.shape[1] == 1:
        return [best], f"{of_best}R2 {1 - error:.3f} on inner folds with the penalty {best[1]:.3g}"
    by_presence, presence = found[0]
    note = f"{of_best}cross-entropy {error:.3f} on inner folds with the penalty {best[1]:.3g}"
    if best == presence:
        return [best], note
    return [presence, best], f"{note}, averaged with presence: {by_presence:.3f} with the penalty {presence[1]:.3g}"


def error_of(held_out: np.ndarray, wanted: np.ndarray) -> float:
    """By what the blocks and the penalty are chosen.

    Of a number, the squared error as a share of the variance. Of classes, the cross-entropy after the best scale, with
    the same weight for each class.
    """
    if wanted.shape[1] == 1:
        return float(np.square(held_out - wanted).mean() / max(wanted.var(), 1e-12))
    weights = (wanted / np.maximum(wanted.sum(0), 1)).sum(1)
    return min(float(np.average(_cross_entropies(held_out * factor, wanted), weights=weights)) for factor in FACTORS)


def _cross_entropies(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    top = logits.max(1, keepdims=True)
    return np.log(np.exp(logits - top).sum(1)) + top[:, 0] - (logits * wanted).sum(1)


def _calibrate(held_out: np.ndarray, wanted: np.ndarray, groups: Sequence[str] | None) -> tuple[float, np.ndarray]:
    """What to multiply logits by, and what to add to each class, from the cross-entropy of held-out samples.

    The logarithm of the classes' shares is added only where that helps by more than a standard error over groups. With
    few groups, the shares are those of the groups that happen to be in training.
    """
    shares = np.log(np.maximum(wanted.mean(0), 1e-12))
    found = []
    for shift in (np.zeros(len(shares)), shares - shares.mean()):
        losses = [_cross_entropies(held_out * factor + shift, wanted) for factor in FACTORS]
        best = int(np.argmin([each.mean() for each in losses]))
        found.append((float(FACTORS[best]), shift, losses[best]))
    gain = found[0][2] - found[1][2]
    shifts = gain.mean() > standard_error(gain, groups)
    return found[1][:2] if shifts else found[0][:2]


def standard_error(values: np.ndarray, groups: Sequence[str] | None) -> float:
    """The standard error of the mean of `values` (samples,), where samples of a group are alike.

    Source: Liang and Zeger 1986, Biometrika 73:13.
    """
    units = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(values))
    number = units.max() + 1
    if number < 2:
        units, number = np.arange(len(values)), len(values)
    sums = np.bincount(units, values - values.mean())
    return float(np.sqrt(np.square(sums).sum() * number / max(number - 1, 1)) / len(values))
