"""The learning rate, and one-cycle's momentum, as functions of the step."""

import math
from collections.abc import Callable

from runner.settings import RunSettings


def learning_rate(settings: RunSettings, step: int, max_steps: int) -> float:
    """The learning rate of update number `step`, counted from 0, of `max_steps`."""
    if settings.lr_scheduler_type == "one_cycle":
        return settings.learning_rate * _one_cycle(step, max_steps, settings)
    warmup_steps = num_warmup_steps(settings, max_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / (warmup_steps + 1)
    shape = SHAPES[settings.lr_scheduler_type]
    return settings.learning_rate * shape(step - warmup_steps, max(1, max_steps - warmup_steps), settings)


def adam_beta1(settings: RunSettings, step: int, max_steps: int) -> float:
    """Adam's first decay rate: constant, but for one-cycle, which lowers it while the learning rate is high.

    Source: Smith and Topin 2017, arXiv 1708.07120; between 0.95 and 0.85, as in torch's OneCycleLR.
    """
    if settings.lr_scheduler_type != "one_cycle":
        return settings.adam_beta1
    rise_steps = _rise_steps(settings, max_steps)
    if step < rise_steps:
        return _anneal(0.95, 0.85, step / rise_steps)
    return _anneal(0.85, 0.95, (step - rise_steps) / max(1, max_steps - 1 - rise_steps))


def num_warmup_steps(settings: RunSettings, max_steps: int) -> int:
    """Steps of linear warm-up: `warmup_steps`, else `warmup_ratio` of all steps, up to `max_warmup_ratio` of them."""
    wanted = settings.warmup_steps or math.ceil(settings.warmup_ratio * max_steps)
    return min(wanted, math.ceil(settings.max_warmup_ratio * max_steps))


def _constant(step: int, num_steps: int, settings: RunSettings) -> float:
    return 1.0


def _linear(step: int, num_steps: int, settings: RunSettings) -> float:
    floor = settings.min_lr_ratio
    return floor + (1 - floor) * (1 - step / num_steps)


def _cosine(step: int, num_steps: int, settings: RunSettings) -> float:
    """Source: Loshchilov and Hutter 2016, arXiv 1608.03983, eq. 5, without restarts."""
    return _anneal(1.0, settings.min_lr_ratio, min(1.0, step / num_steps))


def _step(step: int, num_steps: int, settings: RunSettings) -> float:
    size = settings.lr_step_size or max(1, num_steps // 3)
    return max(settings.min_lr_ratio, settings.lr_gamma ** (step // size))


def _wsd(step: int, num_steps: int, settings: RunSettings) -> float:
    """Stable until the last tenth, then linear decay. Source: Hu et al. 2024 (MiniCPM), arXiv 2404.06395."""
    decay_steps = max(1, num_steps // 10)
    remaining = (num_steps - step) / decay_steps
    floor = settings.min_lr_ratio
    return floor + (1 - floor) * min(1.0, remaining)


SHAPES: dict[str, Callable[[int, int, RunSettings], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
    "wsd": _wsd,
}


def _rise_steps(settings: RunSettings, max_steps: int) -> float:
    """The place of one-cycle's peak, in steps: the warm-up if one is set, else 0.3 of the run less one."""
    warmup_steps = num_warmup_steps(settings, max_steps)
    return float(warmup_steps) if warmup_steps else max(1.0, 0.3 * max_steps - 1)


def _one_cycle(step: int, max_steps: int, settings: RunSettings) -> float:
    """From 1/25 up to 1, then down to 1/250,000, by cosines; the numbers of torch's OneCycleLR."""
    first, last = 1 / 25, max(settings.min_lr_ratio, 1 / 25e4)
    rise_steps = _rise_steps(settings, max_steps)
    if step < rise_steps:
        return _anneal(first, 1.0, step / rise_steps)
    return _anneal(1.0, last, (step - rise_steps) / max(1.0, max_steps - 1 - rise_steps))


def _anneal(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 means never."""
    return every > 0 and step % every == 0
