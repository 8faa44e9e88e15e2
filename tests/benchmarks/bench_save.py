"""How long a save stops training: Relay beside torch.save and accelerate's save_state, 750 MB and adapters alone.

"relay, stall" is the worst case: the next update begins as soon as the save returns, so that all is copied then. In
the row below, it begins after the forward and backward passes of a step. "relay, save" is what a save takes where
these take longer than writing.

make bench, or: python -m tests.benchmarks save
"""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from runner.checkpoints.saver import Saver
from runner.checkpoints.state import State
from runner.settings import RunSettings
from tests.benchmarks import page

ROUNDS = 5
STEP = 0.2
"""Seconds of the forward and backward passes after a save. Qwen2.5-Coder-0.5B takes longer for each example."""


@dataclasses.dataclass
class Hardware:
    """One process without a loss scale."""

    accelerator: Accelerator
    num_processes: int = 1
    is_sharded: bool = False

    def merged(self, own: dict[str, Any]) -> dict[str, Any]:
        """There are no others."""
        return own

    def from_main(self, found: Any) -> Any:
        """There are no others."""
        return found


@dataclasses.dataclass
class Run:
    """What the saver asks of a run."""

    bare_model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    hardware: Hardware
    state: State
    settings: RunSettings
    share: range = range(1)
    ledger: None = None


def whole() -> torch.nn.Module:
    """62.5 million parameters that all train: 750 MB with AdamW's moments."""
    return torch.nn.Sequential(*(torch.nn.Linear(2500, 2500, bias=False) for _ in range(10)))


def adapters() -> torch.nn.Module:
    """8.8 million parameters in adapters, as of rank 16 on Qwen2.5-Coder-0.5B, on a frozen base that lies elsewhere."""
    model = torch.nn.Sequential(*whole(), *(torch.nn.Linear(2500, 176, bias=False) for _ in range(20)))
    for layer in model[:10]:
        layer.requires_grad_(False)
    model.base_is_elsewhere = True  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("made", [whole, adapters])
def test_save_stall(made: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = made()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model, optimizer = accelerator.prepare(model, optimizer)
    size = 3 * sum(parameter.nbytes for parameter in trained)
    run = Run(model, optimizer, Hardware(accelerator), State(), RunSettings())
    saver = Saver(tmp_path / "relay", "", tmp_path / "none", 1, True)
    saver.reserve(run)
    saver.is_lazy = True
    seconds: dict[str, list[float]] = {
        name: []
        for name in (
            "relay, save",
            "relay, stall",
            "relay, stall, CPU",
            f"relay, stall of a step of {STEP} s",
            "relay, to the end",
            "torch.save",
            "save_state",
        )
    }
    for number in range(ROUNDS):
        run.state.step = 2 * number + 1
        started, processor = time.perf_counter(), time.thread_time()
        saver.save(run, is_best=False)
        seconds["relay, save"].append(time.perf_counter() - started)
        saver.before_update(run)
        seconds["relay, stall, CPU"].append(time.thread_time() - processor)
        seconds["relay, stall"].append(time.perf_counter() - started)
        saver.wait()
        seconds["relay, to the end"].append(time.perf_counter() - started)
        started = time.perf_counter()
        run.state.step += 1
        saver.save(run, is_best=False)
        time.sleep(STEP)
        saver.before_update(run)
        seconds[f"relay, stall of a step of {STEP} s"].append(time.perf_counter() - started - STEP)
        saver.wait()
        started = time.perf_counter()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        seconds["torch.save"].append(time.perf_counter() - started)
        started = time.perf_counter()
        accelerator.save_state(str(tmp_path / "accelerate"))
        seconds["save_state"].append(time.perf_counter() - started)
        shutil.rmtree(tmp_path / "accelerate")
    page.record(
        "save", (f"{made.__name__}: {size / 1e6:.0f} MB of state", "seconds", "least - most"),
        ((name, f"{statistics.median(taken):.3f}", f"{min(taken):.3f} - {max(taken):.3f}")
         for name, taken in seconds.items()), f"medians of {ROUNDS} interleaved rounds",
    )  # fmt: skip
    # Slower machines have slower disks; what must hold anywhere is that the stall is the small part of a save.
    assert statistics.median(seconds["relay, stall"]) < statistics.median(seconds["relay, to the end"])
