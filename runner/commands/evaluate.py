"""`relay evaluate`: score a trained model on a split of its recipe's data, or files of predictions without one."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.command_line import chosen_values, name_of
from runner.commands import TrainedSettings, check_output_file, split_flags
from runner.config import parse, parse_into, settings_of, wants_help
from runner.errors import ConfigError, DataError
from runner.parts.setting_types import AtLeast1
from runner.recipe import Recipe
from runner.settings import Precision

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """Settings of an evaluation; the recipe's own settings may stand beside them, to score on other data."""

    split: Literal["validation", "test", "train"] = "validation"
    """Which examples to score."""
    max_eval_examples: AtLeast1 | None = None
    """Use only this many examples: a fixed random sample."""
    micro_batch_size: AtLeast1 = 16
    """Examples at a time."""
    mixed_precision: Precision | None = None
    """Number format of the arithmetic; none: that of the run, so that the scores are the run's own."""
    output: str | None = None
    """File for the rows, one JSON object per example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(TrainedSettings, ScoringSettings):
    """Settings of the evaluation of a run's model; the recipe's own settings may stand beside them."""


def main(arguments: list[str]) -> None:
    """Print every score of the split, or of the files."""
    chosen, words = chosen_values(arguments, ("recipe",))
    names_run = any(name_of(word) == "checkpoint" for word in words) or (words and not words[0].startswith("-"))
    if "recipe" in chosen and not names_run:
        _score_without_run(chosen["recipe"], words)
        return
    own, others = split_flags(EvaluateSettings, arguments)
    description = f"{__doc__}\n\n{_without_a_model()}" if wants_help(own) else __doc__
    settings = parse_into(EvaluateSettings, own, "relay evaluate", description)
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import find_config, find_weights, load_trained

    check_output_file(settings.output)
    config = find_config(settings.folder, [*settings.recipe_flags, *others])
    print(f"model: {describe_weights(find_weights(settings.folder))}", file=sys.stderr, flush=True)
    recipe, model = load_trained(settings.folder, config.recipe)
    from runner.hardware import best_device_type

    # A run that trained in fp16 on a GPU is scored on a CPU in what that has.
    lacks_fp16 = config.run.mixed_precision == "fp16" and best_device_type() == "cpu"
    _score(recipe, model, settings, "auto" if lacks_fp16 else config.run.mixed_precision, str(settings.folder))


def _score(recipe: Recipe, model: "nn.Module", settings: ScoringSettings, precision: Precision, name: str) -> None:
    """Print the scores of a model, and write its rows."""
    from runner.assembly import sampled
    from runner.evaluation import evaluate_rows
    from runner.fetching import is_stream
    from runner.hardware import open_hardware
    from runner.settings import RunSettings

    split = recipe.data(settings.split)
    if is_stream(split) or not len(split):
        kind = "is read as a stream, which has no end to score" if is_stream(split) else "has no examples"
        raise DataError(
            f"The {settings.split} split of {name} {kind}.\n"
            "Type --split with another one of train, validation and test, or give the recipe other data (--data.*)."
        )
    data = sampled(split, settings.max_eval_examples)
    hardware = open_hardware(RunSettings(mixed_precision=settings.mixed_precision or precision))
    recipe.use_precision(model, hardware.precision)
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


def _score_without_run(name: str, arguments: list[str]) -> None:
    """Score files of predictions, or a model that begins with trained weights and that no run has changed."""
    from runner import registry

    found = registry.find(name)
    files = found.Files
    if files is None and found.has_trained_weights is Recipe.has_trained_weights:
        # Say that before a flag such as --metric is taken for a mistyped setting.
        _score_files(name, arguments)
        return
    of_files = {setting.flag for setting in settings_of(files)} - {"output"} if files is not None else set()
    own, others = split_flags(ScoringSettings, arguments)
    if wants_help(own) or of_files & {name_of(word) for word in arguments}:
        _score_files(name, arguments)
        return
    config = parse(["--recipe", name, *others])
    if not config.recipe.has_trained_weights:
        _score_files(name, arguments)
        return
    settings = parse_into(ScoringSettings, own, f"relay evaluate --recipe {name}")
    check_output_file(settings.output)
    with tempfile.TemporaryDirectory(prefix="relay-evaluate-") as folder:
        recipe = config.recipe.prepare(Path(folder))
        _score(recipe, recipe.model().eval(), settings, config.run.mixed_precision, f"the recipe {name}")


def _score_files(name: str, arguments: list[str]) -> None:
    """What the recipe makes of files of predictions; its own settings may stand beside theirs."""
    from runner import registry

    recipe = registry.find(name)
    if recipe.Files is None:
        raise ConfigError(f"The recipe {name} scores no files: type relay evaluate RUN with a trained model of it.")
    own, others = split_flags(recipe.Files, arguments)
    files = parse_into(recipe.Files, own, f"relay evaluate --recipe {name}")
    check_output_file(files.output)
    text, rows = parse(["--recipe", name, *others]).recipe.score_files(files)
    print(text)
    _write(rows, files.output)


def _without_a_model() -> str:
    """How each recipe that scores files is called."""
    from runner import registry

    lines = []
    for name in registry.names():
        files = registry.find(name).Files
        if files is not None:
            flags = " ".join(f"[--{setting.flag}]" for setting in settings_of(files))
            lines.append(f"Without a model: relay evaluate --recipe {name} {flags}; --help after it says more.")
    lines.append(
        "Without a run: relay evaluate --recipe NAME with settings that give the model trained weights, such as "
        "--model.pretrained FOLDER."
    )
    return "\n\n".join(lines)


def _write(rows: Sequence[Any], output: str | None) -> None:
    if output is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"{output} cannot be written: {error.strerror}. Type --output with another file.") from None
