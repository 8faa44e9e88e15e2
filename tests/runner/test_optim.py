"""AdamW, whose bits are torch's; Muon beside it: what is updated by which, how, and that a restart changes nothing."""

from typing import Any

import pytest
import torch
from torch import nn

from runner import optim
from runner.checkpoints.tensors import load_optimizer, optimizer_parts
from runner.errors import ConfigError
from runner.settings import RunSettings
from tests.benchmarks.loop_contenders import llama

CPU = torch.device("cpu")
MUON = RunSettings(optim="muon", learning_rate=0.01, weight_decay=0.1)


def steps(model: nn.Module, optimizer: Any, numbers: range) -> None:
    """Updates on random tokens, the same for the same numbers."""
    for number in numbers:
        ids = torch.randint(65, (2, 16), generator=torch.Generator().manual_seed(number))
        optim.set_step(optimizer, 0.01 / (1 + number), 0.9)
        loss: Any = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_our_adamw_has_the_bits_of_torchs() -> None:
    ours, torchs = llama(2, 32), llama(2, 32)
    optimizer = optim.optimizer(ours, RunSettings(learning_rate=0.01, weight_decay=0.1), CPU)
    decays = ((0.1, 2), (0.0, 1))
    groups = [{"params": [p for p in torchs.parameters() if min(p.ndim, 2) == ndim], "weight_decay": decay}
              for decay, ndim in decays]  # fmt: skip
    steps(ours, optimizer, range(4))
    steps(torchs, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), fused=True), range(4))
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert isinstance(optimizer, torch.optim.AdamW) and not any(p.grad_fn for p in ours.parameters())
    assert optimizer.step(lambda: 3.0) == 3.0


def test_every_parameter_is_updated_by_one_and_tables_and_vectors_by_adamw() -> None:
    model = llama(2, 32)
    muon, adamw = optim.optimizer(model, MUON, CPU).parts  # type: ignore[attr-defined]
    by_muon, by_adamw = (
        {id(parameter) for group in part.param_groups for parameter in group["params"]} for part in (muon, adamw)
    )
    assert not by_muon & by_adamw and by_muon | by_adamw == {id(parameter) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_muon) == (parameter.ndim == 2 and "embed_tokens" not in name), name


def test_an_update_by_muon_has_equal_singular_values_and_follows_the_rate() -> None:
    model = llama(1, 32)
    matrix = dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    before = matrix.detach().clone()
    plain = RunSettings(optim="muon", learning_rate=0.01, weight_decay=0.0)
    steps(model, optim.optimizer(model, plain, CPU), range(1))
    values = torch.linalg.svdvals(matrix.detach() - before) / (0.01 * 0.2 * 32**0.5)
    # Five iterations bring them near one; the gradient's own are a factor of hundreds apart.
    assert values.median() == pytest.approx(1, abs=0.3) and values.max() < 1.3


def test_a_restart_changes_no_bit() -> None:
    whole = llama(2, 32)
    optimizer = optim.optimizer(whole, MUON, CPU)
    steps(whole, optimizer, range(6))
    first = llama(2, 32)
    optimizer = optim.optimizer(first, MUON, CPU)
    steps(first, optimizer, range(3))
    saved = {name: value.clone() for name, value in optimizer_parts(first, optimizer).items()}
    kinds = {name.rpartition("/")[2] for name in saved}
    assert kinds == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    second = llama(2, 32)
    second.load_state_dict(first.state_dict())
    optimizer = optim.optimizer(second, MUON, CPU)
    load_optimizer(second, optimizer, saved)
    steps(second, optimizer, range(3, 6))
    for (name, one), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert one.equal(other), name


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="--optim adamw"):
        optim.optimizer(nn.Sequential(nn.Linear(4, 4)), MUON, CPU)


@pytest.mark.parametrize("settings", [MUON, RunSettings(optim="adamw", learning_rate=0.01)], ids=["muon", "adamw"])
def test_a_parameter_has_its_share_of_the_rate_at_every_step(settings: RunSettings) -> None:
    model = llama(2, 32)
    plain = optim.optimizer(model, settings, CPU)
    scaled = optim.optimizer(model, settings, CPU, lambda name: 0.1 if name.startswith("model.layers.0.") else 1.0)
    assert len(scaled.param_groups) > len(plain.param_groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optim.set_step(scaled, 0.5, 0.9)
    rates = {names[id(each)]: group["lr"] for group in scaled.param_groups for each in group["params"]}
    assert rates == {name: 0.5 * (0.1 if name.startswith("model.layers.0.") else 1.0) for name in names.values()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    steps(model, scaled, range(1))
    moved = {
        name: float((parameter.detach() - before[name]).abs().mean()) for name, parameter in model.named_parameters()
    }
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    assert moved[first] == pytest.approx(moved[second] / 10, rel=0.2)
