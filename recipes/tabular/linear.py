"""The linear part of the model: ridge or logistic regression on n-grams and numbers, and trees on what it finds.

All is fitted before the first step.
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
from recipes.tabular import trees as boosted
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
FEWEST_HELD = 10
"""With fewer validation rows, these choose nothing."""
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the trees in the score to choose from."""
MOST_CELL_SCORES = 300
"""The trees see the score of each cell of text, if a row has not more of these."""
VECTOR_SCALE = 4.0
"""As NUMBER_SCALE, for the vectors of a text encoder, which have length 1."""
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
    trees: boosted.Trees | None = None
    share: float = 0.0
    """The score is (1 - share) times that of the linear model, and share times that of the trees."""

    def reads_vectors(self, table: Table) -> bool:
        """Whether it was fitted on the vectors of a text encoder too."""
        return len(self.scale) > BUCKETS + NUMBERS * len(table.used)

    def scores(self, table: Table, cells: Cells, vectors: np.ndarray | None = None) -> np.ndarray:
        """(rows, outputs) float32: logits, or z. `vectors` (texts, size): of the cells' texts."""
        inputs = _scaled(design(table, cells, vectors), self.scale)
        found = np.asarray(inputs @ self.weights + self.bias, dtype=np.float32)
        if self.trees is None:
            return found
        seen = tree_inputs(table, cells, vectors, found, self.weights * self.scale[:, None])
        return _mixed(found, self.trees.scores(seen), self.share)


def _mixed(linear: np.ndarray, grown: np.ndarray, share: float) -> np.ndarray:
    return ((1 - share) * linear + share * grown).astype(np.float32)


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


def grams_of(table: Table, cells: Cells) -> tuple[csr_matrix, np.ndarray]:
    """(sets, BUCKETS) n-grams of each distinct cell, of length 1, and (rows, columns) which of them each cell is."""
    from scipy.sparse import csr_matrix

    sets, places = readings(table, cells)
    buckets = [ngram_hashing.buckets(*each, BUCKETS) for each in sets]
    lengths = np.array([len(each) for each in buckets])
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate(buckets) if buckets else np.zeros(0, np.int64)
    return csr_matrix((values, flat, starts), shape=(len(sets), BUCKETS), dtype=np.float32), places


def text_columns(table: Table) -> list[int]:
    """Places of the columns whose texts a text encoder reads for the linear part."""
    return [place for place, column in enumerate(table.used) if column.kind == "text"]


def design(table: Table, cells: Cells, vectors: np.ndarray | None = None) -> csr_matrix:
    """(rows, inputs) sparse: the n-grams of each cell, NUMBERS values of each column, and the vectors of its texts."""
    from scipy.sparse import csr_matrix, hstack

    grams, places = grams_of(table, cells)
    rows, columns = places.shape
    choice = csr_matrix(
        (np.ones(places.size, np.float32), places.ravel(), np.arange(0, places.size + 1, max(columns, 1))),
        shape=(rows, len(grams.indptr) - 1),
    )
    numbers = NUMBER_SCALE * cells.numbers[:, :, :NUMBERS].reshape(rows, -1)
    blocks = [choice @ grams, csr_matrix(numbers)]
    if vectors is not None:
        blocks += [csr_matrix(VECTOR_SCALE * vectors[cells.strings[:, place]]) for place in text_columns(table)]
    found = csr_matrix(hstack(blocks, format="csr"), dtype=np.float32)
    # Sums in the order of the inputs, whatever the other rows are.
    found.sort_indices()
    return found


