"""The embedded study: a tree, sequences evolved down it, and samples along a hidden gradient.

Everything follows from one seed. The tree is a coalescent, the sequences change along its branches as Jukes and Cantor
say (1969, Mammalian Protein Metabolism, 21), and every clade has a place on the gradient where it thrives; the target
is the gradient, measured with some error. Samples come from sites, whose conditions are alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from recipes.microbiome.unifrac import Phylogeny, SparseRows

LETTERS = np.array(list("ACGT"))


@dataclasses.dataclass(frozen=True)
class Demo:
    """A study as made."""

    counts: SparseRows
    """(samples, ASVs), sparse rows: reads."""
    sequences: list[str]
    phylogeny: Phylogeny
    """Its tips are the sequences, in order."""
    gradient: np.ndarray
    """(samples,): the hidden condition, 0 to 1."""
    target: np.ndarray
    """(samples,): what was measured, 4 to 8, like a soil's pH."""
    sites: list[str]
    """The site of each sample."""


def coalescent(num_tips: int, random: np.random.Generator) -> tuple[list[int], list[float]]:
    """A random rooted tree of height 1, children before parents: each node's parent (-1 at the root) and branch.

    The first `num_tips` nodes are the tips. Source: Kingman 1982, J Appl Probab 19A:27.
    """
    parents = [-1] * (2 * num_tips - 1)
    heights = [0.0] * (2 * num_tips - 1)
    alive, height = list(range(num_tips)), 0.0
    for node in range(num_tips, 2 * num_tips - 1):
        height += random.exponential(2.0 / (len(alive) * (len(alive) - 1)))
        left, right = sorted(random.choice(len(alive), 2, replace=False))
        heights[node] = height
        parents[alive[left]] = parents[alive[right]] = node
        alive[left] = node
        del alive[right]
    lengths = [(heights[parent] - heights[node]) / height for node, parent in enumerate(parents) if parent >= 0]
    return parents, [*lengths, 0.0]


def evolve(parents: list[int], lengths: list[float], num_sites: int, rate: float, random: np.random.Generator):
    """(nodes, sites) of 0 to 3: sequences that change down the tree, `rate` substitutions per site at height 1."""
    states = np.zeros((len(parents), num_sites), np.int8)
    for node in reversed(range(len(parents))):
        if parents[node] < 0:
            states[node] = random.integers(4, size=num_sites)
            continue
        changes = random.random(num_sites) < 0.75 * (1 - np.exp(-4 / 3 * rate * lengths[node]))
        other = (states[parents[node]] + random.integers(1, 4, size=num_sites)) % 4
        states[node] = np.where(changes, other, states[parents[node]])
    return states


def clades_of(parents: list[int], lengths: list[float], num_tips: int, depth: float) -> np.ndarray:
    """(tips,): the number of each tip's clade, where the tree is cut at `depth` below the root."""
    below = np.zeros(len(parents))
    for node in reversed(range(len(parents) - 1)):
        below[node] = below[parents[node]] + lengths[node]
    clades = []
    for tip in range(num_tips):
        node = tip
        while parents[node] >= 0 and below[parents[node]] >= depth:
            node = parents[node]
        clades.append(node)
    return np.unique(clades, return_inverse=True)[1]


def make(seed: int = 0, num_samples: int = 240, num_asvs: int = 300, num_nucleotides: int = 64) -> Demo:
    """Make the study of a seed."""
    random = np.random.default_rng((seed, 20_251_121))
    parents, lengths = coalescent(num_asvs, random)
    states = evolve(parents, lengths, num_nucleotides, 0.5, random)[:num_asvs]
    # Two tips can end with the same letters; ASVs are distinct by definition, so the later one changes at its end.
    seen: set[bytes] = set()
    for row in states:
        while row.tobytes() in seen:
            row[random.integers(num_nucleotides)] = random.integers(4)
        seen.add(row.tobytes())
    sequences = ["".join(LETTERS[row]) for row in states]
    names = [*sequences, *[None] * (num_asvs - 1)]
    phylogeny = Phylogeny.from_parents(parents, lengths, names)

    clade = clades_of(parents, lengths, num_asvs, 0.6)
    optimum = random.uniform(-0.1, 1.1, clade.max() + 1)[clade] + random.normal(0, 0.08, num_asvs)
    abundance = random.lognormal(0, 1.2, num_asvs)
    num_sites = max(2, num_samples // 6)
    site = np.sort(random.integers(num_sites, size=num_samples))
    gradient = np.clip(random.uniform(0, 1, num_sites)[site] + random.normal(0, 0.08, num_samples), 0, 1)
    niche = np.exp(-((gradient[:, None] - optimum[None, :]) ** 2) / (2 * 0.15**2))
    expected = niche * abundance * random.lognormal(0, 0.7, (num_samples, num_asvs))
    expected *= random.random((num_samples, num_asvs)) < 0.6
    counts = np.stack([random.multinomial(600, row / row.sum()) for row in expected])
    target = 4 + 4 * gradient + random.normal(0, 0.15, num_samples)
    return Demo(
        scipy.sparse.csr_matrix(counts.astype(np.float64)),
        sequences,
        phylogeny,
        gradient,
        target,
        [f"site-{number:02}" for number in site],
    )
