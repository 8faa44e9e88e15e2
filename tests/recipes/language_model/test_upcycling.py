"""A dense decoder that becomes a mixture of experts in language_model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, ModelSettings
from runner.errors import ConfigError, DataError
from runner.parts.adapters import LoraSettings
from tests.recipes.text2sql.test_upcycling import write_dense

KINDS = ["Llama", "Qwen2", "Qwen3"]


def recipe_of(tmp_path: Path, kind: str, rank: int = 0, **model: Any) -> Recipe:
    """A recipe on a short text that upcycles a tiny decoder, bound to its assets."""
    if not (tmp_path / "base").exists():
        write_dense(tmp_path / "base", kind)
        (tmp_path / "text.txt").write_text("It was a dark night. " * 200)
    settings = ModelSettings(**{"pretrained": str(tmp_path / "base"), "num_local_experts": 4, **model})
    data = DataSettings(source=str(tmp_path / "text.txt"), max_seq_length=32, add_bos=False)
    made = Recipe(data_settings=data, model_settings=settings, lora=LoraSettings(rank=rank))
    (tmp_path / f"assets{rank}").mkdir()
    return made.prepare(tmp_path / f"assets{rank}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_it_begins_with_the_loss_of_the_dense_model_and_balances(tmp_path: Path, kind: str, chunked: bool) -> None:
    recipe = recipe_of(tmp_path, kind, chunked_loss=chunked)
    rows = recipe.data("train")
    batch = recipe.collate([rows[0], rows[1]])  # type: ignore[index]
    dense = dataclasses.replace(
        recipe, model_settings=dataclasses.replace(recipe.model_settings, num_local_experts=None)
    )
    model: Any = recipe.model()
    with torch.no_grad():
        wanted = dense.loss(dense.model(), batch)
    loss = recipe.loss(model, batch)
    assert abs(float(loss.sum.detach() - wanted.sum)) < 1e-5 * float(wanted.sum) and wanted.auxiliary is None
    assert loss.auxiliary is not None
    (loss.sum + loss.auxiliary).backward()
    routers = [value for name, value in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2 and all(float(each.grad.abs().max()) > 0 for each in routers)
    # With adapters, the routers and the experts have some, and the base is the same each time.
    adapted: Any = recipe_of(tmp_path, kind, rank=2, upcycling_noise=0.1)
    first, second = adapted.model(), adapted.model()
    trained = {name for name, value in first.named_parameters() if value.requires_grad}
    assert any("gate.lora_" in name for name in trained) and any("experts." in name for name in trained)
    held = dict(second.named_parameters())
    assert all(value.equal(held[name]) for name, value in first.named_parameters() if name not in trained)


def test_the_base_of_a_trained_model_may_be_gone(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "Llama")
    names = {name for name, _ in recipe.model().named_parameters()}
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    again = recipe.prepare_trained(tmp_path / "assets0")
    assert {name for name, _ in again.model().named_parameters()} == names


@pytest.mark.parametrize("experts", [None, 2])
@pytest.mark.parametrize("content", [None, "", '{"model_type": "llama", ', '{"model_type": "unheard"}'])
def test_a_base_without_a_config_that_can_be_read_is_named(
    experts: int | None, content: str | None, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, "Llama", num_local_experts=experts)
    (tmp_path / "base" / "config.json").unlink()
    if content is not None:
        (tmp_path / "base" / "config.json").write_text(content)
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="base") as caught:
        recipe.prepare(tmp_path / "again")
    assert len(str(caught.value).splitlines()) <= 3


def test_dropout_of_adapters_is_refused_by_its_name(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "Llama", rank=2)
    recipe = dataclasses.replace(recipe, lora=LoraSettings(rank=2, dropout=0.1))
    with pytest.raises(ConfigError, match="lora.dropout is 0.1.*type --lora.dropout 0"):
        recipe.model()


def test_a_family_without_a_mixture_is_refused_before_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "base")
    settings = ModelSettings(pretrained=str(tmp_path / "base"), num_local_experts=2)
    with pytest.raises(ConfigError, match="model.num_local_experts is 2, and model.pretrained is a gpt2") as caught:
        Recipe(model_settings=settings, data_settings=DataSettings(source="/no/such/file")).prepare(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="num_experts_per_tok is 2, and model.num_local_experts is 1"):
        ModelSettings(pretrained="x", num_local_experts=1)


@pytest.mark.parametrize(("rank", "experts"), [(0, None), (2, None), (2, 4)])
def test_relay_plan_counts_a_trained_decoder_with_adapters(tmp_path: Path, rank: int, experts: int | None) -> None:
    from runner.commands.plan import measure
    from runner.settings import RunSettings

    recipe = recipe_of(tmp_path, "Llama", rank=rank, num_local_experts=experts)
    rows = recipe.data("train")
    found = measure(recipe, recipe.collate([rows[0]]), RunSettings(mixed_precision="no"))  # type: ignore[index]
    model = recipe.model()
    assert found.total == sum(each.numel() for each in model.parameters())
    assert found.trained == sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert not found.unknown and found.activations > 0
