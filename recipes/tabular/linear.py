"""The linear part of the model: ridge or logistic regression on n-grams and numbers, and trees on what it finds.

All is fitted before the first step. The penalty is the one that does best on rows that a fit did not see: the
validation rows, or where these are few, those of five folds. For the training rows, the scores come from fits that did
not see the row: the transformer then learns what the linear part does not know of other rows. Source of that second
step: Wolpert 1992, Stacked Generalization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from recipes.tabular import ngram_hashing
from recipes.tabular import trees as boosted
from recipes.tabular.curves import Curve, curves
from recipes.tabular.score import r2
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
"""The strength where too few rows, or too many classes, are there to choose."""
MANY_CLASSES = 50
MOST_ROWS = 20_000
"""A fit takes so many rows of a larger table, evenly spread."""
MOST_CHOOSING_ROWS = 2_500
"""The penalty is chosen with fits to so many rows: it is the inverse variance of the weights, whatever the rows."""
MANY_HELD = 250
"""With fewer validation rows, the training rows choose the penalty too."""
FEWEST_CHOOSING = 20
"""With fewer rows, these choose nothing."""
MOST_STEPS = 60
PRECISION = 3e-4
"""A fit ends where a step lowers the loss by a smaller share than this."""
RIDGE_PRECISION = 1e-3
"""A ridge regression ends where its gradient is so small a share of the first."""
MOST_RIDGE_STEPS = 200
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
    bent: Bent | None = None
    """A second fit, of a number on another scale."""
    again: Linear | None = None
    """The same fit to training and validation rows, for all rows that are neither."""

    @property
    def has_trees(self) -> bool:
        """Whether trees have a share in the score."""
        return self.trees is not None or (self.bent is not None and self.bent.fit.trees is not None)

    def reads_vectors(self, table: Table) -> bool:
        """Whether it was fitted on the vectors of a text encoder too."""
        return len(self.scale) > BUCKETS + NUMBERS * len(table.used)

    def scores(self, table: Table, cells: Cells, vectors: np.ndarray | None = None) -> np.ndarray:
        """(rows, outputs) float32: logits, or z. `vectors` (texts, size): of the cells' texts."""
        return self.parts(table, cells, vectors)["all"]

    def parts(self, table: Table, cells: Cells, vectors: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """(rows, outputs) float32 scores of "all" and of its parts, "linear" and "trees".

        "trees" is absent where no trees were grown.
        """
        return self._parts_of(read_rows(table, cells, vectors))

    def _parts_of(self, rows: Read) -> dict[str, np.ndarray]:
        inputs = _scaled(rows.design, self.scale)
        found = np.asarray(inputs @ self.weights + self.bias, dtype=np.float32)
        grown = found
        if self.trees is not None:
            grown = self.trees.scores(tree_inputs(rows, found, self.weights * self.scale[:, None]))
        parts = {"all": mixed(found, grown, self.share), "linear": found, "trees": grown}
        if self.bent is not None:
            other = self.bent.fit._parts_of(rows)
            parts = {
                name: mixed(own, self.bent.curve.back(other.get(name, other["linear"])), self.bent.share)
                for name, own in parts.items()
            }
        return parts if self.has_trees else {name: own for name, own in parts.items() if name != "trees"}


@dataclasses.dataclass(frozen=True)
class Bent:
    """A fit of the target on another scale, and its share in the score."""

    fit: Linear
    curve: Curve
    share: float
    shown: tuple[float, float, int] = (0.0, 0.0, 0)
    """R2 on validation rows without and with it, and the number of these rows."""


def remark(table: Table, own: Linear) -> str | None:
    """A line about the second scale of a target, or None."""
    if own.bent is None:
        return None
    before, after, rows = own.bent.shown
    return (
        f"target {table.target}: a fit of its {own.bent.curve.kind} has {own.bent.share:.1f} of the score, chosen on "
        f"rows that it had not seen: R2 {after:.3f} against {before:.3f} on {rows:,} validation rows"
    )


def mixed(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) times the first scores and share times the second, float32."""
    return ((1 - share) * first + share * second).astype(np.float32) if share else first


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
    lengths = np.array([len(each) for each in buckets], dtype=np.int64)
    values = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.concatenate(buckets) if buckets else np.zeros(0, np.int64)
    return csr_matrix((values, flat, starts), shape=(len(sets), BUCKETS), dtype=np.float32), places


def text_columns(table: Table) -> list[int]:
    """Places of the columns whose texts a text encoder reads for the linear part."""
    return [place for place, column in enumerate(table.used) if column.kind == "text"]


@dataclasses.dataclass(frozen=True)
class Read:
    """Rows as the linear model and the trees read them."""

    table: Table
    cells: Cells
    vectors: np.ndarray | None
    grams: csr_matrix
    """(sets, BUCKETS): see `grams_of`."""
    places: np.ndarray
    """(rows, columns)."""
    design: csr_matrix
    """(rows, inputs): the n-grams of each cell, NUMBERS values of each column, and the vectors of its texts."""

    @property
    def width(self) -> int:
        """Number of inputs."""
        size = 0 if self.vectors is None else self.vectors.shape[1] * len(text_columns(self.table))
        return BUCKETS + NUMBERS * len(self.table.used) + size


def read_rows(table: Table, cells: Cells, vectors: np.ndarray | None = None) -> Read:
    """Read rows once for all fits. `vectors` (texts, size) are of the cells' texts."""
    from scipy.sparse import csr_matrix, hstack

    grams, places = grams_of(table, cells)
    rows, columns = places.shape
    choice = csr_matrix(
        (np.ones(places.size, np.float32), places.ravel(), np.arange(0, places.size + 1, max(columns, 1))),
        shape=(rows, len(grams.indptr) - 1),
    )
    numbers = NUMBER_SCALE * cells.numbers[:, :, :NUMBERS].reshape(rows, NUMBERS * columns)
    blocks = [choice @ grams, csr_matrix(numbers)]
    if vectors is not None:
        blocks += [csr_matrix(VECTOR_SCALE * vectors[cells.strings[:, place]]) for place in text_columns(table)]
    found = csr_matrix(hstack(blocks, format="csr"), dtype=np.float32)
    # Sums in the order of the inputs, whatever the other rows are.
    found.sort_indices()
    return Read(table, cells, vectors, grams, places, found)


def tree_inputs(rows: Read, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows, features) float64: numbers, NaN where missing; linear scores; the part of each cell of text in them.

    `scores` (rows, outputs) and `weights` (inputs, outputs) are those of the linear model on the unscaled design. Of
    two classes, the difference is enough.
    """
    from scipy.sparse import csr_matrix

    table, cells = rows.table, rows.cells
    is_number = np.array([column.is_number for column in table.used], dtype=bool)
    numbers = np.where(cells.numbers[:, is_number, 4] > 0, np.nan, cells.numbers[:, is_number, 1])
    if weights.shape[1] == 2:
        scores, weights = scores[:, 1:] - scores[:, :1], weights[:, 1:] - weights[:, :1]
    features = [numbers, scores]
    if 0 < int((~is_number).sum()) * weights.shape[1] <= MOST_CELL_SCORES:
        each = np.asarray(rows.grams @ weights[:BUCKETS])[rows.places]
        if rows.vectors is not None:
            sparse, first = csr_matrix(VECTOR_SCALE * rows.vectors), BUCKETS + NUMBERS * len(table.used)
            for place in text_columns(table):
                own = np.asarray(sparse @ weights[first : first + rows.vectors.shape[1]])
                each[:, place] += own[cells.strings[:, place]]
                first += rows.vectors.shape[1]
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


@dataclasses.dataclass(frozen=True)
class _Known:
    """Rows with a target, and the places of these rows among all."""

    rows: Read
    places: np.ndarray
    targets: np.ndarray
    """(places,): the class or z."""
    inputs: csr_matrix
    """(places, inputs), scaled."""

    def features(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`tree_inputs` of these rows. `scores` are of these rows."""
        everywhere = np.zeros((len(self.rows.cells.strings), scores.shape[1]), np.float32)
        everywhere[self.places] = scores
        return tree_inputs(self.rows, everywhere, weights)[self.places]


@dataclasses.dataclass(frozen=True)
class _Data:
    """What all fits of one table share."""

    train: _Known
    held: _Known
    scale: np.ndarray
    is_classes: bool
    outputs: int
    grows: bool
    """Whether trees may be grown."""
    folds: list[tuple[np.ndarray, np.ndarray]]
    seed: int


def fit(
    table: Table,
    train: Cells,
    targets: np.ndarray,
    held: Held,
    seed: int,
    vectors: np.ndarray | None = None,
    has_trees: bool = True,
    has_curves: bool = True,
    refits: bool = True,
) -> Linear:
    """Fit the linear part of a table. Targets are those of `table.labels`, `vectors` (texts, size) of the cells.

    `has_trees`, `has_curves`: whether trees and a second scale of a number may have a share. `refits`: whether the rows
    that are neither training nor validation have scores of a fit to both.
    """
    data = _data_of(read_rows(table, train, vectors), targets, held, seed, has_trees)
    own, found = data.train, np.zeros((len(targets), data.outputs), np.float32)
    if len(own.targets) < 2:
        weights, bias = _solve(own.inputs, own.targets, USUAL_PENALTY, data.outputs, data.is_classes)
        return Linear(weights, bias, data.scale, found)
    scales = [] if data.is_classes or not has_curves else _curves_of(data)
    inside, outside = (
        np.stack([part.targets, *(curve.there(part.targets) for curve in scales)], axis=1)
        for part in (data.train, data.held)
    )
    plain, *others = _firsts(data, inside, outside)
    first = _grown(data, plain, own.targets, data.held.targets)
    made = first.linear(data)
    again = first.again(data, own.targets, data.held.targets) if refits and len(data.held.targets) else None
    inside = first.inside
    if others:
        bent = _bend(data, first, scales, others)
        if bent is not None:
            curve, second, share = bent
            inside = mixed(inside, curve.back(second.inside), share)
            outsides = first.outside, mixed(first.outside, curve.back(second.outside), share)
            before, after = (r2(data.held.targets, own[:, 0]) for own in outsides)
            shown = (before, after, len(data.held.targets))
            made = dataclasses.replace(made, bent=Bent(second.linear(data), curve, share, shown))
            if again is not None:
                other = second.again(data, curve.there(own.targets), curve.there(data.held.targets))
                again = dataclasses.replace(again, bent=Bent(other, curve, share))
    found[own.places] = inside
    return dataclasses.replace(made, held_out=found, again=again)


def _data_of(rows: Read, targets: np.ndarray, held: Held, seed: int, has_trees: bool) -> _Data:
    table = rows.table
    is_classes = table.task == "classification"
    outputs = len(table.classes) if is_classes else 1
    scale = _scale_of([rows])
    train = _known(rows, targets, scale, is_classes)
    others = _known(read_rows(table, held.cells, held.vectors), held.targets, scale, is_classes)
    # Without validation rows, nothing would show that the trees take the scores of other rows for more than they are.
    grows = has_trees and len(train.targets) >= boosted.FEWEST_ROWS and outputs <= boosted.MOST_OUTPUTS
    grows = grows and len(held.targets) >= FEWEST_HELD
    folds = _folds(train.targets, is_classes, seed) if len(train.targets) > 1 else []
    return _Data(train, others, scale, is_classes, outputs, grows, folds, seed)


def _scale_of(parts: list[Read]) -> np.ndarray:
    """(inputs,) the factor of each input: see `Linear.scale`."""
    scale = np.ones(parts[0].width, np.float32)
    counts = sum(np.bincount(own.design.indices[own.design.data != 0], minlength=len(scale))[:BUCKETS] for own in parts)
    rows = sum(len(own.places) for own in parts)
    scale[:BUCKETS] = np.where(counts >= FEWEST_CELLS, np.log((1 + rows) / (1 + counts)) + 1, 0)
    return scale


def _known(rows: Read, targets: np.ndarray, scale: np.ndarray, is_classes: bool) -> _Known:
    places = np.flatnonzero(targets >= 0 if is_classes else np.isfinite(targets))
    return _Known(rows, places, targets[places], csr_matrix_of(_scaled(rows.design, scale)[places]))


@dataclasses.dataclass(frozen=True)
class _Fit:
    """One fit to the training rows, and what it says of rows that it did not see."""

    penalty: float
    weights: np.ndarray
    bias: np.ndarray
    inside: np.ndarray
    """(known training rows, outputs): scores from fits without the row."""
    outside: np.ndarray
    """(known validation rows, outputs)."""
    folds: list[np.ndarray]
    """(inputs, outputs) weights of the fit of each fold."""
    features: np.ndarray | None = None
    """What the trees read of the training rows, from fits without the row; None where none were grown."""
    trees: boosted.Trees | None = None
    share: float = 0.0

    def linear(self, data: _Data) -> Linear:
        """The fit, without scores of training rows."""
        none = np.zeros((0, data.outputs), np.float32)
        return Linear(self.weights, self.bias, data.scale, none, self.trees, self.share)

    def again(self, data: _Data, targets: np.ndarray, truth: np.ndarray) -> Linear:
        """The same with all that was chosen, fitted to training and validation rows."""
        from scipy.sparse import vstack

        scale = _scale_of([data.train.rows, data.held.rows])
        parts = [_scaled(own.rows.design, scale)[own.places] for own in (data.train, data.held)]
        both = np.concatenate([targets, truth])
        inputs = csr_matrix_of(vstack(parts, format="csr"))
        weights, bias = _solve(inputs, both, self.penalty, data.outputs, data.is_classes)
        trees = self.trees
        if trees is not None and self.features is not None:
            scores = np.asarray(data.held.inputs @ self.weights + self.bias, dtype=np.float32)
            features = [self.features, data.held.features(scores, self.weights * data.scale[:, None])]
            trees = boosted.grow(np.concatenate(features), both, data.outputs, data.is_classes, data.seed)
        return Linear(weights, bias, scale, np.zeros((0, data.outputs), np.float32), trees, self.share)


def _firsts(data: _Data, targets: np.ndarray, truth: np.ndarray) -> list[_Fit]:
    """The linear model alone, of each scale of the target.

    `targets` and `truth` (rows, scales) are of the known training and validation rows. The penalty is chosen for the
    first scale; the others have the same deviation.
    """
    train, held = data.train, data.held
    penalty = USUAL_PENALTY
    if len(targets) + len(truth) >= FEWEST_CHOOSING and data.outputs <= MANY_CLASSES:
        penalty = _best_penalty(data, targets[:, 0], truth[:, 0])
    weights, bias = _solve(train.inputs, targets, penalty, data.outputs, data.is_classes)
    inside, folds = np.zeros((len(targets), weights.shape[1]), np.float32), []
    for learned, left_out in data.folds:
        own, own_bias = _solve(
            csr_matrix_of(train.inputs[learned]), targets[learned], penalty, data.outputs, data.is_classes
        )
        inside[left_out] = csr_matrix_of(train.inputs[left_out]) @ own + own_bias
        folds.append(own)
    outside = np.asarray(held.inputs @ weights + bias, dtype=np.float32)
    size = data.outputs if data.is_classes else 1
    return [
        _Fit(penalty, weights[:, own], bias[own], inside[:, own], outside[:, own], [fold[:, own] for fold in folds])
        for own in (slice(first, first + size) for first in range(0, weights.shape[1], size))
    ]


def _grown(data: _Data, first: _Fit, targets: np.ndarray, truth: np.ndarray) -> _Fit:
    """The linear model with the trees that help it, if any do.

    The share has the smallest loss on all rows, of those that are not worse than no trees on validation rows: a word
    without meaning has a high score out of fold exactly where the row's own target is low.
    """
    if not data.grows or (data.is_classes and len(np.unique(targets)) < 2):
        return first
    each = [data.train.features(first.inside, own * data.scale[:, None]) for own in first.folds]
    features = np.zeros_like(each[0])
    for (_, left_out), found in zip(data.folds, each, strict=True):
        features[left_out] = found[left_out]
    inside = np.zeros_like(first.inside)
    for learned, left_out in data.folds:
        own = boosted.grow(
            features[learned], targets[learned], data.outputs, data.is_classes, data.seed, boosted.MOST_FOLD_ROWS
        )
        inside[left_out] = own.scores(features[left_out])
    trees = boosted.grow(features, targets, data.outputs, data.is_classes, data.seed)
    outside = trees.scores(data.held.features(first.outside, first.weights * data.scale[:, None]))
    share = _best_share((first.inside, first.outside), (inside, outside), (targets, truth), data.is_classes)
    if not share:
        return dataclasses.replace(first, features=None)
    return dataclasses.replace(
        first, inside=mixed(first.inside, inside, share), outside=mixed(first.outside, outside, share), trees=trees,
        share=share,
    )  # fmt: skip


Pair = tuple[np.ndarray, np.ndarray]
"""Of training rows and of validation rows."""


def _best_share(first: Pair, second: Pair, truth: Pair, is_classes: bool) -> float:
    """The share of the second scores that does best on all rows, of those that are not worse on validation rows."""
    all_rows, on_held = {}, {}
    for share in SHARES:
        inside, outside = (
            quality(mixed(one, other, share), own, is_classes)
            for one, other, own in zip(first, second, truth, strict=True)
        )
        on_held[share] = outside
        all_rows[share] = inside * len(truth[0]) + outside * len(truth[1])
    return max((share for share in SHARES if on_held[share] >= on_held[0.0]), key=all_rows.__getitem__)


def _curves_of(data: _Data) -> list[Curve]:
    """The scales to try beside the target's own."""
    targets, table = data.train.targets, data.train.rows.table
    if len(data.held.targets) < FEWEST_HELD or len(targets) < boosted.FEWEST_ROWS:
        return []
    return curves(targets, table.mean / table.std)


def _bend(data: _Data, first: _Fit, scales: list[Curve], fits: list[_Fit]) -> tuple[Curve, _Fit, float] | None:
    """A fit of the target on another scale, with trees, and its share; None where nothing is won.

    Of several scales, the one is taken whose linear model has the smallest error in the target's own unit.
    """
    targets, truth = data.train.targets, data.held.targets
    found: list[tuple[float, Curve, _Fit]] = []
    for curve, fitted in zip(scales, fits, strict=True):
        own = curve.with_errors(curve.there(targets) - fitted.inside[:, 0])
        errors = np.concatenate([own.back(fitted.inside)[:, 0] - targets, own.back(fitted.outside)[:, 0] - truth])
        found.append((float((errors**2).sum()), curve, fitted))
    _, curve, fitted = min(found, key=lambda each: each[0])
    fitted = _grown(data, fitted, curve.there(targets), curve.there(truth))
    curve = curve.with_errors(curve.there(targets) - fitted.inside[:, 0])
    others = curve.back(fitted.inside), curve.back(fitted.outside)
    share = _best_share((first.inside, first.outside), others, (targets, truth), False)
    return (curve, fitted, share) if share else None


def _folds(targets: np.ndarray, is_classes: bool, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to learn, rows left out) of each fold."""
    from sklearn.model_selection import KFold, StratifiedKFold

    smallest = int(np.bincount(targets.astype(int)).min()) if is_classes else len(targets)
    kind = StratifiedKFold if is_classes and smallest >= FOLDS else KFold
    splitter = kind(min(FOLDS, len(targets)), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros((len(targets), 1)), targets))


def write(file: Path, fitted: list[Linear]) -> None:
    """Write the linear parts of several tables: the inputs that they use alone."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for place, own in enumerate(fitted):
        tensors |= {f"{place}.{name}": np.ascontiguousarray(value) for name, value in _tensors(own).items()}
    save_file(tensors, file)


def _tensors(own: Linear) -> dict[str, np.ndarray]:
    used = np.flatnonzero(own.scale * np.abs(own.weights).sum(1))
    parts = {"used": used, "weights": own.weights[used], "scale": own.scale[used]}
    parts |= {"size": np.array([len(own.scale)]), "bias": own.bias, "held_out": own.held_out}
    if own.trees is not None:
        parts |= {f"trees.{name}": value for name, value in vars(own.trees).items()}
        parts["share"] = np.array([own.share])
    if own.bent is not None:
        parts |= {f"bent.{name}": value for name, value in _tensors(own.bent.fit).items()}
        parts |= {f"curve.{name}": value for name, value in own.bent.curve.tensors().items()}
        parts["bent_share"] = np.array([own.bent.share, *own.bent.shown])
    if own.again is not None:
        parts |= {f"again.{name}": value for name, value in _tensors(own.again).items()}
    return parts


def read(file: Path) -> list[Linear]:
    """The linear parts that `write` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(file)
    count = len({name.partition(".")[0] for name in tensors})
    return [_from_tensors(_under(tensors, str(place))) for place in range(count)]


def _under(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with the prefix and a dot, under the rest of their names."""
    return {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _bent_from(own: dict[str, np.ndarray], bent: dict[str, np.ndarray]) -> Bent:
    share, before, after, rows = own["bent_share"].tolist()
    return Bent(_from_tensors(bent), Curve.from_tensors(_under(own, "curve")), share, (before, after, int(rows)))


def _from_tensors(own: dict[str, np.ndarray]) -> Linear:
    size = int(own["size"][0])
    weights, scale = np.zeros((size, own["weights"].shape[1]), np.float32), np.zeros(size, np.float32)
    weights[own["used"]], scale[own["used"]] = own["weights"], own["scale"]
    arrays, bent, again = (_under(own, name) for name in ("trees", "bent", "again"))
    trees = boosted.Trees(**arrays) if arrays else None
    return Linear(
        weights, own["bias"], scale, own["held_out"], trees, float(own["share"][0]) if trees is not None else 0.0,
        _bent_from(own, bent) if bent else None,
        _from_tensors(again) if again else None,
    )  # fmt: skip


def quality(scores: np.ndarray, truth: np.ndarray, is_classes: bool) -> float:
    """The mean log-likelihood of (rows,) classes, or minus the mean squared error of z; larger is better."""
    if not is_classes:
        return -float(((scores[:, 0] - truth) ** 2).mean())
    own = log_softmax(scores)[np.arange(len(scores)), truth.astype(int)]
    return float(np.maximum(own, np.log(1e-9)).mean())


def _best_penalty(data: _Data, targets: np.ndarray, truth: np.ndarray) -> float:
    """The penalty of the best predictions of rows that the fit did not see, over folds of training and validation rows.

    `targets` and `truth` (rows,) are of the known training and validation rows. Many validation rows choose alone; few
    are wrong by factors of ten.
    """
    from scipy.sparse import vstack

    outputs, is_classes = data.outputs, data.is_classes
    chosen = boosted.evenly(len(targets), MOST_CHOOSING_ROWS)
    inputs = csr_matrix_of(vstack([data.train.inputs[chosen], data.held.inputs], format="csr"))
    known = np.concatenate([targets[chosen], truth])
    folds = [(np.arange(len(chosen)), np.arange(len(chosen), len(known)))]
    if len(truth) < MANY_HELD:
        folds = _folds(known, is_classes, data.seed)
    asked = np.concatenate([left_out for _, left_out in folds])
    parts = [(csr_matrix_of(inputs[learned]), csr_matrix_of(inputs[left_out])) for learned, left_out in folds]
    starts: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(folds)
    found: dict[float, float] = {}
    for penalty in PENALTIES:
        best = max(found, key=found.__getitem__) if found else penalty
        # From strong to weak: a weaker one takes longer, and two that are worse than the best are enough.
        if found and len(found) - list(found).index(best) > 2:
            break
        scores = np.zeros((len(known), outputs), np.float32)
        for place, ((learned, left_out), (own, others)) in enumerate(zip(folds, parts, strict=True)):
            made = _solve(own, known[learned], penalty, outputs, is_classes, starts[place])
            scores[left_out] = others @ made[0] + made[1]
            starts[place] = made
        found[penalty] = quality(scores[asked], known[asked], is_classes)
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
    """(inputs, outputs) weights and (outputs,) bias, float32, of (rows,) or (rows, scales) targets.

    It begins at `start`, or at 0. Numbers have one output for each scale.
    """
    chosen = boosted.evenly(len(targets), MOST_ROWS)
    inputs, targets = cast("csr_matrix", inputs[chosen]), targets[chosen].reshape(len(chosen), -1)
    squares = np.asarray(inputs.multiply(inputs).sum(0)).ravel()
    used = np.flatnonzero(squares)
    outputs = outputs if is_classes else targets.shape[1]
    weights, bias = np.zeros((len(squares), outputs), np.float32), np.zeros(outputs, np.float32)
    if not is_classes:
        begin = np.zeros((len(used), outputs), np.float32) if start is None else start[0][used]
        weights[used], bias[:] = _solve_numbers(
            csr_matrix_of(inputs[:, used]), targets.astype(np.float32), penalty, squares[used], begin
        )
        return weights, bias
    targets = targets[:, 0]
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


def _solve_numbers(
    matrix: csr_matrix, wanted: np.ndarray, penalty: float, squares: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of (rows, scales) `wanted`, by conjugate gradients from `weights`, divided as in _solve_classes.

    All scales share the products with the matrix. Source: Hestenes and Stiefel 1952.
    """
    turned = csr_matrix_of(matrix.T)
    means = np.asarray(matrix.mean(0), dtype=np.float32).ravel()
    units = (1 / np.maximum(squares - len(wanted) * means**2 + penalty, 1e-6)).astype(np.float32)[:, None]
    centred = wanted - wanted.mean(0)
    goal = turned @ centred
    # The bias is free: without it, rows count from their mean.
    reached = matrix @ weights
    left = goal - turned @ (reached - reached.mean(0)) - penalty * weights
    enough = RIDGE_PRECISION * np.linalg.norm(goal, axis=0)
    turn = units * left
    size = (left * turn).sum(0)
    for _ in range(MOST_RIDGE_STEPS):
        is_open = np.linalg.norm(left, axis=0) > enough
        if not is_open.any():
            break
        reached = matrix @ turn
        pushed = turned @ (reached - reached.mean(0)) + penalty * turn
        step = np.where(is_open, size / np.maximum((turn * pushed).sum(0), 1e-30), 0).astype(np.float32)
        weights, left = weights + step * turn, left - step * pushed
        eased = units * left
        before, size = size, (left * eased).sum(0)
        turn = eased + (size / np.maximum(before, 1e-30)).astype(np.float32) * turn
    return weights, wanted.mean(0) - means @ weights


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
