"""relay evaluate --recipe microbiome --folds N: simple models and trainings in the same folds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recipes.microbiome import cross_validation
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.score import class_scores
from recipes.microbiome.settings import DataSettings
from recipes.microbiome.splits import number_of_folds, partition
from runner.errors import ConfigError, DataError


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


def one_group(tmp_path: Path, classes: list[str]) -> DataSettings:
    """A study of ten subjects of three samples; `classes` are those of the subjects."""
    random = np.random.default_rng(0)
    sequences = ["".join(random.choice(list("ACGT"), 40)) for _ in range(12)]
    names = [f"s{number}" for number in range(30)]
    counts = random.integers(0, 9, (12, 30)) + 1
    lines = ["#OTU ID\t" + "\t".join(names)]
    lines += ["\t".join([name, *map(str, row)]) for name, row in zip(sequences, counts, strict=True)]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"{name}\tp{number // 3}\t{classes[number // 3]}\n" for number, name in enumerate(names)]
    (tmp_path / "m.tsv").write_text("id\tsubject\tdx\n" + "".join(rows), encoding="utf-8")
    return DataSettings(table=str(tmp_path / "t.tsv"), metadata=str(tmp_path / "m.tsv"), target="dx", group="subject")


def test_a_class_of_one_group_is_refused_or_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = one_group(tmp_path, ["CD"] + ["control"] * 9)
    with pytest.raises(
        DataError, match=r"one class alone: it holds out all samples of dx 'CD': subject p0\."
    ) as raised:
        Recipe(data_settings=settings).score_files(Recipe.Files(folds=5))
    assert len(str(raised.value).splitlines()) <= 3
    settings = one_group(tmp_path, ["CD", "UC", "control", "UC"] + ["control"] * 6)
    text, rows = Recipe(data_settings=settings).score_files(Recipe.Files(folds=5))
    assert "trains without dx 'CD', and so cannot find it: subject p0." in capsys.readouterr().out
    assert len(text.splitlines()) == 5 and len(rows) == 4 * 30
    # The same is said before a training.
    recipe = Recipe(stage="predict", data_settings=settings)
    assert recipe.fitted.classes
    assert "warning: all samples of dx 'CD' are of one subject (p0)" in capsys.readouterr().out


def test_a_class_that_training_has_not_seen_has_no_area_of_its_own() -> None:
    true = np.array([-1, 0, 0, 1, 1, 2, 2])
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(3), 7)
    areas = [roc_auc_score(true == each, probabilities[:, each]) for each in range(3)]
    assert class_scores(true, probabilities)["target_auroc"] == pytest.approx(np.mean(areas))
