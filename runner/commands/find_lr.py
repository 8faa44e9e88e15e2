"""`relay find-lr`: find a learning rate, by a range test or by short trainings.

The range test raises the learning rate from step to step, and shows where the loss falls and where it diverges. It
finds the order of magnitude only. `--sweep` trains once for each learning rate that you list, with the same data, seed
and schedule, and scores each on the validation split. Relay writes a picture; the trained models are deleted.

--recipe NAME, --preset P, --config FILE and any flag of a training may follow.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Annotated, Any

from runner.assembly import open_run
from runner.commands import split_flags
from runner.config import Config, parse, parse_into
from runner.errors import ConfigError, DataError, DivergedError
from runner.parts.counting import counted
from runner.parts.rate_chart import rate_chart
from runner.parts.setting_types import MOST, Positive, Range

if TYPE_CHECKING:
    from runner.hardware import Hardware

# Weight of earlier losses in the smoothed loss, and the multiple of the lowest loss that is a divergence: as in fastai.
SMOOTHING = 0.98
DIVERGED = 4.0
FEWEST_LOSSES = 10
"""With fewer, nobody knows by how much the losses of batches differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindSettings:
    """Settings of the search. Any flag of a training may follow."""

    min: Positive = 1e-6
    """Range test: the learning rate of the first step."""
    max: Positive = 1.0
    """Range test: the learning rate of the last step."""
    steps: Annotated[int, Range(3, MOST)] = 100
    """Number of steps of the range test, or of each training of a sweep."""
    sweep: str | None = None
    """Train with each of these learning rates instead, separated by commas: 1e-4,3e-4,1e-3."""
    output: str | None = None
    """File for the picture, which ends in .svg; runs/find-lr-<recipe>.svg by default."""

    def __post_init__(self) -> None:
        if not 0 < self.min < self.max:
            raise ConfigError(
                f"min is {self.min} and max is {self.max}; min must be below max: type --min 1e-6 --max 1."
            )

    @property
    def rates(self) -> list[float]:
        """The learning rates of a sweep."""
        try:
            rates = [float(word) for word in (self.sweep or "").split(",")]
        except ValueError:
            rates = []
        if not rates or min(rates) <= 0 or not all(map(math.isfinite, rates)):
            raise ConfigError(f"sweep is {self.sweep!r}: type --sweep with rates and commas, like 1e-4,3e-4,1e-3.")
        return rates


def main(arguments: list[str]) -> None:
    """Print what was found, and write the picture."""
    own, others = split_flags(FindSettings, arguments)
    settings: FindSettings = parse_into(FindSettings, own, "relay find-lr", __doc__)
    config = parse(others, "relay find-lr")
    name = Path(config.recipe_name).stem
    picture = Path(settings.output or f"runs/find-lr-{name}.svg")
    if picture.suffix != ".svg":
        raise ConfigError(f"output is {picture}: type --output with a file that ends in .svg.")
    if settings.sweep is not None:
        rates = settings.rates
    print(f"relay find-lr: {config.recipe_name}, preset {config.preset or 'default'}")
    with tempfile.TemporaryDirectory(prefix="relay-find-lr-") as folder:
        config = config.with_run(output_dir=folder, report_to="none", resume_from_checkpoint=None, upload_to=None)
        text = _sweep(config, rates, settings.steps) if settings.sweep is not None else _test(config, settings)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(text, encoding="utf-8")
    print(f"picture: {picture}")


