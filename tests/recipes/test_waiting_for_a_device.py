"""The loss of our own models reads nothing from a device, which a process would have to wait for.

The weights and the batch are torch's FakeTensors: they have shapes and no numbers, so that whatever reads one, or needs
it for the shape of another, raises an error. Decoders are transformers' own, and read their masks.

Run alone: python -m pytest tests/recipes/test_waiting_for_a_device.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call

from recipes.tabular.model import FrozenStates, TextEncoder
from runner.config import parse
from runner.hardware import seed_everything
from runner.recipe import Batch, Loss
from tests.recipes.tabular.test_model import pretrained_folder


class OnDevice:
    """A model whose weights are on a device."""

    def __init__(self, model: torch.nn.Module, fake: FakeTensorMode) -> None:
        self.model = model
        self.tensors = {}
        for name, each in (*model.named_parameters(), *model.named_buffers()):
            self.tensors[name] = fake.from_tensor(each.detach()).requires_grad_(each.requires_grad)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return functional_call(self.model, self.tensors, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def loss_on_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> torch.Tensor:
    """The loss of a micro-batch of the training data, which has gradients."""
    folder.mkdir(exist_ok=True)
    recipe: Any = parse(["--recipe", *words]).recipe.prepare(folder)
    data = recipe.data("train")
    seed_everything(1)
    batch = recipe.collate([data[number] for number in range(5)])
    host = {name: each.numpy() for name, each in batch.tensors.items()}
    monkeypatch.setattr(Batch, "on_host", lambda batch, name: host[name])
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model: Any = OnDevice(recipe.model().train(), fake)
    with fake:
        batch.tensors = {name: fake.from_tensor(each) for name, each in batch.tensors.items()}
        loss = Loss.of(recipe.loss(model, batch))
        loss.sum.backward()
    assert any(each.grad is not None for each in model.tensors.values())
    return loss.sum


RECIPES = {
    "tables": "tabular",
    "all cells seen": "tabular --model.cell_dropout 0",
    "words of a row": "tabular --model.gram_buckets 512",
    "pre-training": "microbiome",
    "in chunks": "microbiome --model.asv_chunk_size 7",
    "a target": "microbiome --stage predict",
}


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES)
def test_a_loss_reads_nothing_from_the_device(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss_on_a_device(tmp_path, monkeypatch, *words.split())


@pytest.mark.parametrize("unfrozen", ["0", "2", "4"])
def test_a_given_encoder_reads_nothing_from_the_device(
    unfrozen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU. The weights of frozen layers are read once, before the first step.
    monkeypatch.setattr(TextEncoder, "_without_padding", False)
    monkeypatch.setattr(TextEncoder, "_frozen_states", lambda encoder: states)
    states = FrozenStates(None, 32, "")
    encoder = pretrained_folder(tmp_path / "bert")
    words = f"tabular --model.text_encoder {encoder} --model.unfrozen_layers {unfrozen}"
    loss_on_a_device(tmp_path / "assets", monkeypatch, *words.split())


@pytest.mark.parametrize("read", [lambda loss: bool(loss.sum > 0), lambda loss: loss.sum[loss.sum > 0]])
def test_what_reads_is_found(read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_on_a_device(tmp_path, monkeypatch, "microbiome")
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        read(Loss(loss))
