"""What the linear part is made of: other scales of a number, the second fit to all rows, and each part alone."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from recipes.tabular import linear
from recipes.tabular.curves import curves
from recipes.tabular.recipe import Recipe
from recipes.tabular.score import figures, r2
from recipes.tabular.settings import DataSettings, ModelSettings
from recipes.tabular.table import Table, Wording, cells, fit, labels
from runner.errors import ConfigError
from runner.parts import figures as figure_kinds

SIZES = ModelSettings(hidden_size=16, num_attention_heads=2, interaction_layers=1, text_layers=1, text_hidden_size=32,
                      vocab_size=300)  # fmt: skip


def prices(rows: int, sign: float = 1.0) -> pd.DataFrame:
    """A target whose logarithm is linear in the features; with sign -1, its mirror image."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["brand"] = random.choice(["oak", "elm", "fir"], rows)
    log = frame["a"] + 0.7 * frame["b"] + frame["brand"].map({"oak": 1.0, "elm": 0.0, "fir": -1.0})
    frame["y"] = 200 + sign * np.exp(log + random.normal(scale=0.2, size=rows))
    if sign > 0:
        frame["y"] -= 200
    return frame


def parts_of(frame: pd.DataFrame, train: int, held: int, **kinds: bool) -> tuple[Table, linear.Linear]:
    """The linear part of a table of numbers: training rows first, validation rows next."""
    own, other, wording = frame[:train], frame[train : train + held], Wording()
    table = fit("made", own, "y", task="regression")
    rows = linear.Held(cells(table, other, wording), labels(table, other))
    return table, linear.fit(table, cells(table, own, wording), labels(table, own), rows, 0, **kinds)


def r2_of(table: Table, own: linear.Linear, frame: pd.DataFrame) -> float:
    """R2 in the target's own unit."""
    z = own.scores(table, cells(table, frame, Wording()))[:, 0]
    return r2(frame["y"].to_numpy(), z * table.std + table.mean)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_skewed_target_is_fitted_on_another_scale_too(sign: float, tmp_path: Path) -> None:
    frame = prices(900, sign)
    table, own = parts_of(frame, 400, 100, has_trees=False)
    _, plain = parts_of(frame, 400, 100, has_trees=False, has_curves=False)
    assert own.bent is not None and own.bent.share >= 0.6 and plain.bent is None
    assert own.bent.curve.kind in ("logarithm", "ranks") if sign > 0 else own.bent.curve.kind == "ranks"
    assert r2_of(table, own, frame[500:]) > r2_of(table, plain, frame[500:]) + 0.1
    line = linear.remark(table, own)
    assert line is not None and re.search(r"R2 0\.\d+ against 0\.\d+ on 100 validation rows", line), line
    assert own.bent.shown[1] > own.bent.shown[0] and linear.remark(table, plain) is None
    linear.write(tmp_path / "parts", [own, plain])
    again, other = linear.read(tmp_path / "parts")
    assert linear.remark(table, again) == line and other.bent is None
    assert r2_of(table, again, frame[500:]) == r2_of(table, own, frame[500:])


def test_a_target_that_is_not_skewed_keeps_its_scale() -> None:
    random = np.random.default_rng(1)
    frame = pd.DataFrame(random.normal(size=(400, 2)), columns=["a", "b"])
    frame["y"] = 3 * frame["a"] + random.normal(size=400)
    assert parts_of(frame, 300, 60)[1].bent is None
    assert curves(np.ones(50), 0.0) == [] and curves(np.array([0.0, 1.0] * 30 + [5.0]), 0.0) == []


@pytest.mark.parametrize("shift", [0.0, -3.0, 1000.0])
@pytest.mark.parametrize("kind", ["lognormal", "counts", "mirrored"])
def test_the_way_there_and_back(kind: str, shift: float) -> None:
    random = np.random.default_rng(2)
    made = {
        "lognormal": random.lognormal(size=500), "counts": random.poisson(0.7, 500) ** 3.0, "mirrored":
        -random.lognormal(size=500),
    }  # fmt: skip
    target = made[kind] + shift
    z = (target - target.mean()) / target.std()
    found = curves(z, target.mean() / target.std())
    assert found or kind == "counts"
    for curve in found:
        there = curve.there(z)
        assert abs(there.mean()) < 1e-6 and there.std() == pytest.approx(1)
        assert np.all(np.diff(curve.z) > 0) and np.all(np.diff(curve.bent) > 0)
        assert np.abs(curve.back(there[:, None])[:, 0] - z).max() < 0.35
        # A prediction far off stays a number of about the range of the training rows.
        far = curve.back(np.array([[-1e3], [1e3]]))
        assert np.isfinite(far).all() and np.abs(far).max() <= np.abs(z).max() + 3.01 * np.ptp(z)


