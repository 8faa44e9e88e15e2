"""UniFrac distances and Faith's diversity as matrix products over a tree's branches.

A branch is present in a sample when an ASV below it is. With P the 0/1 matrix of samples by branches and l the
branches' lengths, S = (P * l) P^T holds the length that two samples share, its diagonal a each sample's own (Faith's
phylogenetic diversity), and unweighted UniFrac is 1 - S / (a_i + a_j - S): one matrix product for all pairs.
A length on the root belongs to every sample and is counted, as scikit-bio does.
Source: Lozupone and Knight 2005, Appl Environ Microbiol 71:8228; Faith 1992, Biol Conserv 61:1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse

from runner.errors import DataError

Metric = Literal["unweighted", "weighted", "weighted_normalized"]

# Dense blocks of samples by branches hold at most this many numbers (256 MiB in float64).
LARGEST_BLOCK = 2**25


@dataclasses.dataclass(frozen=True)
class Phylogeny:
    """A rooted tree, seen from its tips: the branches above each, and how long they are."""

    names: tuple[str, ...]
    """The tips; the rows of `ancestors`."""
    ancestors: Any
    """(tips, branches), sparse: 1 where the branch leads to the tip, from the tip's own branch up to the root's."""
    lengths: np.ndarray
    """(branches,): in the unit of the tree, mostly substitutions per site."""

    @classmethod
    def from_parents(cls, parents: Sequence[int], lengths: Sequence[float], names: Sequence[str | None]) -> Phylogeny:
        """From the nodes of a tree, children before parents: each one's parent (-1 at the root), branch and tip name.

        `names` is None at the inner nodes.
        """
        tips = [node for node, name in enumerate(names) if name is not None]
        rows, columns = [], []
        for row, node in enumerate(tips):
            while node >= 0:
                rows.append(row)
                columns.append(node)
                node = parents[node]
        shape = (len(tips), len(parents))
        ancestors = scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        return cls(tuple(str(names[tip]) for tip in tips), ancestors, np.asarray(lengths, np.float64))

    @classmethod
    def from_newick(cls, text: str, source: str = "the tree") -> Phylogeny:
        """From a newick string. Raises DataError for what is no tree, for negative lengths and for two tips of a name.

        A branch without a length, such as most roots', has length 0.
        """
        from skbio import TreeNode

        try:
            root: Any = TreeNode.read([text], format="newick", convert_underscores=False)
        except Exception as error:
            summary = " ".join(str(error).split())[:120]
            raise DataError(
                f"{source} cannot be read as newick: {summary}\nType --data.tree with a .nwk file."
            ) from None
        nodes: list[Any] = list(root.postorder(include_self=True))
        place = {id(node): number for number, node in enumerate(nodes)}
        parents = [place[id(node.parent)] if node.parent is not None else -1 for node in nodes]
        lengths = [float(node.length or 0.0) for node in nodes]
        names = [(node.name or "") if node.is_tip() else None for node in nodes]
        if min(lengths) < 0:
            raise DataError(f"{source} has a branch of length {min(lengths)}; wanted: lengths of at least 0.")
        tips = [name for name in names if name is not None]
        if len(set(tips)) < len(tips):
            twice = next(name for name in tips if tips.count(name) > 1)
            raise DataError(f"{source} has two tips called {twice[:60]}; wanted: each ASV once.")
        return cls.from_parents(parents, lengths, names)

    @classmethod
    def read(cls, path: Path) -> Phylogeny:
        """From a newick file."""
        return cls.from_newick(path.read_text(encoding="utf-8"), str(path))

    def rows_of(self, names: Iterable[str]) -> Phylogeny:
        """The same tree, its tips in the order of `names`; the others stay away. Raises KeyError for a missing one."""
        place = {name: row for row, name in enumerate(self.names)}
        chosen = tuple(names)
        return dataclasses.replace(self, names=chosen, ancestors=self.ancestors[[place[name] for name in chosen]])


def as_rows(matrix: Any) -> Any:
    """The matrix as scipy's sparse rows; typed as Any, because scipy's own types do not know its methods."""
    return scipy.sparse.csr_matrix(matrix)


def branch_presence(counts: Any, phylogeny: Phylogeny) -> tuple[np.ndarray, np.ndarray]:
    """Which branches the samples have: (samples, branches found) of 0 and 1, and those branches' lengths.

    `counts` is a sparse (samples, tips); branches that no sample has are left out.
    """
    present = (as_rows(counts) > 0).astype(np.float32) @ phylogeny.ancestors
    found = np.unique(present.indices)
    dense = (present[:, found].toarray() > 0).astype(np.float64)
    return dense, phylogeny.lengths[found]


def branch_shares(counts: Any, phylogeny: Phylogeny) -> tuple[np.ndarray, np.ndarray]:
    """The share of each sample's reads below each branch: (samples, branches found), and the branches' lengths."""
    counts = as_rows(counts).astype(np.float64)
    totals = np.maximum(np.asarray(counts.sum(1)).reshape(-1, 1), 1e-300)
    below = as_rows(as_rows(counts.multiply(1 / totals)) @ phylogeny.ancestors.astype(np.float64))
    found = np.unique(below.indices)
    return below[:, found].toarray(), phylogeny.lengths[found]


def distances(counts: Any, phylogeny: Phylogeny, metric: Metric = "unweighted") -> np.ndarray:
    """(samples, samples): UniFrac distances between all pairs, in float64; 0 between two empty samples.

    `counts` is a sparse (samples, tips) of reads; its columns are the phylogeny's tips in order.
    """
    counts = as_rows(counts)
    if metric == "unweighted":
        return _unweighted(counts, phylogeny)
    return _weighted(counts, phylogeny, normalized=metric == "weighted_normalized")


def tip_distances(phylogeny: Phylogeny, tips: np.ndarray) -> np.ndarray:
    """(chosen, chosen): unweighted UniFrac between samples of one tip each, of the tips with the numbers `tips`."""
    above = phylogeny.ancestors[tips].astype(np.float64)
    # Sparse, for a tip has few of the branches, and two tips share fewer.
    shared = np.asarray((above.multiply(phylogeny.lengths).tocsr() @ above.T).todense())
    return _from_shared(shared)


def _unweighted(counts: Any, phylogeny: Phylogeny) -> np.ndarray:
    size = counts.shape[0]
    if size * phylogeny.ancestors.shape[1] <= LARGEST_BLOCK:
        presence, lengths = branch_presence(counts, phylogeny)
        shared = (presence * lengths) @ presence.T
    else:
        # The same product, with the branches cut into groups: sums over branches add up.
        present: Any = scipy.sparse.csc_matrix((counts > 0).astype(np.float32) @ phylogeny.ancestors)
        shared = np.zeros((size, size))
        width = max(1, LARGEST_BLOCK // size)
        for first in range(0, present.shape[1], width):
            part = (present[:, first : first + width].toarray() > 0).astype(np.float64)
            shared += (part * phylogeny.lengths[first : first + width]) @ part.T
    return _from_shared(shared)


def _from_shared(shared: np.ndarray) -> np.ndarray:
    """Distances from shared lengths, whose diagonal holds the samples' own."""
    own = np.diag(shared)
    union = own[:, None] + own[None, :] - shared
    result = 1 - np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
    np.fill_diagonal(result, 0.0)
    return np.maximum(result, 0.0)


def _weighted(counts: Any, phylogeny: Phylogeny, normalized: bool) -> np.ndarray:
    """Differences are no product, but the shares below the branches are one."""
    from scipy.spatial.distance import cdist

    shares, lengths = branch_shares(counts, phylogeny)
    shares *= lengths
    result = cdist(shares, shares, "cityblock")
    if not normalized:
        return result
    height = shares.sum(1)
    total = height[:, None] + height[None, :]
    return np.divide(result, total, out=np.zeros_like(result), where=total > 0)


def _blocks(counts: Any, phylogeny: Phylogeny) -> list[slice]:
    rows = max(1, LARGEST_BLOCK // max(1, phylogeny.ancestors.shape[1]))
    return [slice(first, first + rows) for first in range(0, counts.shape[0], rows)]
