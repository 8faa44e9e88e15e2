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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from runner.errors import CheckpointError

SCHEMA_VERSION = 1
FOLDER = re.compile(r"checkpoint-(\d+)")
DRAFT = ".draft-"
MANIFEST = "manifest.json"


@dataclasses.dataclass
class State:
    """What a run knows beside weights and optimiser; all of it is the same on every process."""

    step: int = 0
    """Finished updates."""
    batch_size: int = 0
    micro_batch_size: int = 0
    seed: int = 0
    num_examples: int = 0
    """Examples in the training split: the order depends on it."""
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    trackers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Run ids of the trackers, so that a resumed run continues there."""
    scaler: dict[str, float] | None = None
    """fp16's loss scale."""
    excluded: list[Any] = dataclasses.field(default_factory=list)
    """Ids of examples that are left out from now on."""
    cursors: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Where each lane of a stream stands, by the lane's number."""
    examples_seen: int = 0
    """Examples in all steps so far."""
    evaluation_due: bool = False
    """Whether the evaluation of this step is still to be done: a signal broke it off."""
    mean_gradient_norm: float | None = None
    """Running mean, against which a spike is measured."""
    largest_lane: int = 0
    """Numbers in the largest micro-batch so far."""
    parts: int = 1
    """Pieces that each lane is computed in, because it does not fit into memory."""
    written_by: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For people: versions, processes, threads."""


def clean_name(name: str) -> str:
    """A parameter's own name, without what DDP and torch.compile put around it."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def model_tensors(model: nn.Module, into: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Parameters (tied ones once) and the buffers that count as state, on the CPU, as copies.

    Every process must call it: sharded tensors are gathered. Where `into` has tensors of a former call, they are
    written over: fresh memory would take longer than the copy.
    """
    into = into or {}
    return {name: _whole(value, into.get(name)) for name, value in model_parts(model).items()}


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, into: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """The optimiser's tensors by the name of their parameter, as `model_tensors` gives the model's."""
    into = into or {}
    return {name: _whole(value, into.get(name)) for name, value in optimizer_parts(model, optimizer).items()}


@torch.no_grad()
def _whole(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if into is None or into.shape != tensor.shape or into.dtype != tensor.dtype:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return into.copy_(tensor)


@torch.no_grad()
def load_model(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Put tensors into the model by name, whatever their dtype, device or sharding was.

    Raises CheckpointError with the names, where one is missing, left over or of another shape.
    """
    targets = {clean_name(name): value for name, value in [*model.named_parameters(), *model.named_buffers()]}
    persistent = {clean_name(name) for name in model.state_dict(keep_vars=True)}
    targets = {name: value for name, value in targets.items() if name in persistent}
    missing, surplus = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{source} is of another model: it lacks {_some(missing)} and has {_some(surplus)} too many.\n"
            "Give the same --recipe, --preset and model settings as the run that wrote it."
        )
    for name, target in targets.items():
        value = tensors[name]
        if target.shape != value.shape:
            raise CheckpointError(
                f"{source} is of another model: {name} is {tuple(value.shape)} there, "
                f"{tuple(target.shape)} here.\nGive the same model settings as the run that wrote it."
            )
        _assign(target, value)


@torch.no_grad()
def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the optimiser's tensors back by parameter name; its settings stay those of this run."""
    states: dict[str, list[str]] = {}
    for key in tensors:
        name, _, kind = key.rpartition("/")
        states.setdefault(name, []).append(kind)
    for name, parameter in model.named_parameters():
        saved = states.get(clean_name(name))
        if saved is None:
            continue
        restored = {}
        for kind in saved:
            value = tensors[f"{clean_name(name)}/{kind}"]
            if value.ndim == 0:
                # Fused and capturable AdamW count steps on the device; the plain one on the host.
                fused = any(group.get("fused") for group in optimizer.param_groups)
                restored[kind] = value.to(parameter.device if fused else "cpu", torch.float32)
            else:
                restored[kind] = torch.zeros_like(parameter)
                _assign(restored[kind], value)
        optimizer.state[parameter] = restored


