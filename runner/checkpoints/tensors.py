"""The tensors of a checkpoint: out of model and optimiser by name, and back into them."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from runner.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def clean_name(name: str) -> str:
    """A parameter's own name, without what DDP and torch.compile put around it."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def is_sharded(tensor: torch.Tensor) -> "TypeIs[DTensor]":
    """Whether a tensor is cut over the processes."""
    if type(tensor) in (torch.Tensor, nn.Parameter):
        # Commands that make no optimiser need not wait seconds for the import; torch's AdamW makes it by itself.
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (tied ones once) and the buffers that count as state, on the CPU, as copies.

    Every process must call it: sharded tensors are gathered.
    """
    return {name: full_copy(value, None) for name, value in model_parts(model).items()}


def names_elsewhere(model: nn.Module) -> set[str]:
    """The frozen parameters that a checkpoint leaves out, because their base lies elsewhere and does not change.

    Such a model has `base_is_elsewhere`: whoever builds it has loaded the base, and has checked its content.
    """
    if not getattr(model, "base_is_elsewhere", False):
        return set()
    return {clean_name(name) for name, parameter in model.named_parameters() if not parameter.requires_grad}


@torch.no_grad()
def full_copy(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    """A contiguous copy on the CPU, in the memory of `into` where it fits. Sharded tensors are gathered."""
    if is_sharded(tensor):
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
    elsewhere = names_elsewhere(model)
    if elsewhere & tensors.keys():
        # The checkpoint holds a base of its own, which may differ: it is saved from now on.
        model.base_is_elsewhere = False  # type: ignore[assignment]
        elsewhere = set()
    targets = {name: value for name, value in targets.items() if name not in elsewhere}
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
        if target.is_floating_point() != value.is_floating_point():
            raise CheckpointError(
                f"{source} cannot be used: {name} is {str(value.dtype).removeprefix('torch.')} there, "
                f"{str(target.dtype).removeprefix('torch.')} here."
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


def save_model(model: nn.Module, folder: Path) -> None:
    """Write a model into a folder: by its own `save_pretrained` where it has one, else as model.safetensors."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        save_file(model_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})


