"""What a training shows of itself, on made curves. Run alone: python -m pytest tests/runner/test_watching.py"""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import watching
from runner.watching import Watch
from tests.launching import output, train

STEPS = range(10, 410, 10)
NOISE = random.Random(0)
SOME = [NOISE.gauss(0, 1) for _ in STEPS]


def curve(value: Callable[[float], float], noise: float = 0.0) -> list[tuple[int, float]]:
    """Losses at 40 steps, as a function of the share of the run that is done."""
    return [(step, value(step / 400) + noise * some) for step, some in zip(STEPS, SOME, strict=True)]


HEALTHY = {
    "falls": curve(lambda x: 3 * math.exp(-5 * x) + 0.5, 0.03),
    "falls slowly with noise": curve(lambda x: 3 - 0.8 * x, 0.1),
    "falls at once, then is level": [(0, 7.0), *curve(lambda x: 2.0, 0.02)],
    "falls in the middle": curve(lambda x: 3 - 0.3 * x - 2.5 / (1 + math.exp(-80 * (x - 0.5)))),
    "is nearly 0 at the end": curve(lambda x: 4 * math.exp(-9 * x)),
    "is nearly 0 and noisy": [(step, abs(loss)) for step, loss in curve(lambda x: 2 * math.exp(-9 * x) + 0.01, 0.005)],
    "is negative": curve(lambda x: -3 * x, 0.05),
    "is short": curve(lambda x: 2.0)[:10],
    "has no numbers": [(step, math.nan) for step in STEPS],
    "is empty": [],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_says_nothing(name: str) -> None:
    losses = HEALTHY[name]
    for end in range(len(losses) + 1):
        assert watching.not_falling(losses[:end]) is None, end
        assert watching.oscillation(losses[:end]) is None, end
        assert watching.overfitting(losses[:end], [(step, loss + 0.1) for step, loss in losses[:end:5]]) is None


@pytest.mark.parametrize(
    "losses",
    [
        curve(lambda x: 2.0, 0.0),
        curve(lambda x: 2.0, 0.05),
        curve(lambda x: 2.0 + x, 0.05),
        curve(lambda x: 0.69, 0.01),
    ],
)
def test_a_loss_that_does_not_fall(losses: list[tuple[int, float]]) -> None:
    finding = watching.not_falling(losses)
    assert finding and "--learning_rate" in finding and "find-lr" in finding


@pytest.mark.parametrize(
    "losses",
    [
        curve(lambda x: 2 + math.cos(400 * x / 10 * math.pi)),
        curve(lambda x: 1.0, 0.9),
        curve(lambda x: 3 - x if x < 0.5 else 2.5 + 2 * math.sin(100 * x)),
    ],
)
def test_a_loss_that_jumps(losses: list[tuple[int, float]]) -> None:
    finding = watching.oscillation(losses)
    assert finding and "--learning_rate" in finding and "--batch_size" in finding


FALLING = curve(lambda x: 2 * math.exp(-4 * x))


@pytest.mark.parametrize(
    ("validation", "losses", "since"),
    [
        ([2.0, 1.0, 1.1, 1.2, 1.3], FALLING, 160),
        ([1.0, 1.1, 1.2, 1.3, 1.5], FALLING, 80),
        # Up by too little, too few evaluations since, noise, and a train loss that rises too.
        ([2.0, 1.0, 1.01, 1.0, 1.02], FALLING, None),
        ([2.0, 1.5, 1.0, 1.2, 1.3], FALLING, None),
        ([2.0, 1.2, 1.4, 1.2, 1.1], FALLING, None),
        ([2.0, 1.0, 1.1, 1.2, 1.3], curve(lambda x: 1 + x), None),
        ([2.0, math.nan, 1.0], FALLING, None),
    ],
)
def test_overfitting(validation: list[float], losses: list[tuple[int, float]], since: int | None) -> None:
    finding = watching.overfitting(losses, [(80 * (place + 1), loss) for place, loss in enumerate(validation)])
    assert (finding is None) == (since is None)
    if finding:
        assert f"since step {since}" in finding and "--early_stopping_patience" in finding


@pytest.mark.parametrize(
    ("finding", "setting"),
    [
        (watching.starved(3.0, 10.0, 0), "--num_workers 2"),
        (watching.starved(9.0, 10.0, 4), "--num_workers 8"),
        (watching.padding_waste(51, 100), "--micro_batch_size"),
        (watching.padding_waste(31, 100, True), "--group_by_length true"),
        (watching.memory_nearly_full(0.95), "--gradient_checkpointing"),
        (watching.small_evaluation(20, False, True), "larger validation split"),
        (watching.small_evaluation(99, True, False), "--max_eval_examples"),
    ],
)
def test_each_finding_names_what_to_change(finding: str | None, setting: str) -> None:
    assert finding and setting in finding and "\n" not in finding


@pytest.mark.parametrize(
    "finding",
    [
        watching.starved(2.9, 10.0, 0), watching.starved(0.0, 0.0, 0), watching.padding_waste(50, 100),
        watching.padding_waste(0, 0), watching.padding_waste(30, 100, True),
        watching.memory_nearly_full(0.92), watching.small_evaluation(100, True, True),
        watching.small_evaluation(0, False, True),
    ],
)  # fmt: skip
def test_below_the_limits_nothing_is_said(finding: str | None) -> None:
    assert finding is None


def test_each_finding_comes_once() -> None:
    watch = Watch()
    for _ in range(200):
        watch.add_step(0.5, 1.0)
        watch.add_padding(9, 10)
    found = [line for step, loss in curve(lambda x: 2.0) for line in watch.after_log(step, loss, 0, 0.99)]
    found += [line for step in (10, 20) for line in watch.after_evaluation(step, 1.0, 5, False)]
    assert len(found) == len(set(found)) == 5


def test_steps_of_the_warm_up_do_not_count() -> None:
    level = curve(lambda x: 2.0)
    for warmup_steps, count in ((0, 1), (300, 0)):
        watch = Watch(warmup_steps=warmup_steps)
        assert len([line for step, loss in level for line in watch.after_log(step, loss, 0, None)]) == count


@pytest.mark.parametrize("logged", [200, 2_000, 8_000])
def test_a_logged_step_of_a_long_run_costs_what_one_of_a_short_run_costs(
    logged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def counted(curve: watching.Curve) -> None:
        nonlocal read
        read += len(curve)

    monkeypatch.setattr(watching, "not_falling", counted)
    monkeypatch.setattr(watching, "oscillation", counted)
    watch = Watch()
    for step in range(logged):
        assert list(watch.after_log(step + 1, 1.0, 0, None)) == []
    assert 0 < read / logged < 400


def test_a_loss_that_rises_late_in_a_long_run_is_still_seen() -> None:
    watch = Watch()
    losses = [5 / (1 + number / 10) for number in range(500)] + [number / 50 for number in range(700)]
    found = [number for number, loss in enumerate(losses) for _ in watch.after_log(10 * number, loss, 0, None)]
    assert len(found) == 1 and found[0] > 500


def test_a_few_steps_prove_nothing() -> None:
    assert watching.not_falling([(step, 2.0) for step in range(1, 40)]) is None
    assert watching.not_falling([(step, 2.0) for step in range(1, 100)]) is not None


def test_a_training_prints_what_it_sees_once(tmp_path: Path) -> None:
    train(tmp_path / "run", "--learning_rate", "0", "--max_steps", "80")
    printed = output(tmp_path / "run")
    assert printed.count("note: the train loss has not fallen") == 1
    assert printed.count("note: the evaluation has 31 examples") == 1


@pytest.mark.parametrize(
    ("metrics", "has_shares"),
    [
        (["loss", "execution_accuracy/held_out"], True),
        (["exact_match"], True),
        (["auroc", "f1"], True),
        (["loss", "bits_per_byte", "perplexity"], False),
        (["target_mae", "unifrac_r2"], False),
        (["loss"], False),
    ],
)
def test_shares_are_named_where_something_is_a_share(metrics: list[str], has_shares: bool) -> None:
    (line,) = watching.Watch().after_evaluation(1, 1.0, 25, False, metrics)
    assert ("shares of right answers are uncertain by up to 0.10" in line) == has_shares
    assert "25 examples" in line and "larger validation split" in line
