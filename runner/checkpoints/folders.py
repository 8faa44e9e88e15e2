"""Checkpoints: complete or absent, checked, and data only (safetensors and JSON).

A checkpoint is the folder `checkpoint-<step>`:

    model.safetensors       parameters and buffers, by name
    optimizer.safetensors   moments and step counts, as <parameter name>/<state>
    ...shard-K.safetensors  in their place, what process K holds of a model that is cut over processes
    state.json              step, batch, what evaluation has decided, versions
    config.yaml             the settings of the run that wrote it
    assets/                 what the recipe fitted on the training split
    manifest.json           size and hash of every other file; written last

It is written under a draft name, flushed to the disk, and renamed; so a folder of the final name is complete,
and the manifest tells damage.
"""

import dataclasses
import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file

from runner.checkpoints.pointers import DRAFT, flush, write_pointer
from runner.checkpoints.state import State
from runner.errors import CheckpointError

SCHEMA_VERSION = 1
FOLDER = re.compile(r"checkpoint-(\d+)")
MANIFEST = "manifest.json"


# Folders --------------------------------------------------------------------------------------------


def write_checkpoint(
    output_dir: Path,
    model: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    state: State,
    files: dict[str, str],
    assets: Path | None,
) -> Path:
    """Write `checkpoint-<step>` completely or not at all, and point `checkpoint-latest` to it.

    `files` are further text files by name.
    """
    draft = output_dir / f"{DRAFT}checkpoint-{state.step}-{uuid.uuid4().hex[:8]}"
    draft.mkdir(parents=True)
    save_file(model, draft / "model.safetensors", metadata={"format": "pt"})
    save_file(optimizer, draft / "optimizer.safetensors")
    return complete_draft(draft, output_dir, state, files, assets)


def write_shard(draft: Path, kind: str, process: int, pieces: dict[str, torch.Tensor], places: str) -> None:
    """Write what one process holds of the model or the optimiser, to be seen under its name only when it is whole."""
    draft.mkdir(parents=True, exist_ok=True)
    hidden = draft / f".{kind}.shard-{process}"
    save_file(pieces, hidden, metadata={"format": "pt", "places": places})
    flush(hidden)
    os.replace(hidden, draft / f"{kind}.shard-{process}.safetensors")


def wait_for_shards(draft: Path, processes: int, limit_seconds: float) -> None:
    """Wait until every process's shards are there. Raises CheckpointError where one does not come."""
    wanted = [
        draft / f"{kind}.shard-{rank}.safetensors" for kind in ("model", "optimizer") for rank in range(processes)
    ]
    deadline = time.monotonic() + limit_seconds
    while missing := [path.name for path in wanted if not path.exists()]:
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{missing[0]} did not come within {limit_seconds:.0f} s: is {draft.parent} a folder that all machines "
                "share?"
            )
        time.sleep(0.02)


def complete_draft(draft: Path, output_dir: Path, state: State, files: dict[str, str], assets: Path | None) -> Path:
    """Add the small files to a draft that holds the tensors, flush it, and give it its name."""
    folder = output_dir / f"checkpoint-{state.step}"
    content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(state)}
    (draft / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for name, text in files.items():
        (draft / name).write_text(text, encoding="utf-8")
    if assets is not None and assets.is_dir():
        shutil.copytree(assets, draft / "assets")
    write_manifest(draft)
    publish(draft, folder)
    return folder


def publish(draft: Path, folder: Path) -> None:
    """Give a whole draft its name beside it, and point `checkpoint-latest` to it."""
    if folder.exists():
        # Only a run that was started over, or a damaged checkpoint, gets here.
        shutil.rmtree(folder)
    os.replace(draft, folder)
    flush(folder.parent)
    write_pointer(folder.parent / "checkpoint-latest", folder)


def write_manifest(folder: Path) -> None:
    """Write the manifest over every file of the folder, and flush all to the disk."""
    entries = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": _hash(path)}
        flush(path)
    manifest = folder / MANIFEST
    manifest.write_text(_manifest(entries), encoding="utf-8")
    flush(manifest)
    for directory in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        flush(directory)


def _manifest(entries: dict[str, Any]) -> str:
    """The manifest's text; it carries a hash of itself, so that a flipped bit in it is found too."""
    content = {"schema_version": SCHEMA_VERSION, "files": entries}
    content["self"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return json.dumps(content, indent=1)


def has_manifest(folder: Path) -> bool:
    """Whether a folder can be checked; what `relay export` wrote cannot."""
    return (folder / MANIFEST).is_file()


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; None where it is whole."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        entries, version = json.loads(text)["files"], json.loads(text)["schema_version"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if version == SCHEMA_VERSION and text != _manifest(entries):
        return f"{MANIFEST} is damaged"
    if version != SCHEMA_VERSION:
        return f"{MANIFEST} is of schema version {version}; this Relay reads version {SCHEMA_VERSION}"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if _hash(path) != entry["xxh3_128"]:
            return f"{name} is damaged: its hash is not that of the manifest"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Every folder called checkpoint-<step>, oldest first; whole or not."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if FOLDER.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    match = FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else -1


def newest_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence about each newer one that had to be skipped."""
    skipped = []
    for folder in reversed(list_checkpoints(output_dir)):
        wrong = find_damage(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {wrong}.")
    return None, skipped


def prune_checkpoints(output_dir: Path, keep: int | None, best_step: int | None) -> None:
    """Remove the oldest checkpoints beyond the newest `keep`, never the best one; and drafts of killed runs.

    Called only after a newer checkpoint is complete.
    """
    for draft in output_dir.glob(f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
    if keep is None:
        return
    for folder in list_checkpoints(output_dir)[:-keep]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
