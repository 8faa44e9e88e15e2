"""Using a trained model on a study: tables of predictions and embeddings, an ordination, and a page with figures."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recipes.microbiome import figure
from recipes.microbiome.examples import Examples, batches
from recipes.microbiome.model import MicrobiomeModel, embedding_distances, tanh_scale
from recipes.microbiome.score import class_scores, distance_scores, regression_scores
from recipes.microbiome.study import Study
from recipes.microbiome.target import Fitted, is_missing, is_number
from recipes.microbiome.unifrac import distances

if TYPE_CHECKING:
    from recipes.microbiome.readout import Readout
    from recipes.microbiome.settings import StageSettings

Cell = str | float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What a model says of a study's samples, in order."""

    embeddings: np.ndarray
    """(samples, size)."""
    distances: np.ndarray
    """(samples, samples): between the embeddings, in UniFrac's range."""
    predicted: np.ndarray | None
    """(samples,) in the target's unit, or (samples, classes) of probabilities."""


@torch.no_grad()
def encode(
    model: MicrobiomeModel, settings: StageSettings, study: Study, fitted: Fitted, readout: Readout | None = None
) -> Encoded:
    """Run the model over all samples of a study, rarefied as in evaluation."""
    device = next(model.parameters()).device
    depth, seed = settings.source.rarefy_depth, settings.source.split_seed
    examples = Examples(study, np.arange(len(study.sample_ids)), depth, False, seed)
    embeddings, lengths, targets = [], [], []
    for given in batches(settings.reading, study, examples):
        output = model(*(each if each is None else each.to(device) for each in given))
        embeddings.append(output.embeddings.float().cpu())
        lengths.append(output.lengths.cpu() if output.lengths is not None else None)
        targets.append(output.target.cpu() if output.target is not None else None)
    vectors = torch.cat(embeddings)
    own_lengths = torch.cat(lengths) if lengths[0] is not None else None
    apart = embedding_distances(vectors, own_lengths, tanh_scale(settings.model_settings.hidden_size))
    predicted = None
    if targets[0] is not None:
        together = torch.cat(targets)
        if readout is not None:
            together = together + torch.from_numpy(readout.scores(study).astype(np.float32))
        predicted = fitted.in_unit(together).double().numpy()
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

    def line(cells: Iterable[Cell]) -> str:
        return "\t".join(str(cell) for cell in cells)

    axes = len(values)
    blocks = [f"Eigvals\t{axes}\n{line(values)}", f"Proportion explained\t{axes}\n{line(shares)}", "Species\t0\t0"]
    site = [f"Site\t{len(names)}\t{axes}", *(line([name, *row]) for name, row in zip(names, coordinates, strict=True))]
    return "\n\n".join([*blocks, "\n".join(site), "Biplot\t0\t0", "Site constraints\t0\t0"]) + "\n"


