"""relay evaluate --recipe microbiome --folds N: simple models and trainings in the same folds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes.microbiome import cross_validation
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.settings import DataSettings
from recipes.microbiome.splits import number_of_folds, partition
from runner.errors import ConfigError


def compared(target: str, **files: Any) -> tuple[str, list[Any]]:
    recipe = Recipe(data_settings=DataSettings(demo_samples=80, demo_asvs=50, target=target))
    return recipe.score_files(Recipe.Files(**files))


@pytest.mark.parametrize("target", ["target", "half"])
def test_every_model_scores_every_sample_once_and_groups_are_not_cut(target: str) -> None:
    text, rows = compared(target, folds=4, group="site")
    names = [line[:20].strip() for line in text.splitlines()[1:]]
    assert names == ["constant", "random forest", "linear on presence", "nearest 5 by UniFrac", "linear readout"]
    for name in names:
        own = [row["sample"] for row in rows if row["model"] == name]
        assert len(own) == len(set(own)) == 80
    assert all({"predicted", "target", "group"} <= row.keys() and "embedding" not in row for row in rows)
    header = text.splitlines()[0].split()
    assert ({"auroc", "accuracy"} if target == "half" else {"mae", "r2", "mae/by_group"}) <= set(header)
    # The readout is better than a constant.
    score = {line[:20].strip(): float(line[20:].split()[0]) for line in text.splitlines()[1:]}
    better = score["linear readout"] > score["constant"]
    assert better if target == "half" else score["linear readout"] < 0.5 * score["constant"]
    settings = DataSettings(demo_samples=80, demo_asvs=50, target=target, group="site", num_folds=4)
    study = dataclasses.replace(Recipe(), data_settings=settings).study
    for fold in range(4):
        splits = partition(study, dataclasses.replace(settings, fold=fold))
        sites = np.array(study.metadata["site"])
        assert not set(sites[splits["train"]]) & set(sites[splits["validation"]])


def test_trainings_are_rows_of_the_same_table_and_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    recipe = Recipe(data_settings=DataSettings(demo_samples=80, demo_asvs=50, target="target"))
    settings = DataSettings(demo_samples=80, demo_asvs=50, target="target", group="site", num_folds=2)

    def relay(*words: str) -> None:
        calls.append(words)
        run = Path(words[words.index("--output_dir") + 1])
        (run / "final").mkdir(parents=True)
        (run / "final" / "model.safetensors").write_bytes(b"")
        fold = int(words[words.index("--data.fold") + 1])
        out = partition(recipe.study, dataclasses.replace(settings, fold=fold))["validation"]
        values = [float(recipe.study.metadata["target"][row]) for row in out]
        lines = [json.dumps({"target": value, "predicted": value, "group": "x"}) for value in values]
        (run / "validation.jsonl").write_text("\n".join(lines))

    monkeypatch.setattr(cross_validation, "relay", relay)
    for _ in range(2):
        text, _ = compared("target", folds=2, group="site", max_steps=3, init_from="runs/oral", runs=tmp_path)
        assert text.splitlines()[-1].split()[:2] == ["relay", "0.0000"]
    assert len(calls) == 2
    words = " ".join(calls[0])
    for flag in (
        "--stage predict",
        "--max_steps 3",
        "--init_from runs/oral",
        "--data.group site",
        "--data.num_folds 2",
    ):
        assert flag in words


def test_too_few_folds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--folds"):
        compared("target", folds=1)
    with pytest.raises(ConfigError, match="0 folds"):
        number_of_folds(DataSettings())
