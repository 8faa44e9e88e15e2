"""The linear part of the model: ridge or logistic regression on n-grams and numbers, fitted before the first step.

The penalty is the one that does best on the validation rows. For the training rows, the scores come from fits that did
not see the row: the transformer then learns what the linear part does not know of other rows. Source of that second
step: Wolpert 1992, Stacked Generalization.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from recipes.tabular import ngram_hashing
from recipes.tabular.table import Cells, Table

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BUCKETS = 2**16
"""Buckets of the n-grams, per table."""
NUMBERS = 5
"""Plain inputs of a numeric cell: clipped z, range, quantile, outlier, missing."""
NUMBER_SCALE = 4.0
"""The same penalty holds for n-grams and numbers. Scaled up, a number costs less; chosen on validation rows of seven
tables among 0.5 to 5."""
PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Strengths to choose from; 1 / C of a logistic regression."""
USUAL_PENALTY = 30.0
"""The strength where too few validation rows, or too many classes, are there to choose."""
MANY_CLASSES = 50
MOST_ROWS = 20_000
"""A fit takes so many rows of a larger table, evenly spread."""
MOST_CHOOSING_ROWS = 2_500
"""The penalty is chosen with fits to so many rows: it is the inverse variance of the weights, whatever the rows."""
MOST_STEPS = 60
PRECISION = 3e-4
"""A fit ends where a step lowers the loss by a smaller share than this."""
FOLDS = 5
FEWEST_CELLS = 2
"""An n-gram of fewer training rows tells them apart, and says nothing about others."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """The fitted linear part of one table."""

    weights: np.ndarray
    """(inputs, outputs) float32; outputs are classes, or one number."""
    bias: np.ndarray
    """(outputs,) float32."""
    scale: np.ndarray
    """(inputs,) float32: the inverse document frequency of an n-gram; 0 where it is rare in the training rows."""
    held_out: np.ndarray
    """(training rows, outputs) float32: scores from fits that did not see the row."""

    def scores(self, table: Table, cells: Cells) -> np.ndarray:
        """(rows, outputs) float32: logits, or z."""
        inputs = _scaled(design(table, cells), self.scale)
        return np.asarray(inputs @ self.weights + self.bias, dtype=np.float32)


def readings(table: Table, own: Cells) -> tuple[list[tuple[str, str | int]], np.ndarray]:
    """The distinct (column, text) and (column, place of the number), and (rows, columns) which of them each cell is."""
    sets: dict[tuple[str, str | int], int] = {}
    reads = np.zeros_like(own.strings)
    for place, column in enumerate(table.used):
        texts = ngram_hashing.places(own.numbers[:, place]) if column.is_number else own.strings[:, place]
        distinct, inverse = np.unique(texts, return_inverse=True)
        values = distinct.tolist() if column.is_number else [own.values[text] for text in distinct.tolist()]
        ids = [sets.setdefault((column.name, value), len(sets)) for value in values]
        reads[:, place] = np.array(ids, dtype=np.int64)[inverse] if len(ids) else 0
    return list(sets), reads


def design(table: Table, cells: Cells) -> csr_matrix:
    """(rows, BUCKETS + NUMBERS x columns) sparse: the n-grams of each cell, of length 1, and the numbers."""
    from scipy.sparse import csr_matrix, hstack

    sets, places = readings(table, cells)
    buckets = [ngram_hashing.buckets(*each, BUCKETS) for each in sets]
    lengths = np.array([len(each) for each in buckets])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate(buckets) if buckets else np.zeros(0, np.int64)
    grams = csr_matrix((values, flat, starts), shape=(len(sets), BUCKETS), dtype=np.float32)
    rows, columns = places.shape
    choice = csr_matrix(
        (np.ones(places.size, np.float32), places.ravel(), np.arange(0, places.size + 1, max(columns, 1))),
        shape=(rows, len(sets)),
    )
    numbers = NUMBER_SCALE * cells.numbers[:, :, :NUMBERS].reshape(rows, -1)
    found = csr_matrix(hstack([choice @ grams, csr_matrix(numbers)], format="csr"))
    # Sums in the order of the inputs, whatever the other rows are.
    found.sort_indices()
    return found


def _scaled(inputs: csr_matrix, scale: np.ndarray) -> csr_matrix:
    from scipy.sparse import csr_matrix, diags

    return csr_matrix(inputs @ diags(scale, format="csr"))


def fit(
    table: Table, train: Cells, targets: np.ndarray, validation: Cells, validation_targets: np.ndarray, seed: int
) -> Linear:
    """Fit the linear part of a table. Targets are those of `table.labels`."""
    from scipy.sparse import csr_matrix
    from sklearn.model_selection import KFold, StratifiedKFold

    raw = design(table, train)
    counts = np.asarray((raw[:, :BUCKETS] != 0).sum(0)).ravel()
    scale = np.ones(BUCKETS + NUMBERS * len(table.used), np.float32)
    scale[:BUCKETS] = np.where(counts >= FEWEST_CELLS, np.log((1 + len(targets)) / (1 + counts)) + 1, 0)
    inputs = _scaled(raw, scale)
    is_classes = table.task == "classification"
    outputs = len(table.classes) if is_classes else 1
    known = targets >= 0 if is_classes else np.isfinite(targets)
    inputs, targets = csr_matrix(inputs[known]), targets[known]
    penalty = USUAL_PENALTY
    if len(validation_targets) >= 10 and outputs <= MANY_CLASSES:
        held = _scaled(design(table, validation), scale)
        penalty = _best_penalty(inputs, targets, held, validation_targets, outputs, is_classes)
    weights, bias = _solve(inputs, targets, penalty, outputs, is_classes)
    scores = np.zeros((len(known), outputs), np.float32)
    places = np.flatnonzero(known)
    smallest = int(np.bincount(targets.astype(int)).min()) if is_classes else len(targets)
    splitter = (StratifiedKFold if is_classes and smallest >= FOLDS else KFold)(
        min(FOLDS, max(2, len(targets))), shuffle=True, random_state=seed
    )
    if len(targets) < 2:
        return Linear(weights, bias, scale, scores)
    for learned, left_out in splitter.split(np.zeros((len(targets), 1)), targets):
        own, own_bias = _solve(csr_matrix(inputs[learned]), targets[learned], penalty, outputs, is_classes)
        scores[places[left_out]] = csr_matrix(inputs[left_out]) @ own + own_bias
    return Linear(weights, bias, scale, scores)


def write(file: Path, fitted: list[Linear]) -> None:
    """Write the linear parts of several tables: the inputs that they use alone."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for place, own in enumerate(fitted):
        used = np.flatnonzero(own.scale * np.abs(own.weights).sum(1))
        parts = {"used": used, "weights": own.weights[used], "scale": own.scale[used]}
        parts |= {"size": np.array([len(own.scale)]), "bias": own.bias, "held_out": own.held_out}
        tensors |= {f"{place}.{name}": np.ascontiguousarray(value) for name, value in parts.items()}
    save_file(tensors, file)


