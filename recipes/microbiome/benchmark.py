"""Measure on this machine: UniFrac beside scikit-bio, and the memory of a step.

python -m recipes.microbiome.benchmark unifrac
python -m recipes.microbiome.benchmark memory --samples 1 --token_limit 1024 --asv_chunk_size 64
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def measured(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """What an action returns, and the CPU and wall seconds that it took."""
    wall, processor = time.perf_counter(), time.process_time()
    result = action()
    return result, time.process_time() - processor, time.perf_counter() - wall


def unifrac(num_samples: int, num_asvs: int) -> None:
    """Print the time of all pairs here and in scikit-bio, and the largest difference."""
    from skbio import TreeNode
    from skbio.diversity import beta_diversity

    from recipes.microbiome import demo
    from recipes.microbiome.unifrac import distances

    random = np.random.default_rng(0)
    parents, lengths = demo.coalescent(num_asvs, random)
    nodes = [TreeNode(name=f"t{number}" if number < num_asvs else None) for number in range(len(parents))]
    for node, (parent, length) in enumerate(zip(parents, lengths, strict=True)):
        if parent >= 0:
            nodes[node].length = length
            nodes[parent].append(nodes[node])
    names = [f"t{number}" for number in range(num_asvs)]
    counts = np.where(random.random((num_samples, num_asvs)) < 0.05, random.integers(1, 50, (num_samples, num_asvs)), 0)
    from recipes.microbiome.unifrac import Phylogeny

    phylogeny = Phylogeny.from_parents(parents, lengths, [*names, *[None] * (num_asvs - 1)])
    import scipy.sparse

    table = scipy.sparse.csr_matrix(counts)
    ours, our_cpu, our_wall = measured(lambda: distances(table, phylogeny))
    theirs, their_cpu, their_wall = measured(
        lambda: beta_diversity("unweighted_unifrac", counts, taxa=names, tree=nodes[-1], validate=False)
    )
    apart = np.abs(ours - theirs.data).max()
    print(
        f"{num_samples} x {num_asvs}: matrix product {our_cpu:.4f} s CPU ({our_wall:.4f} s), "
        f"scikit-bio {their_cpu:.3f} s CPU ({their_wall:.3f} s), {their_cpu / our_cpu:.0f} times; "
        f"largest difference {apart:.1e}",
        flush=True,
    )


def memory(samples: int, token_limit: int, asv_chunk_size: int, preset: str, nucleotides: int) -> None:
    """Print the peak memory and the time of one step of stage 1 on samples of `token_limit` ASVs each.

    Seven of ten ASV slots hold an ASV of their own, as in soil with 8 samples per micro-batch.
    """
    import torch

    from recipes.microbiome.data import Example
    from recipes.microbiome.recipe import DataSettings, ModelSettings, Recipe

    values = Recipe.presets()[preset]
    sizes = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("model.")}
    sizes |= {"token_limit": token_limit, "asv_chunk_size": asv_chunk_size}
    distinct = token_limit if samples == 1 else int(0.7 * samples * token_limit)
    recipe = Recipe(
        model_settings=ModelSettings(**sizes),
        data_settings=DataSettings(demo_samples=10, demo_asvs=distinct, max_bp=nucleotides, distance_from="batch"),
        asv_penalty=0.0,
    )
    # The embedded study's letters are few; the model is to read long ones.
    study = recipe.study
    repeats = -(-nucleotides // len(study.sequences[0]))
    object.__setattr__(study, "sequences", tuple((sequence * repeats)[:nucleotides] for sequence in study.sequences))
    random = np.random.default_rng(0)
    examples = [
        Example(0, random.permutation(distinct)[:token_limit], np.ones(token_limit), None) for _ in range(samples)
    ]
    model, batch = recipe.model().train(), recipe.collate(examples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        recipe.loss(model, batch).sum.backward()

    _, cpu, wall = measured(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"preset {preset}, {weights:,} parameters, {samples} samples of {token_limit} ASVs of {nucleotides} "
        f"nucleotides ({len(batch['tokens'])} distinct), asv_chunk_size {asv_chunk_size}: peak {peak / 2**20:.2f} GiB "
        f"({before / 2**20:.2f} before the step), {cpu:.0f} s CPU ({wall:.0f} s), {torch.get_num_threads()} threads",
        flush=True,
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["unifrac", "memory"])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--token_limit", type=int, default=1024)
    parser.add_argument("--asv_chunk_size", type=int, default=0)
    parser.add_argument("--nucleotides", type=int, default=150)
    parser.add_argument("--preset", default="guide")
    given = parser.parse_args()
    if given.what == "unifrac":
        for num_samples, num_asvs in [(16, 5000), (500, 5000)]:
            unifrac(num_samples, num_asvs)
    else:
        memory(given.samples, given.token_limit, given.asv_chunk_size, given.preset, given.nucleotides)


if __name__ == "__main__":
    main()