def tree_inputs(
    table: Table, cells: Cells, vectors: np.ndarray | None, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(rows, features) float64: numbers, NaN where missing; linear scores; the part of each cell of text in them.

    `scores` (rows, outputs) and `weights` (inputs, outputs) are those of the linear model on the unscaled design. Of
    two classes, the difference is enough.
    """
    from scipy.sparse import csr_matrix

    is_number = np.array([column.is_number for column in table.used], dtype=bool)
    numbers = np.where(cells.numbers[:, is_number, 4] > 0, np.nan, cells.numbers[:, is_number, 1])
    if weights.shape[1] == 2:
        scores, weights = scores[:, 1:] - scores[:, :1], weights[:, 1:] - weights[:, :1]
    features = [numbers, scores]
    if 0 < int((~is_number).sum()) * weights.shape[1] <= MOST_CELL_SCORES:
        grams, places = grams_of(table, cells)
        each = np.asarray(grams @ weights[:BUCKETS])[places]
        if vectors is not None:
            sparse, first = csr_matrix(VECTOR_SCALE * vectors), BUCKETS + NUMBERS * len(table.used)
            for place in text_columns(table):
                own = np.asarray(sparse @ weights[first : first + vectors.shape[1]])
                each[:, place] += own[cells.strings[:, place]]
                first += vectors.shape[1]
        features.append(each[:, ~is_number].reshape(len(scores), -1))
    return np.concatenate(features, axis=1).astype(np.float64)


def _scaled(inputs: csr_matrix, scale: np.ndarray) -> csr_matrix:
    from scipy.sparse import csr_matrix, diags

    return csr_matrix(inputs @ diags(scale, format="csr"))


@dataclasses.dataclass(frozen=True)
class Held:
    """Validation rows, which choose the penalty."""

    cells: Cells
    targets: np.ndarray
    """Those of `table.labels`."""
    vectors: np.ndarray | None = None


def fit(
    table: Table,
    train: Cells,
    targets: np.ndarray,
    held: Held,
    seed: int,
    vectors: np.ndarray | None = None,
    has_trees: bool = True,
) -> Linear:
    """Fit the linear part of a table. Targets are those of `table.labels`, `vectors` (texts, size) of the cells."""
    from scipy.sparse import csr_matrix

    raw = design(table, train, vectors)
    size = 0 if vectors is None else vectors.shape[1] * len(text_columns(table))
    scale = np.ones(BUCKETS + NUMBERS * len(table.used) + size, np.float32)
    counts = np.bincount(raw.indices[raw.data != 0], minlength=len(scale))[:BUCKETS]
    scale[:BUCKETS] = np.where(counts >= FEWEST_CELLS, np.log((1 + len(targets)) / (1 + counts)) + 1, 0)
    inputs = _scaled(raw, scale)
    is_classes = table.task == "classification"
    outputs = len(table.classes) if is_classes else 1
    known = np.flatnonzero(targets >= 0 if is_classes else np.isfinite(targets))
    penalty = USUAL_PENALTY
    if len(held.targets) >= FEWEST_HELD and outputs <= MANY_CLASSES:
        seen = _scaled(design(table, held.cells, held.vectors), scale)
        penalty = _best_penalty(csr_matrix(inputs[known]), targets[known], seen, held.targets, outputs, is_classes)
    weights, bias = _solve(csr_matrix(inputs[known]), targets[known], penalty, outputs, is_classes)
    scores = np.zeros((len(targets), outputs), np.float32)
    if len(known) < 2:
        return Linear(weights, bias, scale, scores)
    # Without validation rows, nothing would show that the trees take the scores of other rows for more than they are.
    grows = has_trees and len(known) >= boosted.FEWEST_ROWS and outputs <= boosted.MOST_OUTPUTS
    grows = grows and len(held.targets) >= FEWEST_HELD
    features: np.ndarray | None = None
    for inside, outside in _folds(targets[known], is_classes, seed):
        learned, left_out = known[inside], known[outside]
        own, own_bias = _solve(csr_matrix(inputs[learned]), targets[learned], penalty, outputs, is_classes)
        scores[left_out] = csr_matrix(inputs[left_out]) @ own + own_bias
        if grows:
            found = tree_inputs(table, train, vectors, scores, own * scale[:, None])
            features = np.zeros_like(found) if features is None else features
            features[left_out] = found[left_out]
    fitted = Linear(weights, bias, scale, scores)
    if features is None:
        return fitted
    shown = fitted.scores(table, held.cells, held.vectors)
    seen = tree_inputs(table, held.cells, held.vectors, shown, weights * scale[:, None])
    there = held.targets >= 0 if is_classes else np.isfinite(held.targets)
    others = Scored(seen[there], shown[there], held.targets[there])
    found = _trees_for(Scored(features[known], scores[known], targets[known]), others, is_classes, seed)
    if found is None:
        return fitted
    trees, share, grown = found
    scores[known] = _mixed(scores[known], grown, share)
    return dataclasses.replace(fitted, held_out=scores, trees=trees, share=share)


def _folds(targets: np.ndarray, is_classes: bool, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to learn, rows left out) of each fold."""
    from sklearn.model_selection import KFold, StratifiedKFold

    smallest = int(np.bincount(targets.astype(int)).min()) if is_classes else len(targets)
    kind = StratifiedKFold if is_classes and smallest >= FOLDS else KFold
    splitter = kind(min(FOLDS, len(targets)), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(targets), 1)), targets))


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rows with a target, and their scores from a linear model that did not see them."""

    features: np.ndarray
    """(rows, features): see `tree_inputs`."""
    linear: np.ndarray
    """(rows, outputs)."""
    targets: np.ndarray


def _trees_for(
    rows: Scored, others: Scored, is_classes: bool, seed: int
) -> tuple[boosted.Trees, float, np.ndarray] | None:
    """Trees, their share, and (rows, outputs) scores of trees that did not see the row; None where they do not help.

    The share has the smallest loss on all rows. On `others`, which are validation rows, it must not be worse than no
    trees: a word without meaning has a high score out of fold exactly where the row's own target is low.
    """
    outputs = rows.linear.shape[1]
    if is_classes and len(np.unique(rows.targets)) < 2:
        return None
    grown = np.zeros_like(rows.linear)
    for learned, left_out in _folds(rows.targets, is_classes, seed):
        own = boosted.grow(rows.features[learned], rows.targets[learned], outputs, is_classes, seed)
        grown[left_out] = own.scores(rows.features[left_out])
    trees = boosted.grow(rows.features, rows.targets, outputs, is_classes, seed)
    grown_others = trees.scores(others.features)
    all_rows, on_others = {}, {}
    for share in SHARES:
        inside = quality(_mixed(rows.linear, grown, share), rows.targets, is_classes)
        on_others[share] = quality(_mixed(others.linear, grown_others, share), others.targets, is_classes)
        all_rows[share] = inside * len(rows.targets) + on_others[share] * len(others.targets)
    share = max(all_rows, key=all_rows.__getitem__)
    return None if on_others[share] <= on_others[0.0] else (trees, share, grown)


def write(file: Path, fitted: list[Linear]) -> None:
    """Write the linear parts of several tables: the inputs that they use alone."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for place, own in enumerate(fitted):
        used = np.flatnonzero(own.scale * np.abs(own.weights).sum(1))
        parts = {"used": used, "weights": own.weights[used], "scale": own.scale[used]}
        parts |= {"size": np.array([len(own.scale)]), "bias": own.bias, "held_out": own.held_out}
        if own.trees is not None:
            parts |= {f"trees.{name}": value for name, value in vars(own.trees).items()}
            parts["share"] = np.array([own.share])
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
        arrays = {name.partition(".")[2]: value for name, value in own.items() if name.startswith("trees.")}
        trees = boosted.Trees(**arrays) if arrays else None
        share = float(own["share"][0]) if trees is not None else 0.0
        found.append(Linear(weights, own["bias"], scale, own["held_out"], trees, share))
    return found


