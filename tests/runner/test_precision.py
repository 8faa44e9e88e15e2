"""`mixed_precision auto` on a CPU. Run alone: python -m pytest tests/runner/test_precision.py"""

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from runner import hardware, precision, registry
from runner.assembly import open_run
from runner.config import parse
from tests.launching import TOY, metrics, output, train


class Clock:
    """A clock that only moves when somebody computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("faster", ["no", "bf16"])
@pytest.mark.parametrize("seed", range(5))
def test_the_shortest_time_counts_on_a_machine_that_is_busy_now_and_then(faster: str, seed: int) -> None:
    clock, noise = Clock(), random.Random(seed)
    own = {"no": 0.010 if faster == "no" else 0.013, "bf16": 0.013 if faster == "no" else 0.010}

    def action(name: str) -> None:
        # Two thirds of the time something else takes a part of the machine.
        clock.now += own[name] * (1 + (noise.random() < 2 / 3) * 5 * noise.random())

    actions = {name: lambda name=name: action(name) for name in own}
    found = precision.shortest_in_turns(actions, 1.0, clock)
    assert found == pytest.approx(own) and 1.0 <= clock.now < 1.3
    assert precision.compared(found["no"], found["bf16"])[0] == (faster == "bf16")


def test_a_lane_that_takes_longer_than_the_limit_is_computed_once_in_each_format() -> None:
    clock, calls = Clock(), []

    def action(name: str) -> None:
        calls.append(name)
        clock.now += 60.0

    found = precision.shortest_in_turns({name: lambda name=name: action(name) for name in ("no", "bf16")}, 1.0, clock)
    assert calls == ["no", "bf16"] and all(math.isfinite(seconds) for seconds in found.values())


@pytest.mark.parametrize(("full", "half", "chosen"), [(1.0, 0.85, True), (1.0, 0.95, False), (1.0, 2.0, False)])
def test_bf16_has_to_be_clearly_faster(full: float, half: float, chosen: bool) -> None:
    is_faster, reason = precision.compared(full, half)
    assert (
        is_faster == chosen
        and reason == f"measured: a lane takes 1 s of CPU time in fp32, {precision.in_words(half)} in bf16"
    )


def test_the_measurement_leaves_no_trace() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)
            self.last = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout(0.5))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(rows))

    recipe = registry.find(TOY)()
    model = Model().eval()
    batch = recipe.collate(list(itertools.islice(recipe.data("train"), 4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = precision.seconds_of_formats(recipe, model, batch, 1)
    assert all(0 < seconds < 60 for seconds in found.values())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Accelerate remembers the precision of the first run of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that multiplies in bf16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    yield


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bf16"), (2.0, "no")])
def test_auto_takes_the_faster_format_and_the_model_computes_in_it(
    half: float, expected: str, native: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "best_device_type", lambda: "cpu")
    monkeypatch.setattr(precision, "seconds_of_formats", lambda *rest: {"no": 1.0, "bf16": half})
    words = ["--recipe", TOY, "--max_steps", "2", "--batch_size", "4", "--micro_batch_size", "4"]
    run = open_run(parse([*words, "--output_dir", str(tmp_path)]))
    assert run.hardware.precision == run.settings.mixed_precision == expected
    assert "CPU time in fp32" in run.hardware.describe()
    with run.hardware.accelerator.autocast():
        assert run.bare_model[0](torch.zeros(1, 4)).dtype == (torch.bfloat16 if expected == "bf16" else torch.float32)
    seen = []
    run.bare_model[0].register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.dtype))
    run.model(torch.zeros(1, 4))
    assert seen == [torch.bfloat16 if expected == "bf16" else torch.float32]


@pytest.mark.parametrize("why", ["named", "frozen", "not native", "too large"])
def test_what_is_not_measured(why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "best_device_type", lambda: "cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: why != "not native")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    def measured(*rest: object) -> dict[str, float]:
        if why == "too large":
            raise RuntimeError("out of memory")
        pytest.fail("it was measured")

    monkeypatch.setattr(precision, "seconds_of_formats", measured)
    found = type("Device", (), {"type": "cpu"})()
    accelerator = type("Accelerator", (), {"num_processes": 1, "is_main_process": True, "device": found})()
    chosen, reason = hardware.choose_precision("bf16" if why == "named" else "auto", "cpu")
    here = hardware.Hardware(accelerator, chosen, reason)
    recipe = registry.find(TOY)()
    model = recipe.model()
    if why == "frozen":
        model[0].weight.requires_grad_(False)
    config = parse(["--recipe", TOY, "--mixed_precision", "bf16" if why == "named" else "auto"])
    from runner.lanes import Lanes

    lanes = Lanes(203, 4, 4, 0)
    assert precision.measured_precision(here, config.run, recipe, model, recipe.data("train"), lanes) is here


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_records_its_choice_and_keeps_it(tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    train(run, "--mixed_precision", "auto", "--max_steps", "6", processes=processes)
    first = output(run)
    chosen = "bf16" if "precision bf16" in first else "no"
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        assert f"precision {chosen} (measured: a lane takes" in first
    for file in (run / "config.yaml", run / "checkpoint-5" / "config.yaml", run / "final" / "config.yaml"):
        assert f"mixed_precision: {chosen!r}" in file.read_text(encoding="utf-8").replace("bf16", "'bf16'")
    # The command still says auto; it is not measured again.
    train(run, "--mixed_precision", "auto", "--max_steps", "9", "--resume_from_checkpoint", "auto", processes=processes)
    assert f"precision {chosen} (as the run recorded it)" in output(run)
    assert [event["step"] for event in metrics(run)] == list(range(1, 10))