def _assign(target: torch.Tensor, value: torch.Tensor) -> None:
    if is_sharded(target):
        # Every process reads the whole tensor or a part of its file: nothing is sent.
        shape, at = own_place(target)
        own = tuple(slice(first, first + size) for first, size in zip(at, shape, strict=True))
        target.to_local().copy_(value[own])
    else:
        target.copy_(value)


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def read_tensors(path: Path) -> "Stored":
    """The tensors of a safetensors file, on the CPU, or of the shards that stand in its place.

    Raises CheckpointError where it is missing or broken.
    """
    try:
        shards = sorted(path.parent.glob(f"{path.stem}.shard-*.safetensors"))
        return Shards(shards) if shards and not path.exists() else OneFile(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


class Stored(Mapping[str, torch.Tensor]):
    """Tensors of files, each read when it is asked for."""

    def like(self, name: str) -> torch.Tensor:
        """A tensor of its shape and type, for which nothing has been read."""
        raise NotImplementedError


class OneFile(Stored):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.file = safe_open(path, "pt")
        self.names = list(self.file.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def like(self, name: str) -> torch.Tensor:
        """A tensor of its shape and type: the file is mapped into memory, and read where it is used."""
        return self[name]


class Gathered(Mapping[str, torch.Tensor]):
    """The tensors of a sharded model on the CPU, each gathered when it is asked for: every process asks for each, in
    their order. Those of the largest elements come first, as safetensors aligns them."""

    def __init__(self, model: nn.Module) -> None:
        parts = model_parts(model)
        self.parts = {name: parts[name] for name in sorted(parts, key=lambda name: -parts[name].element_size())}

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, name: str) -> torch.Tensor:
        return full_copy(self.parts[name], None)


class Shards(Stored):
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

    def like(self, name: str) -> torch.Tensor:
        """A tensor of its shape and type on the meta device."""
        file, place = self.places[name][0]
        return torch.empty(place["shape"], dtype=file.get_tensor(name).dtype, device="meta")


DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.complex64: "C64",
    torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
"""The names of types in safetensors, in the order in which it sorts them."""


def in_file_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names in the order in which safetensors writes them: the last type of DTYPES first, then by name."""
    ranks = {dtype: number for number, dtype in enumerate(DTYPES)}
    return sorted(tensors, key=lambda name: (-ranks[tensors[name].dtype], name.encode()))


def write_file(
    path: Path,
    shapes: Mapping[str, torch.Tensor],
    pieces: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None,
) -> None:
    """Write a safetensors file from tensors on the CPU that come one by one, or in pieces, in the order of `shapes`.

    Format: github.com/huggingface/safetensors, section "Format".
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in shapes.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # Without a buffer of Python's, which large pieces would only pass through.
    with path.open("wb", buffering=0) as file:
        write_all(file, struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            write_all(file, piece.reshape(-1).view(torch.uint8).numpy().data)


def write_all(file: RawIOBase, content: bytes | memoryview) -> None:
    """Write all bytes: one call of the system writes at most 2 GB, and fewer where the disk gets full."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def write_one_by_one(
    folder: Path,
    shapes: Mapping[str, torch.Tensor],
    contents: Iterable[torch.Tensor],
    limit_bytes: float = 5e9,
) -> None:
    """Write model.safetensors, or several files with an index as transformers reads them, holding one tensor at a time.

    `shapes` are tensors without content, by name; `contents` are the tensors in the same order. A file has at most
    `limit_bytes`, or one tensor.
    """
    files: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in shapes.items():
        if files[-1] and sum(each.nbytes for each in files[-1].values()) + tensor.nbytes > limit_bytes:
            files.append({})
        files[-1][name] = tensor
    names = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    names = ["model.safetensors"] if len(files) == 1 else names
    following = iter(contents)
    for file_name, tensors in zip(names, files, strict=True):
        pieces = (next(following).detach().to("cpu", tensor.dtype).contiguous() for tensor in tensors.values())
        write_file(folder / file_name, tensors, pieces, {"format": "pt"})
    if len(files) > 1:
        places = {name: file_name for file_name, tensors in zip(names, files, strict=True) for name in tensors}
        index = {"metadata": {"total_size": sum(each.nbytes for each in shapes.values())}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def own_pieces(
    tensors: Mapping[str, torch.Tensor], is_main: bool, copies: bool = True
) -> tuple[dict[str, torch.Tensor], str]:
    """What this process holds of each tensor, on the CPU, and as JSON where in the whole it belongs.

    Whole tensors, which every process has, are the main process's to write. Without `copies`, tensors that are on the
    CPU are those of the model itself.
    """
    pieces, places = {}, {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            shape, at = own_place(tensor)
            local = tensor.to_local()
            assert tuple(shape) == tuple(local.shape)
        elif is_main:
            local, at = tensor, (0,) * tensor.ndim
        else:
            continue
        if local.numel():
            pieces[name] = local.detach().to("cpu", copy=copies).contiguous()
            places[name] = {"shape": list(tensor.shape), "at": list(at)}
    return pieces, json.dumps(places)


def own_place(tensor: "DTensor") -> tuple[Sequence[int], Sequence[int]]:
    """The shape of this process's part of a sharded tensor, and where in the tensor the part begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)


def model_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (tied ones once) and the buffers that count as state, by clean name, as they are.

    Without those of a base that lies elsewhere.
    """
    persistent = {clean_name(name) for name in model.state_dict(keep_vars=True)} - names_elsewhere(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {clean_name(name): value for name, value in named if clean_name(name) in persistent}


def optimizer_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors by <parameter name>/<state>, as they are."""
    return {
        f"{clean_name(name)}/{kind}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
