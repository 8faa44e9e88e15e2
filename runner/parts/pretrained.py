"""Trained decoders by model.pretrained: a folder, a .gguf file or an id of the hub becomes a model in fp32."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


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


LoadIn = Literal["4bit"]
"""The formats that the frozen weights of a trained model may be held in, beside their own."""


def check_load_in(load_in: LoadIn | None, num_experts: int | None = None) -> None:
    """Raise ConfigError where this machine cannot hold weights in this format, or nothing can be made of them."""
    import torch

    if load_in is None:
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"model.load_in is {load_in}, which needs an NVIDIA GPU with CUDA, and torch sees none here:\n"
            "leave --model.load_in out (--mixed_precision bf16 halves the weights), or start it where there is one."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.load_in is {load_in}, which needs the package bitsandbytes: type pip install 'relay-train[4bit]'."
        )
    if num_experts is not None:
        raise ConfigError(
            f"model.load_in is {load_in}, and weights in 4 bits cannot become experts: leave out --model.load_in or "
            "--model.num_local_experts."
        )


def check_adapted(load_in: LoadIn | None, rank: int) -> None:
    """Raise ConfigError where weights that are held in few bits are to train."""
    if load_in is not None and not rank:
        raise ConfigError(
            f"model.load_in is {load_in}, and weights in 4 bits cannot train: type --lora.rank 16 to train adapters, "
            "or leave --model.load_in out."
        )


def read_pretrained(place: Path, load_in: LoadIn | None = None) -> PreTrainedModel:
    """The model of a folder or a .gguf file, in fp32, or its matrices in 4 bits.

    Source of the 4 bits: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3.
    Raises DataError where it is damaged, or no model.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with _naming(place):
        if load_in is None:
            return AutoModelForCausalLM.from_pretrained(**arguments_of(place), dtype=torch.float32)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return AutoModelForCausalLM.from_pretrained(
            **arguments_of(place),
            dtype=torch.float32,
            quantization_config=config,
            device_map={"": torch.cuda.current_device()},
        )


def read_config(place: Path) -> PretrainedConfig:
    """The config of a folder or a .gguf file. Raises DataError where it is damaged, or no model's."""
    from transformers import AutoConfig

    with _naming(place):
        return AutoConfig.from_pretrained(**arguments_of(place))


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Raise DataError with the model's name for each error of its readers."""
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"model.pretrained {place} needs a package: {str(error).strip().splitlines()[0][:160]}\n"
            "Type pip install gguf to read .gguf files."
        ) from None
    # Readers of configs and weights raise errors of their own.
    except Exception as error:
        summary = " ".join(str(error).split())[:200]
        raise DataError(
            f"model.pretrained {place} cannot be loaded: {summary}\n"
            "Type --model.pretrained with the folder final/ of a run, or what relay export wrote."
        ) from None
