"""The linear readout: ridge regression on blocks of features, scored on samples that it has not seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.microbiome.readout import CHOICES, Features, Readout, held_out_scores, inner_folds, kmer_table
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.settings import DataSettings, ModelSettings


def recipe_of(**settings: Any) -> Recipe:
    data = DataSettings(demo_samples=90, demo_asvs=60, group="site", **settings)
    sizes = ModelSettings(
        hidden_size=16, num_attention_heads=2, embedding_size=8, asv_layers=1, sample_layers=1, encoder_layers=0
    )
    return Recipe(stage="predict", data_settings=data, model_settings=sizes, count_penalty=0.0)


def test_inner_folds_keep_groups_together_and_are_alike_in_size() -> None:
    groups = [f"g{number // 7}" for number in range(100)]
    folds = inner_folds(groups, 100, 0)
    assert all(len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) == 1 for group in groups)
    assert np.bincount(folds).min() >= 14 and len(np.unique(folds)) == 5
    assert np.bincount(inner_folds(None, 20, 0)).tolist() == [4] * 5
    # One group cannot be cut by groups; three samples make three folds.
    assert len(np.unique(inner_folds(["a"] * 20, 20, 0))) == 5
    assert len(np.unique(inner_folds(None, 3, 0))) == 3


def test_held_out_scores_are_those_of_ridge_regression_without_the_fold() -> None:
    from sklearn.linear_model import Ridge

    random = np.random.default_rng(0)
    features, wanted = random.normal(size=(40, 9)), random.normal(size=(40, 2))
    folds = inner_folds(None, 40, 1)
    kernel = features @ features.T
    penalties = np.array([0.1, 10.0])
    found = held_out_scores(kernel, wanted, folds, penalties)
    for number, penalty in enumerate(penalties):
        for fold in range(5):
            train, out = folds != fold, folds == fold
            expected = Ridge(alpha=penalty).fit(features[train], wanted[train]).predict(features[out])
            assert np.allclose(found[number][out], expected)
        assert np.allclose(held_out_scores(kernel, wanted, folds, penalties[number : number + 1])[0], found[number])
    # A sample's own target does not reach its score.
    other = wanted.copy()
    other[7] += 100
    assert np.allclose(held_out_scores(kernel, other, folds, penalties)[:, 7], found[:, 7])


def test_kmers_are_counted_within_a_sequence_alone() -> None:
    table = kmer_table(["ACGTACGTAC", "ACGTAC", "ACGTA"], 150)
    assert table.toarray().sum(1).tolist() == [4, 1, 0]
    assert kmer_table(["ACGTACGTAC"], 7).toarray().sum() == 2


def test_features_follow_the_sequences_and_not_their_order() -> None:
    recipe = recipe_of()
    study, rows = recipe.study, recipe.splits["train"]
    features = Features.of(study, rows, 150)
    order = np.random.default_rng(0).permutation(len(study.sequences))[:-5]
    shuffled = [study.sequences[asv] for asv in order]
    names = []
    kept = study.counts[:, order]
    here = dict(features.blocks(kept, [study.sequences[asv] for asv in order]))
    whole = study.counts.toarray()
    whole[:, np.setdiff1d(np.arange(len(study.sequences)), order)] = 0
    for name, values in features.blocks(whole, study.sequences):
        names.append(name)
        assert np.allclose(values, here[name], atol=1e-6), name
    assert set(names) == {name for blocks in CHOICES for name in blocks} and len(shuffled) == len(order)


@pytest.mark.parametrize("target", ["target", "half"])
def test_the_readout_predicts_what_it_has_not_seen_and_is_the_same_from_its_file(target: str, tmp_path: Path) -> None:
    recipe = recipe_of(target=target).prepare(tmp_path)
    readout, fresh = recipe.readout, recipe_of(target=target).readout
    assert readout is not None and fresh is not None
    scores = readout.scores(recipe.study)
    assert np.allclose(scores, fresh.scores(recipe.study), atol=1e-5)
    held_out = recipe.splits["validation"]
    data = recipe.data("validation")
    batch = recipe.collate([data[number] for number in range(len(data))])
    assert np.allclose(batch["linear"].numpy(), scores[held_out], atol=1e-5)
    true = batch["target"].numpy()
    if recipe.fitted.classes:
        assert (scores[held_out].argmax(1) == true).mean() > 0.7
        assert scores.shape == (90, 2)
    else:
        # In units of the training samples' deviation: a constant has an error of about 1.
        assert np.square(scores[held_out][:, 0] - true).mean() < 0.3
    # In training, each sample has the score of a fit that has not seen it.
    training = recipe.data("train")
    batch = recipe.collate([training[number] for number in range(len(training))])
    names = [recipe.study.sample_ids[row] for row in recipe.splits["train"]]
    assert np.allclose(batch["linear"].numpy(), np.stack([readout.held_out[name] for name in names]), atol=1e-5)
    assert not np.allclose(batch["linear"].numpy(), scores[recipe.splits["train"]], atol=1e-3)
    assert np.allclose(Readout.load(tmp_path / "readout.npz").level, readout.level)


def test_a_run_begins_with_the_readout_and_reports_it_alone(tmp_path: Path) -> None:
    recipe = recipe_of().prepare(tmp_path)
    model = recipe.model().eval()
    data = recipe.data("validation")
    batch = recipe.collate([data[number] for number in range(8)])
    with torch.no_grad():
        rows = recipe.predict(model, batch)
        assert all(row.get("predicted") == row.get("by_readout") for row in rows)
        scores = recipe.score(rows)
        assert scores["target_mae/readout"] == scores["target_mae"] < 0.5
        model.target_head.bias.fill_(0.5)
        rows = recipe.predict(model, batch)
    moved = 0.5 * recipe.fitted.deviation
    assert all(abs(float(row["predicted"]) - float(row["by_readout"]) - moved) < 1e-4 for row in rows)  # type: ignore


@pytest.mark.parametrize(("target", "samples", "asvs"), [("half", 90, 60), ("target", 90, 60), ("target", 120, 300)])
@pytest.mark.parametrize("seed", [0, 1])
def test_joint_training_begins_with_small_gradients_and_stays_near_the_readout(
    target: str, samples: int, asvs: int, seed: int, tmp_path: Path
) -> None:
    data = DataSettings(demo_samples=samples, demo_asvs=asvs, group="site", target=target)
    # As in the presets default and small.
    sizes = ModelSettings(
        hidden_size=64, num_attention_heads=4, embedding_size=256, asv_layers=1, sample_layers=1, encoder_layers=0,
        patch_size=10, dropout=0.0,
    )  # fmt: skip
    recipe = Recipe(stage="predict", data_settings=data, model_settings=sizes, count_penalty=0.0, nuc_penalty=0.1)
    recipe = recipe.prepare(tmp_path)
    torch.manual_seed(seed)
    model = recipe.model().train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    training, held_out = recipe.data("train"), recipe.data("validation")
    norms = []
    for step in range(8):
        torch.manual_seed(step)
        batch = recipe.collate([training[(16 * step + number) % len(training)] for number in range(16)])
        loss = recipe.loss(model, batch)
        optimizer.zero_grad()
        (loss.sum / 16).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        assert loss.statistics is not None
        recipe.end_step(model, loss.statistics.float())
    assert max(norms) < 20, norms
    rows = recipe.predict(model.eval(), recipe.collate([held_out[number] for number in range(len(held_out))]))
    scores = recipe.score(rows)
    assert scores["target_loss"] < 1.1 * scores["target_loss/readout"] + 0.01


def test_statistics_of_features_do_not_depend_on_how_samples_are_divided() -> None:
    from recipes.microbiome.model import feature_statistics

    torch.manual_seed(0)
    features = torch.randn(64, 10) * 0.05
    parts = [sum(feature_statistics(part) for part in features.split(size)) for size in (64, 16, 7, 1)]
    assert all(torch.equal(part, parts[0]) for part in parts)  # type: ignore[arg-type]


def test_the_head_follows_the_branches_as_they_move() -> None:
    from recipes.microbiome.model import feature_statistics

    model = recipe_of().model()
    torch.manual_seed(0)
    moved = torch.randn(64, 16) * torch.linspace(0.1, 2, 16) + torch.linspace(-3, 3, 16)
    for _ in range(60):
        features = (moved - model.branch_centre) / model.branch_spread
        model.follow_branches(feature_statistics(features).float())
    centre, spread = model.branch_centre.clone(), model.branch_spread.clone()
    model.standardise(moved)
    assert torch.allclose(centre, model.branch_centre, atol=1e-3)
    # The standard deviation of a sample has n - 1 where a mean of squares has n.
    assert torch.allclose(spread, model.branch_spread, rtol=0.02)


def test_the_best_checkpoint_is_chosen_by_the_target_and_the_readout_alone_is_a_candidate() -> None:
    recipe = recipe_of()
    assert recipe.best_metric == "target_loss" and recipe.best_metric in recipe.metrics() and recipe.evaluates_at_start
    for other in (
        dataclasses.replace(recipe, stage="pretrain"),
        dataclasses.replace(recipe, model_settings=dataclasses.replace(recipe.model_settings, linear_readout=False)),
    ):
        assert other.best_metric == "loss" and not other.evaluates_at_start


def test_the_targets_loss_is_what_training_minimises() -> None:
    for target in ("target", "half"):
        recipe = recipe_of(target=target)
        recipe = dataclasses.replace(recipe, unifrac_penalty=0.0, nuc_penalty=0.0)
        model = recipe.model().eval()
        data = recipe.data("validation")
        batch = recipe.collate([data[number] for number in range(len(data))])
        with torch.no_grad():
            wanted = float(recipe.loss(model, batch).logs["target_loss"])
            scores = recipe.score(recipe.predict(model, batch))
        assert scores["target_loss"] == pytest.approx(wanted, rel=1e-4)
        assert scores["target_loss/readout"] == pytest.approx(wanted, rel=1e-4)


def test_what_the_network_adds_is_shrunk() -> None:
    losses = {}
    for shrinkage in (0.0, 3.0):
        recipe = recipe_of()
        sizes = dataclasses.replace(recipe.model_settings, readout_shrinkage=shrinkage)
        recipe = dataclasses.replace(recipe, model_settings=sizes, unifrac_penalty=0.0, nuc_penalty=0.0)
        torch.manual_seed(0)
        model = recipe.model().eval()
        with torch.no_grad():
            model.target_head.bias.fill_(0.5)
        data = recipe.data("train")
        losses[shrinkage] = float(recipe.loss(model, recipe.collate([data[0], data[1]])).sum.detach()) / 2
    assert losses[3.0] - losses[0.0] == pytest.approx(0.5 * 3.0 * 0.25, rel=1e-4)


def test_weights_of_an_older_version_have_no_readout(tmp_path: Path) -> None:
    recipe = recipe_of().prepare(tmp_path)
    (tmp_path / "readout.npz").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"")
    old = recipe_of().prepare(tmp_path)
    assert recipe.readout is None and old.readout is None
    assert "linear" not in old.collate([old.data("validation")[0]]).tensors
