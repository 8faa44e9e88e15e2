"""`final/`: the trained model as other tools load it, with tokenizer and model card."""

import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import nn

from runner.checkpoints.bucket import Remote, download
from runner.checkpoints.manifest import find_damage, write_manifest
from runner.checkpoints.pointers import draft_beside, resolve_pointer, write_pointer
from runner.checkpoints.state import read_state
from runner.checkpoints.tensors import Gathered, model_parts, model_tensors, read_tensors, write_one_by_one
from runner.config import Config
from runner.log import read_lines
from runner.run import Run
from runner.sharding import parts_of

ORIGIN = "origin.json"
"""The file of `final/` that says which step its weights are of."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which step of a training some weights are of."""

    step: int
    last_step: int
    """The step that the training ended at."""
    is_best: bool
    """Whether no evaluation was better than the one of this step."""
    metric: str
    """`metric_for_best_model`."""
    score: float | None
    """The metric at this step; None where it was not evaluated, or where the metric was not a number."""
    note: str = ""
    """What it means that the step is 0, in the recipe's words."""

    def __str__(self) -> str:
        score = "" if self.score is None else f", {self.metric} {self.score:.4f}"
        which = " (the best)" if self.is_best else ""
        return f"step {self.step} of {self.last_step}{score}{which}"


def choose_weights(run: Run) -> tuple[Mapping[str, torch.Tensor], Origin]:
    """The weights for `final/` as `--final` asks for them, and their step. Every process must call it.

    Only the main process gets the weights; the others get an empty mapping, or the tensors that all gather.
    """
    state, output_dir = run.state, run.saver.output_dir
    found, step = None, state.step
    if run.settings.final == "best" and state.best_step not in (None, state.step):
        found = run.hardware.from_main(best_checkpoint(run, output_dir) if run.hardware.is_main else None)
        step = state.best_step if found is not None else step
    if found is not None:
        tensors = read_tensors(found / "model.safetensors") if run.hardware.is_main else {}
    else:
        tensors = model_tensors(run.bare_model) if run.hardware.is_main and not run.hardware.is_sharded else {}
        if run.hardware.is_sharded:
            # All take part in putting together what is cut over the processes.
            tensors = Gathered(run.bare_model)
    score = score_at(output_dir, step, run.best_metric) if run.hardware.is_main else None
    note = run.recipe.note_on_start(run.settings.init_from) if step == 0 else ""
    return tensors, Origin(step, state.step, step == state.best_step, run.best_metric, score, note)


def best_checkpoint(run: Run, output_dir: Path) -> Path | None:
    """The undamaged checkpoint of the best evaluation, from this folder or from `upload_to`.

    None where there is none; a line tells the user that `final/` holds the last weights instead.
    """
    folder = output_dir / f"checkpoint-{run.state.best_step}"
    wrong = find_damage(folder) if folder.is_dir() else "it is not there"
    if wrong is not None and run.settings.upload_to is not None and run.state.best_step is not None:
        latest = resolve_pointer(output_dir / "checkpoint-latest")
        try:
            found = download(Remote.open(run.settings.upload_to), run.state.best_step, output_dir)
            write_pointer(output_dir / "checkpoint-latest", latest)
            return found
        except Exception as error:
            wrong += f", nor at {run.settings.upload_to} ({error})"
    if wrong is None:
        return folder
    run.progress.print_line(
        f"warning: the best checkpoint {folder} cannot be used: {wrong}. final/ holds the weights of the last step."
    )
    return None


def score_at(output_dir: Path, step: int, metric: str) -> float | None:
    """The value of a metric at a step, as metrics.jsonl has it."""
    events = read_lines(output_dir / "metrics.jsonl")
    scores = [line.get(metric) for line in events if line["step"] == step and line["split"] == "eval"]
    return scores[-1] if scores else None


def describe_weights(folder: Path) -> str:
    """The step and the score of the weights in a folder, a checkpoint or `final/`, in words."""
    if (folder / ORIGIN).is_file():
        origin = Origin(**json.loads((folder / ORIGIN).read_text(encoding="utf-8")))
        return f"{folder}, {origin}. {origin.note}" if origin.note else f"{folder}, {origin}"
    if not (folder / "state.json").is_file():
        return str(folder)
    state = read_state(folder)
    is_best = state.best_step == state.step and state.best_score is not None
    return f"{folder}, step {state.step}{f', best score so far {state.best_score:.4f}' if is_best else ''}"


def quiet_transformers() -> None:
    """Turn off the progress bars of loading and saving: they come in between the run's own lines."""
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.disable_progress_bar()