def _test(config: Config, settings: FindSettings) -> str:
    """Run the range test: print its table, return its picture as SVG."""
    rates, losses, broken = range_test(config, settings.min, settings.max, settings.steps)
    smoothed = smooth(losses)
    found = marks_of(rates, losses, broken)
    print("  learning rate  raw loss  smoothed")
    for place in range(0, len(rates), max(1, len(rates) // 16)):
        print(f"  {rates[place]:13.2e} {losses[place]:9.4f} {smoothed[place]:9.4f}")
    meanings = {
        "careful": "two thirds into the longest fall of the smoothed loss (valley), below the steepest place",
        "steepest": "where the smoothed loss falls fastest over log(learning rate)",
        "divergence": "where the raw loss is far above its lowest value: stay well below",
    }
    for name, rate in found.items():
        print(f"{name:10} {'not reached' if rate is None else f'{rate:.2e}':>11}  {meanings[name]}")
    chosen = found["careful"]
    if chosen is None:
        print("The loss never fell: type a wider range with --min and --max, or more --steps.")
    else:
        print(
            f"This is the order of magnitude. To choose, type: --sweep {chosen / 3:.0e},{chosen:.0e},{chosen * 3:.0e}"
        )
    marks = {name: rate for name, rate in found.items() if rate is not None}
    return rate_chart({"raw loss": (rates, losses), "smoothed": (rates, smoothed)}, marks, "loss of the step")


def _sweep(config: Config, rates: Sequence[float], steps: int) -> str:
    """Train shortly with each learning rate: print the table, return the picture as SVG."""
    from runner.evaluation import is_better

    # All rates are compared in one number format.
    hardware = open_run(config).hardware
    results = []
    best: int | None = None
    metric = ""
    print(f"  learning rate  {'train loss':>10}  validation, after {steps} steps")
    for rate in rates:
        started = time.monotonic()
        loss, scores, metric = train_shortly(config, rate, steps, hardware)
        seconds = time.monotonic() - started
        results.append((loss, scores))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items()) or "diverged"
        print(f"  {rate:13.2e}  {loss:10.4f}  {shown}  ({seconds:.0f} s)", flush=True)
        score = scores.get(metric, math.nan)
        standing = results[best][1][metric] if best is not None else None
        if is_better(metric, score, standing, config.run.greater_is_better):
            best = len(results) - 1
    if best is None:
        print(f"No learning rate gave a {metric}: type lower ones.")
    else:
        at_the_end = len(rates) > 1 and rates[best] in (min(rates), max(rates))
        print(f"best {metric}: --learning_rate {rates[best]:g}" + ("; it ends the sweep: widen it" * at_the_end))
    points = [(rate, scores["loss"]) for rate, (_, scores) in zip(rates, results, strict=True) if "loss" in scores]
    points.sort()
    marks = {"best": rates[best]} if best is not None else {}
    curve = ([rate for rate, _ in points], [loss for _, loss in points])
    return rate_chart({"validation loss": curve}, marks, "validation loss")


def marks_of(rates: Sequence[float], losses: Sequence[float], broken: float | None) -> dict[str, float | None]:
    """The careful and the steepest learning rate, and that of the divergence; None where there is none.

    `broken`: the rate at which the loss was no number any more. `careful` is below `steepest`, which is below
    `divergence`.
    """
    diverged = divergence(rates, losses)
    if diverged is None:
        diverged = broken
    before = sum(diverged is None or rate < diverged for rate in rates)
    # What comes after the divergence is no fall of a training.
    smoothed = smooth(losses[:before])
    fastest, fallen = steepest(rates[:before], smoothed), valley(rates[:before], smoothed)
    careful = fallen if fastest is None or fallen is None else min(fallen, fastest / 3)
    return {"careful": careful, "steepest": fastest, "divergence": diverged}


def range_test(config: Config, low: float, high: float, steps: int) -> tuple[list[float], list[float], float | None]:
    """The learning rates, which grow by a constant factor, and the loss of each step before its update; and the rate
    at which the loss or the gradient was no number, None where all were.

    Ends where the raw loss has diverged. Source: Smith 2015, arXiv 1506.01186.
    """
    from runner import loop
    from runner.agreement import agreed_steps
    from runner.step import accumulate, judge, update

    run = open_run(config.with_run(max_steps=steps, on_bad_step="stop", grad_norm_spike_factor=0.0, eval_steps=0))
    run.rates = lambda step: low * (high / low) ** (step / (steps - 1))
    rates: list[float] = []
    losses: list[float] = []
    broken: float | None = None
    upcoming = agreed_steps(run)
    for step in counted(range(steps), steps, "range test", "steps"):
        following = next(upcoming)
        lanes, totals = following.lanes, following.totals
        loss, _ = accumulate(run, lanes, totals)
        rates.append(run.learning_rate(step))
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            broken = rates[-1]
            break
        if divergence(rates, losses) is not None:
            break
        try:
            update(run, loss, totals)
            judge(run)
        except DivergedError:
            broken = rates[-1]
            break
        loop.record_step(run, lanes, totals)
    kept = [place for place, loss in enumerate(losses) if math.isfinite(loss)]
    if len(kept) < 3:
        raise DivergedError("The loss is not finite from the first step: check the data, or type a lower --min.")
    return [rates[place] for place in kept], [losses[place] for place in kept], broken


def train_shortly(config: Config, rate: float, steps: int, hardware: "Hardware") -> tuple[float, dict[str, float], str]:
    """The last training loss, the validation scores (none if it diverged) and the metric to choose by."""
    from runner import loop
    from runner.evaluation import evaluate

    changes = {"learning_rate": rate, "max_steps": steps, "logging_steps": steps, "eval_steps": 0}
    run = open_run(config.with_run(**changes), hardware)
    if not len(run.eval_data):
        raise DataError("The recipe has no validation split to choose by: leave --sweep out, or give it one.")
    eval_data, run.eval_data = run.eval_data, []
    seen = Metrics()
    run.metrics = seen  # type: ignore[assignment]
    try:
        loop.train(run)
    except DivergedError:
        return math.nan, {}, run.best_metric
    scores = evaluate(run.recipe, run.bare_model, eval_data, run.hardware, run.settings.examples_per_evaluation_batch)
    return seen.loss, scores or {}, run.best_metric


class Metrics:
    """Stands in for metrics.jsonl: holds the last training loss."""

    loss = math.nan

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """Remember the loss."""
        self.loss = values["loss"]


def smooth(losses: Sequence[float]) -> list[float]:
    """The exponentially weighted running mean of the losses, with the bias towards 0 corrected."""
    mean, smoothed = 0.0, []
    for place, loss in enumerate(losses):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING ** (place + 1)))
    return smoothed


