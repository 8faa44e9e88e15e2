"""What the loop adds to the work of the recipe and of the optimiser, counted in tensor operations; and its guard.

Run alone: python -m pytest tests/runner/test_own_cost.py
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from runner import hardware
from runner.assembly import open_run
from runner.config import Config
from runner.hardware import Hardware
from runner.loop import train
from runner.recipe import Batch, Loss, Recipe
from runner.settings import RunSettings

STEPS = 6


class Counter(TorchDispatchMode):
    """Counts the operations on tensors, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def counts(self, operation: Any) -> bool:
        """Whether an operation is one to count."""
        return True

    def __torch_dispatch__(
        self, operation: Callable[..., object], types: object, arguments: tuple = (), named: dict | None = None
    ) -> object:
        self.count += self.counts(operation)
        return operation(*arguments, **(named or {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Recipe):
    """One matrix; nothing random, nothing to log."""

    def data(self, split: str) -> Sequence[torch.Tensor]:
        """Rows of four numbers."""
        return list(torch.arange(256.0).reshape(64, 4) / 256) if split == "train" else ()

    def collate(self, examples: list[torch.Tensor]) -> Batch:
        """Stack the rows."""
        return Batch({"rows": torch.stack(examples)}, weight=len(examples))

    def model(self) -> nn.Module:
        """The matrix."""
        return nn.Linear(4, 1)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed square of its product."""
        return Loss(model(batch["rows"]).square().sum())


def operations(folder: Path, lanes: int) -> int:
    """Operations of all steps of Relay's loop but the first."""
    settings = RunSettings(
        output_dir=str(folder), max_steps=STEPS, batch_size=4 * lanes, micro_batch_size=4, mixed_precision="no",
        eval_steps=0, save_steps=0, logging_steps=STEPS,
    )  # fmt: skip
    run = open_run(Config("plain", None, settings, Plain()))
    counts: list[int] = []
    with Counter() as counter:
        # The last step is logged.
        run.progress.advance = lambda step: counts.append(counter.count)  # type: ignore[method-assign]
        train(run)
    return counts[-1] - counts[0]


def bare_operations(lanes: int) -> int:
    """The same in a plain loop: each lane's loss over the weight of the step, clipping, AdamW."""
    recipe = Plain()
    data, model = recipe.data("train"), recipe.model()
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}], fused=True
    )
    counts = []
    with Counter() as counter:
        for _ in range(STEPS):
            for lane in range(lanes):
                batch = recipe.collate([data[4 * lane + row] for row in range(4)])
                (recipe.loss(model, batch).sum / (4 * lanes)).backward()
            float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
            optimizer.zero_grad()
            counts.append(counter.count)
    return counts[-1] - counts[0]


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_the_loop_adds_few_operations_to_a_step_and_to_a_lane(tmp_path: Path, lanes: int) -> None:
    added = (operations(tmp_path, lanes) - bare_operations(lanes)) / (STEPS - 1)
    # Of a step, the sum over its lanes; of a lane, its place in it, and the first gradient, which is 1 or NaN.
    assert added <= 1 + 4 * lanes


@pytest.mark.parametrize("has_engine", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38, -2.5, 0.0])
def test_a_loss_that_is_not_finite_makes_every_gradient_nan(
    value: float, scaled: bool, has_engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_engine:
        monkeypatch.setattr(hardware, "engine", lambda: None)
    weights = torch.ones(3, requires_grad=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator = SimpleNamespace(
        scaler=scaler if scaled else None, backward=lambda loss, **more: scaler.scale(loss).backward(**more)
    )
    # The loss has this value, and a gradient of 2 for every weight.
    loss = (2 * weights).sum() - 6 + torch.tensor(value)
    Hardware(cast(Accelerator, accelerator), "no", "").backward(loss)
    assert weights.grad is not None
    if math.isfinite(value):
        assert weights.grad.tolist() == [8.0 if scaled else 2.0] * 3
    else:
        assert weights.grad.isnan().all()


def test_torchs_engine_is_called_where_it_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.engine() is not None, "each lane takes 20 us more: look for what Tensor.backward calls now"
    for other in (lambda *_, **__: None, lambda tensors: tensors):
        hardware.engine.cache_clear()
        monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", other)
        assert hardware.engine() is None
    hardware.engine.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("above_norm", [-0.1, -1e-6, 0.0, 5e-7, 9e-7, 1e-6, 1.1e-6, 2e-6, 1e-3, 4e-3, 0.1, math.inf])
def test_gradients_are_clipped_as_torch_clips_them(above_norm: float, dtype: torch.dtype) -> None:
    plain = Hardware(cast(Accelerator, SimpleNamespace(scaler=None)), "no", "")
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 40):
        gradients = [torch.randn(count, generator=generator).to(dtype) / size for count in (size, 1)]
        limit = float(nn.utils.get_total_norm(gradients)) + above_norm
        ours, torchs = ([nn.Parameter(torch.zeros_like(each)) for each in gradients] for _ in range(2))
        for parameters in (ours, torchs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        assert plain.clip_gradients(ours, limit) == float(nn.utils.clip_grad_norm_(torchs, limit))
        for one, other in zip(ours, torchs, strict=True):
            assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_gradients_below_the_limit_are_not_multiplied() -> None:
    plain = Hardware(cast(Accelerator, SimpleNamespace(scaler=None)), "no", "")
    parameter = nn.Parameter(torch.zeros(3))
    counts = []
    for limit in (1.0, 100.0):
        parameter.grad = torch.ones(3)
        with Counter() as counter:
            plain.clip_gradients([parameter], limit)
        counts.append(counter.count)
    assert counts[1] < counts[0]


@pytest.mark.parametrize(("least", "wanted"), [(6, 0), (5, 3 * STEPS)])
def test_memory_goes_back_after_each_lane_of_a_large_model(
    least: int, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import hardware

    calls: list[int] = []
    monkeypatch.setattr(hardware, "TRIMMED_PARAMETERS", least)
    monkeypatch.setattr(hardware, "trim_memory", lambda: calls.append(1))
    operations(tmp_path, lanes=3)
    # A matrix of four weights and a bias.
    assert len(calls) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_trimming_gives_back_what_lies_between_blocks_in_use() -> None:
    import psutil

    from runner.hardware import trim_memory

    # Below the size that gets a mapping of its own; every second one stays.
    blocks = [torch.ones(16_000) for _ in range(4_000)]
    del blocks[::2]
    before = psutil.Process().memory_info().rss
    trim_memory()
    after = psutil.Process().memory_info().rss
    assert before - after > 60_000_000, (before, after)
    assert all(float(block.sum()) == 16_000 for block in blocks[::500])
