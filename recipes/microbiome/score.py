"""Scores of a whole split: distances over all pairs at once, nucleotides, and the target in its own unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from runner.parts.figures import Figure, Scatter, calibration, confusion, predicted_against_true, some

if TYPE_CHECKING:
    from recipes.microbiome.prediction import Row
    from recipes.microbiome.target import Fitted


def distance_scores(true: np.ndarray, predicted: np.ndarray, permutations: int = 99) -> dict[str, float]:
    """How well embeddings keep UniFrac: R2 over all pairs (0 is the best constant), Spearman and Mantel's p.

    Both arguments are (samples, samples). Mantel's r is Pearson's over the pairs, its p from shuffled samples.
    Source: Mantel 1967, Cancer Res 27:209.
    """
    from scipy.stats import rankdata

    pairs = np.triu_indices(len(true), 1)
    wanted, given = true[pairs], predicted[pairs]
    if len(wanted) < 2 or wanted.std() == 0:
        return {}
    error = np.square(given - wanted).mean()
    scores = {"unifrac_mse": float(error), "unifrac_r2": float(1 - error / wanted.var())}
    if given.std() == 0:
        return scores
    scores["unifrac_spearman"] = float(np.corrcoef(rankdata(wanted), rankdata(given))[0, 1])
    mantel = np.corrcoef(wanted, given)[0, 1]
    random, standard = np.random.default_rng(0), (wanted - wanted.mean()) / wanted.std()
    above = 0
    for _ in range(permutations):
        order = random.permutation(len(true))
        shuffled = predicted[np.ix_(order, order)][pairs]
        above += float((standard * shuffled).mean() / shuffled.std()) >= mantel
    return scores | {"mantel_r": float(mantel), "mantel_p": (above + 1) / (permutations + 1)}


def nucleotide_scores(asvs: dict[int, list[int]], seen: set[int]) -> dict[str, float]:
    """Accuracy at masked positions, beside the column majority of the training ASVs.

    `asvs` holds (masked, right, right by the column's majority) of each distinct ASV; `seen` are those that occur in
    training samples, and the others have scores of their own.
    """
    scores: dict[str, float] = {}
    for name, chosen in (("", list(asvs)), ("/unseen", [asv for asv in asvs if asv not in seen])):
        masked, right, majority = np.array([asvs[asv] for asv in chosen]).reshape(-1, 3).sum(0)
        if masked:
            scores |= {f"nucleotide_accuracy{name}": right / masked, f"nucleotide_majority{name}": majority / masked}
    return scores


def regression_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean absolute error in the target's unit, and R2 against the mean of the same samples."""
    scores = {"target_mae": float(np.abs(true - predicted).mean())}
    if len(true) > 1 and true.std() > 0:
        scores["target_r2"] = float(1 - np.square(true - predicted).mean() / true.var())
    return scores


def class_scores(true: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1 and AUROC (of two classes, else the mean of one against the rest).

    `true` (samples,) are class numbers, -1 for a class that training has not seen; `probabilities` (samples, classes).
    """
    from sklearn.metrics import f1_score, roc_auc_score

    guess = probabilities.argmax(1)
    present = np.unique(true)
    scores = {
        "target_accuracy": float((guess == true).mean()),
        "target_macro_f1": float(f1_score(true, guess, average="macro", labels=present, zero_division=0.0)),  # type: ignore[arg-type]
    }
    known = present[present >= 0] if len(present) > 1 else []
    areas = [roc_auc_score(true == each, probabilities[:, each]) for each in known]
    if len(areas) == 2 and probabilities.shape[1] == 2:
        areas = areas[1:]
    return scores | ({"target_auroc": float(np.mean(areas))} if areas else {})


def target_losses(rows: Sequence[Row], fitted: Fitted) -> dict[str, float]:
    """What training minimises of the target, over the samples: smooth L1 of the standardised target, or cross-entropy.

    Samples of a class that training has not seen are left out, as in training.
    """
    true = np.array([row.get("target") for row in rows], float)
    known = true >= 0 if fitted.classes else np.isfinite(true)
    losses: dict[str, float] = {}
    for name, key in (("target_loss", "predicted"), ("target_loss/readout", "by_readout")):
        if not known.any() or key not in rows[0]:
            continue
        predicted = np.array([row.get(key) for row in rows], float)[known]
        if fitted.classes:
            right = predicted[np.arange(len(predicted)), true[known].astype(int)]
            each = -np.log(np.maximum(right, 1e-12))
        else:
            apart = np.abs(predicted - true[known]) / fitted.deviation
            each = np.where(apart < 1, 0.5 * apart**2, apart - 0.5)
        losses[name] = float(each.mean())
    return losses


def target_scores(rows: Sequence[Row], is_regression: bool, grouped: bool) -> dict[str, float]:
    """The target's scores over the samples, and over the means of the groups where there are groups."""

    def scores_of(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        return regression_scores(true, predicted) if is_regression else class_scores(true.astype(int), predicted)

    true = np.array([row.get("target") for row in rows], float)
    predicted = np.array([row.get("predicted") for row in rows], float)
    scores = scores_of(true, predicted)
    if "by_readout" in rows[0]:
        alone = scores_of(true, np.array([row.get("by_readout") for row in rows], float))
        scores |= {f"{name}/readout": value for name, value in alone.items()}
    if grouped:
        groups = np.array([row.get("group") for row in rows])
        names = np.unique(groups)
        # A group of several classes has none; it is left out.
        names = [name for name in names if is_regression or len(np.unique(true[groups == name])) == 1]
        if len(names) > 1:
            means = [(true[groups == name].mean(), predicted[groups == name].mean(0)) for name in names]
            by_group = scores_of(np.array([each[0] for each in means]), np.array([each[1] for each in means]))
            scores |= {f"{name}/by_group": value for name, value in by_group.items()}
    return scores


def distance_figure(true: np.ndarray, predicted: np.ndarray) -> Scatter:
    """A point for each pair of samples, of (samples, samples) UniFrac and distances of embeddings."""
    pairs = np.triu_indices(len(true), 1)
    points = some(list(zip(true[pairs].tolist(), predicted[pairs].tolist(), strict=True)))
    return Scatter(
        "UniFrac against embedding", ("UniFrac", "distance of embeddings"), {"pairs": points}, is_square=True
    )


def target_figures(rows: Sequence[Row], classes: Sequence[str]) -> list[Figure]:
    """The target predicted against true; of classes, their calibration and confusion."""
    # -1 stands for a class that training has not seen.
    known = [row for row in rows if "target" in row and "predicted" in row and not (classes and row["target"] < 0)]
    if not known:
        return []
    true = np.array([row.get("target") for row in known], float)
    predicted = np.array([row.get("predicted") for row in known], float)
    if not classes:
        return [predicted_against_true("target: predicted against true", true.tolist(), predicted.tolist())]
    labels = true.astype(int)
    return [
        calibration("calibration", {"samples": (labels, predicted)}),
        confusion("how often a class was taken for another", labels, predicted.argmax(1), classes),
    ]
