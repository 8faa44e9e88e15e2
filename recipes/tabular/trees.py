"""Boosted trees on the numbers of a row and on what the linear part makes of its cells.

scikit-learn grows them. They are written as plain arrays, because a pickle may run code. Source: Ke et al. 2017,
LightGBM; the inputs from out-of-fold scores are those of Wolpert 1992, Stacked Generalization.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

MOST_ROWS = 10_000
"""Trees are grown on so many rows of a larger table, evenly spread."""
MOST_FOLD_ROWS = 3_000
"""The same for trees that only score the rows that they did not see."""
MOST_OUTPUTS = 12
"""More classes have no trees: each class needs trees of its own."""
FEWEST_ROWS = 60
ROWS_AT_A_TIME = 1024
ABSENT = -10.0
"""The logit of a class that is not among the training rows."""


@dataclasses.dataclass(frozen=True)
class Trees:
    """Trees as arrays: node i asks whether `inputs[feature[i]] <= threshold[i]`."""

    feature: np.ndarray
    """(nodes,) int32."""
    threshold: np.ndarray
    """(nodes,) float64."""
    children: np.ndarray
    """(nodes, 2) int32: the node for yes and the node for no; a leaf names itself."""
    missing_is_yes: np.ndarray
    """(nodes,) bool: where a row without this input goes."""
    value: np.ndarray
    """(nodes,) float64: 0 but for leaves."""
    roots: np.ndarray
    """(rounds, scores) int32."""
    spread: np.ndarray
    """(scores, outputs) float64: what a score adds to each output."""
    bias: np.ndarray
    """(outputs,) float64."""

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """(rows, outputs) float32 logits or z of (rows, inputs) float64, NaN where an input is missing."""
        found = [
            self._scores(inputs[first : first + ROWS_AT_A_TIME]) for first in range(0, len(inputs), ROWS_AT_A_TIME)
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.bias)), np.float32)

    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        rows = np.arange(len(inputs))[:, None]
        places = np.broadcast_to(self.roots.ravel(), (len(inputs), self.roots.size))
        while True:
            asked = inputs[rows, self.feature[places]]
            is_yes = np.where(np.isnan(asked), self.missing_is_yes[places], asked <= self.threshold[places])
            following = np.where(is_yes, self.children[places, 0], self.children[places, 1])
            if np.array_equal(following, places):
                break
            places = following
        sums = self.value[places].reshape(len(inputs), *self.roots.shape).sum(1)
        return ((sums[:, :, None] * self.spread).sum(1) + self.bias).astype(np.float32)


def evenly(count: int, most: int) -> np.ndarray:
    """(at most `most`,) places among `count`, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def grow(
    inputs: np.ndarray, targets: np.ndarray, outputs: int, is_classes: bool, seed: int, most_rows: int = MOST_ROWS
) -> Trees:
    """Grow trees on (rows, inputs) and the classes or z of these rows.

    It runs on one thread, so that the number of cores does not change the sums.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    chosen = evenly(len(targets), most_rows)
    inputs, targets = inputs[chosen], targets[chosen]
    # Chosen by the out-of-fold loss on the training rows of fifteen tables.
    model: HistGradientBoostingClassifier | HistGradientBoostingRegressor
    with threadpool_limits(1):
        if is_classes:
            model = HistGradientBoostingClassifier(
                learning_rate=0.05, max_iter=100, max_leaf_nodes=8, min_samples_leaf=20, l2_regularization=1.0,
                max_features=0.3, early_stopping=False, random_state=seed,  # type: ignore[arg-type]
            )  # fmt: skip
            model.fit(inputs, targets.astype(int))
            return _as_arrays(model, np.asarray(model.classes_), outputs)
        model = HistGradientBoostingRegressor(
            learning_rate=0.05, max_iter=150, max_leaf_nodes=15, min_samples_leaf=10, l2_regularization=1.0,
            max_features=0.3, early_stopping=False, random_state=seed,  # type: ignore[arg-type]
        )  # fmt: skip
        model.fit(inputs, targets)
        return _as_arrays(model, np.zeros(1, np.int64), 1)


def _as_arrays(
    model: HistGradientBoostingClassifier | HistGradientBoostingRegressor, classes: np.ndarray, outputs: int
) -> Trees:
    """The arrays of a fitted model. `classes` are those that it knows, as places among the outputs."""
    nodes, roots, count = [], [], 0
    for each in model._predictors:
        roots.append([])
        for predictor in each:
            own = predictor.nodes.copy()
            roots[-1].append(count)
            is_leaf = own["is_leaf"].astype(bool)
            places = np.arange(len(own))
            own["left"], own["right"] = (np.where(is_leaf, places, own[name]) + count for name in ("left", "right"))
            own["value"] = np.where(is_leaf, own["value"], 0.0)
            own["feature_idx"] = np.where(is_leaf, 0, own["feature_idx"])
            nodes.append(own)
            count += len(own)
    flat = np.concatenate(nodes)
    base = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
    spread, bias = np.zeros((len(roots[0]), outputs)), np.full(outputs, ABSENT if outputs > 1 else 0.0)
    if len(roots[0]) == 1 and outputs > 1:
        # Two classes have one score: the logit of the second.
        spread[0, classes] = -0.5, 0.5
    else:
        spread[np.arange(len(classes)), classes] = 1.0
    bias[classes] = (base[:, None] * spread).sum(0)[classes]
    return Trees(
        flat["feature_idx"].astype(np.int32), flat["num_threshold"].astype(np.float64),
        np.stack([flat["left"], flat["right"]], axis=1).astype(np.int32), flat["missing_go_to_left"].astype(bool),
        flat["value"].astype(np.float64), np.array(roots, dtype=np.int32), spread, bias,
    )  # fmt: skip
