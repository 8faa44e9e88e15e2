"""A trained model and its recipe, from the folder that a run left."""

import fnmatch
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.checkpoints.manifest import MANIFEST, find_damage
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.tensors import load_model, read_tensors
from runner.config import Config, parse
from runner.errors import CheckpointError
from runner.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from runner.deferred import Deferred


def find_weights(folder: Path, for_training: bool = False) -> Path:
    """The folder with the weights that a path means: a run's `final` or latest checkpoint, or the folder itself.

    A model is read from `final` where that is there. A training begins from the latest checkpoint, `for_training`:
    the tensors there have the names of the model's parameters, and in `final` those that transformers gives them.
    Raises CheckpointError where there are none. Whether they are whole is for the caller to find: it reads every file.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointError(f"{folder} cannot be read: you have no permission for this folder. Ask its owner.")
    names = ("checkpoint-latest", "final") if for_training else ("final", "checkpoint-latest")
    for candidate in (*(folder / name for name in names), folder):
        found = resolve_pointer(candidate)
        if any(found.glob("model*.safetensors")):
            return found
    wrong = f"There is no folder {folder}" if not folder.is_dir() else f"{folder} holds no model.safetensors"
    raise CheckpointError(f"{wrong}.\nType the folder of a run, of a checkpoint, or of final.")


def model_folder(folder: Path) -> Path:
    """The folder with the weights and the settings of a trained model, checked. Raises CheckpointError."""
    found = find_weights(folder)
    if not (found / "config.yaml").is_file():
        raise CheckpointError(
            f"{found} is no checkpoint: it has no config.yaml.\nType the folder of a run, of a checkpoint, or of final."
        )
    wrong = find_damage(found)
    if wrong is not None:
        raise CheckpointError(f"{found} cannot be used: {wrong}.")
    return found


def assets_of(folder: Path) -> Path:
    """Where a folder of weights keeps what the recipe fitted: in `assets/`, or, as `final` does, beside them."""
    # Some copies leave empty folders out: a checkpoint without assets/ has none.
    is_below = (folder / "assets").is_dir() or (folder / "state.json").is_file()
    return folder / "assets" if is_below else folder


NOT_ASSETS = ("*.safetensors", "*.index.json", MANIFEST, "README.md", "config.yaml", "config.json", "origin.json")
"""What lies in `final/` beside what the recipe fitted."""


def copy_assets(folder: Path, target: Path) -> None:
    """Copy what the recipe fitted, and nothing else, from a folder of weights into `target`."""
    source = assets_of(folder)
    if not source.is_dir():
        return

    def others(directory: str, names: list[str]) -> set[str]:
        # A folder below may hold a model of its own, such as an encoder.
        patterns = NOT_ASSETS if source == folder and Path(directory) == folder else ()
        return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=others)


def find_config(folder: Path, flags: Sequence[str] = ()) -> Config:
    """The settings of the run, with what `flags` change of them."""
    return parse(["--config", str(model_folder(folder) / "config.yaml"), *flags], of_run=True)


def find_recipe(folder: Path) -> Recipe:
    """The recipe with the settings of the run."""
    return find_config(folder).recipe


def load_late(folder: Path, recipe: Recipe) -> "tuple[nn.Module, Deferred | None]":
    """The model of a folder, on the CPU, for whoever needs one tensor at a time: those of `Deferred` have no content.

    Adapters are merged into their base. `Deferred` is None where the model could only be read at once.
    """
    from runner.checkpoints.final import quiet_transformers
    from runner.deferred import Deferred, read_late
    from runner.parts.pretrained import read_pretrained

    folder = model_folder(folder)
    bound = recipe.prepare_trained(assets_of(folder))
    quiet_transformers()

    def build() -> "nn.Module":
        model = bound.model()
        if not hasattr(model, "save_pretrained"):
            raise NotImplementedError("a model that is small, and written at once")
        if (folder / "config.json").is_file():
            return read_pretrained(folder).eval()
        load_model(model, read_late(read_tensors(folder / "model.safetensors")), str(folder))
        return _merged(model)

    try:
        with Deferred() as deferred:
            return build(), deferred
    except (NotImplementedError, RuntimeError):
        return _merged(load_trained(folder, recipe)[1].cpu()), None


def _merged(model: "nn.Module") -> "nn.Module":
    merge = getattr(model, "merge_and_unload", None)
    return model if merge is None else merge()


def load_trained(folder: Path, recipe: Recipe) -> tuple[Recipe, "nn.Module"]:
    """The recipe, bound to what it fitted, and the model in eval mode on the best device here."""
    import torch

    from runner.checkpoints.final import quiet_transformers
    from runner.hardware import best_device_type

    folder = model_folder(folder)
    recipe = recipe.prepare_trained(assets_of(folder))
    model = recipe.model()
    quiet_transformers()
    if (folder / "config.json").is_file():
        architecture: Any = type(model)
        model = architecture.from_pretrained(folder)
    else:
        tensors = read_tensors(folder / "model.safetensors")
        load_model(model, tensors, str(folder))
    return recipe, model.to(torch.device(best_device_type())).eval()
