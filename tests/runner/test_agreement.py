"""What processes agree on before a step, also for several short steps at once.

Run alone: python -m pytest tests/runner/test_agreement.py
"""

import json
import math
import signal
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runner import agreement
from runner.agreement import Totals, agree, agreed_steps
from runner.checkpoints.folders import newest_checkpoint, step_of
from runner.fetching import Fetched
from runner.recipe import Batch
from runner.trials import Interruption, steps_of_a_stop
from tests.launching import interrupted, metrics, output, train


def lane_of(number: int, rows: int, weight: float, consumed: list[int]) -> Fetched:
    return Fetched(number, Batch({"rows": torch.zeros(rows, 3)}, weight=weight, tokens=2 * rows), consumed)


OWN = [[lane_of(0, 2, 0.1, [5, 6]), lane_of(1, 4, 0.2, [7, 8])], [lane_of(0, 1, 3.0, [1]), lane_of(1, 2, 4.0, [])]]
OTHER = [[lane_of(2, 9, 0.7, [4]), lane_of(3, 1, 0.3, [])], [lane_of(2, 2, 1.0, [3]), lane_of(3, 2, 5.0, [2, 9])]]


def of_process(ahead: list[list[Fetched]], seconds: float = math.inf, signal: int = 0) -> list[float]:
    """The numbers that a process gives to the others."""
    given: list[list[float]] = []

    def gathered(numbers: list[float]) -> list[list[float]]:
        given.append(numbers)
        return [numbers]

    agree(run_of(gathered, signal), ahead, seconds)
    return given[0]


def run_of(gathered: Any, signal: int = 0) -> Any:
    signals = SimpleNamespace(number=signal, reason="SIGTERM")
    hardware = SimpleNamespace(gathered=gathered, any_later=lambda condition: lambda: condition)
    state = SimpleNamespace(step=7)
    return SimpleNamespace(signals=signals, state=state, hardware=hardware)


def test_totals_are_sums_over_the_processes_for_each_step() -> None:
    other = of_process(OTHER)
    totals, _ = agree(run_of(lambda own: [own, other]), OWN, math.inf)
    for step, (each, lanes) in enumerate(zip(totals, [a + b for a, b in zip(OWN, OTHER, strict=True)], strict=True)):
        assert each == Totals(
            weight=cast(float, pytest.approx(sum(lane.batch.weight for lane in lanes))),
            lanes=3,
            examples=sum(len(lane.consumed) for lane in lanes),
            tokens=sum(lane.batch.tokens for lane in lanes),
            checksum=sum(lane.checksum(7 + step) for lane in lanes) % 2**64,
            largest_lane=[27, 6][step],
            stop=None,
        )


def test_a_signal_to_any_process_stops_all_before_the_next_step() -> None:
    asked, quiet = of_process(OTHER, signal=15), of_process(OTHER)
    by_other, _ = agree(run_of(lambda own: [own, asked]), OWN, 0.001)
    by_own, _ = agree(run_of(lambda own: [own, quiet], signal=15), OWN, 0.001)
    assert [each.stop for each in by_other] == ["a signal to another process", None]
    assert [each.stop for each in by_own] == ["SIGTERM", None]


