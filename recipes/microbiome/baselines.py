"""Simple models of a target, in the same folds as the recipe's own: what a trained model has to be better than."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.microbiome.fitting import fit_linear, target_values
from recipes.microbiome.unifrac import as_rows, distances

if TYPE_CHECKING:
    from recipes.microbiome.settings import StageSettings
    from recipes.microbiome.study import Study
    from recipes.microbiome.target import Fitted

NEIGHBOURS = 5
Baseline = Callable[["Fold"], np.ndarray]


class Fold:
    """The samples of one fold: what baselines read, and the training samples' target."""

    def __init__(self, settings: StageSettings, study: Study, fitted: Fitted, train: np.ndarray, out: np.ndarray):
        self.settings, self.study, self.fitted, self.train, self.out = settings, study, fitted, train, out
        values = target_values(study, settings.source, fitted)
        assert values is not None
        self.values = values
        counts = as_rows(study.counts)
        self.shares = as_rows(counts.multiply(1 / np.asarray(counts.sum(1)).reshape(-1, 1)))

    def mean_of(self, rows: np.ndarray) -> np.ndarray:
        """(1,): the mean target of these samples, or (classes,): the shares of their classes."""
        if self.fitted.classes:
            return np.bincount(self.values[rows].astype(int), minlength=len(self.fitted.classes)) / len(rows)
        return self.values[rows].mean(keepdims=True)


def constant(fold: Fold) -> np.ndarray:
    """The training samples' mean, or the shares of their classes."""
    return np.tile(fold.mean_of(fold.train), (len(fold.out), 1))


def random_forest(fold: Fold) -> np.ndarray:
    """500 trees on relative abundances, a square root of the features at each split; scikit-learn."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    options: dict[str, Any] = {"n_estimators": 500, "max_features": "sqrt", "random_state": 0}
    train, out = fold.shares[fold.train], fold.shares[fold.out]
    if not fold.fitted.classes:
        return RandomForestRegressor(**options).fit(train, fold.values[fold.train]).predict(out)[:, None]
    forest = RandomForestClassifier(**options).fit(train, fold.values[fold.train])
    return _by_class(fold, np.asarray(forest.predict_proba(out)), np.asarray(forest.classes_))


def linear_on_presence(fold: Fold) -> np.ndarray:
    """Logistic or ridge regression on which ASVs are present, with scikit-learn's default penalty."""
    from sklearn.linear_model import LogisticRegression, Ridge

    present = as_rows(fold.study.counts > 0).astype(float)
    if not fold.fitted.classes:
        return Ridge().fit(present[fold.train], fold.values[fold.train]).predict(present[fold.out])[:, None]
    model = LogisticRegression(max_iter=1000).fit(present[fold.train], fold.values[fold.train])
    return _by_class(fold, model.predict_proba(present[fold.out]), model.classes_)


def nearest_by_unifrac(fold: Fold) -> np.ndarray:
    """The mean of the five nearest training samples by UniFrac."""
    assert fold.study.phylogeny is not None
    rows = np.concatenate([fold.train, fold.out])
    apart = distances(fold.study.counts[rows], fold.study.phylogeny, fold.settings.source.distance)
    nearest = np.argsort(apart[len(fold.train) :, : len(fold.train)], 1, kind="stable")[:, :NEIGHBOURS]
    return np.stack([fold.mean_of(fold.train[own]) for own in nearest])


def linear_readout(fold: Fold) -> np.ndarray:
    """What stage 2 begins with; see recipes/microbiome/readout.py."""
    readout = fit_linear(fold.settings, fold.study, fold.train, fold.fitted, prints=False)
    scores = readout.scores(fold.study)[fold.out]
    if not fold.fitted.classes:
        return scores * fold.fitted.deviation + fold.fitted.mean
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _by_class(fold: Fold, given: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probabilities in the order of all classes: one may be missing in the training samples of a fold."""
    result = np.zeros((len(given), len(fold.fitted.classes)))
    result[:, classes.astype(int)] = given
    return result


def baselines(has_tree: bool) -> dict[str, Baseline]:
    """By name, in the order of the table."""
    found: dict[str, Baseline] = {"constant": constant, "random forest": random_forest}
    found["linear on presence"] = linear_on_presence
    if has_tree:
        found["nearest 5 by UniFrac"] = nearest_by_unifrac
    return {**found, "linear readout": linear_readout}
