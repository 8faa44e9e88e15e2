"""UniFrac of all pairs as a matrix product beside scikit-bio: how equal, and how many times faster.

make bench, or: python -m tests.benchmarks unifrac

What training needs is a batch of 16 in every step, or the distances between all samples once. Trees are random, of
5,000 tips, and the real ones where the studies are here. The two take turns; times are the processor's own, medians of
the rounds. What is done once per tree (parsing it, and finding the branches above each tip) is in neither's time.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from recipes.microbiome import demo
from recipes.microbiome.tables import read_table
from recipes.microbiome.unifrac import Metric, Phylogeny, distances
from tests.benchmarks import page
from tests.launching import SHARED

DATA = SHARED / "microbiome"
METRICS: tuple[Metric, ...] = ("unweighted", "weighted_normalized")
Study = tuple[Any, list[str], Phylogeny, Any]
"""(samples, tips) of reads, the tips' names, and the tree as ours and as scikit-bio's."""


def made(num_samples: int, num_tips: int) -> Study:
    """A random tree, and samples that have one in twenty of its tips each."""
    from skbio import TreeNode

    random = np.random.default_rng(0)
    parents, lengths = demo.coalescent(num_tips, random)
    names = [f"tip{number}" for number in range(num_tips)]
    nodes = [TreeNode(name=name) for name in [*names, *[None] * (num_tips - 1)]]
    for node, (parent, length) in enumerate(zip(parents, lengths, strict=True)):
        if parent >= 0:
            nodes[node].length = length
            nodes[parent].append(nodes[node])
    shape = (num_samples, num_tips)
    counts = np.where(random.random(shape) < 0.05, random.integers(1, 50, shape), 0)
    return counts, names, Phylogeny.from_parents(parents, lengths, [*names, *[None] * (num_tips - 1)]), nodes[-1]


def real(name: str, num_samples: int) -> Study:
    """Samples of a real study, with its tree; skipped where it is not here."""
    from skbio import TreeNode

    if not (DATA / name).is_dir():
        pytest.skip(f"the study {name} is not here")
    _, names, table = read_table(DATA / name / "table.biom")
    rows = np.random.default_rng(0).permutation(table.shape[0])[:num_samples]
    text = (DATA / name / "tree.nwk").read_text(encoding="utf-8")
    tree = TreeNode.read([text], format="newick", convert_underscores=False)
    return table[rows].toarray().astype(int), names, Phylogeny.from_newick(text).rows_of(names), tree


STUDIES: dict[str, tuple[Callable[[], Study], int]] = {
    "batch of 16, random tree": (lambda: made(16, 5000), 5),
    "batch of 16, oral_age": (lambda: real("oral_age", 16), 5),
    "batch of 16, soil_ph": (lambda: real("soil_ph", 16), 5),
    "500 samples, random tree": (lambda: made(500, 5000), 1),
}


def seconds(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and the processor's seconds."""
    started = time.process_time()
    result = action()
    return result, time.process_time() - started


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.filterwarnings("ignore")
def test_equal_to_scikit_bio_and_faster(name: str) -> None:
    from skbio.diversity import beta_diversity

    study, rounds = STUDIES[name]
    counts, names, phylogeny, tree = study()
    table = scipy.sparse.csr_matrix(counts)
    rows = []
    for metric in METRICS:
        options = {"normalized": True} if metric == "weighted_normalized" else {}
        name_there = f"{metric.split('_')[0]}_unifrac"
        here = functools.partial(distances, table, phylogeny, metric)
        there = functools.partial(beta_diversity, name_there, counts, taxa=names, tree=tree, validate=False, **options)
        taken: list[tuple[float, float]] = []
        apart = 0.0
        for _ in range(rounds):
            (ours, own), (theirs, other) = seconds(here), seconds(there)
            taken.append((own, other))
            apart = max(apart, float(np.abs(ours - theirs.data).max()))
        mine, oracle = (statistics.median(each) for each in zip(*taken, strict=True))
        rows.append((metric, f"{1000 * mine:,.2f}", f"{1000 * oracle:,.1f}", f"{oracle / mine:.0f}", f"{apart:.0e}"))
        assert apart < 1e-6
        # A net under the figures of docs/benchmarks.md, not their proof.
        assert oracle > 3 * mine
    columns = (f"{name}: {counts.shape[0]} x {counts.shape[1]:,} ASVs", "matrix product, CPU ms", "scikit-bio, CPU ms",
               "ratio", "largest difference")  # fmt: skip
    page.record("unifrac", columns, rows, f"{rounds} interleaved rounds" if rounds > 1 else "one round")