def write(
    model: MicrobiomeModel,
    settings: StageSettings,
    study: Study,
    fitted: Fitted,
    readout: Readout | None,
    folder: Path,
    color_by: str | None,
    parts: Sequence[str],
) -> str:
    """Write everything into `folder`; returns what it holds, in words.

    `parts` names the split of each sample, or is empty. Scores are those of the validation samples where there are
    any, else of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoded, target = encode(model, settings, study, fitted, readout), settings.source.target
    names = study.sample_ids
    chosen = np.array([part == "validation" for part in parts], bool)
    chosen = chosen if chosen.any() else np.ones(len(names), bool)

    _write_table(folder / "embeddings.tsv", [f"e{number}" for number in range(encoded.embeddings.shape[1])], names,
                 encoded.embeddings.tolist())  # fmt: skip
    coordinates, values, shares = principal_coordinates(encoded.distances)
    (folder / "ordination.txt").write_text(ordination_text(names, coordinates, values, shares), encoding="utf-8")
    files, notes = ["embeddings.tsv", "ordination.txt"], list(study.notes)
    scores: dict[str, float] = {}
    sections: list[tuple[str, str]] = []
    cells = study.metadata.get(color_by or target or "")
    title = f"Embedding, coloured by {color_by or target}" if cells is not None else "Embedding"
    axes = [f"axis {number + 1} ({share:.1%})" for number, share in enumerate(shares[:2])]
    if len(axes) == 2:
        sections.append((title, figure.scatter(coordinates[:, 0], coordinates[:, 1], cells, axes[0], axes[1])))
    if encoded.predicted is not None:
        columns, rows = _predictions(fitted, str(target), study, encoded.predicted, parts)
        _write_table(folder / "predictions.tsv", columns, names, rows)
        files.insert(0, "predictions.tsv")
        known = _measured(settings, study, fitted, notes)
        scored = np.flatnonzero(chosen & known) if len(known) else np.zeros(0, int)
        if len(scored) > 1:
            own = [study.metadata[str(target)][row] for row in scored]
            of_target, figures = _compare_target(str(target), own, encoded.predicted[scored], fitted)
            scores |= of_target
            sections += figures
    if study.phylogeny is not None and chosen.sum() > 2:
        rows = np.flatnonzero(chosen)
        examples = Examples(study, rows, settings.source.rarefy_depth, False, settings.source.split_seed)
        true = distances(examples.table(), study.phylogeny, settings.source.distance)
        given = encoded.distances[np.ix_(rows, rows)]
        scores |= distance_scores(true, given)
        one, two = np.triu_indices(len(rows), 1)
        some = np.random.default_rng(0).permutation(len(one))[:3000]
        drawn = figure.scatter(
            true[one, two][some], given[one, two][some], None, "UniFrac", "embedding distance", 1.5, True
        )
        sections.append((f"UniFrac and the embedding, {len(some):,} of {len(one):,} pairs", drawn))
    of = "validation samples" if parts and "validation" in parts else "samples"
    about = [("samples", f"{len(names)}"), ("ASVs", f"{len(study.sequences)}"), ("scored", f"{chosen.sum()} {of}")]
    about += [(name, f"{value:.4f}") for name, value in scores.items()]
    about += [("note", note) for note in notes]
    subject = f"Microbiome: {target}" if encoded.predicted is not None else "Microbiome"
    page = figure.page(subject, [("Scores", figure.table(about)), *sections])
    (folder / "report.html").write_text(page, encoding="utf-8")
    lines = [f"{len(names)} samples of {len(study.sequences)} ASVs into {folder}: {', '.join([*files, 'report.html'])}"]
    lines += [f"note: {note}" for note in notes]
    if scores:
        listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        lines.append(f"on {chosen.sum()} {of}:  {listed}")
    return "\n".join(lines)


def _compare_target(
    target: str, own: list[str], guess: np.ndarray, fitted: Fitted
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Scores of the samples whose target is known, and figures: a scatter, or a confusion matrix and a ROC."""
    if not fitted.classes:
        true = np.array([float(cell) for cell in own])
        names = (f"{target}, measured", f"{target}, predicted")
        drawn = figure.scatter(true, guess, None, *names, is_comparison=True)
        return regression_scores(true, guess), [(f"Prediction of {target}, {len(own)} samples", drawn)]
    place = {name: number for number, name in enumerate(fitted.classes)}
    scores = class_scores(np.array([place.get(cell, -1) for cell in own]), guess)
    named = [fitted.classes[number] for number in guess.argmax(1)]
    sections = [(f"Prediction of {target}, {len(own)} samples", figure.confusion(own, named, fitted.classes))]
    if len(fitted.classes) == 2 and len(set(own)) > 1:
        positive = fitted.classes[1]
        drawn = figure.roc(np.array([cell == positive for cell in own]), guess[:, 1], positive)
        sections.append((f"ROC of {positive}, area {scores['target_auroc']:.3f}", drawn))
    return scores, sections


def _measured(settings: StageSettings, study: Study, fitted: Fitted, notes: list[str]) -> np.ndarray:
    """(samples,) of bool: whose target is known, so that the prediction can be scored; `notes` grows."""
    target = str(settings.source.target)
    cells = study.metadata.get(target, ())
    there = np.array([not is_missing(cell, settings.source.missing_values) for cell in cells], bool)
    if fitted.classes:
        usable = np.array([cell in fitted.classes for cell in cells], bool)
        what = "a class that training had not, counted as wrong"
    else:
        usable = np.array([is_number(cell) for cell in cells], bool)
        what = "no number, and are not scored"
    odd = np.flatnonzero(there & ~usable)
    if len(odd):
        notes.append(f"{len(odd)} of {len(cells)} samples have in {target} {what}, like {cells[odd[0]]!r}.")
    return there if fitted.classes else there & usable


def _predictions(
    fitted: Fitted, target: str, study: Study, predicted: np.ndarray, parts: Sequence[str]
) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows of the table of predictions."""
    measured = study.metadata.get(target, [""] * len(study.sample_ids))
    rows: list[list[Cell]]
    if fitted.classes:
        columns = [f"predicted_{target}", target, *(f"probability_{name}" for name in fitted.classes)]
        rows = [[fitted.classes[int(row.argmax())], cell, *row] for row, cell in zip(predicted, measured, strict=True)]
    else:
        columns, rows = [f"predicted_{target}", target], [list(row) for row in zip(predicted, measured, strict=True)]
    if parts:
        # A target can be called like this column.
        columns = [*columns, "split" if "split" not in columns else "split_of_relay"]
        rows = [[*row, part] for row, part in zip(rows, parts, strict=True)]
    return columns, rows


def _write_table(path: Path, columns: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A tab-separated table with the samples' ids first, as QIIME 2 reads metadata; text stays as it came."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, "excel-tab", lineterminator="\n")
        writer.writerow(["sample-id", *columns])
        for name, row in zip(names, rows, strict=True):
            writer.writerow([name, *(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)])
