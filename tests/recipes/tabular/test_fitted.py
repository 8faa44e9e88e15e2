"""What tabular fitted belongs to the content of its files, and stays with the weights.

Run alone: python -m pytest tests/recipes/tabular/test_fitted.py
"""

import json
from pathlib import Path

import pytest

from recipes.tabular.recipe import Recipe
from recipes.tabular.settings import DataSettings, ModelSettings
from runner.trials import Trial

SMALL = ModelSettings(gram_buckets=0, text_layers=1, text_hidden_size=16, hidden_size=16, vocab_size=512)


def write(path: Path, classes: str = "ab", rows: int = 40) -> Path:
    lines = [f"{number % 7},word{number % 5},{classes[number % len(classes)]}" for number in range(rows)]
    path.write_text("\n".join(["size,name,kind", *lines]) + "\n", encoding="utf-8")
    return path


def recipe(file: Path, **settings: object) -> Recipe:
    data = DataSettings(train=str(file), target="kind", **settings)  # type: ignore[arg-type]
    return Recipe(data_settings=data, model_settings=SMALL)


def test_other_content_under_the_same_name_is_fitted_anew(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    folder.mkdir()
    file = write(tmp_path / "table.csv")
    assert recipe(file).prepare(folder).tables[0].classes == ("a", "b")
    write(file, "abc")
    assert recipe(file).prepare_trained(folder).tables[0].classes == ("a", "b")
    assert recipe(file).prepare(folder).tables[0].classes == ("a", "b", "c")


def test_the_same_content_elsewhere_is_not_fitted_again(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    folder.mkdir()
    recipe(write(tmp_path / "table.csv")).prepare(folder)
    before = (folder / "tables.json").stat().st_mtime_ns
    (tmp_path / "table.csv").rename(tmp_path / "table_2.csv")
    for bound in (
        recipe(tmp_path / "table_2.csv").prepare(folder),
        recipe(tmp_path / "gone.csv").prepare_trained(folder),
    ):
        assert bound.tables[0].classes == ("a", "b")
    assert (folder / "tables.json").stat().st_mtime_ns == before


def test_other_settings_are_not_those_of_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    folder.mkdir()
    file = write(tmp_path / "table.csv")
    recipe(file).prepare(folder)
    recipe(file, split_seed=3).prepare_trained(folder)
    assert json.loads((folder / "tables.json").read_text(encoding="utf-8"))["settings"]["split_seed"] == 3


@pytest.mark.parametrize("typed", ["moved", "changed"])
def test_a_run_goes_on_with_a_moved_and_with_a_changed_table(tmp_path: Path, typed: str) -> None:
    file = write(tmp_path / "table.csv")
    words = ["--recipe", "tabular", "--data.target", "kind", "--output_dir", str(tmp_path / "run")]
    words += ["--model.gram_buckets", "0", "--model.text_layers", "1", "--model.text_hidden_size", "16"]
    words += ["--model.hidden_size", "16", "--model.vocab_size", "512", "--batch_size", "8", "--micro_batch_size", "4"]
    assert Trial([*words, "--data.train", str(file), "--max_steps", "2"], 1, tmp_path / "log").wait(200) == [0]
    fitted = (tmp_path / "run" / "assets" / "tables.json").read_bytes()
    words += ["--resume_from_checkpoint", "auto", "--max_steps", "3"]
    if typed == "moved":
        file = file.rename(tmp_path / "moved.csv")
    else:
        write(file, rows=44)
        refused = Trial([*words, "--data.train", str(file)], 1, tmp_path / "log")
        assert refused.wait(200) == [2] and "table.csv has changed" in refused.output()
        words += ["--allow_changed_data"]
    again = Trial([*words, "--data.train", str(file)], 1, tmp_path / "log")
    assert again.wait(200) == [0], again.output()
    assert "going on from" in again.output()
    assert (tmp_path / "run" / "assets" / "tables.json").read_bytes() == fitted
