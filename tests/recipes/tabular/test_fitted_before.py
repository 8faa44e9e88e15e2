"""What was fitted to the same rows with the same settings is fitted once.

Run alone: python -m pytest tests/recipes/tabular/test_fitted_before.py
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes.tabular import fitted_before, linear
from recipes.tabular.recipe import IMPORTANCES, LINEAR, REMARKS, Recipe
from recipes.tabular.settings import DataSettings, ModelSettings


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that were fitted."""
    found: list[str] = []
    fit = linear.fit

    def noting(table: Any, *rest: Any) -> linear.Linear:
        found.append(table.name)
        return fit(table, *rest)

    monkeypatch.setattr(linear, "fit", noting)
    return found


def table(folder: Path, changed: bool = False) -> Path:
    """300 rows with a price that grows exponentially, so that there is something to remark."""
    random = np.random.default_rng(3)
    size = random.normal(size=300)
    rows = pd.DataFrame({"size": size, "word": random.choice(["red", "blue", "green"], 300)})
    rows["price"] = np.exp(2 * size + 0.1 * random.normal(size=300))
    if changed:
        rows.loc[17, "word"] = "red" if rows.loc[17, "word"] == "blue" else "blue"
    path = folder / ("changed.csv" if changed else "rows.csv")
    rows.to_csv(path, index=False)
    return path


def prepared(folder: Path, train: Path, seed: int = 0, **sizes: Any) -> dict[str, bytes]:
    """The files of the linear part, fitted into a new folder."""
    folder.mkdir()
    small = ModelSettings(text_hidden_size=32, vocab_size=300, **sizes)
    data = DataSettings(train=str(train), target="price", split_seed=seed)
    Recipe(data_settings=data, model_settings=small).prepare(folder)
    assert not (folder / REMARKS).exists() and not (folder / fitted_before.DIGESTS).exists()
    return {name: (folder / name).read_bytes() for name in (LINEAR, IMPORTANCES)}


def test_a_second_run_takes_what_the_first_has_fitted(
    fits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    first = prepared(tmp_path / "first", path)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: target")]
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "rows.csv")
    assert prepared(tmp_path / "second", moved) == first and len(fits) == 1
    # What was seen while it was fitted is said again.
    assert said and said == [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: target")]


def test_other_rows_settings_code_or_libraries_are_fitted_anew(
    fits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path)
    prepared(tmp_path / "first", path)
    prepared(tmp_path / "one cell", table(tmp_path, changed=True))
    prepared(tmp_path / "seed", path, seed=1)
    prepared(tmp_path / "trees", path, trees=False)
    prepared(tmp_path / "transform", path, target_transform="none")
    prepared(tmp_path / "refit", path, refit=False)
    version = fitted_before.importlib.metadata.version
    monkeypatch.setattr(fitted_before.importlib.metadata, "version", lambda name: f"{version(name)}.post1")
    prepared(tmp_path / "libraries", path)
    monkeypatch.undo()
    assert len(fits) == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "digests"])
def test_damaged_files_are_fitted_anew(
    damage: str, fits: list[str], tmp_path: Path, own_cache: Path
) -> None:  # fmt: skip
    path = table(tmp_path)
    first = prepared(tmp_path / "first", path)
    (kept,) = (own_cache / "tabular").iterdir()
    file = kept / (fitted_before.DIGESTS if damage == "digests" else LINEAR)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:20])
    assert prepared(tmp_path / "second", path) == first and len(fits) == 2
    assert prepared(tmp_path / "third", path) == first and len(fits) == 2


def test_without_a_cache_each_run_fits(fits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path)
    first = prepared(tmp_path / "first", path)
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("RELAY_CACHE", str(tmp_path / "a file"))
    assert prepared(tmp_path / "second", path) == first and len(fits) == 2


def test_an_error_while_it_is_fitted_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    path = table(tmp_path)
    monkeypatch.setattr(linear, "write", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepared(tmp_path / "first", path)
    assert not list((own_cache / "tabular").iterdir())


def test_a_key_tells_arrays_and_what_they_hold_apart() -> None:
    @dataclasses.dataclass
    class Pair:
        numbers: np.ndarray
        words: list[str]

    some = Pair(np.arange(6), ["a", "b"])
    others = [
        Pair(np.arange(6).reshape(2, 3), ["a", "b"]),
        Pair(np.arange(6.0), ["a", "b"]),
        Pair(np.arange(6), ["a", "c"]),
        Pair(np.arange(6), ["ab"]),
    ]
    keys = [fitted_before.key_of([each]) for each in (some, *others)]
    assert len(set(keys)) == 5 and keys[0] == fitted_before.key_of([Pair(np.arange(6), ["a", "b"])])
