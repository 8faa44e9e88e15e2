"""Measure on this machine the memory of a step of stage 1.

python -m recipes.microbiome.benchmark --samples 1 --token_limit 1024 --asv_chunk_size 64
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """The CPU and wall seconds that an action takes."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - processor, time.perf_counter() - wall


def memory(samples: int, token_limit: int, asv_chunk_size: int, preset: str, nucleotides: int) -> None:
    """Print the peak memory and the time of one step of stage 1 on samples of `token_limit` ASVs each.

    Seven of ten ASV slots hold an ASV of their own, as in soil with 8 samples per micro-batch.
    """
    import torch

    from recipes.microbiome.examples import Example
    from recipes.microbiome.presets import presets
    from recipes.microbiome.recipe import Recipe
    from recipes.microbiome.settings import DataSettings, ModelSettings

    values = presets()[preset]
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

    cpu, wall = measured(step)
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
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--token_limit", type=int, default=1024)
    parser.add_argument("--asv_chunk_size", type=int, default=0)
    parser.add_argument("--nucleotides", type=int, default=150)
    parser.add_argument("--preset", default="guide")
    given = parser.parse_args()
    memory(given.samples, given.token_limit, given.asv_chunk_size, given.preset, given.nucleotides)


if __name__ == "__main__":
    main()
