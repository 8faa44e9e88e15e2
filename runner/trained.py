"""A trained model and its recipe, from the folder that a run left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner import checkpoint
from runner.config import Config, parse
from runner.errors import CheckpointError


def resolve(folder: Path) -> Path:
    """The folder that holds the model: of a run, its `final`, else its latest checkpoint. Raises CheckpointError."""
    for candidate in (folder / "final", folder / "checkpoint-latest"):
        if candidate.exists():
            folder = checkpoint.follow(candidate)
            break
    folder = checkpoint.follow(folder)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no config.yaml.\nType the folder of a run, of a checkpoint or of final."
        )
    wrong = checkpoint.damage(folder)
    if wrong is not None:
        raise CheckpointError(f"{folder} cannot be used: {wrong}.")
    return folder


def find_config(folder: Path, flags: Sequence[str] = ()) -> Config:
    """The settings of the run, with what `flags` change of them."""
    return parse(["--config", str(resolve(folder) / "config.yaml"), *flags])


def find_recipe(folder: Path) -> Any:
    """The recipe with the settings of the run."""
    return find_config(folder).recipe


def load(folder: Path, recipe: Any) -> tuple[Any, Any]:
    """The recipe, bound to what it fitted, and the model in eval mode on the best device here."""
    import torch

    from runner.hardware import best_device_type
    from runner.saving import quiet_transformers

    folder = resolve(folder)
    assets = folder / "assets" if (folder / "assets").is_dir() else folder
    if hasattr(recipe, "prepare"):
        recipe = recipe.prepare(assets)
    model = recipe.model()
    quiet_transformers()
    if (folder / "config.json").is_file():
        model = type(model).from_pretrained(folder)
    else:
        tensors = checkpoint.read_tensors(folder / "model.safetensors")
        checkpoint.load_model(model, tensors, str(folder))
    return recipe, model.to(torch.device(best_device_type())).eval()
