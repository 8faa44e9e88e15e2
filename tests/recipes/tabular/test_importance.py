"""What the columns of a table are worth. Run alone: python -m pytest tests/recipes/tabular/test_importance.py"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recipes.tabular import importance
from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings


def prepared(folder: Path, target: str, missing: bool = False) -> Recipe:
    """A recipe that is fitted to 400 rows: `word` and `size` decide each target, and `noise` decides nothing."""
    random = np.random.default_rng(3)
    size, word = random.normal(size=400), random.choice(["red", "blue"], 400)
    number = 2 * size + 3 * (word == "red") + 0.1 * random.normal(size=400)
    rows = pd.DataFrame({"size": size, "word": word, "noise": random.normal(size=400)})
    rows["target"] = number if target == "number" else np.where(number > 1, "yes", "no")
    if missing:
        rows.loc[::7, "target"] = None
    rows.to_csv(folder / "rows.csv", index=False)
    assets = folder / "assets"
    assets.mkdir()
    return Recipe(data_settings=DataSettings(train=str(folder / "rows.csv"), target="target")).prepare(assets)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("target", ["number", "class"])
def test_columns_that_decide_are_worth_more_than_one_that_does_not(tmp_path: Path, target: str, missing: bool) -> None:
    recipe = prepared(tmp_path, target, missing)
    assert recipe.assets is not None
    ((name, found),) = importance.read(recipe.assets / "importances.json").items()
    assert set(found) == {"size", "word", "noise"}
    assert min(found["size"], found["word"]) > 0.1 > 0.03 > abs(found["noise"])
    rows = [{"table": name, "target": 0.0, "predicted": 0.0}]
    figure = recipe.figures(rows)[-1]
    assert figure.kind == "table" and "when a column is shuffled" in figure.title
    assert [row[0] for row in figure.rows][-1] == "noise"  # type: ignore[union-attr]


def test_the_falls_equal_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.inspection import permutation_importance

    from recipes.tabular.table import cells, labels

    recipe = prepared(tmp_path, "number")
    assert recipe.assets is not None and recipe.linear is not None
    (found,) = importance.read(recipe.assets / "importances.json").values()
    (source,), (table,), (own,) = recipe.sources, recipe.tables, recipe.linear
    held_out = source.splits["validation"]

    class Judge:
        def fit(self, rows: pd.DataFrame, targets: np.ndarray) -> None: ...

        def score(self, rows: pd.DataFrame, targets: np.ndarray) -> float:
            guesses = own.scores(table, cells(table, rows, recipe.wording))[:, 0]
            return 1 - float(((targets - guesses) ** 2).sum() / ((targets - targets.mean()) ** 2).sum())

    names = [column.name for column in table.used]
    wanted = permutation_importance(Judge(), held_out[names], labels(table, held_out), n_repeats=40, random_state=0)
    for name, value, spread in zip(names, wanted["importances_mean"], wanted["importances_std"], strict=True):
        assert found[name] == pytest.approx(value, abs=3 * spread / np.sqrt(importance.SHUFFLES) + 1e-3)


def test_there_is_nothing_to_say_of_equal_targets(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, "number")
    from recipes.tabular.table import cells

    assert recipe.linear is not None
    (source,), (table,), (own,) = recipe.sources, recipe.tables, recipe.linear
    read = cells(table, source.splits["validation"], recipe.wording)
    for targets in (np.zeros(len(read.strings)), np.full(len(read.strings), np.nan)):
        assert importance.falls(table, own, read, targets, None, 0) == {}
    assert importance.read(tmp_path / "none.json") == {} and importance.tables({"a": {}}) == []