def _assign(target: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


# Folders --------------------------------------------------------------------------------------------


def write(
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
    _flush(hidden)
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
    seal(draft)
    if folder.exists():
        # Only a run that was started over, or a damaged checkpoint, gets here.
        shutil.rmtree(folder)
    os.replace(draft, folder)
    _flush(output_dir)
    point(output_dir / "checkpoint-latest", folder)
    return folder


def seal(folder: Path) -> None:
    """Write the manifest over every file of the folder, and flush all to the disk."""
    entries = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": _hash(path)}
        _flush(path)
    manifest = folder / MANIFEST
    manifest.write_text(_manifest(entries), encoding="utf-8")
    _flush(manifest)
    for directory in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(directory)


def _manifest(entries: dict[str, Any]) -> str:
    """The manifest's text; it carries a hash of itself, so that a flipped bit in it is found too."""
    content = {"schema_version": SCHEMA_VERSION, "files": entries}
    content["self"] = xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
    return json.dumps(content, indent=1)


def damage(folder: Path) -> str | None:
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


def complete(output_dir: Path) -> list[Path]:
    """Every folder called checkpoint-<step>, oldest first; whole or not."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if FOLDER.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    match = FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else -1


def newest(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence about each newer one that had to be skipped."""
    skipped = []
    for folder in reversed(complete(output_dir)):
        wrong = damage(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"{folder} is skipped: {wrong}.")
    return None, skipped


def read_state(folder: Path) -> State:
    """The small state of a checkpoint."""
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    content.pop("schema_version")
    names = {field.name for field in dataclasses.fields(State)}
    return State(**{name: value for name, value in content.items() if name in names})


def read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, or of the shards that stand in its place.

    Raises CheckpointError where it is missing or broken.
    """
    try:
        shards = sorted(path.parent.glob(f"{path.stem}.shard-*.safetensors"))
        return Shards(shards) if shards and not path.exists() else load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


class Shards(Mapping[str, torch.Tensor]):
    """Tensors in pieces over several files: each is put together when it is asked for, so that one fits into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = [safe_open(path, "pt") for path in paths]
        self.places: dict[str, list[tuple[Any, dict[str, list[int]]]]] = {}
        for file in self.files:
            for name, place in json.loads(file.metadata()["places"]).items():
                self.places.setdefault(name, []).append((file, place))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> torch.Tensor:
        pieces = self.places[name]
        first = pieces[0][0].get_tensor(name)
        whole = torch.empty(pieces[0][1]["shape"], dtype=first.dtype)
        for file, place in pieces:
            piece = file.get_tensor(name)
            whole[tuple(slice(at, at + size) for at, size in zip(place["at"], piece.shape, strict=True))] = piece
        return whole


def own_pieces(tensors: Mapping[str, torch.Tensor], is_main: bool) -> tuple[dict[str, torch.Tensor], str]:
    """What this process holds of each tensor, as copies on the CPU, and as JSON where in the whole it belongs.

    Whole tensors, which every process has, are the main process's to write.
    """
    pieces, places = {}, {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            shape, at = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            local = tensor.to_local()
            assert tuple(shape) == tuple(local.shape)
        elif is_main:
            local, at = tensor, (0,) * tensor.ndim
        else:
            continue
        if local.numel():
            pieces[name] = local.detach().to("cpu", copy=True).contiguous()
            places[name] = {"shape": list(tensor.shape), "at": list(at)}
    return pieces, json.dumps(places)


def model_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (tied ones once) and the buffers that count as state, by clean name, as they are."""
    persistent = {clean_name(name) for name in model.state_dict(keep_vars=True)}
    named = [*model.named_parameters(), *model.named_buffers()]
    return {clean_name(name): value for name, value in named if clean_name(name) in persistent}


def optimizer_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors by <parameter name>/<state>, as they are."""
    return {
        f"{clean_name(name)}/{kind}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def point(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder`, at once: a symbolic link, or a file with the name where there are none."""
    draft = link.with_name(f"{DRAFT}{link.name}-{uuid.uuid4().hex[:8]}")
    try:
        draft.symlink_to(folder.name, target_is_directory=True)
    except OSError:
        draft.write_text(folder.name, encoding="utf-8")
    os.replace(draft, link)
    _flush(link.parent)


def follow(link: Path) -> Path:
    """The folder that a pointer made by `point` leads to."""
    if link.is_file():
        return link.parent / link.read_text(encoding="utf-8").strip()
    return link.resolve() if link.is_symlink() else link


def prune(output_dir: Path, keep: int | None, best_step: int | None) -> None:
    """Remove the oldest checkpoints beyond the newest `keep`, never the best one; and drafts of killed runs.

    Called only after a newer checkpoint is complete.
    """
    for draft in output_dir.glob(f"{DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
    if keep is None:
        return
    for folder in complete(output_dir)[:-keep]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
