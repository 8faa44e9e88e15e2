"""From samples to micro-batches: the tensors of the model and of its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from recipes.microbiome.examples import Example, counts_of, mask_letters, model_inputs
from recipes.microbiome.fitting import target_values
from recipes.microbiome.target import Fitted
from recipes.microbiome.unifrac import distances, tip_distances
from runner.recipe import Batch

if TYPE_CHECKING:
    from recipes.microbiome.settings import StageSettings
    from recipes.microbiome.study import Study

# Pairs of ASVs grow as their square: this many make half a million.
MOST_ASVS_ALONE = 1024

DistanceTable = tuple[np.ndarray, np.ndarray]
"""(place of each study row, distances between the training samples); what is held out has the place -1."""

ReadoutScores = tuple[np.ndarray, np.ndarray]
"""(samples, outputs) twice: the linear readout's scores in training, where no sample is scored by a fit that saw it,
and in evaluation."""


def training_distances(settings: StageSettings, study: Study, rows: np.ndarray) -> DistanceTable | None:
    """The distances between the training samples `rows`, where one matrix is to serve all micro-batches."""
    data = settings.source
    auto = data.distance_from == "auto" and len(rows) <= 4096
    if data.rarefy_depth or not (auto or data.distance_from == "matrix"):
        return None
    assert study.phylogeny is not None
    place = np.full(len(study.sample_ids), -1)
    place[rows] = np.arange(len(rows))
    return place, distances(study.counts[rows], study.phylogeny, data.distance).astype(np.float32)


def batch_distances(
    settings: StageSettings, study: Study, examples: list[Example], table: DistanceTable | None
) -> np.ndarray:
    """(examples, examples): UniFrac of the reads that the examples hold, float32."""
    if examples[0].scored is None and table is not None:
        place, matrix = table
        rows = place[[example.sample for example in examples]]
        return matrix[np.ix_(rows, rows)]
    assert study.phylogeny is not None
    counts = counts_of(examples, study.counts.shape[1])
    return distances(counts, study.phylogeny, settings.source.distance).astype(np.float32)


def hidden_letters(settings: StageSettings, tokens: np.ndarray, asvs: np.ndarray, training: bool) -> np.ndarray:
    """(asvs, letters) of bool: what is hidden, by the runner's seed in training, by the ASV in evaluation.

    So every evaluation hides the same.
    """
    rate, seed = settings.model_settings.nuc_mask, settings.source.split_seed
    if not training:
        own = [mask_letters(row[None], rate, np.random.default_rng((seed, int(asv))))
               for row, asv in zip(tokens, asvs, strict=True)]  # fmt: skip
        return np.concatenate(own) if own else np.zeros(tokens.shape, bool)
    random = np.random.default_rng(np.random.randint(2**31))
    mask = mask_letters(tokens, rate, random)
    mask[random.random(len(tokens)) >= settings.model_settings.masked_asvs] = False
    return mask


def collate(
    settings: StageSettings,
    study: Study,
    fitted: Fitted,
    examples: list[Example],
    table: DistanceTable | None,
    readout: ReadoutScores | None = None,
) -> Batch:
    """The distinct ASVs of the examples, what each example has of them, and the losses' targets."""
    distinct, inputs = model_inputs(study, examples, *settings.reading)
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    tokens, training = inputs["tokens"], examples[0].scored is None
    if settings.wants_nucleotides:
        mask = hidden_letters(settings, tokens, distinct, training)
        if settings.stage == "predict":
            # The heads read complete ASVs, in training as in use: ASVs to be filled in are encoded beside them.
            holes = mask.any(1)
            tensors["tokens"] = torch.from_numpy(np.concatenate([tokens, tokens[holes]]))
            mask = np.concatenate([np.zeros_like(mask), mask[holes]])
        tensors["mask"] = torch.from_numpy(mask)
    if settings.wants_unifrac:
        tensors["distances"] = torch.from_numpy(batch_distances(settings, study, examples, table))
        if settings.wants_asv_pairs:
            assert study.phylogeny is not None
            random = np.random.default_rng(np.random.randint(2**31) if training else settings.source.split_seed)
            alone = np.sort(random.permutation(len(distinct))[:MOST_ASVS_ALONE])
            apart = tip_distances(study.phylogeny, distinct[alone])
            tensors["alone"] = torch.from_numpy(alone)
            tensors["asv_distances"] = torch.from_numpy(apart)
    if settings.wants_target:
        values = target_values(study, settings.source, fitted)
        assert values is not None
        own = values[[example.sample for example in examples]]
        if not fitted.classes:
            own = (own - fitted.mean) / fitted.deviation
        if readout is not None:
            scores = readout[0 if training else 1][[example.sample for example in examples]]
            tensors["linear"] = torch.from_numpy(scores.astype(np.float32))
        tensors["target"] = torch.from_numpy(own.astype(np.int64 if fitted.classes else np.float32))
    return Batch(tensors, weight=len(examples), tokens=int((tokens > 0).sum()), extra={"examples": examples})
