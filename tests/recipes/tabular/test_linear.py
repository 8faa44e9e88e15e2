"""The linear part: fitted by scikit-learn before the first step, without the row that it scores."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression

from recipes.tabular import demo, linear, trees
from recipes.tabular.recipe import LINEAR, Recipe
from recipes.tabular.score import macro_auroc, r2
from recipes.tabular.settings import DataSettings, ModelSettings
from recipes.tabular.table import Table, Wording, cells, fit, labels

SIZES = ModelSettings(hidden_size=16, num_attention_heads=2, interaction_layers=1, text_layers=1, text_hidden_size=32,
                      vocab_size=300)  # fmt: skip


def split(place: int) -> tuple[Table, pd.DataFrame, pd.DataFrame]:
    """A table of the demo, its 300 training rows, and 100 others."""
    name, target, frame = demo.tables(400)[place]
    return fit(name, frame[:300], target), frame[:300], frame[300:]


def fitted(table: Table, train: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> linear.Linear:
    """The linear part of a table."""
    wording = Wording()
    held = linear.Held(cells(table, other, wording), labels(table, other))
    return linear.fit(table, cells(table, train, wording), labels(table, train), held, seed)


def quality(table: Table, scores: np.ndarray, truth: np.ndarray) -> float:
    """AUROC or R2."""
    if table.task == "regression":
        return r2(truth, scores[:, 0])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return macro_auroc(truth.astype(int), shares / shares.sum(1, keepdims=True))


@pytest.mark.parametrize(("place", "least"), [(0, 0.8), (1, 0.9), (2, 0.9)])
def test_it_learns_each_table_of_the_demo(place: int, least: float) -> None:
    table, train, other = split(place)
    own = fitted(table, train, other)
    assert quality(table, own.scores(table, cells(table, other, Wording())), labels(table, other)) > least
    assert own.held_out.shape == (300, len(table.classes) or 1)
    assert quality(table, own.held_out, labels(table, train)) > least - 0.1


def test_the_score_of_a_training_row_comes_from_a_fit_without_it() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"word": [f"word{place // 3} and" for place in range(240)], "y": random.choice(["a", "b"], 240)}
    )
    frame["word"] = frame["word"].sample(frac=1, random_state=0).to_numpy()
    table = fit("noise", frame, "y")
    own = fitted(table, frame, frame.iloc[:0])
    seen = quality(table, own.scores(table, cells(table, frame, Wording())), labels(table, frame))
    unseen = quality(table, own.held_out, labels(table, frame))
    assert seen > 0.75 and abs(unseen - 0.5) < 0.15


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("penalty", [0.3, 10.0])
def test_the_fit_of_classes_is_the_logistic_regression_of_scikit_learn(classes: int, penalty: float) -> None:
    random = np.random.default_rng(classes)
    dense = random.poisson(0.4, (300, 40)) * random.uniform(0.1, 3, 40)
    labels = (dense @ random.normal(size=(40, classes)) + random.gumbel(size=(300, classes))).argmax(1)
    weights, bias = linear._solve(csr_matrix(dense), labels.astype(float), penalty, classes, True)
    scores = dense @ weights + bias
    model = LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=5000).fit(dense, labels)
    # With two classes, scikit-learn has one row of weights, and ours are two with the opposite sign: penalise as ours.
    if classes == 2:
        model = LogisticRegression(C=2 / penalty, tol=1e-6, max_iter=5000).fit(dense, labels)
    wanted, shares = model.predict_proba(dense), np.exp(linear.log_softmax(scores))
    assert np.abs(shares - wanted).mean() < 0.01


def test_a_score_never_depends_on_the_other_rows() -> None:
    table, train, other = split(1)
    own = fitted(table, train, other)
    together = own.scores(table, cells(table, other, Wording()))
    for place in (0, 50, 99):
        alone = own.scores(table, cells(table, other.iloc[[place]], Wording()))
        assert np.array_equal(alone[0], together[place])


def test_it_is_written_and_read(tmp_path: Path) -> None:
    made = [(split(place), fitted(*split(place))) for place in range(3)]
    linear.write(tmp_path / "parts", [own for _, own in made])
    for ((table, _, other), own), again in zip(made, linear.read(tmp_path / "parts"), strict=True):
        seen = cells(table, other, Wording())
        assert np.array_equal(own.scores(table, seen), again.scores(table, seen))
        assert np.array_equal(own.held_out, again.held_out)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_the_trees_are_those_of_scikit_learn_without_a_pickle(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(classes)
    rows = random.normal(size=(400, 5))
    rows[random.random(rows.shape) < 0.1] = np.nan
    signal = np.nan_to_num(rows[:, 0] * rows[:, 1]) + np.nan_to_num(rows[:, 2], nan=2.0)
    targets = np.digitize(signal, np.quantile(signal, np.linspace(0, 1, classes + 1)[1:-1])) if classes else signal
    kept: list[HistGradientBoostingClassifier | HistGradientBoostingRegressor] = []
    original = trees._as_arrays
    monkeypatch.setattr(trees, "_as_arrays", lambda model, *rest: kept.append(model) or original(model, *rest))
    grown = trees.grow(rows[:300], targets[:300].astype(float), max(1, classes), classes > 0, 0)
    scores = grown.scores(rows[300:])
    wanted = kept[0].predict_proba(rows[300:]) if classes else kept[0].predict(rows[300:])[:, None]
    found = np.exp(linear.log_softmax(scores)) if classes else scores
    assert np.allclose(found, wanted, atol=1e-5)
    assert np.array_equal(grown.scores(rows[[317]])[0], scores[17])


def test_a_class_that_no_row_has_is_unlikely() -> None:
    rows = np.random.default_rng(0).normal(size=(120, 2))
    scores = trees.grow(rows, (rows[:, 0] > 0) * 3.0, 5, True, 0).scores(rows)
    assert np.array_equal(np.unique(scores.argmax(1)), [0, 3]) and np.exp(linear.log_softmax(scores))[:, 1].max() < 0.01


def test_trees_learn_what_a_linear_model_cannot_and_can_be_turned_off(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(600, 2)), columns=["a", "b"])
    frame["y"] = frame["a"] * frame["b"]
    table, wording = fit("product", frame[:400], "y"), Wording()
    train, other = (cells(table, part, wording) for part in (frame[:400], frame[400:]))
    held = linear.Held(other, labels(table, frame[400:]))
    own = linear.fit(table, train, labels(table, frame[:400]), held, 0)
    assert own.share > 0.5 and quality(table, own.scores(table, other), held.targets) > 0.7
    assert quality(table, own.held_out, labels(table, frame[:400])) > 0.6
    linear.write(tmp_path / "parts", [own])
    assert np.array_equal(linear.read(tmp_path / "parts")[0].scores(table, other), own.scores(table, other))
    without = linear.fit(table, train, labels(table, frame[:400]), held, 0, has_trees=False)
    assert without.trees is None and quality(table, without.scores(table, other), held.targets) < 0.3
    # Without validation rows, nothing chooses a share.
    none = linear.Held(cells(table, frame[:0], wording), held.targets[:0])
    assert linear.fit(table, train, labels(table, frame[:400]), none, 0).trees is None


def test_few_rows_one_class_in_a_fold_and_missing_targets() -> None:
    frame = pd.DataFrame({"n": np.arange(12.0) % 5, "c": ["u", "v"] * 6, "y": ["a"] * 10 + ["b", None]})
    table = fit("few", frame, "y")
    own = fitted(table, frame, frame.iloc[:0])
    assert np.isfinite(own.held_out).all() and np.isfinite(own.weights).all()
    numbers = pd.DataFrame({"n": np.arange(40.0) % 7, "c": ["u", "v"] * 20, "y": [*range(39), np.nan]})
    table = fit("few", numbers, "y", task="regression")
    assert np.isfinite(fitted(table, numbers, numbers.iloc[:5]).held_out).all()


def test_the_model_begins_at_the_linear_part(tmp_path: Path) -> None:
    recipe = Recipe(data_settings=DataSettings(demo_rows=100), model_settings=SIZES).prepare(tmp_path)
    torch.manual_seed(0)
    model = recipe.model().eval()
    rows = recipe.data("validation")
    with torch.no_grad():
        found = recipe.predict(model, recipe.collate([rows[place] for place in range(len(rows))]))
    scores = np.concatenate([part.linear for part in rows.parts if part.table.task == "classification"], axis=None)
    assert scores.any() and recipe.linear is not None
    numbers = [row["predicted"] for row in found if "predicted" in row]
    last = rows.parts[2]
    assert np.allclose(numbers, last.linear[:, 0] * last.table.std + last.table.mean, atol=0.02 * last.table.std)
    first = rows.parts[0]
    shares = np.exp(first.linear - first.linear.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    assert np.allclose([row["probabilities"] for row in found[: len(shares)]], shares, atol=5e-3)
    # Near enough the model's own scores, which the evaluation reports beside those of the linear part.
    scored = recipe.score(found)
    assert scored["score"] == pytest.approx(scored["score_without_transformer"], abs=0.02)
    assert {name.split("/")[0] for name in scored} <= {name.split("/")[0] for name in recipe.metrics()}
    for row in found:
        row["without_transformer"] = row.get("predicted", row.get("probabilities"))
    assert recipe.score(found)["score"] == recipe.score(found)["score_without_transformer"]
    # For the training rows, the scores that were held out.
    assert np.array_equal(recipe.data("train").parts[0].linear, recipe.linear[0].held_out)


def test_a_run_without_a_linear_part_stays_without(tmp_path: Path) -> None:
    recipe = Recipe(data_settings=DataSettings(demo_rows=60), model_settings=SIZES)
    without = dataclasses.replace(recipe, model_settings=dataclasses.replace(SIZES, linear_part=False))
    bound = without.prepare(tmp_path)
    assert bound.linear is None and not (tmp_path / LINEAR).exists()
    assert not any(part.linear.any() for part in bound.data("train").parts)
    # A run of an older version did not know the setting.
    assert recipe.prepare(tmp_path).linear is None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("has_classes", [False, True])
def test_few_validation_rows_do_not_choose_the_penalty_alone(seed: int, has_classes: bool) -> None:
    # Words say nothing about the target. Validation rows that repeat training rows ask for the weakest penalty.
    random = np.random.default_rng(seed)
    target = random.choice(["a", "b"], 240) if has_classes else random.normal(size=240)
    frame = pd.DataFrame({"note": [f"word{place // 2}" for place in random.permutation(240)], "y": target})
    table, held = fit("noise", frame, "y"), frame[:12]
    own = linear.fit(
        table, cells(table, frame, Wording()), labels(table, frame),
        linear.Held(cells(table, held, Wording()), labels(table, held)), seed, has_trees=False, has_curves=False,
    )  # fmt: skip
    found = own.scores(table, cells(table, frame, Wording()))
    assert (found[:, -1] - found[:, 0] * has_classes).std() < 0.5