def valley(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate two thirds into the longest falling subsequence of the losses; None if they never fall.

    Source: fastai's default (`valley`, fastai pull request 3377): the longest decreasing subsequence.
    """
    if len(losses) < 2:
        return None
    longest = [1] * len(losses)
    before = [-1] * len(losses)
    for place in range(1, len(losses)):
        for earlier in range(place):
            if losses[earlier] > losses[place] and longest[earlier] + 1 > longest[place]:
                longest[place], before[place] = longest[earlier] + 1, earlier
    end = max(range(len(losses)), key=longest.__getitem__)
    if longest[end] < 2:
        return None
    first = end
    while before[first] >= 0:
        first = before[first]
    return rates[first + round((end - first) * 2 / 3)]


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate where the losses fall fastest over log(rate); None if they never fall.

    The slope is that of a straight line through a fifth of the points: differences of neighbours are mostly noise. The
    first tenth of the points is left out, because the smoothed loss still follows each batch there.
    """
    import numpy as np

    reach, first = max(1, len(losses) // 10), len(losses) // 10
    places = range(max(reach, first), len(losses) - reach)
    logs = np.log(rates)
    slopes = [
        np.polyfit(logs[place - reach : place + reach + 1], losses[place - reach : place + reach + 1], 1)[0]
        for place in places
    ]
    if not slopes or min(slopes) >= 0:
        return None
    return rates[places[int(np.argmin(slopes))]]


def divergence(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The first rate at which the raw loss is far above its lowest value and stays above it; None if there is none.

    Far: by three times that value, or by half as much again as the loss has fallen, where it has fallen by a tenth or
    more. For a loss near or below 0, the fall is the unit. And by five times the median step from one loss to the
    next: so much the batches differ. It stays above where the median of the five losses from there on has lost a
    quarter of the fall: one high loss may belong to a bad batch. The lowest value is that of means of three losses.
    """
    if len(losses) < FEWEST_LOSSES:
        return None
    steps = [abs(later - earlier) for earlier, later in zip(losses, losses[1:], strict=False)]
    lowest = first = mean_of(losses[:3])
    for place, (rate, loss) in enumerate(zip(rates, losses, strict=True)):
        if place >= 2:
            lowest = min(lowest, mean_of(losses[place - 2 : place + 1]))
        fall = first - lowest
        limit = (DIVERGED - 1) * max(abs(lowest), abs(fall))
        if fall > 0.1 * abs(first):
            limit = min(limit, 1.5 * fall)
        is_far = 0 < limit < loss - lowest and loss - lowest > 5 * median(steps[: max(1, place)])
        following = losses[place : place + 5]
        if is_far and len(following) > 1 and median_low(following) > lowest + fall / 4:
            return rate
    return None


def mean_of(values: Sequence[float]) -> float:
    """The mean of some numbers; there is at least one."""
    return sum(values) / len(values)
