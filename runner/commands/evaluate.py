"""`relay evaluate`: score a trained model on a split of its recipe's data, or files of predictions without one."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from runner.config import parse_into
from runner.errors import ConfigError, DataError
from runner.settings import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of an evaluation; the recipe's own settings may stand beside them, to score on other data."""

    checkpoint: str
    """Folder of a run, of a checkpoint or of final."""
    split: Literal["validation", "test", "train"] = "validation"
    """Which examples to score."""
    max_eval_examples: int | None = None
    """Use only this many examples: a fixed draw."""
    micro_batch_size: int = 16
    """Examples at a time."""
    mixed_precision: Precision | None = None
    """Number format of the arithmetic; none: that of the run, so that the scores are the run's own."""
    output: str | None = None
    """File for the rows, one JSON object per example."""


def main(arguments: list[str]) -> None:
    """Print every score of the split, or of the files."""
    from runner.commands import split_flags

    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--recipe" in words and "--checkpoint" not in words:
        _score_files(words)
        return
    own, others = split_flags(EvaluateSettings, arguments)
    wants_help = "--help" in own or "-h" in own
    settings: EvaluateSettings = parse_into(
        EvaluateSettings, own, "relay evaluate", f"{__doc__}\n\n{_without_a_model()}" if wants_help else __doc__
    )
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import find_config, find_weights, load_trained
    from runner.settings import RunSettings

    _check_output(settings.output)
    if settings.micro_batch_size < 1:
        raise ConfigError(f"micro_batch_size is {settings.micro_batch_size}: type a number of at least 1.")
    config = find_config(Path(settings.checkpoint), others)
    print(f"model: {describe_weights(find_weights(Path(settings.checkpoint)))}", file=sys.stderr, flush=True)
    recipe, model = load_trained(Path(settings.checkpoint), config.recipe)
    from runner.assembly import sampled
    from runner.evaluation import evaluate_rows
    from runner.fetching import is_stream
    from runner.hardware import best_device_type, open_hardware

    data = sampled(recipe.data(settings.split), settings.max_eval_examples)
    if is_stream(data) or not len(data):
        raise DataError(f"The recipe has no {settings.split} split to score: type --split with another one.")
    # A run that trained in fp16 on a GPU is scored on a CPU in what that has.
    lacks_fp16 = config.run.mixed_precision == "fp16" and best_device_type() == "cpu"
    of_the_run = "auto" if lacks_fp16 else config.run.mixed_precision
    hardware = open_hardware(RunSettings(mixed_precision=settings.mixed_precision or of_the_run))
    found = evaluate_rows(
        recipe, model.to(hardware.device), data, hardware, settings.micro_batch_size, shows_progress=True
    )
    assert found is not None
    scores, rows = found
    print(f"{settings.split}, {len(data):,} examples")
    width = max(len(name) for name in scores)
    for name, value in scores.items():
        print(f"  {name:{width}}  {value:.4f}")
    _write(rows, settings.output)


def _score_files(arguments: list[str]) -> None:
    """What the recipe makes of files of predictions; its own settings may stand beside theirs."""
    from runner import registry
    from runner.commands import split_flags
    from runner.config import parse

    place = arguments.index("--recipe")
    name, rest = "".join(arguments[place + 1 : place + 2]), arguments[:place] + arguments[place + 2 :]
    recipe = registry.find(name)
    if recipe.Files is None:
        raise ConfigError(f"The recipe {name} scores no files: type --checkpoint with a trained model of it.")
    own, others = split_flags(recipe.Files, rest)
    files = parse_into(recipe.Files, own, f"relay evaluate --recipe {name}")
    _check_output(files.output)
    text, rows = parse(["--recipe", name, *others]).recipe.score_files(files)
    print(text)
    _write(rows, files.output)


def _without_a_model() -> str:
    """How each recipe that scores files is called."""
    from runner import registry
    from runner.config import settings_of

    lines = []
    for name in registry.names():
        files = registry.find(name).Files
        if files is not None:
            flags = " ".join(f"[--{setting.flag}]" for setting in settings_of(files))
            lines.append(f"Without a model: relay evaluate --recipe {name} {flags}; --help after it says more.")
    return "\n\n".join(lines)


def _check_output(output: str | None) -> None:
    """Before the work, not after it."""
    if output is None:
        return
    path = Path(output)
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder for {output}: type --output with a file in one that is there.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{output} cannot be written: type --output with a file, in a folder that you may write in.")


def _write(rows: Sequence[Any], output: str | None) -> None:
    if output is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error.strerror}. Type --output with another file.") from None
