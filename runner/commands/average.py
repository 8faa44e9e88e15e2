"""`relay average`: the mean of the weights of a run's best checkpoints, as a model of its own."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

from runner.commands import TrainedSettings
from runner.config import Config, parse_into
from runner.errors import CheckpointError, ConfigError
from runner.log import read_lines
from runner.parts.setting_types import MOST, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageSettings(TrainedSettings):
    """Settings of an average, of a run that evaluated where it saved (eval_steps and save_steps)."""

    best: Annotated[int, Range(2, MOST)] = 3
    """Checkpoints to average: so many of the best by metric_for_best_model, equal ones the later first."""
    output: str
    """Folder to write `final` into; it must not be there yet."""


def main(arguments: list[str]) -> None:
    """Write OUTPUT/final, which `relay evaluate` and `relay predict` read like that of a run."""
    settings = parse_into(AverageSettings, arguments, "relay average", __doc__)
    target, run = Path(settings.output), settings.folder
    if target.exists():
        raise ConfigError(f"{target} is there already: type --output with a new folder.")
    from runner.checkpoints.folders import list_checkpoints, step_of
    from runner.checkpoints.tensors import load_model, read_tensors

    folders = {step_of(folder): folder for folder in list_checkpoints(run)}
    if not folders:
        raise CheckpointError(f"There is no checkpoint in {run}: give the folder of a run.")
    import torch

    from runner.checkpoints.final import save_final
    from runner.checkpoints.trained import find_config, load_trained

    config = find_config(max(folders.items())[1], settings.recipe_flags)
    name, scores = _scores(run, config, set(folders))
    if len(scores) == 1:
        raise CheckpointError(
            f"Only one checkpoint of {run} has a value of {name}: there is nothing to average.\n"
            "Train with --save_total_limit 5 or more, and with --eval_steps and --save_steps of the same number."
        )
    chosen = [folders[step] for step in list(scores)[: settings.best]]
    recipe, model = load_trained(chosen[0], config.recipe)
    files = [read_tensors(folder / "model.safetensors") for folder in chosen]
    mean = dict(files[0])
    for key, value in mean.items():
        if value.is_floating_point():
            parts = torch.stack([tensors[key].double() for tensors in files])
            mean[key] = parts.mean(0).to(value.dtype)
    load_model(model, mean, str(target))
    text = (chosen[0] / "config.yaml").read_text(encoding="utf-8")
    final = save_final(target, model.cpu(), mean, chosen[0] / "assets", {"config.yaml": text})
    listed = ", ".join(f"{folder.name} ({scores[step_of(folder)]:.4f})" for folder in chosen)
    print(f"{final}: the mean of {listed} by {name}")


def _scores(run: Path, config: Config, steps: set[int]) -> tuple[str, dict[int, float]]:
    """The metric, and what it was at the steps that have a checkpoint, the best first."""
    from runner.evaluation import is_better

    name = config.run.metric_for_best_model or config.recipe.best_metric
    events = [event for event in read_lines(run / "metrics.jsonl") if event["split"] == "eval"]
    # A score that was no number is written as null.
    found = {event["step"]: event[name] for event in events if event.get(name) is not None and event["step"] in steps}
    if not found:
        raise CheckpointError(
            f"No checkpoint of {run} has a value of {name}: train with --eval_steps N --save_steps N, the same N."
        )

    def compare(left: tuple[int, float], right: tuple[int, float]) -> int:
        if left[1] == right[1]:
            return right[0] - left[0]
        return -1 if is_better(name, left[1], right[1], config.run.greater_is_better) else 1

    return name, dict(sorted(found.items(), key=functools.cmp_to_key(compare)))
