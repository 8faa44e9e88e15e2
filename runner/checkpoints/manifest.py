"""The manifest of a checkpoint, and what is wrong with a checkpoint: a damaged file, or content that cannot be."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from runner.checkpoints.pointers import flush, step_of
from runner.checkpoints.state import wrong_in_state
from runner.errors import ConfigError
from runner.yaml_file import read_yaml

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TENSORS = re.compile(r"(model|optimizer)(\.shard-\d+)?\.safetensors")
LITTER = re.compile(r"\..*|Thumbs\.db|desktop\.ini")
"""Files that systems and file managers leave in any folder."""

Entries = Mapping[str, Mapping[str, object]]
Header = dict[str, tuple[str, tuple[int, ...]]]
"""dtype and shape of each tensor of a file."""


def write_manifest(folder: Path) -> None:
    """Write the manifest over every file of the folder, and flush all to the disk.

    Every file gets the permissions that the umask gives to a new one: libraries write some for their owner alone.
    """
    manifest = folder / MANIFEST
    manifest.unlink(missing_ok=True)
    manifest.touch()
    mode = manifest.stat().st_mode & 0o777
    entries = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != manifest):
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": _hash(path)}
        flush(path)
    manifest.write_text(_manifest(entries), encoding="utf-8")
    flush(manifest)
    for directory in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        flush(directory)


def _manifest(entries: object) -> str:
    """The manifest's text; it carries a hash of itself, so that a flipped bit in it is found too."""
    content = {"schema_version": SCHEMA_VERSION, "files": entries}
    content["self"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return json.dumps(content, indent=1)


def has_manifest(folder: Path) -> bool:
    """Whether a folder can be checked; what `relay export` wrote cannot."""
    return (folder / MANIFEST).is_file()


def find_damage(folder: Path, step: int | None = None) -> str | None:
    """What is wrong with a checkpoint or `final/`, in words that name the file; None where it is whole.

    A checkpoint must also hold what its manifest should list, and the state of its `step` (that in its name).
    """
    step = step_of(folder) if step is None else step
    try:
        return _wrong_files(folder) or (_wrong_content(folder, step) if _is_checkpoint(folder, step) else None)
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if error.filename else folder.name
        return f"{name} cannot be read: {error.strerror or error}"


def _is_checkpoint(folder: Path, step: int) -> bool:
    return step >= 0 or (folder / "state.json").is_file()


def _wrong_files(folder: Path) -> str | None:
    """What is wrong with the manifest or with the files that it lists."""
    manifest = folder / MANIFEST
    if not os.path.lexists(manifest):
        # Says so where the folder cannot be read.
        os.listdir(folder) if folder.is_dir() else None
        return f"{MANIFEST} is missing"
    if not manifest.is_file():
        # A pipe would wait for ever.
        return f"{MANIFEST} is not a regular file"
    try:
        text = manifest.read_text(encoding="utf-8")
        content = json.loads(text)
        entries, version = content["files"], content["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST} is damaged"
    if version != SCHEMA_VERSION:
        return f"{MANIFEST} is of schema version {version}; this Relay reads version {SCHEMA_VERSION}"
    if text != _manifest(entries) or not _are_entries(entries):
        return f"{MANIFEST} is damaged"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is not a regular file" if os.path.lexists(path) else f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if _hash(path) != entry["xxh3_128"]:
            return f"{name} is damaged: its hash is not that of the manifest"
    return None


def _are_entries(entries: object) -> bool:
    """Whether the manifest lists files of its folder, each with a size and a hash."""
    return isinstance(entries, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("xxh3_128"), str)
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name, entry in entries.items()
    )


def _wrong_content(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint whose files are as its manifest says."""
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name in ("state.json", "config.yaml"):
        if name not in listed:
            return f"{MANIFEST} does not list {name}"
    for kind in ("model", "optimizer"):
        if not any(name.startswith(kind) and TENSORS.fullmatch(name) for name in listed):
            return f"{MANIFEST} does not list {kind}.safetensors"
    for path in _unlisted(folder, listed):
        return f"{path.relative_to(folder).as_posix()} is not listed in {MANIFEST}"
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "state.json is not JSON"
    wrong = wrong_in_state(state)
    if wrong is not None:
        return f"state.json {wrong}"
    if step >= 0 and state["step"] != step:
        return f"state.json is of step {state['step']}, not {step}"
    if (state.get("best_step") or 0) > state["step"]:
        return f"state.json has a best_step of {state['best_step']}, after its step {state['step']}"
    return _wrong_settings(folder / "config.yaml") or _wrong_tensors(folder, state.get("layout"))


def _wrong_settings(file: Path) -> str | None:
    """What is wrong with the form of a checkpoint's settings; their values are the recipe's to check."""
    try:
        has_recipe = "recipe" in read_yaml(file)
    except ConfigError as error:
        return str(error).splitlines()[0].replace(str(file), file.name).rstrip(".")
    return None if has_recipe else f"{file.name} names no recipe"


def _unlisted(folder: Path, listed: Entries) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if name != MANIFEST and name not in listed and not is_folder and not LITTER.fullmatch(path.name):
            yield path


def _wrong_tensors(folder: Path, recorded: str | None) -> str | None:
    """What is wrong with names, dtypes and shapes of the tensors."""
    try:
        headers = read_headers(folder)
    except ValueError as error:
        return f"{error} is not a safetensors file"
    model = {
        name: entry for file, header in headers.items() if file.startswith("model") for name, entry in header.items()
    }
    moments: dict[str, dict[str, str]] = {}
    for file, header in headers.items():
        for key, (dtype, shape) in header.items() if file.startswith("optimizer") else ():
            name, _, kind = key.rpartition("/")
            moments.setdefault(name, {})[kind] = dtype
            if "shard" not in file and shape and name in model and shape != model[name][1]:
                return f"{file} has a {key} of another shape than the parameter"
    for name, kinds in moments.items():
        if name not in model and "shard" not in "".join(headers):
            return f"optimizer.safetensors has a state of {name}, which the model does not have"
        if "F" not in model.get(name, ("F",))[0]:
            return f"{name} of the model is {model[name][0]}, not a number with a fraction"
        wrong = [f"{name}/{kind} of the optimiser is {dtype}" for kind, dtype in kinds.items() if "F" not in dtype]
        if wrong:
            return f"{wrong[0]}, not a number with a fraction"
        if "exp_avg" in kinds and not {"exp_avg_sq", "step"} <= kinds.keys():
            return f"optimizer.safetensors lacks a part of the state of {name}"
    if recorded is not None and layout(headers) != recorded:
        return "the tensors are not those that state.json was written with"
    return None


def read_headers(folder: Path) -> dict[str, Header]:
    """dtype and shape of every tensor of model and optimiser, by file. Raises ValueError with a bad file's name."""
    return {path.name: _header(path) for path in sorted(folder.iterdir()) if TENSORS.fullmatch(path.name)}


def layout(headers: Mapping[str, Header]) -> str:
    """A hash of the names, dtypes and shapes of all tensors."""
    return xxhash.xxh3_64_hexdigest(json.dumps(headers, sort_keys=True).encode())


def _header(path: Path) -> Header:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, ValueError):
        raise ValueError(path.name) from None


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