def test_the_way_back_gives_the_mean_and_not_the_median() -> None:
    random = np.random.default_rng(3)
    log = random.normal(size=4000)
    target = np.exp(log + random.normal(scale=0.8, size=4000))
    z = (target - target.mean()) / target.std()
    for curve in curves(z, target.mean() / target.std()):
        # The model knows the logarithm without its noise: on a straight line from the curve's scale.
        there = curve.there(z)
        slope, offset = np.polyfit(log, there, 1)
        guess = slope * log + offset
        smeared = curve.with_errors(there - guess).back(guess[:, None])[:, 0]
        plain = curve.back(guess[:, None])[:, 0]
        assert abs(smeared.mean() - z.mean()) < 0.3 * abs(plain.mean() - z.mean())
        assert r2(z, smeared) > r2(z, plain)


@pytest.mark.parametrize("penalty", [0.1, 3.0, 100.0])
def test_the_fit_of_numbers_is_the_ridge_regression_of_scikit_learn(penalty: float) -> None:
    random = np.random.default_rng(4)
    dense = random.poisson(0.4, (300, 60)) * random.uniform(0.1, 3, 60)
    targets = dense @ random.normal(size=(60, 3)) + random.normal(size=(300, 3)) + 5
    weights, bias = linear._solve(csr_matrix(dense), targets, penalty, 1, False)
    wanted = Ridge(alpha=penalty).fit(dense, targets)
    found = dense @ weights + bias
    assert np.abs(found - wanted.predict(dense)).max() < 0.02 * targets.std()
    # Each scale has the answer that it has alone.
    alone, own_bias = linear._solve(csr_matrix(dense), targets[:, 1], penalty, 1, False)
    assert np.allclose(dense @ alone[:, 0] + own_bias, found[:, 1], atol=0.02 * targets.std())


def test_rows_that_are_neither_training_nor_validation_have_the_scores_of_a_fit_to_both() -> None:
    frame = prices(900)
    frame["y"] = 5 * frame["a"] + frame["b"] * np.arange(900) % 2 + frame["c"]
    table, own = parts_of(frame, 40, 360)
    assert own.again is not None and own.again.again is None
    assert r2_of(table, own.again, frame[40:400]) > r2_of(table, own, frame[40:400])
    assert r2_of(table, own.again, frame[400:]) > r2_of(table, own, frame[400:])
    assert (own.again.bent is None) == (own.bent is None) and own.again.share == own.share
    assert parts_of(frame, 40, 360, refits=False)[1].again is None
    assert parts_of(frame, 40, 0)[1].again is None


def bound(folder: Path, **settings: bool) -> Recipe:
    """A recipe of the demo's tables, fitted."""
    folder.mkdir(exist_ok=True)
    sizes = dataclasses.replace(SIZES, **settings)
    return Recipe(data_settings=DataSettings(demo_rows=200), model_settings=sizes).prepare(folder)


def test_each_split_reads_a_fit_that_did_not_see_its_rows(tmp_path: Path) -> None:
    recipe = bound(tmp_path)
    assert recipe.linear is not None
    for place, own in enumerate(recipe.linear):
        frame = recipe.sources[place].splits["validation"]
        seen, table = cells(recipe.tables[place], frame, recipe.wording), recipe.tables[place]
        assert np.array_equal(recipe.data("validation").parts[place].linear, own.scores(table, seen))
        assert own.again is not None
        new = recipe.rows([table], [frame]).parts[0].linear
        assert np.array_equal(new, own.again.scores(table, seen)) and not np.array_equal(new, own.scores(table, seen))


@pytest.mark.parametrize("part", ["linear", "trees", "without_transformer"])
def test_one_part_alone_is_scored_by_a_flag_on_the_same_rows(part: str, tmp_path: Path) -> None:
    recipe = bound(tmp_path)
    torch.manual_seed(0)
    model = recipe.model().eval()
    rows = recipe.data("validation")
    batch = recipe.collate([rows[place] for place in range(len(rows))])
    alone = dataclasses.replace(recipe, part=part)
    with torch.no_grad():
        every, only = recipe.score(recipe.predict(model, batch)), alone.score(alone.predict(model, batch))
        drawn = recipe.figures(recipe.predict(model, batch))
    name = {"linear": "score_linear_part", "trees": "score_trees_part"}.get(part, "score_without_transformer")
    assert only["score"] == every[name] != every["score"]
    assert len({every["score"], every["score_linear_part"], every["score_trees_part"]}) == 3
    table = drawn[0]
    assert (
        isinstance(table, figure_kinds.Table)
        and "part" in table.head
        and len(table.rows) == 4
        and f"{every[name]:.4f}" in str(table.rows)
    )


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    without = dataclasses.replace(bound(tmp_path / "a", linear_part=False), part="linear")
    with pytest.raises(ConfigError, match="no linear part: leave --part out"):
        without.data("validation")
    bare = dataclasses.replace(bound(tmp_path / "b", trees=False), part="trees")
    with pytest.raises(ConfigError, match="type --part linear"):
        bare.data("validation")
    assert not [name for name in figures([], {}) if name]
