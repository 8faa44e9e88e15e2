"""Scores of predictions, per table and over tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.tabular.baselines import NAMES, verdict
from runner.parts.figures import Figure, Table, calibration, confusion, predicted_against_true

Prediction = dict[str, Any]
"""One row as JSON: `table`; `probabilities` of the classes, or `predicted` in the target's unit; and `target`, the true
class as a place among the classes or the true number, None where it is missing. `without_transformer`, where there is a
linear part, holds the probabilities or the number of this part alone; `linear` and `boosting`, with `--baseline true`,
those of the baselines; `linear_part` and `trees_part` those of the two parts of the linear part."""
PARTS = {
    "linear_part": "its linear part alone",
    "trees_part": "its trees alone",
    "without_transformer": "linear part and trees, without transformer",
}
"""The parts of the model by their name in a row, and in words."""
OTHERS = {name: f"score_{name}" for name in (*PARTS, *NAMES)}
"""The predictions of other models in a row, and the name of their score."""


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of (rows,) booleans and scores; ties count half; NaN where one class is absent.

    Source: Hanley and McNeil 1982, the Wilcoxon statistic.
    """
    labels = labels.astype(bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return math.nan
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Binary AUROC, or the mean of one class against the rest over the classes that are there."""
    if probabilities.shape[1] == 2:
        return auroc(labels == 1, probabilities[:, 1])
    each = [auroc(labels == place, probabilities[:, place]) for place in range(probabilities.shape[1])]
    known = [value for value in each if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def r2(targets: np.ndarray, predicted: np.ndarray) -> float:
    """1 - residual / total sum of squares; NaN where the targets are all equal."""
    total = float(((targets - targets.mean()) ** 2).sum())
    return 1 - float(((targets - predicted) ** 2).sum()) / total if total > 0 else math.nan


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the most probable class. Source: Guo et al. 2017, arXiv 1706.04599, eq. 3."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[place == b].mean() - confidence[place == b].mean()) * (place == b).sum() for b in np.unique(place)
    ]
    return float(sum(gaps) / len(labels))


def score_table(rows: list[Prediction]) -> dict[str, float]:
    """The metrics of one table's rows; rows without a known target do not count."""
    rows = [row for row in rows if row["target"] is not None]
    if not rows:
        return {}
    if "probabilities" not in rows[0]:
        targets = np.array([row["target"] for row in rows])
        predicted = np.array([row["predicted"] for row in rows])
        return {"r2": r2(targets, predicted), "rmse": float(np.sqrt(((targets - predicted) ** 2).mean()))}
    labels = np.array([row["target"] for row in rows])
    probabilities = np.array([row["probabilities"] for row in rows])
    own = probabilities[np.arange(len(labels)), labels]
    return {
        "auroc": macro_auroc(labels, probabilities),
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "log_loss": float(-np.log(np.clip(own, 1e-12, None)).mean()),
        "calibration_error": calibration_error(labels, probabilities),
    }


def score(rows: list[Prediction]) -> dict[str, float]:
    """Metrics of each table (`auroc/NAME`), their means, and `score`: the mean over tables of AUROC or R2.

    The scores in OTHERS are that mean for other models, where the rows hold what they say.
    """
    tables: dict[str, list[Prediction]] = {}
    for row in rows:
        tables.setdefault(row["table"], []).append(row)
    found: dict[str, list[float]] = {}
    each: dict[str, float] = {}
    for name, own in tables.items():
        for metric, value in score_table(own).items():
            if not math.isnan(value):
                found.setdefault(metric, []).append(value)
                each[f"{metric}/{name}"] = value
    means = {metric: float(np.mean(values)) for metric, values in found.items()}
    main = [value for metric, value in each.items() if metric.startswith(("auroc/", "r2/"))]
    means["score"] = float(np.mean(main)) if main else math.nan
    for other, metric in OTHERS.items():
        simple = _main_metrics(
            {
                name: [{**row, "probabilities" if "probabilities" in row else "predicted": row[other]} for row in own]
                for name, own in tables.items()
                if all(other in row for row in own)
            }
        )
        if simple:
            means[metric] = float(np.mean(simple))
    return {**means, **(each if len(tables) > 1 else {})}


def _main_metrics(tables: dict[str, list[Prediction]]) -> list[float]:
    """AUROC or R2 of each table where it is a number."""
    found = [score_table(own) for own in tables.values()]
    values = [own[metric] for own in found for metric in ("auroc", "r2") if metric in own]
    return [value for value in values if not math.isnan(value)]


MOST_TABLES = 4
"""Tables of a kind that the report draws."""


def figures(rows: list[Prediction], classes: Mapping[str, Sequence[str]]) -> list[Figure]:
    """What the report draws: calibration and confusion of classes, predicted against true numbers.

    `classes` has the names of each table's classes.
    """
    tables: dict[str, list[Prediction]] = {}
    for row in rows:
        if row["target"] is not None:
            tables.setdefault(row["table"], []).append(row)
    with_classes = {name: own for name, own in tables.items() if "probabilities" in own[0]}
    labelled = {
        name: (np.array([row["target"] for row in own]), np.array([row["probabilities"] for row in own]))
        for name, own in list(with_classes.items())[:MOST_TABLES]
    }
    found: list[Figure] = []
    means = score(rows)
    words = {f"score_{name}": word for name, word in PARTS.items()} | {"score": "this model"}
    beside = [[word, f"{means[metric]:.4f}"] for metric, word in words.items() if metric in means]
    if len(beside) > 1:
        found.append(Table("What each part adds, on the same rows", ["part", "score"], beside))
    line = verdict(means)
    if line is not None:
        words = {"score": "this model"} | {f"score_{name}": word for name, word in NAMES.items()}
        beside = [[word, f"{means[metric]:.4f}"] for metric, word in words.items() if metric in means]
        found.append(Table(line, ["model", "score"], beside))
    found += [calibration("calibration", labelled)] if labelled else []
    numeric = [name for name in tables if name not in with_classes][:MOST_TABLES]
    for name in numeric:
        true, predicted = ([row[key] for row in tables[name]] for key in ("target", "predicted"))
        found.append(predicted_against_true(f"{name}: predicted against true", true, predicted))
    for name, (labels, probabilities) in labelled.items():
        names = classes.get(name) or [str(place) for place in range(probabilities.shape[1])]
        found.append(
            confusion(f"{name}: how often a class was taken for another", labels, probabilities.argmax(1), names)
        )
    return found
