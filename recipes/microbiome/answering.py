"""Using a trained model on a study: tables of predictions and embeddings, an ordination, and a page with figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.microbiome import figure
from recipes.microbiome.data import MISSING, Examples, Study, model_inputs
from recipes.microbiome.model import embedding_distances, tanh_scale
from recipes.microbiome.score import class_scores, distance_scores, regression_scores
from recipes.microbiome.unifrac import distances


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a model says of a study's samples, in order."""

    embeddings: np.ndarray
    """(samples, size)."""
    distances: np.ndarray
    """(samples, samples): between the embeddings, in UniFrac's range."""
    predicted: np.ndarray | None
    """(samples,) in the target's unit, or (samples, classes) of probabilities."""


def batches(recipe: Any, study: Study, examples: Examples, size: int = 16) -> Iterator[list[Any]]:
    """What the model reads of the samples, without masks, `size` samples at a time."""
    for first in range(0, len(examples), size):
        own = [examples[place] for place in range(first, min(first + size, len(examples)))]
        _, inputs = model_inputs(study, own, *recipe.reading)
        tokens, *sample = (torch.from_numpy(inputs[name]) for name in ("tokens", "asvs", "is_there", "abundance"))
        yield [tokens, None, *sample]


@torch.no_grad()
def encode(model: Any, recipe: Any, study: Study) -> Encoded:
    """Run the model over all samples of a study, rarefied as in evaluation."""
    device = next(model.parameters()).device
    depth, seed = recipe.source.rarefy_depth, recipe.source.split_seed
    examples = Examples(study, np.arange(len(study.sample_ids)), depth, False, seed)
    embeddings, lengths, targets = [], [], []
    for given in batches(recipe, study, examples):
        output = model(*(each if each is None else each.to(device) for each in given))
        embeddings.append(output.embeddings.float().cpu())
        lengths.append(output.lengths.cpu() if output.lengths is not None else None)
        targets.append(output.target.cpu() if output.target is not None else None)
    vectors = torch.cat(embeddings)
    own_lengths = torch.cat(lengths) if lengths[0] is not None else None
    apart = embedding_distances(vectors, own_lengths, tanh_scale(recipe.model_settings.hidden_size))
    predicted = None
    if targets[0] is not None:
        together = torch.cat(targets)
        fitted = recipe.fitted
        predicted = together.softmax(1) if fitted.classes else together.squeeze(1) * fitted.deviation + fitted.mean
        predicted = predicted.double().numpy()
    return Encoded(vectors.numpy(), apart.double().numpy(), predicted)


