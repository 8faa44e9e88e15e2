"""Trained decoders by model.pretrained: a folder, a .gguf file or an id of the hub becomes a model in fp32."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast
from unittest import mock

from runner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor
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

    reader = late_reader.get()
    if reader is not None and load_in is None:
        return _read_late(place, reader)
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


class LateReader(Protocol):
    """Builds a model whose tensors are read from their files later, one at a time."""

    def later(self, like: Tensor, read: Callable[[], Tensor]) -> Tensor:
        """A tensor as `like` without content, which `read` returns with its content."""
        ...

    def without_disguise(self) -> AbstractContextManager[None]:
        """For code that builds models without content by itself."""
        ...


late_reader: ContextVar[LateReader | None] = ContextVar("late_reader", default=None)
"""What reads the tensors of a model that is to be cut over processes; None: they are read at once."""


def _read_late(place: Path, reader: LateReader) -> PreTrainedModel:
    """The model of a folder of safetensors, of which no tensor is read yet.

    transformers builds it, renames the tensors and puts them together: they are meta tensors, and `reader` records what
    becomes of them. Raises NotImplementedError where a model can only be read at once.
    """
    import torch
    from safetensors import safe_open
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    files = _safetensors_of(place)
    try:
        tensors: dict[str, Tensor] = {}
        with reader.without_disguise():
            for file in map(safe_open, files, ["pt"] * len(files)):
                for name in file.keys():  # noqa: SIM118
                    # The file is mapped into memory: no content is read here.
                    read = functools.partial(file.get_tensor, name)
                    tensors[name] = reader.later(read(), read)
            # What other threads compute is not recorded.
            with mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"}):
                config = read_config(place)
                architecture = cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
                loaded = architecture.from_pretrained(
                    None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
                )
                model, found = cast("tuple[PreTrainedModel, dict[str, object]]", loaded)
        if found["missing_keys"]:
            raise NotImplementedError("a model with weights that are in no file")
        if (place / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(place)
        model.config._name_or_path = model.name_or_path = str(place)
        return model
    except Exception as error:
        # Read at once, it has an error that names what is wrong, or none.
        raise NotImplementedError(f"{place} cannot be read late: {error}") from error


def _safetensors_of(place: Path) -> list[Path]:
    """The files that from_pretrained reads in a folder. Raises NotImplementedError for other kinds of folders."""
    one, index = place / "model.safetensors", place / "model.safetensors.index.json"
    if (place / "adapter_config.json").is_file() or not (place / "config.json").is_file():
        raise NotImplementedError(f"{place} is no folder of safetensors")
    if one.is_file():
        return [one]
    if not index.is_file():
        raise NotImplementedError(f"{place} is no folder of safetensors")
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [place / name for name in sorted(set(places.values()))]


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
