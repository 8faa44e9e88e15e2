"""A trained model and its recipe, from the folder that a run left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.checkpoints.folders import find_damage, resolve_pointer
from runner.checkpoints.tensors import load_model, read_tensors
from runner.config import Config, parse
from runner.errors import CheckpointError


def model_folder(folder: Path) -> Path:
    """The folder that holds the model: of a run, its `final`, else its latest checkpoint. Raises CheckpointError."""
    for candidate in (folder / "final", folder / "checkpoint-latest"):
        if candidate.exists():
            folder = resolve_pointer(candidate)
            break
    folder = resolve_pointer(folder)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no config.yaml.\nType the folder of a run, of a checkpoint or of final."
        )
    wrong = find_damage(folder)
    if wrong is not None:
        raise CheckpointError(f"{folder} cannot be used: {wrong}.")
    return folder


def find_config(folder: Path, flags: Sequence[str] = ()) -> Config:
    """The settings of the run, with what `flags` change of them."""
    return parse(["--config", str(model_folder(folder) / "config.yaml"), *flags])


def find_recipe(folder: Path) -> Any:
    """The recipe with the settings of the run."""
    return find_config(folder).recipe


def load_trained(folder: Path, recipe: Any) -> tuple[Any, Any]:
    """The recipe, bound to what it fitted, and the model in eval mode on the best device here."""
    import torch

    from runner.checkpoints.final import quiet_transformers
    from runner.hardware import best_device_type

    folder = model_folder(folder)
    assets = folder / "assets" if (folder / "assets").is_dir() else folder
    recipe = recipe.prepare(assets)
    model = recipe.model()
    quiet_transformers()
    if (folder / "config.json").is_file():
        model = type(model).from_pretrained(folder)
    else:
        tensors = read_tensors(folder / "model.safetensors")
        load_model(model, tensors, str(folder))
    return recipe, model.to(torch.device(best_device_type())).eval()