def principal_coordinates(apart: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(samples, axes) coordinates of a distance matrix, the axes' eigenvalues, and their shares of all positive ones.

    Source: Gower 1966, Biometrika 53:325.
    """
    centred = -0.5 * np.square(apart)
    centred = centred - centred.mean(0) - centred.mean(1, keepdims=True) + centred.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    order = np.argsort(-values)[: min(count, len(values))]
    positive = np.maximum(values, 0)
    kept = positive[order]
    return vectors[:, order] * np.sqrt(kept), kept, kept / max(positive.sum(), 1e-300)


def ordination_text(names: Sequence[str], coordinates: np.ndarray, values: np.ndarray, shares: np.ndarray) -> str:
    """The ordination format of scikit-bio, which QIIME 2 imports as PCoAResults."""

    def line(cells: Any) -> str:
        return "\t".join(str(cell) for cell in cells)

    axes = len(values)
    blocks = [f"Eigvals\t{axes}\n{line(values)}", f"Proportion explained\t{axes}\n{line(shares)}", "Species\t0\t0"]
    site = [f"Site\t{len(names)}\t{axes}", *(line([name, *row]) for name, row in zip(names, coordinates, strict=True))]
    return "\n\n".join([*blocks, "\n".join(site), "Biplot\t0\t0", "Site constraints\t0\t0"]) + "\n"


def write(model: Any, recipe: Any, study: Study, folder: Path, color_by: str | None, parts: Sequence[str]) -> str:
    """Write everything into `folder`; returns what it holds, in words.

    `parts` names the split of each sample, or is empty. Scores are those of the validation samples where there are
    any, else of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoded, target = encode(model, recipe, study), recipe.source.target
    names = study.sample_ids
    chosen = np.array([part == "validation" for part in parts], bool)
    chosen = chosen if chosen.any() else np.ones(len(names), bool)

    _write_table(folder / "embeddings.tsv", [f"e{number}" for number in range(encoded.embeddings.shape[1])], names,
                 encoded.embeddings.tolist())  # fmt: skip
    coordinates, values, shares = principal_coordinates(encoded.distances)
    (folder / "ordination.txt").write_text(ordination_text(names, coordinates, values, shares), encoding="utf-8")
    files = ["embeddings.tsv", "ordination.txt"]
    scores: dict[str, float] = {}
    sections: list[tuple[str, str]] = []
    cells = study.metadata.get(color_by or target or "")
    title = f"Embedding, coloured by {color_by or target}" if cells is not None else "Embedding"
    axes = [f"axis {number + 1} ({share:.1%})" for number, share in enumerate(shares[:2])]
    if len(axes) == 2:
        sections.append((title, figure.scatter(coordinates[:, 0], coordinates[:, 1], cells, axes[0], axes[1])))
    if encoded.predicted is not None:
        columns, rows = _predictions(recipe, study, encoded.predicted, parts)
        _write_table(folder / "predictions.tsv", columns, names, rows)
        files.insert(0, "predictions.tsv")
        known = [cell.strip().lower() not in MISSING for cell in study.metadata.get(target, ())]
        scored = np.flatnonzero(chosen & np.array(known, bool)) if known else np.zeros(0, int)
        if len(scored) > 1:
            own = [study.metadata[target][row] for row in scored]
            guess = encoded.predicted[scored]
            if recipe.fitted.classes:
                place = {name: number for number, name in enumerate(recipe.fitted.classes)}
                scores |= class_scores(np.array([place.get(cell, -1) for cell in own]), guess)
            else:
                true = np.array([float(cell) for cell in own])
                scores |= regression_scores(true, guess)
                drawn = figure.scatter(true, guess, None, f"{target}, measured", f"{target}, predicted")
                sections.append((f"Prediction of {target}, {len(scored)} samples", drawn))
    if study.phylogeny is not None and chosen.sum() > 2:
        rows = np.flatnonzero(chosen)
        examples = Examples(study, rows, recipe.source.rarefy_depth, False, recipe.source.split_seed)
        true = distances(examples.table(), study.phylogeny, recipe.source.distance)
        given = encoded.distances[np.ix_(rows, rows)]
        scores |= distance_scores(true, given)
        one, two = np.triu_indices(len(rows), 1)
        some = np.random.default_rng(0).permutation(len(one))[:3000]
        drawn = figure.scatter(true[one, two][some], given[one, two][some], None, "UniFrac", "embedding distance", 1.5)
        sections.append((f"UniFrac and the embedding, {len(some):,} of {len(one):,} pairs", drawn))
    of = "validation samples" if parts and "validation" in parts else "samples"
    about = [("samples", f"{len(names)}"), ("ASVs", f"{len(study.sequences)}"), ("scored", f"{chosen.sum()} {of}")]
    about += [(name, f"{value:.4f}") for name, value in scores.items()]
    about += [("left out", note) for note in study.notes]
    page = figure.page("Microbiome", [("Scores", figure.table(about)), *sections])
    (folder / "report.html").write_text(page, encoding="utf-8")
    lines = [f"{len(names)} samples of {len(study.sequences)} ASVs into {folder}: {', '.join([*files, 'report.html'])}"]
    lines += [f"left out: {note}" for note in study.notes]
    if scores:
        listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        lines.append(f"on {chosen.sum()} {of}:  {listed}")
    return "\n".join(lines)


def _predictions(
    recipe: Any, study: Study, predicted: np.ndarray, parts: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of predictions."""
    classes, target = recipe.fitted.classes, recipe.source.target
    measured = study.metadata.get(target, [""] * len(study.sample_ids))
    if classes:
        columns = [f"predicted_{target}", target, *(f"probability_{name}" for name in classes)]
        rows = [[classes[int(row.argmax())], cell, *row] for row, cell in zip(predicted, measured, strict=True)]
    else:
        columns, rows = [f"predicted_{target}", target], [list(row) for row in zip(predicted, measured, strict=True)]
    if parts:
        columns, rows = [*columns, "split"], [[*row, part] for row, part in zip(rows, parts, strict=True)]
    return columns, rows


def _write_table(path: Path, columns: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A tab-separated table with the samples' ids first, as QIIME 2 reads metadata."""

    def written(cell: Any) -> str:
        return f"{cell:.6g}" if isinstance(cell, float) else str(cell)

    lines = ["\t".join(["sample-id", *columns])]
    lines += ["\t".join([name, *map(written, row)]) for name, row in zip(names, rows, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
