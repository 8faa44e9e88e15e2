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
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from runner.checkpoints.manifest import SCHEMA_VERSION, find_damage, layout, read_headers, write_manifest
from runner.checkpoints.pointers import (
    BEST,
    DRAFT,
    FOLDER,
    LATEST,
    draft_beside,
    flush,
    remove,
    step_of,
    step_of_state,
    write_pointer,
)
from runner.checkpoints.snapshot import Snapshot
from runner.checkpoints.state import State
from runner.errors import CheckpointError


def write_checkpoint(
    output_dir: Path,
    model: Snapshot | Mapping[str, torch.Tensor],
    optimizer: Snapshot | Mapping[str, torch.Tensor],
    state: State,
    files: dict[str, str],
    assets: Path | None,
) -> Path:
    """Write `checkpoint-<step>` completely or not at all, and point `checkpoint-latest` to it.

    `files` are further text files by name.
    """
    with draft_beside(output_dir / f"checkpoint-{state.step}") as draft:
        draft.mkdir(parents=True)
        for kind, tensors, metadata in (("model", model, {"format": "pt"}), ("optimizer", optimizer, None)):
            snapshot = tensors if isinstance(tensors, Snapshot) else Snapshot(tensors, {})
            snapshot.write(draft / f"{kind}.safetensors", metadata)
        return complete_draft(draft, output_dir, state, files, assets)


def write_shard(draft: Path, kind: str, process: int, pieces: dict[str, torch.Tensor], places: str) -> None:
    """Write what one process holds of the model or the optimiser, to be seen under its name only when it is whole."""
    draft.mkdir(parents=True, exist_ok=True)
    hidden = draft / f".{kind}.shard-{process}"
    save_file(pieces, hidden, metadata={"format": "pt", "places": places})
    flush(hidden)
    os.replace(hidden, draft / f"{kind}.shard-{process}.safetensors")


def wait_for_shards(draft: Path, processes: int, limit_seconds: float, has_failed: Callable[[], bool]) -> None:
    """Wait until every process's shards are there.

    Raises CheckpointError where one does not come, or as soon as `has_failed` says that a process could not write.
    """
    wanted = [
        draft / f"{kind}.shard-{rank}.safetensors" for kind in ("model", "optimizer") for rank in range(processes)
    ]
    deadline = time.monotonic() + limit_seconds
    while missing := [path.name for path in wanted if not path.exists()]:
        if has_failed():
            raise CheckpointError("Another process could not write its shards.")
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{missing[0]} did not come within {limit_seconds:.0f} s: is {draft.parent} a folder that all machines "
                "share?"
            )
        time.sleep(0.02)


def complete_draft(draft: Path, output_dir: Path, state: State, files: dict[str, str], assets: Path | None) -> Path:
    """Add the small files to a draft that holds the tensors, flush it, and give it its name."""
    folder = output_dir / f"checkpoint-{state.step}"
    content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(state), "layout": layout(read_headers(draft))}
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
    # Only a run that was started over, or a damaged checkpoint, gets here.
    remove(folder)
    os.replace(draft, folder)
    flush(folder.parent)
    write_pointer(folder.parent / LATEST, folder)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Every folder called checkpoint-<step>, oldest first; whole or not.

    Raises CheckpointError where `output_dir` cannot be read.
    """
    if not output_dir.is_dir():
        return []
    try:
        found = [path for path in output_dir.iterdir() if FOLDER.fullmatch(path.name)]
    except OSError as error:
        raise CheckpointError(
            f"{output_dir} cannot be read: {error.strerror}.\n"
            "Ask its owner for permission, or type another --output_dir."
        ) from None
    return sorted(found, key=step_of)


def newest_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence about each newer one that had to be skipped.

    A pointer that became a full folder when the run was copied counts where no other folder has its step whole.
    """
    copied = [path for name in (BEST, LATEST) if (path := output_dir / name).is_dir() and not path.is_symlink()]
    steps = {folder: step_of(folder) for folder in list_checkpoints(output_dir)}
    steps = {folder: step_of_state(folder) for folder in copied} | steps
    skipped = []
    # Where steps are equal, the sort keeps the order: the folders with a step in their name come last, and first here.
    for folder in reversed(sorted(steps, key=lambda folder: steps[folder])):
        wrong = find_damage(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {wrong}.")
    return None, skipped


def prune_checkpoints(output_dir: Path, keep: int | None, best_step: int | None, newest: int) -> None:
    """Remove the oldest checkpoints beyond the newest `keep`, never the best one; and drafts of killed runs.

    Called only after the checkpoint of step `newest` is complete. Those of later steps, damaged ones or those of
    another branch, neither count nor are removed.
    """
    for draft in output_dir.glob(f"{DRAFT}*"):
        remove(draft)
    if keep is None:
        return
    for folder in [folder for folder in list_checkpoints(output_dir) if step_of(folder) <= newest][:-keep]:
        if step_of(folder) != best_step:
            remove(folder)