def read(file: Path) -> list[Linear]:
    """The linear parts that `write` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(file)
    found = []
    for place in range(sum(name.endswith(".size") for name in tensors)):
        own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{place}.")}
        size = int(own["size"][0])
        weights, scale = np.zeros((size, own["weights"].shape[1]), np.float32), np.zeros(size, np.float32)
        weights[own["used"]], scale[own["used"]] = own["weights"], own["scale"]
        found.append(Linear(weights, own["bias"], scale, own["held_out"]))
    return found


def _best_penalty(
    inputs: csr_matrix, targets: np.ndarray, held: csr_matrix, truth: np.ndarray, outputs: int, is_classes: bool
) -> float:
    found: dict[float, float] = {}
    known = truth >= 0 if is_classes else np.isfinite(truth)
    chosen = evenly(len(targets), MOST_CHOOSING_ROWS)
    inputs, targets = cast("csr_matrix", inputs[chosen]), targets[chosen]
    start: tuple[np.ndarray, np.ndarray] | None = None
    for penalty in PENALTIES:
        best = max(found, key=found.__getitem__) if found else penalty
        # From strong to weak: a weaker one takes longer, and two that are worse than the best are enough.
        if found and len(found) - list(found).index(best) > 2:
            break
        start = _solve(inputs, targets, penalty, outputs, is_classes, start)
        scores = (held @ start[0] + start[1])[known]
        if is_classes:
            own = log_softmax(scores)[np.arange(len(scores)), truth[known].astype(int)]
            found[penalty] = float(np.maximum(own, np.log(1e-9)).mean())
        else:
            found[penalty] = -float(((scores[:, 0] - truth[known]) ** 2).mean())
    return max(found, key=found.__getitem__)


def evenly(count: int, most: int) -> np.ndarray:
    """(at most `most`,) places among `count`, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """(rows, classes) logits to log-probabilities."""
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def _solve(
    inputs: csr_matrix,
    targets: np.ndarray,
    penalty: float,
    outputs: int,
    is_classes: bool,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, outputs) weights and (outputs,) bias, float32. A classification begins at `start`, or at 0."""
    chosen = evenly(len(targets), MOST_ROWS)
    inputs, targets = cast("csr_matrix", inputs[chosen]), targets[chosen]
    squares = np.asarray(inputs.multiply(inputs).sum(0)).ravel()
    used = np.flatnonzero(squares)
    weights, bias = np.zeros((len(squares), outputs), np.float32), np.zeros(outputs, np.float32)
    if not is_classes:
        from sklearn.linear_model import Ridge

        model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3, max_iter=100).fit(inputs[:, used], targets)
        weights[used, 0], bias[0] = model.coef_, model.intercept_
        return weights, bias
    wanted = np.eye(outputs, dtype=np.float32)[targets.astype(int)]
    # A class that is not among these rows is rarer than all others.
    bias[:] = np.log(np.maximum(wanted.mean(0), 1e-5))
    if len(np.unique(targets)) < 2:
        return weights, bias
    first = start if start is not None else (weights, bias)
    weights[used], bias[:] = _solve_classes(
        csr_matrix_of(inputs[:, used]), wanted, penalty, squares[used], first[0][used], first[1]
    )
    return weights, bias


def _solve_classes(
    matrix: csr_matrix, wanted: np.ndarray, penalty: float, squares: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression of (rows, classes) `wanted` by L-BFGS, from `weights` and `bias`.

    `squares` (inputs,) are the sums of squares of the inputs. L-BFGS sees each weight divided by the root of its
    curvature. N-grams of many rows have a hundred times the curvature of rare ones. The fit then takes fewer steps.
    """
    from scipy.optimize import minimize

    turned = csr_matrix_of(matrix.T)
    rows, size = len(wanted), weights.shape
    units = (1 / np.sqrt(0.25 * squares + penalty)).astype(np.float32)[:, None]
    bias_unit = 1 / np.sqrt(0.25 * rows)
    split = weights.size

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        own = units * point[:split].reshape(size).astype(np.float32)
        logs = log_softmax(matrix @ own + (bias_unit * point[split:]).astype(np.float32))
        errors = np.exp(logs) - wanted
        value = 0.5 * penalty * float((own**2).sum()) - float((wanted * logs).sum())
        gradient = units * (turned @ errors + penalty * own)
        both = np.concatenate([gradient.ravel(), bias_unit * errors.sum(0)])
        return value / rows, both.astype(np.float64) / rows

    point = np.concatenate([(weights / units).ravel(), bias / bias_unit]).astype(np.float64)
    options = {"maxiter": MOST_STEPS, "ftol": PRECISION, "gtol": 1e-9}
    found = minimize(objective, point, jac=True, method="L-BFGS-B", options=options).x
    return units * found[:split].reshape(size), bias_unit * found[split:]


def csr_matrix_of(matrix: object) -> csr_matrix:
    """A sparse matrix by rows, in float32."""
    from scipy.sparse import csr_matrix

    return csr_matrix(matrix, dtype=np.float32)
