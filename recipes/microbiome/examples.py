"""From samples to what the model reads: rarefying, tokens, distinct ASVs of a micro-batch, masks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from recipes.microbiome.unifrac import SparseRows

if TYPE_CHECKING:
    from recipes.microbiome.study import Study

ModelInputs = tuple[Tensor, None, Tensor, Tensor, Tensor]
"""tokens, no mask, asvs, is_there, abundance: the model's first arguments."""

MOST_WHOLE = 1 << 14
"""Samples whose ASVs are kept in the order of their reads."""


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

    @functools.cached_property
    def whole(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """`rarefied` of the samples that were visited and are not rarefied: no visit changes them."""
        return {}

    def rarefied(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A sample's ASVs and reads, the most abundant first; equals stand in the study's order. Not to be changed."""
        if self.depth:
            return self._rarefied(index)
        found = self.whole.get(index)
        if found is None:
            found = self._rarefied(index)
            if len(self.whole) < MOST_WHOLE:
                self.whole[index] = found
        return found

    def _rarefied(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows[index]
        start, end = self.study.counts.indptr[row : row + 2]
        asvs, counts = self.study.counts.indices[start:end], self.study.counts.data[start:end]
        if self.depth:
            # The runner seeds numpy's global generator by (seed, step, lane): each visit of a sample is another draw.
            key = [np.random.randint(2**31)] if self.training else [self.seed, int(row)]
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

    def table(self) -> SparseRows:
        """(samples of the split, ASVs): the reads as the examples hold them; in evaluation only."""
        assert not self.training
        return counts_of([self[index] for index in range(len(self))], self.study.counts.shape[1])


def counts_of(examples: Sequence[Example], num_asvs: int) -> SparseRows:
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
    together = np.concatenate(kept)
    is_here = np.zeros(together.max(initial=-1) + 1, bool)
    is_here[together] = True
    distinct = np.flatnonzero(is_here).astype(together.dtype)
    inverse = (np.cumsum(is_here) - 1)[together]
    lengths = np.array([len(own) for own in kept])
    is_there = np.arange(lengths.max()) < lengths[:, None]
    rows = np.zeros(is_there.shape, np.int64)
    reads = np.zeros(is_there.shape, np.float32)
    rows[is_there] = inverse
    reads[is_there] = np.concatenate([example.counts[:token_limit] for example in examples])
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
    tokens = study.tokens_of(asvs, max_bp)
    return np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % patch_size))).astype(np.int32)


def mask_letters(tokens: np.ndarray, rate: float, random: np.random.Generator) -> np.ndarray:
    """Which letters to hide: a share `rate` of A, C, G and T, at least one of each sequence."""
    draws = np.where(tokens > 0, random.random(tokens.shape), 2.0)
    mask = draws < rate
    if rate and tokens.size:
        mask[np.arange(len(tokens)), draws.argmin(1)] = True
    return mask & (tokens > 0)


def batches(reading: tuple[int, int, int], study: Study, examples: Examples, size: int = 16) -> Iterator[ModelInputs]:
    """What the model reads of the samples, without masks, `size` samples at a time."""
    for first in range(0, len(examples), size):
        own = [examples[place] for place in range(first, min(first + size, len(examples)))]
        _, inputs = model_inputs(study, own, *reading)
        tokens, asvs, is_there, abundance = (
            torch.from_numpy(inputs[name]) for name in ("tokens", "asvs", "is_there", "abundance")
        )
        yield tokens, None, asvs, is_there, abundance
