"""`relay evaluate`: score a trained model on a split of its recipe's data."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from runner.config import Precision, parse_into
from runner.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of an evaluation; the recipe's own settings may stand beside them, to score on other data."""

    checkpoint: str
    """Folder of a run, of a checkpoint or of final."""
    split: Literal["validation", "test", "train"] = "validation"
    """Which examples to score."""
    max_eval_examples: int | None = None
    """Use only this many examples."""
    micro_batch_size: int = 16
    """Examples at a time."""
    mixed_precision: Precision = "auto"
    """Number format of the arithmetic."""
    output: str | None = None
    """File for the rows, one JSON object per example."""


def main(arguments: list[str]) -> None:
    """Print every score of the split."""
    from runner.commands import own_and_others

    own, others = own_and_others(EvaluateSettings, arguments)
    settings: EvaluateSettings = parse_into(EvaluateSettings, own, "relay evaluate", __doc__)
    from runner.config import RunSettings
    from runner.trained import find_recipe, load

    if settings.output is not None and not Path(settings.output).resolve().parent.is_dir():
        raise ConfigError(f"There is no folder for {settings.output}: type --output with a file in one that is there.")
    if settings.micro_batch_size < 1:
        raise ConfigError(f"micro_batch_size is {settings.micro_batch_size}: type a number of at least 1.")
    recipe = find_recipe(Path(settings.checkpoint), others)
    recipe, model = load(Path(settings.checkpoint), recipe)
    from runner.evaluation import evaluate_rows
    from runner.hardware import open_hardware
    from runner.session import limited

    data = limited(recipe.data(settings.split), settings.max_eval_examples)
    if hasattr(data, "read") or not len(data):
        raise DataError(f"The recipe has no {settings.split} split to score: type --split with another one.")
    hardware = open_hardware(RunSettings(mixed_precision=settings.mixed_precision))
    found = evaluate_rows(recipe, model.to(hardware.device), data, hardware, settings.micro_batch_size)
    assert found is not None
    scores, rows = found
    if settings.output is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(settings.output).write_text(text, encoding="utf-8")
    print(f"{settings.split}, {len(data):,} examples")
    width = max(len(name) for name in scores)
    for name, value in scores.items():
        print(f"  {name:{width}}  {value:.4f}")
