"""--baseline true: two models of scikit-learn on the same rows, and which to use.

Run alone: python -m pytest tests/recipes/tabular/test_baselines.py
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.tabular import baselines
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, ModelSettings
from tests.launching import REPOSITORY


def table_of(kind: str, rows: int = 120) -> pd.DataFrame:
    random = np.random.default_rng(0)
    size, weight = random.normal(size=rows), random.normal(size=rows)
    weight[::7] = np.nan
    colour, note = random.choice(["red", "green"], rows), [f"{word} day {n}" for n, word in enumerate(["hot"] * rows)]
    signal = 2 * size + np.nan_to_num(weight) + (colour == "red")
    frames = {
        "classes": np.where(signal > 1, "big", np.where(signal < -1, "small", "middle")),
        "two classes": np.where(signal > 0, "yes", "no"),
        "a number": signal + 0.1 * random.normal(size=rows),
    }
    return pd.DataFrame({"size": size, "weight": weight, "colour": colour, "note": note, "target": frames[kind]})


@pytest.fixture(params=["classes", "two classes", "a number"])
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    table_of(request.param).to_csv(tmp_path / "table.csv", index=False)
    data = DataSettings(train=str(tmp_path / "table.csv"), target="target")
    sizes = ModelSettings(linear_part=False, text_hidden_size=32, vocab_size=300)
    return Recipe(data_settings=data, model_settings=sizes, baseline=True).prepare(tmp_path)


def test_each_row_has_the_guesses_of_both(prepared: Recipe) -> None:
    rows = prepared.data("validation")
    batch = prepared.collate([rows[place] for place in range(len(rows))])
    found = prepared.predict(prepared.model().eval(), batch)
    scores = prepared.score(found)
    # Both see what makes the target; a model that has not learned does not.
    assert scores["score_linear"] > 0.85 and scores["score_boosting"] > 0.5, scores
    assert scores["score"] < scores["score_linear"]
    if "probabilities" in found[0]:
        assert all(sum(row["linear"]) == pytest.approx(1, abs=1e-4) for row in found)
    else:
        # In the target's own unit.
        assert np.std([row["linear"] for row in found]) == pytest.approx(
            np.std([row["target"] for row in found]), rel=0.2
        )
    remark = prepared.remark(1, scores)
    assert remark is not None and "use the linear model" in remark, remark
    assert prepared.figures(found)[0].title == remark


def test_training_rows_and_other_files_have_none(prepared: Recipe, tmp_path: Path) -> None:
    assert not prepared.data("train").parts[0].baselines
    plain = Recipe(data_settings=prepared.data_settings, model_settings=prepared.model_settings).prepare(tmp_path)
    assert not plain.data("validation").parts[0].baselines
    guesses = baselines.read(tmp_path / "baselines.json", "validation")
    assert guesses is not None
    baselines.write(tmp_path / "baselines.json", {"validation": [{name: own[:-1] for name, own in guesses[0].items()}]})
    assert not prepared.data("validation").parts[0].baselines


def test_they_are_the_models_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    frame = table_of("two classes")[["size", "target"]]
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = DataSettings(train=str(tmp_path / "table.csv"), target="target")
    recipe = Recipe(data_settings=data, model_settings=ModelSettings(linear_part=False, vocab_size=300), baseline=True)
    recipe = recipe.prepare(tmp_path)
    seen, asked = (recipe.sources[0].splits[split] for split in ("train", "validation"))
    sizes = [own["size"].to_numpy(float)[:, None] for own in (seen, asked)]
    mean, std = sizes[0].mean(), sizes[0].std()
    linear = LogisticRegression(C=3).fit(np.clip((sizes[0] - mean) / std, -3, 3), seen["target"])
    boosting = HistGradientBoostingClassifier(random_state=data.split_seed).fit(sizes[0], seen["target"])
    guesses = baselines.read(tmp_path / "baselines.json", "validation")
    assert guesses is not None
    np.testing.assert_allclose(
        guesses[0]["linear"], linear.predict_proba(np.clip((sizes[1] - mean) / std, -3, 3)), atol=2e-3
    )
    np.testing.assert_allclose(guesses[0]["boosting"], boosting.predict_proba(sizes[1]), atol=2e-3)


@pytest.mark.parametrize(
    ("scores", "advice"),
    [
        ({"score": 0.9, "score_linear": 0.8, "score_boosting": 0.85}, "use this model"),
        ({"score": 0.9, "score_linear": 0.8, "score_boosting": 0.95}, "use the gradient boosting"),
        ({"score": 0.9, "score_linear": 0.96, "score_boosting": 0.95}, "use the linear model"),
        ({"score": 0.9, "score_linear": 0.898, "score_boosting": 0.5}, "as good as each other, so use the simpler one"),
        ({"score": 0.9}, None),
        ({"score_linear": 0.9}, None),
    ],
)
def test_the_verdict(scores: dict[str, float], advice: str | None) -> None:
    found = baselines.verdict(scores)
    assert found is None if advice is None else found is not None and found.endswith(advice)


def test_a_training_shows_them_in_its_output_and_report(tmp_path: Path) -> None:
    table_of("two classes").to_csv(tmp_path / "table.csv", index=False)
    words = [sys.executable, "-m", "runner", "train", "--recipe", "tabular", "--output_dir", str(tmp_path / "run")]
    words += ["--data.train", str(tmp_path / "table.csv"), "--data.target", "target", "--baseline", "true"]
    words += ["--max_steps", "4", "--mixed_precision", "no"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("baseline: linear model "))
    assert "gradient boosting " in line and " on the same rows: " in line
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert line in report and "score_boosting" in report
