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


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CHUNK", 33)
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (2, 5))
    labels[1, 2:] = -100

    def cost(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # Rows weigh differently, so that a gradient that ignores its row is found.
        rows: Any = model.ChunkedCrossEntropy.apply(one, other, labels)
        return (rows * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum()

    assert torch.autograd.gradcheck(cost, (hidden, weight))
    plain = model.sums_of_rows(hidden @ weight.T, labels)
    chunked: Any = model.ChunkedCrossEntropy.apply(hidden, weight, labels)
    assert torch.allclose(plain, chunked, rtol=1e-12)


@pytest.mark.parametrize("kind", [{}, {"tie_embeddings": False}, {"norm": "layer", "swiglu": False, "rope": False}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chunked_loss_trains_as_a_plain_one(
    kind: dict[str, Any], precision: str, tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "CHUNK", 1000)
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
        monkeypatch.setattr(model, "LARGE_LOGITS", large)
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
        is_scoring = any(isinstance(each, model.ScoringLinear) for each in decoder.modules())
        assert is_scoring == (modules is None)
        rows = recipe.data("train")
        losses.append(float(recipe.loss(decoder, recipe.collate([rows[0]])).sum.detach()))
    # Fresh adapters add nothing.
    assert np.isclose(losses[0], losses[1], rtol=1e-5)


def test_a_class_that_changes_its_logits_is_left_alone() -> None:
    class Capped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(4, 8, bias=False)

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

    capped = Capped()
    model.let_score(capped)
    assert type(capped.lm_head) is nn.Linear
