"""What the report draws of an evaluation's rows. Run alone: python -m pytest tests/runner/parts/test_figures.py"""

import dataclasses
import json

import numpy as np
import pytest

from recipes.microbiome.score import distance_figure, target_figures
from recipes.tabular.score import figures
from runner.parts.figures import MOST_CLASSES, Scatter, Table, calibration, confusion, predicted_against_true, some


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_a_calibrated_model_lies_on_the_line_and_a_too_confident_one_below_it(sharpness: float) -> None:
    random = np.random.default_rng(0)
    true = random.uniform(0.5, 1, 20000)
    labels = (random.uniform(size=20000) > true).astype(int)
    # Class 0 is right as often as `true` says; the model claims more.
    claimed = true**sharpness / (true**sharpness + (1 - true) ** sharpness)
    found = calibration("c", {"a": (labels, np.stack([claimed, 1 - claimed], 1))})
    for confidence, right in found.groups["a"]:
        assert 0.5 <= confidence <= 1
        if sharpness == 1:
            assert right == pytest.approx(confidence, abs=0.03)
        elif 0.6 < confidence < 0.97:
            assert right < confidence - 0.02


def test_a_confusion_counts_each_pair_and_shows_the_frequent_classes() -> None:
    labels, guesses = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    found = confusion("c", labels, guesses, ["red", "green", "blue"])
    assert list(found.head) == ["true class", "red", "green", "blue"]
    assert found.rows == [["red", 2, 1, 0], ["green", 0, 2, 0], ["blue", 1, 0, 0]]
    many = np.repeat(np.arange(40), np.arange(40) + 1)
    found = confusion("c", many, many, [f"class {place}" for place in range(40)])
    assert [row[0] for row in found.rows] == [f"class {place}" for place in range(40 - MOST_CLASSES, 40)]


def test_few_points_of_many_are_evenly_spread() -> None:
    assert some(list(range(10)), 20) == list(range(10))
    assert some(list(range(100)), 4) == [0, 25, 50, 75]
    assert len(predicted_against_true("t", list(range(5000)), list(range(5000))).groups["examples"]) == 1000


def test_tables_are_drawn_by_what_they_predict() -> None:
    rows = [{"table": "a", "probabilities": [0.8, 0.2], "target": place % 2} for place in range(6)]
    rows += [{"table": "b", "predicted": 1.5 * place, "target": float(place)} for place in range(5)]
    rows += [{"table": "b", "predicted": 1.0, "target": None}]
    found = figures(rows, {"a": ("no", "yes"), "b": ()})
    assert [figure.title.partition(":")[0] for figure in found] == ["calibration", "b", "a"]
    scatter, table = found[1], found[2]
    assert isinstance(scatter, Scatter) and isinstance(table, Table)
    assert list(scatter.groups["examples"]) == [(float(place), 1.5 * place) for place in range(5)]
    assert table.rows == [["no", 3, 0], ["yes", 3, 0]]
    json.dumps([dataclasses.asdict(figure) for figure in found], allow_nan=False)


@pytest.mark.parametrize("classes", [(), ("young", "old")])
def test_targets_of_samples_are_drawn(classes: tuple[str, ...]) -> None:
    rows = [
        {
            "sample": str(n),
            "row": n,
            "embedding": [0.0],
            "target": n % 2,
            "predicted": [0.3, 0.7] if classes else n + 0.5,
        }
        for n in range(6)
    ]
    found = target_figures(rows, classes)
    assert [type(figure) for figure in found] == ([Scatter, Table] if classes else [Scatter])
    unseen = [{**row, "target": -1.0} for row in rows]
    assert bool(target_figures(unseen, classes)) == (not classes)
    json.dumps([dataclasses.asdict(figure) for figure in found], allow_nan=False)


def test_each_pair_of_samples_is_a_point_once() -> None:
    true = np.array([[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.3, 0.0]])
    assert list(distance_figure(true, 2 * true).groups["pairs"]) == [(0.1, 0.2), (0.2, 0.4), (0.3, 0.6)]
