"""A device that runs behind: nothing waits for it in a plain step, and it leaves out a bad update by itself.

CUDA is such a device. Here the CPU pretends to be one, so that the same code runs.

Run alone: python -m pytest tests/runner/test_late_judgement.py
"""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from runner.assembly import open_run
from runner.config import Config
from runner.evaluation import on_device
from runner.hardware import Arriving, Hardware
from runner.loop import train as train_loop
from runner.memory import split
from runner.recipe import Batch, Loss
from runner.settings import RunSettings
from runner.trials import free_port
from tests.launching import REPOSITORY, SHORT, metrics, same_bits, train, weights
from tests.runner.test_own_cost import Counter, Plain

PRETENDING = """
import sys
from runner.hardware import Hardware
Hardware.runs_behind = property(lambda self: True)
from runner.train import main
sys.exit(main(sys.argv[1:]))
"""


WITH_HOST_GROUP = """
import sys, torch
from runner import hardware
make = hardware.host_group
hardware.host_group = lambda device, limit: make(torch.device("cuda"), limit)
def by_host_group(function):
    def called(*arguments, **named):
        # Without the group, a number would go the way of the gradients.
        if sys._getframe(1).f_code.co_name in ("gathered", "_reduced", "merged"):
            assert isinstance(arguments[-1], torch.distributed.ProcessGroup), arguments
        return function(*arguments, **named)
    return called
for name in ("all_gather", "all_reduce", "all_gather_object"):
    setattr(torch.distributed, name, by_host_group(getattr(torch.distributed, name)))
"""


def behind(folder: Path, *flags: str) -> tuple[int, str]:
    """A short training of the toy recipe on such a device: its exit status, and what it printed."""
    words = [sys.executable, "-c", PRETENDING, *SHORT, "--output_dir", str(folder), *flags]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class Waits(Counter):
    """Counts the operations that give a number of a tensor to Python, and those whose result has a size to wait for."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "bincount")

    def counts(self, operation: Any) -> bool:
        """Whether it is one of those."""
        return operation.overloadpacket.__name__ in self.NAMES


@pytest.mark.parametrize("late", [True, False])
def test_a_plain_step_waits_for_nothing(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardware, "runs_behind", property(lambda self: late))
    settings = RunSettings(
        output_dir=str(tmp_path), max_steps=9, batch_size=8, micro_batch_size=4, mixed_precision="no", eval_steps=0,
        save_steps=0, logging_steps=9,
    )  # fmt: skip
    read = Arriving.__float__

    def read_on_the_host(number: Arriving) -> float:
        # On CUDA, this waits for an event of the step before alone.
        with _disable_current_modes():
            return read(number)

    monkeypatch.setattr(Arriving, "__float__", read_on_the_host)
    run = open_run(Config("plain", None, settings, Plain()))
    counts: list[int] = []
    with Waits() as waits:
        run.progress.advance = lambda step: counts.append(waits.count)  # type: ignore[method-assign]
        train_loop(run)
    own = [after - before for before, after in zip(counts[:-1], counts[1:], strict=True)]
    # The last step is logged.
    assert own[:-1] == ([0] * 7 if late else [1] * 7)
    assert run.unjudged is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tallying(Plain):
    """Counts the rows of good steps in a buffer; one of the rows is no number."""

    def data(self, split: str) -> Sequence[torch.Tensor]:
        """Rows of four numbers; the eleventh is not one."""
        rows = [row.clone() for row in super().data(split)]
        if rows:
            rows[10][:] = math.nan
        return rows

    def model(self) -> nn.Module:
        """The matrix, with the tally."""
        model = super().model()
        model.register_buffer("tally", torch.zeros(()))
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed square, and how many rows there are."""
        return Loss(super().loss(model, batch).sum, statistics=torch.tensor(float(len(batch["rows"]))))

    def end_step(self, model: nn.Module, statistics: torch.Tensor) -> None:
        """Count them."""
        cast(torch.Tensor, model.tally).add_(statistics)


@pytest.mark.parametrize("late", [True, False])
def test_a_recipes_buffers_stay_as_they_were_in_a_bad_step(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hardware, "runs_behind", property(lambda self: late))
    settings = RunSettings(
        output_dir=str(tmp_path), max_steps=8, batch_size=8, micro_batch_size=4, mixed_precision="no", eval_steps=0,
        save_steps=0, logging_steps=8, on_bad_step="skip",
    )  # fmt: skip
    run = open_run(Config("tallying", None, settings, Tallying()))
    train_loop(run)
    # 64 rows, and the eight of one step not counted.
    assert float(cast(torch.Tensor, run.bare_model.tally)) == 56
    assert all(parameter.isfinite().all() for parameter in run.parameters)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("logging_steps", ["1", "7"])
