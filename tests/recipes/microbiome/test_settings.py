"""Settings of the recipe: what is out of range, what has no effect, and packages that are missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.microbiome.recipe import Recipe
from recipes.microbiome.settings import DataSettings, ModelSettings
from runner.errors import ConfigError
from tests.launching import REPOSITORY


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model.hidden_size": 30}, "not a multiple of model.num_attention_heads 4"),
        ({"model.num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"model.patch_size": 0}, "--model.patch_size"),
        ({"model.asv_layers": -1}, "--model.asv_layers"),
        ({"model.token_limit": 0}, "--model.token_limit"),
        ({"model.dropout": 1.0}, "--model.dropout"),
        ({"model.nuc_mask": -0.1}, "--model.nuc_mask"),
        ({"model.masked_asvs": 1.5}, "--model.masked_asvs"),
        ({"data.validation_fraction": 20.0}, "--data.validation_fraction"),
        ({"data.num_folds": 5, "data.fold": 5}, "--data.fold"),
        ({"data.num_folds": 1}, "--data.num_folds"),
        ({"data.max_bp": 0}, "--data.max_bp"),
        ({"data.rarefy_depth": -5}, "--data.rarefy_depth"),
        ({"target_penalty": -1.0}, "--target_penalty"),
        ({"unifrac_penalty": 0.0, "nuc_penalty": 0.0}, "nothing to learn"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_read(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe_with(flags)


def recipe_with(flags: dict[str, Any]) -> Recipe:
    """A recipe with settings as flags name them."""
    groups: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "": {}}
    for name, value in flags.items():
        groups[name.rpartition(".")[0]][name.rpartition(".")[2]] = value
    data, model = DataSettings(**groups["data"]), ModelSettings(**groups["model"])
    return Recipe(data_settings=data, model_settings=model, **groups[""])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"count_penalty": 2.0}, "stage is pretrain"),
        ({"model.freeze_base": True}, "stage is pretrain"),
        ({"data.target": "half"}, "stage is pretrain"),
        ({"data.table": "t.biom", "data.tree": "t.nwk", "data.demo_seed": 3}, "data.table is given"),
        ({"data.tree_root": "midpoint"}, "no data.tree"),
        ({"data.split": "random"}, "no data.group"),
        ({"data.num_folds": 5, "data.test_fraction": 0.1}, "data.num_folds is given"),
        ({"data.fold": 2}, "no data.num_folds"),
        ({"data.split_file": "s.json", "data.validation_fraction": 0.3}, "data.split_file decides"),
        ({"data.rarefy_depth": 100, "data.distance_from": "matrix"}, "rarefied"),
        ({"data.distance": "weighted", "asv_penalty": 2.0}, "not weighted"),
        ({"unifrac_penalty": 0.0, "data.distance": "weighted"}, "no UniFrac loss"),
        ({"nuc_penalty": 0.0, "model.nuc_mask": 0.3}, "no nucleotide loss"),
        ({"model.distance": "tanh", "model.embedding_size": 32}, "tanh"),
        ({"stage": "predict", "model.freeze_base": True, "nuc_penalty": 2.0}, "model.freeze_base is on"),
        ({"stage": "predict", "model.target_layers": 3}, "model.target_from is branches"),
        ({"stage": "predict", "model.target_from": "tokens", "model.target_dropout": 0.2}, "tokens"),
        ({"stage": "predict", "count_penalty": 0.0, "model.count_layers": 3}, "count_penalty is 0"),
    ],
)
def test_settings_without_effect_are_named(flags: dict[str, Any], reason: str) -> None:
    notes = recipe_with(flags).setting_notes(frozenset({list(flags)[-1]}))
    assert len(notes) == 1 and notes[0].startswith(f"{list(flags)[-1]} has no effect") and reason in notes[0]
    # What the user did not change is not mentioned.
    assert recipe_with(flags).setting_notes(frozenset()) == []


def test_settings_with_effect_are_not_named() -> None:
    for flags in [
        {"unifrac_penalty": 2.0, "asv_penalty": 0.5, "nuc_penalty": 2.0, "model.nuc_mask": 0.2},
        {"data.group": "site", "data.split": "random", "data.num_folds": 5, "data.fold": 2},
        {"data.distance_from": "batch", "model.masked_asvs": 0.3},
        {"data.table": "t", "data.tree": "t", "data.tree_root": "top", "data.missing_lengths": "one"},
        {"stage": "predict", "data.target": "half", "data.task": "classification", "count_penalty": 2.0},
        {"stage": "predict", "model.target_from": "tokens", "model.target_layers": 3, "model.count_layers": 2},
        {"stage": "predict", "model.freeze_base": True, "model.target_dropout": 0.2},
        {"model.distance": "tanimoto", "model.embedding_size": 32, "data.demo_seed": 1},
    ]:
        assert recipe_with(flags).setting_notes(frozenset(flags)) == [], flags


@pytest.mark.parametrize(
    ("missing", "flags"),
    [
        ("skbio", ["--data.table", "t.tsv", "--data.tree", "t.nwk"]),
        ("sklearn", ["--stage", "predict"]),
        ("scipy", []),
        ("biom", ["--data.table", "t.biom", "--stage", "predict", "--unifrac_penalty", "0", "--target_penalty", "0"]),
    ],
)
def test_a_missing_package_is_named_before_the_first_step(tmp_path: Path, missing: str, flags: list[str]) -> None:
    (tmp_path / "t.biom").write_text("{}")
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from runner.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["train", "--recipe", "microbiome", "--output_dir", str(tmp_path / "run"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    name = {"skbio": "scikit-bio", "sklearn": "scikit-learn", "biom": "biom-format"}.get(missing, missing)
    assert name in done.stderr and "[microbiome]" in done.stderr
    assert "Traceback" not in done.stderr and "step" not in done.stdout
