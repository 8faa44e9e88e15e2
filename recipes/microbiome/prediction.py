"""What a model predicts of the samples of a split, and how well its distances agree with UniFrac."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch

from recipes.microbiome.collating import hidden_letters
from recipes.microbiome.examples import Example, Examples, patched
from recipes.microbiome.fitting import target_values
from recipes.microbiome.model import MicrobiomeModel, embedding_distances, tanh_scale
from recipes.microbiome.target import Fitted
from recipes.microbiome.unifrac import distances
from runner.recipe import Batch

if TYPE_CHECKING:
    from recipes.microbiome.settings import StageSettings
    from recipes.microbiome.study import Study


class _Sample(TypedDict):
    sample: str
    """The sample's id."""
    row: int
    """Its row in the study."""
    embedding: list[float]


class Row(_Sample, total=False):
    """What `predict` gives of one sample."""

    length: float
    """The sample's own branch length, in the forms of distance that have it."""
    group: str
    predicted: float | list[float]
    """In the target's unit, or the probabilities of the classes."""
    by_readout: float | list[float]
    """The same, by the linear readout alone."""
    target: float
    """In its unit, or the number of the class; -1 for a class that training has not seen."""
    nucleotides: list[list[int]]
    """Of each ASV scored here: its number, hidden letters, those found, and those that the column majority has."""


def predicted_rows(
    settings: StageSettings, study: Study, fitted: Fitted, model: MicrobiomeModel, batch: Batch
) -> list[Row]:
    """Per sample: embedding, prediction in the target's unit, and how many hidden nucleotides were found."""
    examples: list[Example] = batch.extra["examples"]
    complete = batch["tokens"][: int(batch["asvs"].max()) + 1]
    linear = batch.tensors.get("linear")
    output = model(complete, None, batch["asvs"], batch["is_there"], batch["abundance"], linear=linear)
    group = settings.source.group
    rows: list[Row] = []
    for number, example in enumerate(examples):
        embedding = output.embeddings[number].float().tolist()
        row: Row = {"sample": study.sample_ids[example.sample], "row": example.sample, "embedding": embedding}
        if output.lengths is not None:
            row["length"] = output.lengths[number].item()
        if group is not None and group in study.metadata:
            row["group"] = study.metadata[group][example.sample]
        rows.append(row)
    if settings.wants_target:
        values = target_values(study, settings.source, fitted)
        guesses = fitted.in_unit(output.target).tolist()
        for row, guess in zip(rows, guesses, strict=True):
            row["predicted"] = guess
        if linear is not None:
            for row, guess in zip(rows, fitted.in_unit(linear).tolist(), strict=True):
                row["by_readout"] = guess
        for row in rows:
            if values is not None:
                row["target"] = float(values[row["row"]])
    if settings.wants_nucleotides:
        _add_nucleotides(settings, study, fitted, model, examples, rows)
    return rows


def _add_nucleotides(
    settings: StageSettings,
    study: Study,
    fitted: Fitted,
    model: MicrobiomeModel,
    examples: list[Example],
    rows: list[Row],
) -> None:
    scored = [example.scored for example in examples if example.scored is not None and len(example.scored)]
    if not scored:
        return
    asvs = np.concatenate(scored)
    tokens = patched(study, asvs, *settings.reading[1:])
    mask = hidden_letters(settings, tokens, asvs, training=False)
    device = next(model.parameters()).device
    _, guesses = model.asv_encoder(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))
    columns = np.zeros(tokens.shape[1], np.int32)
    # 0, which is no letter, stands beyond what training had.
    columns[: len(fitted.majority)] = fitted.majority[: len(columns)]
    found = np.zeros(tokens.shape, bool)
    found[mask] = guesses.argmax(1).cpu().numpy() + 1 == tokens[mask]
    by_majority = mask & (columns == tokens)
    counts = np.stack([asvs, mask.sum(1), found.sum(1), by_majority.sum(1)], 1)
    start = 0
    for row, example in zip(rows, examples, strict=True):
        own = len(example.scored) if example.scored is not None else 0
        row["nucleotides"] = counts[start : start + own].tolist()
        start += own


def compare_distances(settings: StageSettings, study: Study, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(UniFrac, distances of the embeddings) between all samples of `rows`, each (samples, samples)."""
    own = np.array([row["row"] for row in rows], int)
    examples = Examples(study, own, settings.source.rarefy_depth, False, settings.source.split_seed)
    assert study.phylogeny is not None
    true = distances(examples.table(), study.phylogeny, settings.source.distance)
    embeddings = torch.tensor([row["embedding"] for row in rows])
    lengths = torch.tensor([row.get("length") for row in rows]) if "length" in rows[0] else None
    predicted = embedding_distances(embeddings, lengths, tanh_scale(settings.model_settings.hidden_size))
    return true, predicted.double().numpy()
