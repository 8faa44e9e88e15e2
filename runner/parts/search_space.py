"""Which values `relay sweep` tries: ranges of numbers, and lists of values, for any settings of a training.

learning_rate=1e-5..1e-3:log      numbers between two ends, evenly spread over their logarithm
warmup_steps=0..200               whole numbers, where the setting takes whole numbers
model.dropout=0,0.1,0.2           these values; with | between them where a value has commas itself
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from runner.command_line import as_flags, unknown_name
from runner.errors import ConfigError
from runner.fields import Setting

NOT_VARIED = {"output_dir", "resume_from_checkpoint", "upload_to", "report_to", "wandb_project", "wandb_run_name"}
NOT_VARIED |= {"cloud_provider", "cloud_bucket", "cloud_prefix", "cloud_region", "debug", "dry_run"}
NOT_VARIED |= {"metric_for_best_model", "greater_is_better", "early_stopping_patience", "early_stopping_min_delta"}
"""Settings that say where a run writes, or how its score is measured."""
EXAMPLE = "type --vary learning_rate=1e-4..1e-2:log, or --vary learning_rate=1e-4,1e-3"


@dataclasses.dataclass(frozen=True)
class Variation:
    """The values of one setting that a sweep may try."""

    flag: str
    choices: tuple[str, ...] = ()
    """The values, as they are typed; none where it is a range."""
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        kind = "whole numbers " if self.is_whole else ""
        return f"{kind}{self.low:g} to {self.high:g}{', over the logarithm' if self.is_log else ''}"

    def typed(self, value: float | str) -> str:
        """A value of the range as somebody would type it, with four digits; a choice as it is."""
        if isinstance(value, str):
            return value
        if self.is_whole:
            return str(int(value))
        short = float(f"{value:.4g}")
        return f"{min(max(short, self.low), self.high):.10g}"

    def value(self, typed: str) -> float | str:
        """The number, or the choice, that `typed` returned."""
        return typed if self.choices else int(typed) if self.is_whole else float(typed)

    def place(self, typed: str) -> float:
        """Where a value lies between the ends of the range: 0 is the low one, 1 the high one."""
        value, low, high = float(typed), self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low)


def read_variations(texts: Sequence[str], known: Mapping[str, Setting]) -> list[Variation]:
    """The variations that `--vary` names. Raises ConfigError where one cannot be."""
    if not texts:
        raise ConfigError(f"--vary did not come, so there is nothing to try: {EXAMPLE}.")
    found = [_read(text, known) for text in texts]
    names = [each.flag for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--vary names {name} twice: leave one out.")
    return found


def combinations(variations: Sequence[Variation]) -> list[dict[str, str]] | None:
    """All combinations of the values; None where one of the settings has a range."""
    if not all(each.choices for each in variations):
        return None
    names = [each.flag for each in variations]
    return [
        dict(zip(names, values, strict=True)) for values in itertools.product(*(each.choices for each in variations))
    ]


def _read(text: str, known: Mapping[str, Setting]) -> Variation:
    name, equals, values = text.partition("=")
    name = name.lstrip("-").replace("-", "_")
    if not equals or not name or not values.strip():
        raise ConfigError(f"vary is {text!r}, without a setting and its values: {EXAMPLE}.")
    if name not in known:
        raise ConfigError(unknown_name(name, known))
    if name in NOT_VARIED:
        raise ConfigError(f"{name} cannot be varied: it says where a run writes, or how its score is measured.")
    setting = known[name]
    ends, colon, how = values.rpartition(":")
    is_range = ".." in values
    if is_range and colon and how != "log":
        raise ConfigError(f"vary is {text!r}: after the colon only log is known; type --vary {name}={ends}:log.")
    low, _, high = (ends if colon else values).partition("..")
    if is_range and not setting.is_text:
        return _range(setting, low, high, bool(colon))
    separator = "|" if "|" in values else ","
    choices = list(dict.fromkeys(value.strip() for value in values.split(separator)))
    for value in choices:
        as_flags(setting, [value])
    if len(choices) < 2:
        only = choices[0]
        raise ConfigError(f"vary has one value for {name}, {only!r}: type two or more, or --{name} {only}.")
    return Variation(name, tuple(choices))


def _range(setting: Setting, low: str, high: str, is_log: bool) -> Variation:
    name, is_whole = setting.flag, setting.kinds == (int,)
    if not (is_whole or float in setting.kinds):
        raise ConfigError(f"{name} is no number and has no range: type --vary {name}=A,B with {setting.wanted}.")
    for end in (low, high):
        as_flags(setting, [end])
    ends = float(low), float(high)
    if not ends[0] < ends[1]:
        raise ConfigError(f"{name} is to vary from {low} to {high}, and the first is not below the second: swap them.")
    if is_log and ends[0] <= 0:
        raise ConfigError(f"{name} is to vary from {low} over the logarithm, which has no 0: type a low end above 0.")
    return Variation(name, low=ends[0], high=ends[1], is_log=is_log, is_whole=is_whole)
