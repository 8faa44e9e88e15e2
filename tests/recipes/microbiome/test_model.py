"""The network and its losses: what is encoded, pooled, compared, frozen and inherited."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from recipes.microbiome.model import AttentionPooling, MicrobiomeModel, Stack, embedding_distances, tanh_scale
from recipes.microbiome.prediction import compare_distances
from recipes.microbiome.recipe import Recipe
from recipes.microbiome.settings import DataSettings, ModelSettings
from runner.errors import ConfigError

FORMS = ("branches", "tanimoto", "tanh")


def recipe_of(stage: Any = "pretrain", penalties: dict[str, float] | None = None, **sizes: Any) -> Recipe:
    """A tiny recipe on the embedded study."""
    small: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "embedding_size": 12, "dropout": 0.0}
    small |= {f"{name}_layers": 1 for name in ("asv", "sample", "encoder", "count", "target")}
    small |= {"patch_size": 4, **sizes}
    data = DataSettings(demo_samples=60, demo_asvs=50)
    weights: dict[str, Any] = dict(penalties or {})
    return Recipe(stage=stage, data_settings=data, model_settings=ModelSettings(**small), **weights)


def batch_of(recipe: Recipe, rows: Any = range(6), split: str = "train") -> Any:
    np.random.seed(0)
    return recipe.collate([recipe.data(split)[row] for row in rows])


def run(model: MicrobiomeModel, batch: Any, **changes: Any) -> Any:
    names = ("tokens", "mask", "asvs", "is_there", "abundance")
    return model(*({**{name: batch.tensors.get(name) for name in names}, **changes}[name] for name in names))


# Encoding ---------------------------------------------------------------------------------------------


def test_each_distinct_asv_of_a_micro_batch_is_encoded_once() -> None:
    recipe = recipe_of()
    model, batch = recipe.model(), batch_of(recipe)
    encoded: list[int] = []
    model.asv_encoder.stack.register_forward_hook(lambda _, given, output: encoded.append(len(output)))
    recipe.loss(model, batch)
    distinct = {int(asv) for row in range(6) for asv in recipe.data("train")[row].asvs}
    assert encoded == [len(distinct)]
    assert len(distinct) < int(batch["is_there"].sum())


def test_encoding_once_equals_encoding_each_sample_alone() -> None:
    recipe = recipe_of()
    model, batch = recipe.model().eval(), batch_of(recipe)
    together = run(model, batch, mask=None).embeddings
    alone = [run(model, batch_of(recipe, [row]), mask=None).embeddings[0] for row in range(6)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


def test_chunks_change_nothing_and_save_memory() -> None:
    kept, gradients = {}, {}
    for chunk in (0, 4):
        recipe = recipe_of(asv_chunk_size=chunk)
        torch.manual_seed(0)
        model, batch, sizes = recipe.model(), batch_of(recipe), []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = recipe.loss(model, batch).sum
        kept[chunk] = sum(sizes)
        loss.backward()
        gradients[chunk] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[4][name], atol=1e-5), name
    # What the distances save is the same with chunks and without.
    assert kept[4] < 0.6 * kept[0]


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpoints in (False, True):
        recipe = recipe_of()
        torch.manual_seed(0)
        model = recipe.model()
        if checkpoints:
            model.gradient_checkpointing_enable()
        recipe.loss(model, batch_of(recipe)).sum.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("patch", [1, 5])
def test_padding_changes_nothing(form: str, patch: int) -> None:
    recipe = recipe_of(distance=form, patch_size=patch)
    model, batch = recipe.model().eval(), batch_of(recipe)
    padded = {
        "tokens": torch.nn.functional.pad(batch["tokens"], (0, 2 * patch)),
        "asvs": torch.nn.functional.pad(batch["asvs"], (0, 3)),
        "is_there": torch.nn.functional.pad(batch["is_there"], (0, 3)),
        "abundance": torch.nn.functional.pad(batch["abundance"], (0, 3)),
    }
    plain, other = run(model, batch, mask=None), run(model, batch, mask=None, **padded)
    assert torch.allclose(plain.embeddings, other.embeddings, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "form"), [("pretrain", "branches"), ("pretrain", "tanimoto"), ("predict", "branches")]
)
def test_double_precision_goes_through(stage: str, form: str) -> None:
    """`relay verify grads` compares gradients in it, where rounding hides nothing."""
    recipe = recipe_of(stage, distance=form)
    model, batch = recipe.model().eval(), batch_of(recipe)
    single = recipe.loss(model, batch).sum
    double = recipe.loss(model.double(), batch).sum
    assert double.dtype == torch.float64 and math.isclose(single.item(), double.item(), rel_tol=1e-4)


def test_a_row_without_anything_is_no_nan() -> None:
    pooled = AttentionPooling(8)(torch.randn(2, 3, 8), torch.tensor([[True, True, False], [False] * 3]))
    assert pooled.isfinite().all()
    stacked = Stack(8, 2, 1, 0.0)(torch.randn(2, 3, 8), torch.tensor([[True, False, False], [True] * 3]))
    assert stacked.isfinite().all()


def test_attention_pooling_by_hand() -> None:
    pooling = AttentionPooling(4)
    states, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    weights = (states[0, :2] @ pooling.score.weight[0] / 2).softmax(0)
    assert torch.allclose(pooling(states, mask)[0], pooling.norm(weights @ states[0, :2]), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_is_a_set_unless_ranks_are_asked_for(form: str) -> None:
    for ranks in (False, True):
        recipe = recipe_of(distance=form, rank_embedding=ranks, token_limit=60)
        torch.manual_seed(0)
        model, batch = recipe.model().eval(), batch_of(recipe, [0])
        order = torch.randperm(batch["asvs"].shape[1])
        shuffled = {name: batch[name][:, order] for name in ("asvs", "is_there", "abundance")}
        plain, other = run(model, batch, mask=None), run(model, batch, mask=None, **shuffled)
        assert torch.allclose(plain.embeddings, other.embeddings, atol=1e-5) != ranks


# Distances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_doubles_in_a_micro_batch_give_a_finite_gradient(form: str) -> None:
    """Pitfall 5: the root of a zero distance has an infinite slope."""
    recipe = recipe_of(distance=form)
    model, batch = recipe.model(), batch_of(recipe, [0, 1, 0, 0])
    loss = recipe.loss(model, batch)
    loss.sum.backward()
    assert math.isfinite(loss.sum.item())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_unifrac_loss_by_hand() -> None:
    recipe = recipe_of(penalties={"nuc_penalty": 0.0, "asv_penalty": 0.0, "unifrac_penalty": 2.0})
    model, batch = recipe.model(), batch_of(recipe)
    with torch.no_grad():
        output, loss = run(model, batch), recipe.loss(model, batch)
    errors = []
    for one in range(6):
        for two in range(one):
            shared = float(output.embeddings[one] @ output.embeddings[two])
            union = float(output.lengths[one] + output.lengths[two]) - shared
            errors.append((1 - shared / union - float(batch["distances"][one, two])) ** 2)
    assert len(errors) == 15
    assert math.isclose(float(loss.logs["unifrac_loss"]), np.mean(errors), rel_tol=1e-4)
    assert math.isclose(loss.sum.item() / batch.weight, 2 * np.mean(errors), rel_tol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_distances_are_symmetric_and_cannot_pass_1(form: str) -> None:
    recipe = recipe_of(distance=form)
    output = run(recipe.model(), batch_of(recipe))
    distances = embedding_distances(output.embeddings, output.lengths, output.scale)
    assert torch.allclose(distances, distances.T, atol=1e-6)
    if form != "tanimoto":  # whose shared length may be negative, at a loss
        assert distances.min() > -1e-6 and distances.max() <= 1


@pytest.mark.parametrize("size", [64, 128, 768])
def test_the_tanh_form_suits_any_width(size: int) -> None:
    """Pitfall 12: a divisor of 10 at any width caps small ones at 0.92 and saturates large ones."""
    vectors = torch.nn.functional.layer_norm(torch.randn(50, size), (size,))
    apart = embedding_distances(vectors, None, tanh_scale(size))[~torch.eye(50, dtype=torch.bool)]
    assert 0.85 < float(apart.mean()) < 0.97


@pytest.mark.parametrize("metric", ["weighted", "weighted_normalized"])
def test_distances_that_count_reads_have_their_own_targets(metric: Any) -> None:
    from recipes.microbiome import unifrac

    recipe = recipe_of(count_embedding=True)
    data = dataclasses.replace(recipe.data_settings, distance=metric)
    recipe = dataclasses.replace(recipe, data_settings=data)
    batch = batch_of(recipe)
    rows = [example.sample for example in batch.extra["examples"]]
    assert recipe.study.phylogeny is not None
    true = unifrac.distances(recipe.study.counts[rows], recipe.study.phylogeny, metric)
    assert np.abs(batch["distances"].numpy() - true).max() < 1e-5
    # An ASV alone has no abundance to speak of.
    assert "asv_distances" not in batch.tensors
    assert math.isfinite(recipe.loss(recipe.model(), batch).sum.item())


def test_learned_branches_can_be_the_trees_own() -> None:
    """With a tree's branches in place of learned ones, the embeddings' distances are UniFrac itself."""
    recipe = recipe_of()
    assert recipe.study.phylogeny is not None
    from recipes.microbiome import unifrac

    counts = recipe.study.counts[:10]
    presence, lengths = unifrac.branch_presence(counts, recipe.study.phylogeny)
    embeddings = torch.tensor(presence * np.sqrt(lengths))
    own = torch.tensor(presence @ lengths)
    true = unifrac.distances(counts, recipe.study.phylogeny)
    assert np.abs(embedding_distances(embeddings, own, 1.0).numpy() - true).max() < 1e-5


# Losses -----------------------------------------------------------------------------------------------


def test_a_sample_without_a_pair_logs_no_zero() -> None:
    """Pitfall 8: a loss that is not there must not look like one that is perfect."""
    recipe = recipe_of()
    logs = recipe.loss(recipe.model(), batch_of(recipe, [0])).logs
    assert math.isnan(logs["unifrac_loss"]) and float(logs["nucleotide_loss"]) > 0.5
    logs = recipe_of(penalties={"nuc_penalty": 0.0}).loss(recipe.model(), batch_of(recipe)).logs
    assert "nucleotide_loss" not in logs and "target_loss" not in logs


def test_a_missing_target_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="--data.tree"):
        _ = Recipe(data_settings=DataSettings(table="table.biom")).study
    with pytest.raises(ConfigError, match="--data.target"):
        settings = DataSettings(table="table.biom", tree="tree.nwk")
        _ = Recipe(stage="predict", data_settings=settings).study
    with pytest.raises(ConfigError, match="penalty"):
        recipe_of(penalties={"unifrac_penalty": 0.0, "nuc_penalty": 0.0})


def test_the_nucleotide_loss_scores_hidden_letters_alone() -> None:
    """Pitfalls 9 and 10: no padding, no start, no letter that was shown; the same in evaluation as in training."""
    recipe = recipe_of(penalties={"unifrac_penalty": 0.0})
    model = recipe.model()
    for split in ("train", "validation"):
        batch = batch_of(recipe, split=split)
        hidden = batch["mask"]
        assert hidden.any(1).all() and (batch["tokens"][hidden] > 0).all()
        guesses = run(model, batch).nucleotides
        assert guesses.shape == (int(hidden.sum()), 4)
        expected = torch.nn.functional.cross_entropy(guesses, batch["tokens"][hidden].long() - 1)
        assert math.isclose(float(recipe.loss(model, batch).logs["nucleotide_loss"]), expected.item(), rel_tol=1e-5)
        # What was hidden is hidden: other letters there give the same guesses.
        other = torch.where(hidden, batch["tokens"] % 4 + 1, batch["tokens"])
        assert torch.allclose(run(model, batch, tokens=other.to(torch.int32)).nucleotides, guesses, atol=1e-6)


def test_the_heads_of_stage_2_read_asvs_without_holes() -> None:
    """Hidden letters shift what the target is read off; in use there are none."""
    recipe = recipe_of("predict")
    model = recipe.model()
    torch.nn.init.normal_(model.target_head.weight)
    for split in ("train", "validation"):
        batch = batch_of(recipe, split=split)
        distinct = int(batch["asvs"].max()) + 1
        assert not batch["mask"][:distinct].any() and batch["mask"][distinct:].any(1).all()
        with torch.no_grad():
            seen = run(model, batch).target
            used = run(model, batch, mask=None, tokens=batch["tokens"][:distinct]).target
        assert torch.allclose(seen, used, atol=1e-5)


def test_the_count_loss_is_0_only_for_the_true_abundances() -> None:
    """Pitfall 13: relative abundances, not raw counts, and nothing that shows them."""
    recipe = recipe_of("predict", {"target_penalty": 0.0, "unifrac_penalty": 0.0, "nuc_penalty": 0.0})
    batch = batch_of(recipe)
    model: Any = recipe.model()

    def perfect(*given: Any, **named: Any) -> Any:
        output = MicrobiomeModel.forward(model, *given, **named)
        output.counts = batch["abundance"].clamp(min=1e-12).log()
        return output

    assert float(recipe.loss(perfect, batch).logs["count_loss"]) < 1e-6
    assert float(recipe.loss(model, batch).logs["count_loss"]) > 0.1
    for name in ("count_embedding", "rank_embedding"):
        with pytest.raises(ConfigError, match=name):
            recipe_of("predict", None, **{name: True})


def test_what_the_count_loss_ignores_does_not_train() -> None:
    """Its gradient is rounding noise, so that weights depended on the number of processes by ten times as much."""
    recipe = recipe_of("predict", {"target_penalty": 0.0, "unifrac_penalty": 0.0, "nuc_penalty": 0.0})
    batch = batch_of(recipe)
    model: Any = recipe.model().double().eval()
    batch.tensors = {
        name: value.double() if value.is_floating_point() else value for name, value in batch.tensors.items()
    }
    before = float(recipe.loss(model, batch).logs["count_loss"])
    biases = {name: value for name, value in model.named_parameters() if name.startswith("count_") and value.ndim == 1}
    ignored = set()
    for name, value in biases.items():
        with torch.no_grad():
            value += 1 + torch.arange(len(value))
            if float(recipe.loss(model, batch).logs["count_loss"]) == pytest.approx(before, abs=1e-9):
                ignored.add(name)
            value -= 1 + torch.arange(len(value))
    assert ignored == {name for name, value in biases.items() if not value.requires_grad}
    assert ignored == {"count_encoder.norm.bias", "count_head.bias"}


def test_classes_and_numbers_have_their_own_losses_and_scores() -> None:
    for target, wanted in [("target", {"target_mae", "target_r2"}), ("half", {"target_accuracy", "target_auroc"})]:
        recipe = recipe_of("predict", {"unifrac_penalty": 0.0, "nuc_penalty": 0.0, "count_penalty": 0.0})
        recipe = dataclasses.replace(
            recipe, data_settings=dataclasses.replace(recipe.data_settings, target=target, group="site")
        )
        model = recipe.model().eval()
        assert math.isfinite(recipe.loss(model, batch_of(recipe)).sum.item())
        data = recipe.data("validation")
        with torch.no_grad():
            rows = recipe.predict(model, recipe.collate([data[row] for row in range(len(data))]))
        scores = recipe.score(rows)
        assert wanted <= scores.keys() and any(name.endswith("/by_group") for name in scores)
        if target == "target":
            error = np.mean([abs(row["predicted"] - row["target"]) for row in rows])
            assert math.isclose(scores["target_mae"], float(error), rel_tol=1e-6)
            assert 4 < np.mean([row["predicted"] for row in rows]) < 8  # the target's own unit


def test_scores_are_over_all_pairs_of_the_split_at_once() -> None:
    """Pitfalls 5 and 15: an average over micro-batches would miss most pairs."""
    recipe = recipe_of()
    model, data = recipe.model().eval(), recipe.data("validation")
    assert len(data) == 12
    with torch.no_grad():
        rows = [
            row
            for start in range(0, 12, 5)
            for row in recipe.predict(
                model, recipe.collate([data[place] for place in range(start, min(12, start + 5))])
            )
        ]
        whole = recipe.predict(model, recipe.collate([data[place] for place in range(12)]))
    true, predicted = compare_distances(recipe, recipe.study, rows)
    assert true.shape == predicted.shape == (12, 12)
    pairs = np.triu_indices(12, 1)
    scores = recipe.score(rows)
    by_hand = 1 - np.square(true - predicted)[pairs].mean() / true[pairs].var()
    assert math.isclose(scores["unifrac_r2"], by_hand, rel_tol=1e-9)
    for name, value in recipe.score(whole).items():
        assert math.isclose(scores[name], value, rel_tol=1e-3), name
    asvs = {int(asv) for place in range(12) for asv in data[place].asvs}
    assert {own[0] for row in rows for own in row["nucleotides"]} == asvs


# Stages -----------------------------------------------------------------------------------------------


def test_a_frozen_base_has_no_gradient_no_dropout_and_no_optimiser_state() -> None:
    """Pitfall 16."""
    from runner.optim import optimizer as optimizer_of
    from runner.settings import RunSettings

    recipe = recipe_of("predict", freeze_base=True, dropout=0.5)
    model = recipe.model().train()
    batch = batch_of(recipe)
    assert "mask" not in batch.tensors and "distances" not in batch.tensors
    optimizer = optimizer_of(model, RunSettings(), torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = []
    model.sample_encoder.register_forward_hook(lambda _, given, output: base.append(output.detach()))
    for seed in (1, 2):
        torch.manual_seed(seed)
        recipe.loss(model, batch).sum.backward()
        optimizer.step()
    assert torch.equal(base[0], base[1])
    of_base = tuple(f"{name}." for name in MicrobiomeModel.BASE)
    held = [name for name, parameter in model.named_parameters() if parameter in optimizer.state]
    assert held and not any(name.startswith(of_base) or name == "nobody" for name in held)
    for name, value in model.state_dict().items():
        unchanged = name.startswith((*of_base, "nobody", "trained_letters", "branch_"))
        unchanged |= name in ("count_encoder.norm.bias", "count_head.bias")
        assert torch.equal(value, before[name]) == unchanged, name


@pytest.mark.parametrize(
    ("stage", "penalties", "sizes"),
    [
        ("pretrain", {}, {}),
        ("pretrain", {"nuc_penalty": 0.0}, {"distance": "tanh"}),
        ("pretrain", {"unifrac_penalty": 0.0}, {"distance": "tanimoto"}),
        ("predict", {}, {}),
        ("predict", {"unifrac_penalty": 0.0}, {}),
        ("predict", {}, {"target_from": "tokens", "distance": "tanh"}),
        ("predict", {"unifrac_penalty": 0.0, "count_penalty": 0.0}, {"target_from": "tokens"}),
        ("predict", {"unifrac_penalty": 0.0, "nuc_penalty": 0.0}, {}),
        ("predict", {"count_penalty": 0.0}, {"freeze_base": True}),
    ],
)
def test_whatever_trains_gets_a_gradient(stage: str, penalties: dict[str, float], sizes: dict[str, Any]) -> None:
    """Data-parallel training would wait for ever, or complain, where a parameter has none."""
    recipe = recipe_of(stage, penalties, **sizes)
    model = recipe.model().train()
    recipe.loss(model, batch_of(recipe)).sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_stage_2_takes_the_encoder_of_stage_1_and_keeps_its_own_heads() -> None:
    torch.manual_seed(0)
    first = recipe_of().model()
    first.trained_letters.fill_(64)
    recipe = recipe_of("predict")
    torch.manual_seed(1)
    second = recipe.model()
    heads = {name: value.clone() for name, value in second.state_dict().items() if name.startswith(("target", "count"))}
    recipe.inherit(second, dict(first.state_dict()))
    inherited = {name: value for name, value in second.state_dict().items() if not name.startswith("branch_")}
    for name, value in inherited.items():
        assert torch.equal(value, heads[name] if name in heads else first.state_dict()[name]), name


def test_a_stage_2_can_go_on_from_another_with_its_heads() -> None:
    """A line on the frozen encoder first, everything after: Kumar et al. 2022, arXiv 2202.10054."""
    first, recipe = recipe_of("predict", freeze_base=True).model(), recipe_of("predict")
    torch.nn.init.normal_(first.target_head.weight)
    first.branch_centre.fill_(0.25)
    second = recipe.model()
    recipe.inherit(second, dict(first.state_dict()))
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in second.asv_encoder.stack.parameters())


def test_the_target_is_read_off_differences_between_the_training_samples(tmp_path: Any) -> None:
    recipe = recipe_of("predict", penalties={"count_penalty": 0.0}).prepare(tmp_path)
    model = recipe.model().eval()
    with torch.no_grad():
        branches = run(model, batch_of(recipe, range(len(recipe.data("train")))), mask=None).branches
    standard = (branches - model.branch_centre) / model.branch_spread
    assert standard.mean(0).abs().max() < 1e-3 and 0.5 < float(standard.square().sum(1).mean()) < 1
    # Where trained weights will follow, no data are needed.
    (tmp_path / "model.safetensors").touch()
    assert recipe.model().branch_centre.abs().max() == 0


def test_weights_that_do_not_fit_are_an_error_that_says_why() -> None:
    recipe = recipe_of("predict")
    shorter = recipe_of().model()
    shorter.trained_letters.fill_(40)
    with pytest.raises(ConfigError, match="--data.max_bp 40"):
        recipe.inherit(recipe.model(), dict(shorter.state_dict()))
    with pytest.raises(ConfigError, match="model settings"):
        recipe.inherit(recipe.model(), dict(recipe_of(hidden_size=32).model().state_dict()))
    with pytest.raises(ConfigError, match="no nobody"):
        recipe.inherit(recipe.model(), {})


def test_asvs_as_samples_of_their_own_learn_the_trees_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.microbiome import collating, unifrac

    monkeypatch.setattr(collating, "MOST_ASVS_ALONE", 7)
    recipe = recipe_of()
    batch = batch_of(recipe)
    distinct = np.unique(np.concatenate([example.asvs for example in batch.extra["examples"]]))
    chosen = distinct[batch["alone"].numpy()]
    assert len(chosen) == 7 < len(distinct)
    counts = np.zeros((7, len(recipe.study.sequences)))
    counts[np.arange(7), chosen] = 1
    assert recipe.study.phylogeny is not None
    assert np.abs(unifrac.distances(counts, recipe.study.phylogeny) - batch["asv_distances"].numpy()).max() < 1e-6
    model = recipe.model()
    with torch.no_grad():
        loss = recipe.loss(model, batch)
        output = model(
            *(batch[name] for name in ("tokens", "mask", "asvs", "is_there", "abundance")), alone=batch["alone"]
        )
    apart = embedding_distances(output.asv_embeddings, output.asv_lengths, 1.0)
    errors = (apart - batch["asv_distances"])[~torch.eye(7, dtype=torch.bool)].square()
    assert math.isclose(float(loss.logs["asv_loss"]), errors.mean().item(), rel_tol=1e-4)


def test_learned_branches_are_in_a_sample_when_one_of_its_asvs_is_below_them() -> None:
    recipe = recipe_of(sample_layers=0, encoder_layers=0)
    model, batch = recipe.model().eval(), batch_of(recipe)
    with torch.no_grad():
        output = run(model, batch, mask=None)
        vectors, _ = model.asv_encoder(batch["tokens"], None)
        below = model.unifrac_head.below(
            model.encoder(model.sample_encoder(vectors[:, None], None), None)[:, 0]
        ).sigmoid()
    lengths = torch.nn.functional.softplus(model.unifrac_head.branch_length) / len(model.unifrac_head.branch_length)
    for sample in range(6):
        own = below[batch["asvs"][sample][batch["is_there"][sample]]]
        expected = (1 - (1 - own).prod(0)) * lengths.sqrt()
        assert torch.allclose(output.embeddings[sample][: len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_distances_are_0_to_oneself_and_to_a_double_and_symmetric(form: str) -> None:
    recipe = recipe_of(distance=form)
    model, data = recipe.model().eval(), recipe.data("train")
    chosen = [data[number] for number in (0, 1, 2, 0, 3, 1)]
    with torch.no_grad():
        batch = recipe.collate(chosen)
        output = run(model, batch, mask=None)
        apart = embedding_distances(output.embeddings, output.lengths, tanh_scale(16))
    # Sums of a thousand terms, in fp32.
    assert apart.diagonal().abs().max() < 3e-6
    assert apart[0, 3].abs() < 3e-6 and apart[1, 5].abs() < 3e-6
    assert torch.equal(apart, apart.T)
    others = apart[torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 2, 4])]
    assert (others > 1e-4).all() and (apart < 1.2).all()
    # The triangle holds.
    detours = (apart[:, :, None] + apart[None, :, :]).amin(1)
    assert (apart <= detours + 0.05).all()


def test_the_hash_of_tips_is_right_on_average_and_does_not_see_padding() -> None:
    from recipes.microbiome.model import TIP_BUCKETS, tip_codes, tip_features

    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 5, (3000, 100), generator=random)
    codes = tip_codes(tokens)
    assert torch.equal(codes, tip_codes(torch.nn.functional.pad(tokens, (0, 20))))
    assert codes.abs().min() >= 1 and codes.abs().max() <= TIP_BUCKETS and abs(float(codes.sign().float().mean())) < 0.1
    # Sixty samples of a hundred ASVs, of which neighbours share half.
    rows = torch.stack([torch.arange(100) + 50 * sample for sample in range(59)])
    features = tip_features(torch.ones(59, 100), codes[rows])
    shared = features @ features.T
    assert abs(float(shared.diagonal().mean()) - 100) < 5
    assert abs(float(shared.diagonal(1).mean()) - 50) < 5
    assert abs(float(shared.diagonal(5).mean())) < 5
    # Where an ASV is not there, nothing is added, and no gradient is undefined.
    own = torch.zeros(1, 100, requires_grad=True)
    tip_features(own, codes[:100][None]).sum().backward()
    assert torch.isfinite(own.grad).all()  # type: ignore[arg-type]