@pytest.mark.parametrize(
    ("own", "other", "elements", "wanted"),
    [
        # No step was timed yet.
        (math.inf, math.inf, 60, 1),
        (0.010, 0.005, 60, 10),
        # The slowest process counts.
        (0.010, 0.050, 60, 2),
        (0.010, 10.0, 60, 1),
        (0.0001, 0.0001, 60, 32),
        (0.0, 0.0, 60, 1),
        # Two steps of two million numbers each: large micro-batches are not fetched ahead.
        (0.001, 0.001, 2_000_000, 2),
        (0.001, 0.001, 9_000_000, 1),
    ],
)
def test_the_processes_agree_on_more_steps_the_shorter_they_are(
    own: float, other: float, elements: int, wanted: int
) -> None:
    large = of_process([[lane_of(2, elements // 3, 1.0, [1])]], seconds=other)
    small = [[lane_of(0, 1, 1.0, [2])]]
    for first in (True, False):
        rows = (lambda numbers: [numbers, large]) if first else (lambda numbers: [large, numbers])
        assert agree(run_of(rows), small, own)[1] == wanted


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The examples that were fetched so far, one for each lane, of a run whose data are the numbers to 39."""
    so_far: list[int] = []

    def lanes(run: Any) -> Any:
        for number in range(40):
            so_far.append(number)
            yield lane_of(0, 1, 1.0, [number])

    monkeypatch.setattr(agreement, "fetch_lanes", lanes)
    return so_far


def test_a_process_alone_fetches_nothing_ahead(fetched: list[int]) -> None:
    run = run_of(lambda own: [own])
    run.max_steps, run.share, run.state.step = 6, range(1), 0
    for step in agreed_steps(run):
        run.state.step += 1
        assert len(fetched) == run.state.step and step.totals.examples == 1


def test_several_processes_fetch_what_they_agree_on_and_no_more(
    fetched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "AHEAD_STEPS", 8)
    sent = []
    run = run_of(lambda own: sent.append(len(own)) or [own, own])
    run.max_steps, run.share, run.state.step = 20, range(1), 0
    consumed = []
    for step in agreed_steps(run):
        consumed += step.lanes[0].consumed
        run.state.step += 1
        time.sleep(0.001)
    # The first step is not timed yet when the second is fetched; the last time, two are left.
    assert [(size - 2) // 8 for size in sent] == [1, 1, 8, 8, 2]
    assert consumed == fetched == list(range(20))


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("at", range(2, 10))
def test_processes_that_agreed_on_several_steps_stop_before_the_same_one(
    asked: int, at: int, fetched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "AHEAD_STEPS", 8)
    # Two processes take turns at each step; the answer to what one asks comes with the next step.
    own = run_of(lambda numbers: [numbers, [float(other.signals.number > 0), *numbers[1:]]])
    other = run_of(lambda numbers: [numbers, [float(own.signals.number > 0), *numbers[1:]]])
    answers: dict[int, bool] = defaultdict(bool)

    def any_later(condition: bool) -> Any:
        step = own.state.step
        answers[step] |= condition
        return lambda: answers[step]

    for run in (own, other):
        run.max_steps, run.share, run.state.step = 20, range(1), 0
        run.hardware.any_later = any_later
    both = [agreed_steps(own), agreed_steps(other)]
    for step in range(20):
        stops = [next(each).totals.stop for each in both]
        if any(stops):
            break
        if step == at:
            (own, other)[asked].signals.number = 15
        for run in (own, other):
            run.state.step += 1
        time.sleep(0.001)
    # A signal in the first step is heard when the processes agree on the next ones.
    assert at + 1 <= own.state.step <= at + 2
    assert stops[asked] == "SIGTERM" and stops[1 - asked] == "a signal to another process"


@pytest.mark.parametrize("moment", ["backward", "forward"])
def test_a_signal_between_steps_that_were_agreed_on_together_stops_all(tmp_path: Path, moment: str) -> None:
    # The steps of the toy take about a millisecond, so the last 40 of these are agreed on in two or three parts.
    flags = ("--max_steps", "60", "--save_steps", "0", "--eval_steps", "0", "--logging_steps", "60")
    for number, process in enumerate((0, 1, 1)):
        folder = tmp_path / str(number)
        step = 30 + 3 * number
        stop = Interruption(moment, step, process=process, signal=signal.SIGTERM)
        assert interrupted(folder, stop, *flags, processes=2) == [75, 75], output(folder)
        found, _ = newest_checkpoint(folder)
        assert found is not None and step_of(found) in steps_of_a_stop(output(folder), 2)
        assert step_of(found) > step


@pytest.mark.parametrize("streamed", ["True", "False"])
def test_looking_ahead_changes_no_number(tmp_path: Path, streamed: str) -> None:
    # A slow process makes each step last longer than the time for which the processes look ahead.
    flags = ("--streamed", streamed, "--max_steps", "12")
    train(tmp_path / "ahead", *flags, processes=2)
    train(tmp_path / "single", *flags, "--slow_process", "1", "--slow_rows", "0.06", processes=2)
    ahead, single = metrics(tmp_path / "ahead"), metrics(tmp_path / "single")
    assert [each["loss"] for each in ahead] == [each["loss"] for each in single]
    assert min(each["seconds_per_step"] for each in single) > agreement.AHEAD_SECONDS
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text().splitlines() for name in ("ahead", "single")]
    steps = ["".join(json.loads(line).get("steps", "") for line in lines) for lines in ledgers]
    assert steps[0] == steps[1] and len(steps[0]) == 12 * 16
