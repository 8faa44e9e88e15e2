"""UniFrac distances and Faith's diversity as matrix products over a tree's branches.

A branch is present in a sample when an ASV below it is. With P the 0/1 matrix of samples by branches and l the
branches' lengths, S = (P * l) P^T holds the length that two samples share, its diagonal a each sample's own (Faith's
phylogenetic diversity), and unweighted UniFrac is 1 - S / (a_i + a_j - S): one matrix product for all pairs.
A length on the root belongs to every sample and is counted, as scikit-bio does.
Source: Lozupone and Knight 2005, Appl Environ Microbiol 71:8228; Faith 1992, Biol Conserv 61:1.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import scipy.sparse

from recipes.microbiome.files import first_repeated
from runner.errors import DataError
from runner.parts.installation import require

if TYPE_CHECKING:
    from skbio import TreeNode

Metric = Literal["unweighted", "weighted", "weighted_normalized"]
Lengths = Literal["refuse", "one", "zero"]
Root = Literal["required", "midpoint", "top"]

SparseRows = Any
"""scipy.sparse.csr_matrix. scipy has no types, and what is inferred from its code lacks the methods used here."""

# Dense blocks of samples by branches hold at most this many numbers (256 MiB in float64).
LARGEST_BLOCK = 2**25
MOST_TIPS_TOGETHER = 2048
"""Trees with at most so many tips have a table of the distances between all of them."""


@dataclasses.dataclass(frozen=True)
class Phylogeny:
    """A rooted tree, seen from its tips: the branches above each, and how long they are."""

    names: tuple[str, ...]
    """The tips; the rows of `ancestors`."""
    ancestors: SparseRows
    """(tips, branches), sparse: 1 where the branch leads to the tip, from the tip's own branch up to the root's."""
    lengths: np.ndarray
    """(branches,): in the unit of the tree, mostly substitutions per site."""
    places: np.ndarray
    """(tips,): each tip's place among the tips where the tree is drawn, so that those below a branch are neighbours."""
    spans: np.ndarray
    """(2, branches): the place of the first tip below each branch, and the one behind its last tip."""

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
        spans = _spans(parents, [name is not None for name in names])
        tip_names = tuple(str(names[tip]) for tip in tips)
        return cls(tip_names, ancestors, np.asarray(lengths, np.float64), spans[0, tips], spans)

    @classmethod
    def from_newick(
        cls, text: str, source: str = "the tree", missing_lengths: Lengths = "refuse", root: Root = "required"
    ) -> Phylogeny:
        """From a newick string; a length on the root counts, and the root may have none.

        `missing_lengths` says what a branch without a length has, `root` what to do with a tree without a root.
        Raises DataError for a tree on which UniFrac is not defined: lengths that are missing, negative or not finite,
        no root, two tips of one name.
        """
        top = _parsed(text, source)
        nodes = list(top.postorder(include_self=True))
        _check_tips(nodes, source)
        # scikit-bio's own test: a tree that was never rooted is written with three branches or more at its top.
        if len(top.children) > 2 and root == "required":
            raise DataError(
                f"{source} has no root: {len(top.children)} branches meet at its top, and UniFrac needs a root.\n"
                "Type --data.tree_root midpoint to root it in the middle of its longest path, or --data.tree_root top "
                "if the top is the root."
            )
        _check_lengths(nodes, source, missing_lengths)
        if root == "midpoint":
            top = top.root_at_midpoint()
            nodes = list(top.postorder(include_self=True))
        place = {id(node): number for number, node in enumerate(nodes)}
        parents = [place[id(node.parent)] if node.parent is not None else -1 for node in nodes]
        names = [node.name or "" if node.is_tip() else None for node in nodes]
        return cls.from_parents(parents, [float(node.length or 0.0) for node in nodes], names)

    @functools.cached_property
    def tip_table(self) -> np.ndarray:
        """(tips, tips) of float32: the distances between samples of one tip each."""
        return _tip_distances(self, np.arange(len(self.names)))

    def rows_of(self, names: Iterable[str]) -> Phylogeny:
        """The same tree, its tips in the order of `names`; the others stay away. Raises KeyError for a missing one."""
        row_of = {name: row for row, name in enumerate(self.names)}
        chosen = tuple(names)
        rows = [row_of[name] for name in chosen]
        # The tips that stay move up to fill the places of those that go.
        staying = np.sort(self.places[rows])
        places, spans = (np.searchsorted(staying, each) for each in (self.places[rows], self.spans))
        return dataclasses.replace(self, names=chosen, ancestors=self.ancestors[rows], places=places, spans=spans)


