"""`relay export`: write a trained model as a folder that other tools load, and upload it to the Hugging Face hub."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runner.commands import TrainedSettings
from runner.config import parse_into
from runner.errors import ConfigError
from runner.parts.setting_types import Size, bytes_of

if TYPE_CHECKING:
    from torch import nn

    from runner.deferred import Deferred

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's program that makes a GGUF file of a folder of transformers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(TrainedSettings):
    """Settings of an export."""

    output: str
    """Folder to write; it must not be there yet."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub to upload the folder to, as OWNER/NAME or hf://OWNER/NAME."""
    private: bool = True
    """Make the repository private, where --push_to_hub creates it."""
    max_shard_size: Size = "5GB"
    """Largest file of weights, such as 300MB; a larger model is cut over several files with an index."""
    gguf: bool = False
    """Write model.gguf as well, with llama.cpp's converter, which has to be installed."""


def main(arguments: list[str]) -> None:
    """Write model, tokenizer (or what else was fitted) and model card; adapters are merged into their base."""
    settings = parse_into(ExportSettings, arguments, "relay export", __doc__)
    target = Path(settings.output)
    if target.exists():
        raise ConfigError(f"{target} is there already: type --output with a new folder.")
    limit = bytes_of(settings.max_shard_size, "max_shard_size")
    repository = None if settings.push_to_hub is None else _checked_repository(settings.push_to_hub)
    converter = _converter() if settings.gguf else None
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import copy_assets, find_config, load_late, model_folder

    source = model_folder(settings.folder)
    recipe = find_config(source, settings.recipe_flags).recipe
    model, deferred = load_late(source, recipe)
    target.mkdir(parents=True)
    copy_assets(source, target)
    for name in ("README.md", "config.yaml", "origin.json"):
        if (source / name).is_file():
            shutil.copy2(source / name, target)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained = functools.partial(_save, model, deferred, limit)  # type: ignore[assignment]
    recipe.export(model, target)
    if converter is not None:
        _write_gguf(converter, target)
    print(f"model: {describe_weights(source)}", file=sys.stderr, flush=True)
    print(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}")
    if repository is not None:
        print(_upload(target, repository, settings.private))


def _save(model: "nn.Module", deferred: "Deferred | None", limit_bytes: float, folder: Path) -> None:
    """Write a model of transformers into a folder; one tensor at a time where it has been read so."""
    from runner.checkpoints.final import write_model
    from runner.checkpoints.tensors import model_parts

    if deferred is None:
        type(model).save_pretrained(model, folder, max_shard_size=int(limit_bytes))  # type: ignore[attr-defined]
        return
    try:
        write_model(folder, model, deferred.tensors(model_parts(model)), limit_bytes)
    except NotImplementedError:
        deferred.fill(model, model)
        type(model).save_pretrained(model, folder, max_shard_size=int(limit_bytes))  # type: ignore[attr-defined]


def _checked_repository(typed: str) -> str:
    """OWNER/NAME of what was typed after --push_to_hub. Raises ConfigError before the work, not after it."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = typed.removeprefix("hf://").strip("/")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise ConfigError(f"--push_to_hub is {typed!r}, which names no repository: type OWNER/NAME.")
    if get_token() is None:
        raise ConfigError("--push_to_hub needs a token of the hub: type hf auth login, or set HF_TOKEN.")
    return name


def _upload(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder to the hub; returns where it is. Raises ConfigError: the folder is there, and can be uploaded."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model trained with Relay")
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{folder} is complete, but was not uploaded to {repository}: {reason[0]}\n"
            f"Type hf upload {repository} {folder} to try again."
        ) from None
    return f"uploaded: {hub.endpoint}/{repository}"


def _converter() -> Path:
    """llama.cpp's converter: on the PATH, or in the folder that LLAMA_CPP names. Raises ConfigError without one."""
    found = shutil.which(CONVERTER)
    inside = Path(os.environ.get("LLAMA_CPP", ""), CONVERTER)
    if found is None and not ("LLAMA_CPP" in os.environ and inside.is_file()):
        raise ConfigError(
            f"--gguf needs {CONVERTER} of llama.cpp, which is not on the PATH. Type\n"
            "git clone https://github.com/ggml-org/llama.cpp; pip install gguf; export LLAMA_CPP=$PWD/llama.cpp"
        )
    return Path(found) if found is not None else inside


def _write_gguf(converter: Path, folder: Path) -> None:
    """Write model.gguf into an exported folder. Raises ConfigError with the converter's last line."""
    words = [sys.executable, str(converter), str(folder), "--outfile", str(folder / "model.gguf"), "--outtype", "f16"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigError(f"{folder} is written, but {converter.name} made no GGUF file of it: {last}")