def test_a_bad_step_is_left_out_as_on_a_device_that_does_not(policy: str, logging_steps: str, tmp_path: Path) -> None:
    flags = ("--bad_row", "150", "--on_bad_step", policy, "--logging_steps", logging_steps)
    train(tmp_path / "ordinary", *flags)
    status, said = behind(tmp_path / "behind", *flags)
    assert status == 0, said
    assert ("the update is left out" if policy == "skip" else "Going back to step") in said
    assert same_bits(weights(tmp_path / "behind"), weights(tmp_path / "ordinary"))
    found = [[(each["step"], each["loss"], each["grad_norm"]) for each in metrics(tmp_path / name)]
             for name in ("behind", "ordinary")]  # fmt: skip
    assert str(found[0]) == str(found[1])


def test_a_bad_step_stops_the_training_and_its_number_is_said(tmp_path: Path) -> None:
    flags = ("--bad_row", "150", "--logging_steps", "100", "--eval_steps", "0", "--save_steps", "1000")
    folders = [tmp_path / "behind", tmp_path / "ordinary"]
    status, said = behind(folders[0], *flags)
    assert status == 3
    with pytest.raises(RuntimeError, match=r"\[3\]") as ordinary:
        train(folders[1], *flags)
    (line,) = [line for line in str(ordinary.value).splitlines() if "Step " in line and "gradient norm is nan" in line]
    assert line in said
    assert not list(folders[0].glob("checkpoint-*"))


def test_a_batch_goes_to_cuda_from_memory_that_it_reads_by_itself() -> None:
    calls: list[object] = []

    class Pinned:
        def to(self, device: torch.device, non_blocking: bool) -> str:
            calls.append((device.type, non_blocking))
            return "on the GPU"

    class Ordinary:
        is_cuda = False

        def pin_memory(self) -> Pinned:
            return Pinned()

    batch = on_device(Batch({"rows": cast(torch.Tensor, Ordinary())}, weight=1), torch.device("cuda"))
    assert batch.tensors == {"rows": "on the GPU"} and calls == [("cuda", True)]


@pytest.mark.parametrize("slow", ["0", "0.06"])
def test_numbers_go_from_host_to_host_where_processes_have_gpus(slow: str, tmp_path: Path) -> None:
    # Slow processes agree before each step.
    flags = ("--slow_process", "1", "--slow_rows", slow, "--max_steps", "12")
    train(tmp_path / "ordinary", *flags, processes=2)
    words = [sys.executable, "-c", WITH_HOST_GROUP + PRETENDING, *SHORT, "--output_dir", str(tmp_path / "run"), *flags]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            words, cwd=REPOSITORY, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=120)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    assert same_bits(weights(tmp_path / "run"), weights(tmp_path / "ordinary"))


def test_what_a_batch_holds_can_be_read_on_the_host() -> None:
    rows = torch.arange(6)
    # FakeTensors have no numbers, as if they were somewhere else.
    device = FakeTensorMode()
    batch = Batch({"rows": rows}, weight=6)
    assert batch.on_host("rows").tolist() == rows.tolist()
    for _ in range(2):
        # A lane may be computed twice.
        on_device(batch, torch.device("cpu"))
        batch.tensors["rows"] = device.from_tensor(rows)
        assert batch.on_host("rows").tolist() == rows.tolist()
    # After it did not fit into memory, in parts.
    parts = [part.on_host("rows").tolist() for part, _ in split(batch, 4)]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_the_fused_update_changes_nothing_where_a_gradient_is_not_finite() -> None:
    # What Relay relies on; torch tells it to the kernel for its own loss scaling.
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    for is_bad in (0.0, 1.0):
        parameter.grad = torch.ones(3) / (1 - is_bad)
        before = parameter.detach().clone()
        optimizer.found_inf = torch.tensor(is_bad)  # type: ignore[attr-defined]
        optimizer.step()
        assert torch.equal(parameter, before) == bool(is_bad)
    assert optimizer.state[parameter]["step"] == 1