def save_final(
    output_dir: Path,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    assets: Path,
    files: dict[str, str],
    limit_bytes: float = 5e9,
) -> Path:
    """Write `final/`: the model as others load it, with tokenizer (or what else was fitted) and model card.

    `tensors` are the model's, gathered from all processes. No file of weights is larger than `limit_bytes`, unless it
    holds one tensor.
    """
    final = output_dir / "final"
    with draft_beside(final) as draft:
        _fill_final(draft, model, tensors, assets, files, limit_bytes)
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
    return final


def _fill_final(
    draft: Path,
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    assets: Path,
    files: dict[str, str],
    limit_bytes: float,
) -> None:
    draft.mkdir(parents=True)
    if assets.is_dir():
        shutil.copytree(assets, draft, dirs_exist_ok=True)
    if parts_of(model) and not hasattr(model, "peft_config"):
        write_model(draft, model, tensors, limit_bytes)
    elif hasattr(model, "save_pretrained"):
        quiet_transformers()
        model.save_pretrained(draft, state_dict=dict(tensors), max_shard_size=int(limit_bytes))  # type: ignore[operator]
    else:
        save_file(dict(tensors), draft / "model.safetensors", metadata={"format": "pt"})
    for name, text in files.items():
        (draft / name).write_text(text, encoding="utf-8")
    write_manifest(draft)


def _scores_in_words(run: Run, origin: Origin) -> str:
    """The scores of the weights as a table, with their split and step; a sentence where they were not evaluated."""
    events = read_lines(Path(run.settings.output_dir or "") / "metrics.jsonl")
    found = [line for line in events if line["step"] == origin.step and line["split"] == "eval"]
    if not found:
        return "These weights were not evaluated.\n\n"
    scores = {name: value for name, value in found[-1].items() if name not in ("step", "split")}
    lines = [f"| {name} | {'not a number' if value is None else f'{value:.4f}'} |" for name, value in scores.items()]
    chosen = (
        f"The evaluation with the best `{origin.metric}` chose these weights on this split"
        if origin.is_best
        else "The settings may have been chosen on this split"
    )
    return (
        f"## Scores\n\nOn the {len(run.eval_data):,} examples of the validation split, at step {origin.step:,}:\n\n"
        f"| metric | score |\n| --- | --- |\n{chr(10).join(lines)}\n\n"
        f"{chosen}: expect lower scores on other data. `relay evaluate --split test` scores a split that chose "
        "nothing, where the recipe has one.\n\n"
    )


def write_model(folder: Path, model: nn.Module, tensors: Mapping[str, torch.Tensor], limit_bytes: float = 5e9) -> None:
    """Write a model as `save_pretrained` does, with one tensor at a time in memory.

    Raises NotImplementedError where transformers puts several of its tensors together.
    """
    is_transformers = hasattr(model, "save_pretrained")

    def converted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors under the names that transformers gives them; experts become one tensor each."""
        if not is_transformers:
            return tensors
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(cast(PreTrainedModel, model), tensors)

    parts = model_parts(model)
    named = {name: torch.empty(parts[name].shape, dtype=parts[name].dtype, device="meta") for name in tensors}
    shapes: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        shapes |= converted({name: tensor})
    if {name: each.shape for name, each in shapes.items()} != {
        name: each.shape for name, each in converted(named).items()
    }:
        raise NotImplementedError(f"the tensors of {type(model).__name__} cannot be written one by one")
    contents = (each for name in tensors for each in converted({name: tensors[name]}).values())
    if is_transformers:
        quiet_transformers()
        # The settings alone; the files of the weights come from us.
        type(model).save_pretrained(model, folder, state_dict={})  # type: ignore[attr-defined]
        for path in folder.glob("model*.safetensors"):
            path.unlink()
        write_one_by_one(folder, shapes, contents, limit_bytes)
    else:
        write_one_by_one(folder, shapes, contents, limit_bytes=math.inf)


def model_card(run: Run, config: Config, origin: Origin) -> str:
    """A README.md for the final model: what it is, its scores with metric, split and step, and what they do not say."""
    from huggingface_hub import ModelCard, ModelCardData

    name = Path(run.settings.output_dir or "model").resolve().name
    is_transformers = hasattr(run.bare_model, "save_pretrained")
    data = ModelCardData(
        library_name="transformers" if is_transformers else "relay",
        # A recipe may be the path of a file of this machine.
        tags=["relay", Path(config.recipe_name).name.removesuffix(".py")],
        model_name=name,
    )
    text = (
        f"# {name}\n\n"
        f"Trained with Relay, recipe `{config.recipe_name}`, preset `{config.preset or 'default'}`, "
        f"{run.state.step} steps of {run.lanes.batch_size} examples.\n\n"
        f"{f'These are the weights of {origin}. {origin.note}'.rstrip()}\n\n"
        f"{_scores_in_words(run, origin)}"
        "`config.yaml` repeats the run: `relay train --config config.yaml --output_dir NEW`.\n"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