def quality(scores: np.ndarray, truth: np.ndarray, is_classes: bool) -> float:
    """The mean log-likelihood of (rows,) classes, or minus the mean squared error of z; larger is better."""
    if not is_classes:
        return -float(((scores[:, 0] - truth) ** 2).mean())
    own = log_softmax(scores)[np.arange(len(scores)), truth.astype(int)]
    return float(np.maximum(own, np.log(1e-9)).mean())


def _best_penalty(
    inputs: csr_matrix, targets: np.ndarray, held: csr_matrix, truth: np.ndarray, outputs: int, is_classes: bool
) -> float:
    found: dict[float, float] = {}
    known = truth >= 0 if is_classes else np.isfinite(truth)
    chosen = boosted.evenly(len(targets), MOST_CHOOSING_ROWS)
    inputs, targets = cast("csr_matrix", inputs[chosen]), targets[chosen]
    start: tuple[np.ndarray, np.ndarray] | None = None
    for penalty in PENALTIES:
        best = max(found, key=found.__getitem__) if found else penalty
        # From strong to weak: a weaker one takes longer, and two that are worse than the best are enough.
        if found and len(found) - list(found).index(best) > 2:
            break
        start = _solve(inputs, targets, penalty, outputs, is_classes, start)
        scores = (held @ start[0] + start[1])[known]
        found[penalty] = quality(scores, truth[known], is_classes)
    return max(found, key=found.__getitem__)


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
    chosen = boosted.evenly(len(targets), MOST_ROWS)
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