def _spans(parents: Sequence[int], is_tip: Sequence[bool]) -> np.ndarray:
    """(2, branches): where the tips below each branch begin and end, for nodes with children before their parents."""
    sizes = np.array(is_tip, np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sizes[parent] += sizes[node]
    firsts = np.zeros_like(sizes)
    free = np.zeros_like(sizes)
    for node in reversed(range(len(parents))):
        parent = parents[node]
        if parent >= 0:
            firsts[node] = free[parent]
            free[parent] += sizes[node]
        free[node] = firsts[node]
    return np.stack([firsts, firsts + sizes])


def _parsed(text: str, source: str) -> TreeNode:
    """The root of the one tree that a text holds."""
    require(("skbio",), "Reading a tree", "microbiome")
    from skbio import TreeNode

    if text.lstrip()[:6].upper() == "#NEXUS":
        raise DataError(f"{source} is a NEXUS file; wanted: newick. Export the tree as newick (.nwk).")
    # Names in quotes and comments may hold semicolons.
    plain = re.sub(r"'[^']*'|\[[^\]]*\]", "", text)
    if plain.partition(";")[2].strip():
        raise DataError(f"{source} holds {plain.count(';')} trees; wanted: one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cast("TreeNode", TreeNode.read([text], format="newick", convert_underscores=False))
    except Exception as error:
        summary = " ".join(str(error).split())[:120]
        raise DataError(f"{source} cannot be read as newick: {summary}\nType --data.tree with a .nwk file.") from None


def _check_tips(nodes: list[TreeNode], source: str) -> None:
    names = [node.name or "" for node in nodes if node.is_tip()]
    if len(nodes) < 2:
        raise DataError(f"{source} holds one node and no branch: UniFrac needs a tree with branches.")
    if "" in names:
        raise DataError(f"{source} has {names.count('')} tips without a name; wanted: the ASVs' ids as names.")
    twice = first_repeated(names)
    if twice is not None:
        raise DataError(f"{source} has two tips called {twice[:60]}; wanted: each ASV once.")


def _check_lengths(nodes: list[TreeNode], source: str, missing_lengths: Lengths) -> None:
    """Check the lengths of all branches, and fill in those that are missing where that was asked for."""
    below_root = [node for node in nodes if node.parent is not None]
    missing = [node for node in below_root if node.length is None]
    if missing and missing_lengths == "refuse":
        raise DataError(
            f"{len(missing)} of {len(below_root)} branches of {source} have no length, and UniFrac sums lengths.\n"
            "Type --data.tree with a tree that has them, or --data.missing_lengths one to count such branches as 1 "
            "(zero: as 0)."
        )
    for node in missing:
        node.length = 1.0 if missing_lengths == "one" else 0.0
    lengths = np.array([float(node.length or 0.0) for node in nodes])
    if not np.isfinite(lengths).all():
        wrong = lengths[~np.isfinite(lengths)][0]
        raise DataError(f"{source} has a branch of length {wrong}; wanted: finite numbers.")
    if lengths.min() < 0:
        raise DataError(
            f"{source} has a branch of length {lengths.min():g}; wanted: lengths of at least 0. Neighbour joining "
            "makes such branches: set them to 0 in the file."
        )
    if not lengths[:-1].any():
        raise DataError(f"All branches of {source} have length 0, so every UniFrac distance would be 0.")


def as_rows(matrix: SparseRows | np.ndarray) -> SparseRows:
    """The matrix as scipy's sparse rows."""
    return scipy.sparse.csr_matrix(matrix)


def branch_presence(counts: SparseRows, phylogeny: Phylogeny) -> tuple[np.ndarray, np.ndarray]:
    """Which branches the samples have: (samples, branches found) of 0 and 1, and those branches' lengths.

    `counts` is a sparse (samples, tips); branches that no sample has are left out.
    """
    present = as_rows(counts) > 0
    found = _found(present, phylogeny)
    return (_below(present, phylogeny, found, np.int32) > 0).astype(np.float64), phylogeny.lengths[found]


def branch_shares(counts: SparseRows, phylogeny: Phylogeny) -> tuple[np.ndarray, np.ndarray]:
    """The share of each sample's reads below each branch: (samples, branches found), and the branches' lengths."""
    counts = as_rows(counts)
    found = _found(counts > 0, phylogeny)
    totals = np.maximum(np.asarray(counts.sum(1)).reshape(-1, 1), 1e-300)
    return _below(counts, phylogeny, found, np.float64) / totals, phylogeny.lengths[found]


def _found(present: SparseRows, phylogeny: Phylogeny) -> np.ndarray:
    """The numbers of the branches that some sample has."""
    sums = np.zeros(present.shape[1] + 1, np.int64)
    sums[phylogeny.places[present.indices] + 1] = 1
    np.cumsum(sums, out=sums)
    firsts, lasts = phylogeny.spans
    return np.flatnonzero(sums[lasts] > sums[firsts])


def _below(counts: SparseRows, phylogeny: Phylogeny, branches: np.ndarray, dtype: type) -> np.ndarray:
    """(samples, chosen branches): what a sample has below each branch, as the difference of two running sums.

    The tips below a branch are neighbours, so the number of operations does not grow with the depth of the tree.
    """
    sums = np.zeros((counts.shape[0], counts.shape[1] + 1), dtype)
    sums[:, phylogeny.places + 1] = counts.toarray()
    np.cumsum(sums, axis=1, out=sums)
    firsts, lasts = phylogeny.spans
    below = sums.take(lasts[branches], axis=1)
    below -= sums.take(firsts[branches], axis=1)
    return below


def distances(counts: SparseRows, phylogeny: Phylogeny, metric: Metric = "unweighted") -> np.ndarray:
    """(samples, samples): UniFrac distances between all pairs, in float64; 0 between two empty samples.

    `counts` is a sparse (samples, tips) of reads; its columns are the phylogeny's tips in order.
    """
    counts = as_rows(counts)
    if metric == "unweighted":
        return _unweighted(counts, phylogeny)
    return _weighted(counts, phylogeny, normalized=metric == "weighted_normalized")


def tip_distances(phylogeny: Phylogeny, tips: np.ndarray) -> np.ndarray:
    """(chosen, chosen) of float32: unweighted UniFrac between samples of one tip each, of the tips `tips`."""
    if len(phylogeny.names) <= MOST_TIPS_TOGETHER:
        return phylogeny.tip_table.take(tips, 0).take(tips, 1)
    return _tip_distances(phylogeny, tips)


def _tip_distances(phylogeny: Phylogeny, tips: np.ndarray) -> np.ndarray:
    above = phylogeny.ancestors[tips].astype(np.float64)
    # Sparse, for a tip has few of the branches, and two tips share fewer.
    shared = np.asarray((above.multiply(phylogeny.lengths).tocsr() @ above.T).todense())
    return _from_shared(shared).astype(np.float32)


def _unweighted(counts: SparseRows, phylogeny: Phylogeny) -> np.ndarray:
    size = counts.shape[0]
    if size * phylogeny.ancestors.shape[1] <= LARGEST_BLOCK:
        presence, lengths = branch_presence(counts, phylogeny)
        shared = (presence * lengths) @ presence.T
    else:
        # The same product, with the branches cut into groups: sums over branches add up.
        present: SparseRows = scipy.sparse.csc_matrix((counts > 0).astype(np.float32) @ phylogeny.ancestors)
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


def _weighted(counts: SparseRows, phylogeny: Phylogeny, normalized: bool) -> np.ndarray:
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
