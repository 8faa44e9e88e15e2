"""Chunked cross-entropy: the same numbers and gradients as plain, and no logits that are held."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recipes.language_model import data, demo, model
from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
from runner.commands import plan
from runner.parts import chunked_loss
from runner.parts.adapters import LoraSettings
from runner.settings import RunSettings

SIZE: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "stories.txt"
    file.write_text(demo.stories(200), encoding="utf-8")
    return file


def recipe_of(folder: Path, stories: Path, lora: LoraSettings | None = None, **settings: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    return Recipe(
        data_settings=DataSettings(source=str(stories), max_seq_length=48),
        tokenizer_settings=TokenizerSettings(kind="char"),
        model_settings=ModelSettings(**{**SIZE, **settings}),
        lora=lora or LoraSettings(),
    ).prepare(folder)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradients_are_those_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, is_frozen: bool, cap: float | None
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 33)
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=not is_frozen)
    labels = torch.randint(11, (2, 5))
    labels[1, 2:] = -100

    def cost(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # Rows weigh differently, so that a gradient that ignores its row is found.
        rows: Any = chunked_loss.chunked_cross_entropy(one, other, labels, cap)
        return (rows * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum()

    assert torch.autograd.gradcheck(cost, (hidden, weight))
    logits = hidden @ weight.T
    plain = model.sums_of_rows(logits if cap is None else cap * torch.tanh(logits / cap), labels)
    chunked: Any = chunked_loss.chunked_cross_entropy(hidden, weight, labels, cap)
    assert torch.allclose(plain, chunked, rtol=1e-12)


@pytest.mark.parametrize("kind", [{}, {"tie_embeddings": False}, {"norm": "layer", "swiglu": False, "rope": False}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chunked_loss_trains_as_a_plain_one(
    kind: dict[str, Any], precision: str, tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 1000)
    found = []
    for chunked in (False, True):
        recipe = recipe_of(tmp_path / "a", stories, chunked_loss=chunked, **kind)
        torch.manual_seed(0)
        decoder = recipe.model().train()
        rows = recipe.data("train")
        batch = recipe.collate([rows[0], rows[1], data.PackedRow(rows[2].ids[:20], rows[2].documents[:20])])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = recipe.loss(decoder, batch)
        (loss.sum / batch.weight).backward()
        gradients = {name: each.grad for name, each in decoder.named_parameters()}
        found.append((float(loss.sum.detach()), gradients, float(loss.logs["bits_per_byte"])))
        # Afterwards it is a model like any other.
        assert decoder(input_ids=batch["input_ids"]).logits.shape[-1] == len(recipe.tokenizer)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert math.isclose(found[0][0], found[1][0], rel_tol=tolerance)
    assert math.isclose(found[0][2], found[1][2], rel_tol=tolerance)
    for name, gradient in found[0][1].items():
        gap = (gradient - found[1][1][name]).norm() / gradient.norm()
        assert gap < tolerance, name


@pytest.mark.parametrize("kind", [{}, {"norm": "layer", "swiglu": False}, {"rope": False}])
def test_planned_activations_are_those_that_a_forward_pass_leaves(
    kind: dict[str, Any], tmp_path: Path, stories: Path
) -> None:
    recipe = recipe_of(tmp_path / "a", stories, hidden_size=64, intermediate_size=160, **kind)
    rows = recipe.data("train")
    batch = recipe.collate([rows[number] for number in range(8)])
    planned = plan.measure(recipe, batch, RunSettings(mixed_precision="no"))
    decoder = recipe.model().train()
    recipe.loss(decoder, batch)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = recipe.loss(decoder, batch)
    held = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert loss.sum.isfinite() and math.isclose(planned.activations, held, rel_tol=0.1)


def test_large_logits_are_not_held(tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    for large in (1 << 26, 100):
        monkeypatch.setattr(chunked_loss, "LARGE_LOGITS", large)
        recipe = recipe_of(tmp_path / "a", stories)
        rows = recipe.data("train")
        batch = recipe.collate([rows[number] for number in range(8)])
        held.append(plan.measure(recipe, batch, RunSettings(mixed_precision="no")))
    logits = 8 * 48 * len(recipe.tokenizer) * 4
    assert held[0].logits >= logits and held[1].logits == 0
    assert held[0].activations - held[1].activations > 0.9 * logits


def test_adapters_of_the_output_matrix_have_logits(tmp_path: Path, stories: Path) -> None:
    base = recipe_of(tmp_path / "base", stories, tie_embeddings=False)
    base.model().save_pretrained(tmp_path / "base")
    losses = []
    for modules in (None, "lm_head"):
        recipe = recipe_of(
            tmp_path / f"adapted-{modules}",
            stories,
            LoraSettings(rank=2, target_modules=modules),
            pretrained=str(tmp_path / "base"),
            chunked_loss=True,
        )
        decoder = recipe.model()
        is_scoring = any(isinstance(each, chunked_loss.ScoringLinear) for each in decoder.modules())
        assert is_scoring == (modules is None)
        rows = recipe.data("train")
        losses.append(float(recipe.loss(decoder, recipe.collate([rows[0]])).sum.detach()))
    # Fresh adapters add nothing.
    assert np.isclose(losses[0], losses[1], rtol=1e-5)


FAMILIES = ["Gemma", "Gemma2", "Gemma3", "Qwen2", "Qwen3", "Mistral", "Olmo2", "SmolLM3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [True, False])
def test_families_with_large_vocabularies_score_in_chunks(
    family: str, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from runner.parts.adapters import with_adapters

    monkeypatch.setattr(chunked_loss, "CHUNK", 300)
    sizes: dict[str, Any] = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=1, intermediate_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    sizes |= dict(head_dim=16) if family.startswith("Gemma") else {}
    name = f"{family}{'Text' if family == 'Gemma3' else ''}Config"
    config = getattr(transformers, name)(**sizes)
    if family in ("Gemma2", "Gemma3"):
        # Small enough to change the logits.
        config.final_logit_softcapping = 0.5
    torch.manual_seed(0)
    base: Any = getattr(transformers, f"{family}ForCausalLM")(config)
    decoder: Any = with_adapters(base, LoraSettings(rank=2)) if adapted else base
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    chunked_loss.let_score(base)
    ids, labels = torch.randint(3, 64, (2, 12)), torch.randint(3, 64, (2, 12))
    labels[1, 5:] = -100
    found = []
    for chunked in (False, True):
        losses = model.nats_of_rows(decoder, {"input_ids": ids, "use_cache": False}, labels, chunked).nats
        decoder.zero_grad()
        losses.sum().backward()
        gradients = {name: each.grad for name, each in decoder.named_parameters() if each.grad is not None}
        found.append((losses.detach(), gradients))
    assert any(isinstance(each, chunked_loss.ScoringLinear) for each in decoder.modules())
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for key, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][key], rtol=1e-3, atol=1e-5), key
    if family in ("Gemma2", "Gemma3"):
        assert config.final_logit_softcapping == 0.5
        assert float(decoder(input_ids=ids).logits.detach().abs().max()) <= 0.5


def test_places_that_are_not_scored_have_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    parts = chunked_loss._parts
    monkeypatch.setattr(chunked_loss, "_parts", lambda count, size: rows.append(count) or parts(count, size))
    hidden, weight = torch.randn(2, 5, 4, requires_grad=True), torch.randn(11, 4)
    labels = torch.full((2, 5), -100)
    labels[0, 2], labels[1, 4] = 3, 7
    sums: Any = chunked_loss.chunked_cross_entropy(hidden, weight, labels)
    sums.sum().backward()
    assert set(rows) == {2} and hidden.grad is not None
    assert hidden.grad[labels == -100].abs().max() == 0 and hidden.grad[0, 2].abs().max() > 0
    # Nothing at all to score costs nothing.
    assert float(chunked_loss.chunked_cross_entropy(hidden.detach(), weight, labels.fill_(-100)).sum()) == 0


def test_a_class_that_changes_its_logits_is_left_alone() -> None:
    class Capped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(4, 8, bias=False)

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

    capped = Capped()
    chunked_loss.let_score(capped)
    assert type(capped.lm_head) is nn.Linear
