"""`final/`: the trained model as other tools load it, with tokenizer and model card."""

import os
import shutil
import sys
import uuid
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from runner.checkpoints.folders import write_manifest
from runner.checkpoints.pointers import DRAFT
from runner.config import Config
from runner.run import Run


def quiet_transformers() -> None:
    """Turn off the progress bars of loading and saving: they come in between the run's own lines."""
    if "transformers" in sys.modules:
        sys.modules["transformers"].logging.disable_progress_bar()


def save_final(
    output_dir: Path, model: nn.Module, tensors: dict[str, torch.Tensor], assets: Path, files: dict[str, str]
) -> Path:
    """Write `final/`: the model as others load it, with tokenizer (or what else was fitted) and model card.

    `tensors` are the model's, gathered from all processes.
    """
    final = output_dir / "final"
    draft = output_dir / f"{DRAFT}final-{uuid.uuid4().hex[:8]}"
    draft.mkdir(parents=True)
    if assets.is_dir():
        shutil.copytree(assets, draft, dirs_exist_ok=True)
    if hasattr(model, "save_pretrained"):
        quiet_transformers()
        model.save_pretrained(draft, state_dict=tensors)  # type: ignore[operator]
    else:
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    for name, text in files.items():
        (draft / name).write_text(text, encoding="utf-8")
    write_manifest(draft)
    if final.exists():
        shutil.rmtree(final)
    os.replace(draft, final)
    return final


def model_card(run: Run, config: Config) -> str:
    """A short README.md for the final model."""
    best = (
        f", best {run.best_metric} {run.state.best_score:.4f} at step {run.state.best_step}"
        if run.state.best_step
        else ""
    )
    return (
        f"---\nlibrary_name: transformers\ntags: [relay, {config.recipe_name}]\n---\n\n"
        f"# {Path(run.settings.output_dir or 'model').name}\n\n"
        f"Trained with Relay, recipe `{config.recipe_name}`, preset `{config.preset or 'default'}`, "
        f"{run.state.step} steps of {run.lanes.batch_size} examples{best}.\n\n"
        "`config.yaml` repeats the run: `relay train --config config.yaml --output_dir NEW`.\n"
    )
