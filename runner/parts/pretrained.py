"""Trained decoders by model.pretrained: a folder, a .gguf file or an id of the hub becomes a model in fp32."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_path(requested: str) -> bool:
    """Whether model.pretrained is a path, and no id of the hub such as Qwen/Qwen2.5-0.5B."""
    return Path(requested).expanduser().exists() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", requested) is None


def find_pretrained(requested: str) -> Path:
    """The folder or the .gguf file that model.pretrained means: a path, or an id of the hub.

    Raises DataError where it is nowhere.
    """
    place = Path(requested).expanduser()
    if place.exists():
        return place
    if is_path(requested):
        raise DataError(
            f"There is no model at {requested}: type --model.pretrained with the folder final/ of a run, with what\n"
            "relay export wrote, with a .gguf file, or with an id of the hub such as Qwen/Qwen2.5-0.5B."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(requested, local_files_only=True))
    except Exception:
        # It is not in the cache.
        pass
    try:
        kinds = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(requested, allow_patterns=kinds))
    except Exception as error:
        raise DataError(
            f"{requested} is no folder here, is not in the cache of the hub, and cannot be downloaded: "
            f"{' '.join(str(error).split())[:120]}\n"
            f"On a machine with a network, type: hf download {requested} --local-dir FOLDER\n"
            "Copy the folder to this machine, and type --model.pretrained FOLDER."
        ) from None


def arguments_of(place: Path) -> dict[str, str]:
    """What `from_pretrained` of transformers needs to read a folder or a .gguf file."""
    if place.is_dir():
        return {"pretrained_model_name_or_path": str(place)}
    return {"pretrained_model_name_or_path": str(place.parent), "gguf_file": place.name}


def read_pretrained(place: Path) -> PreTrainedModel:
    """The model of a folder or a .gguf file, in fp32. Raises DataError where it is damaged, or no model."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(**arguments_of(place), dtype=torch.float32)
    except ImportError as error:
        raise DataError(
            f"model.pretrained {place} needs a package: {str(error).strip().splitlines()[0][:160]}\n"
            "Type pip install gguf to read .gguf files."
        ) from None
    # Readers of weights raise errors of their own.
    except Exception as error:
        summary = " ".join(str(error).split())[:200]
        raise DataError(
            f"model.pretrained {place} cannot be loaded: {summary}\n"
            "Type --model.pretrained with the folder final/ of a run, or what relay export wrote."
        ) from None
