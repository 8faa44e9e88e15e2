"""What the numbers of a training show, in one line with the setting to change; each finding is printed once.

Each finding is a function of curves, without a run. The limits are chosen so that a healthy training prints nothing;
`tests/runner/test_watching.py` has curves of both kinds.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

Curve = Sequence[tuple[int, float]]
"""(step, value) in the order of the steps."""

FEWEST_LOSSES = 16
FEWEST_STEPS_TO_FALL = 50
FEWEST_STEPS = 100
"""Steps before the shares of time and of padding count: the first steps are slow for other reasons."""


@dataclasses.dataclass
class Watch:
    """The curves of a run so far, and what was said about them."""

    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """The mean train loss since the entry before, at each logged step."""
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    warmup_steps: int = 0
    """Steps in which the learning rate only grows: the loss need not fall there."""
    waiting_seconds: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    padded: int = 0
    places: int = 0
    """Places for tokens in the micro-batches that were looked at, and those of them that are padding."""
    said: set[str] = dataclasses.field(default_factory=set)

    def add_step(self, waiting_seconds: float, seconds: float) -> None:
        """Count a step, and the part of its time in which the loop waited for its data."""
        self.waiting_seconds += waiting_seconds
        self.seconds += seconds
        self.steps += 1

    def add_padding(self, padded: int, places: int) -> None:
        """Count the padding of a micro-batch."""
        self.padded += padded
        self.places += places

    def after_log(
        self, step: int, loss: float, num_workers: int, memory_share: float | None, can_sort: bool = False
    ) -> Iterator[str]:
        """What a logged step shows."""
        self.losses.append((step, loss))
        # The curve is looked at again after each hundredth of it, so that a long run does not slow down.
        if len(self.losses) % max(1, len(self.losses) // 100) == 0:
            yield from self._once(
                "not falling", not_falling([point for point in self.losses if point[0] > self.warmup_steps])
            )
            yield from self._once("oscillation", oscillation(self.losses))
        if self.steps >= FEWEST_STEPS:
            yield from self._once("starved", starved(self.waiting_seconds, self.seconds, num_workers))
            yield from self._once("padding", padding_waste(self.padded, self.places, can_sort))
        if memory_share is not None:
            yield from self._once("memory", memory_nearly_full(memory_share))

    def after_evaluation(
        self, step: int, loss: float, examples: int, is_sampled: bool, metrics: Iterable[str] = ()
    ) -> Iterator[str]:
        """What an evaluation shows. `metrics`: the names of its scores."""
        self.validation.append((step, loss))
        yield from self._once("overfitting", overfitting(self.losses, self.validation))
        has_shares = any(SHARES.search(name) for name in metrics)
        yield from self._once("evaluation size", small_evaluation(examples, is_sampled, has_shares))

    def _once(self, kind: str, finding: str | None) -> Iterator[str]:
        if finding is not None and kind not in self.said:
            self.said.add(kind)
            yield finding


def not_falling(losses: Curve) -> str | None:
    """Whether the last quarter of the losses is no lower than the first, beyond what chance explains.

    The first loss is left out: it may belong to fresh weights alone. Chance: two standard errors of the difference.
    """
    values = finite(losses[1:])
    if len(values) < FEWEST_LOSSES - 1 or losses[-1][0] - losses[0][0] < FEWEST_STEPS_TO_FALL:
        return None
    quarter = len(values) // 4
    first, last = values[:quarter], values[-quarter:]
    fall = mean(first) - mean(last)
    # Of a loss that has been low from the start nothing is to be expected.
    if losses[0][1] - mean(last) > 0.1 * abs(losses[0][1]):
        return None
    chance = 2 * math.sqrt((variance(first) + variance(last)) / quarter)
    if fall > max(min(chance, 0.05 * abs(mean(first))), 0.005 * abs(mean(first))):
        return None
    return (
        f"the train loss has not fallen: {mean(first):.4g} at the beginning, {mean(last):.4g} now. Find a "
        "--learning_rate with relay find-lr, and look at the labels of a few examples."
    )


def overfitting(losses: Curve, validation: Curve) -> str | None:
    """Whether the validation loss has risen for three evaluations since its lowest value, by 5 % or more, while the
    train loss fell."""
    points = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    if len(points) < 4:
        return None
    place = min(range(len(points)), key=lambda at: points[at][1])
    step, lowest = points[place]
    after = points[place + 1 :]
    if len(after) < 3 or after[-1][1] - lowest < 0.05 * abs(lowest):
        return None
    before = finite([point for point in losses if point[0] <= step][-3:])
    since = finite([point for point in losses if point[0] > step][-3:])
    if not before or not since or mean(since) >= mean(before):
        return None
    return (
        f"overfitting since step {step:,}: the validation loss rose from {lowest:.4g} to {after[-1][1]:.4g} while the "
        f"train loss fell to {mean(since):.4g}. Use more data, a larger dropout or --weight_decay, or end with "
        "--early_stopping_patience 3."
    )


def oscillation(losses: Curve) -> str | None:
    """Whether the last losses jump about their straight trend by more than 30 % of their mean, and by a quarter of
    all that the loss has fallen. A smooth curve, however steep, turns too seldom. The first loss is left out."""
    values = finite(losses[1:])
    if len(values) < FEWEST_LOSSES:
        return None
    last = values[-FEWEST_LOSSES:]
    spread = math.sqrt(variance(residuals(last)))
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(last, last[1:], last[2:], strict=False))
    if turns < len(last) // 3:
        return None
    fallen = max(0.0, mean(values[:2]) - mean(last))
    if spread <= 0.3 * abs(mean(last)) or spread <= 0.25 * fallen:
        return None
    return (
        f"the train loss jumps: {min(last):.4g} to {max(last):.4g} in the last {len(last)} log lines. Lower "
        "--learning_rate, or raise --batch_size."
    )


def starved(waiting_seconds: float, seconds: float, num_workers: int) -> str | None:
    """Whether the loop waits for its data for more than 30 % of the time."""
    if seconds <= 0 or waiting_seconds < 0.3 * seconds:
        return None
    return (
        f"the loop waits for its data {waiting_seconds / seconds:.0%} of the time: prepare them ahead with "
        f"--num_workers {max(2, 2 * num_workers)}."
    )


def padding_waste(padded: int, places: int, can_sort: bool = False) -> str | None:
    """Whether much of the tokens is padding: half, or 30 % where the examples of a step can be sorted by length."""
    if not places or padded <= (0.3 if can_sort else 0.5) * places:
        return None
    advice = "type --group_by_length true at the next start, or " if can_sort else ""
    return (
        f"{padded / places:.0%} of the tokens are padding: {advice}lower --micro_batch_size, so that fewer texts are "
        "padded to the longest one, or the recipe's limit of length."
    )


def memory_nearly_full(share: float) -> str | None:
    """Whether more than 92 % of the memory is taken."""
    if share <= 0.92:
        return None
    return f"{share:.0%} of the memory is taken: lower --micro_batch_size, or type --gradient_checkpointing true."


SHARES = re.compile(r"accuracy|match|valid|precision|recall|f1|hits?(_|@|$)")
"""Names of metrics that are shares of right answers."""


def small_evaluation(examples: int, is_sampled: bool, has_shares: bool) -> str | None:
    """Whether an evaluation has fewer than 100 examples: a share then has a standard error of up to 0.05 or more."""
    if not 0 < examples < 100:
        return None
    error = 0.5 / math.sqrt(examples)
    remedy = "raise --max_eval_examples" if is_sampled else "use a larger validation split"
    shares = f"shares of right answers are uncertain by up to {error:.2f} (one standard error)"
    words = shares if has_shares else "scores of so few differ by chance"
    return (
        f"the evaluation has {examples} example{'s' * (examples != 1)}: {words}, so {remedy} before you compare scores."
    )


def finite(points: Iterable[tuple[int, float]]) -> list[float]:
    """The values that are numbers."""
    return [value for _, value in points if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """The mean; there is at least one value."""
    return sum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """The variance of a sample."""
    middle = mean(values)
    return sum((value - middle) ** 2 for value in values) / max(1, len(values) - 1)


def residuals(values: Sequence[float]) -> list[float]:
    """The distances from the straight line of least squares."""
    middle, centre = mean(values), (len(values) - 1) / 2
    width = sum((place - centre) ** 2 for place in range(len(values)))
    slope = sum((place - centre) * value for place, value in enumerate(values)) / width
    return [value - middle - slope * (place - centre) for place, value in enumerate(values)]
