"""The tensors of one save: written from where they are, and copied only where training is about to change them."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from runner.checkpoints.tensors import full_copy, in_file_order, is_sharded, write_file
from runner.errors import CheckpointError

SMALL_BYTES = 1 << 16
"""Tensors up to this size are copied at once, which takes less time than looking after them."""
PIECE_BYTES = 1 << 23
"""What is copied and written at a time: training waits at most for the copy of one piece."""

Memory = dict[str, torch.Tensor]
"""Tensors whose memory the copies of tensors with the same names are made in."""


class Snapshot:
    """Tensors by name, as they are now, for a thread that writes them while training goes on.

    With `lazily`, large tensors on the CPU are not copied. The thread reads them where they are, and whoever changes
    them calls `hold` first. `changing` names the tensors that change without such a call, such as buffers.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        memory: Memory,
        lazily: bool = False,
        changing: frozenset[str] = frozenset(),
    ) -> None:
        self.lock = threading.Lock()
        self.memory = memory
        self.live: dict[str, tuple[torch.Tensor, int]] = {}
        """Tensors of the run itself that are not written yet, and how often each had been changed at the save."""
        self.copies: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if lazily and name not in changing and can_wait(tensor):
                self.live[name] = tensor.detach(), tensor._version
            else:
                self.copies[name] = full_copy(tensor, memory.get(name))
        own = {name: tensor for name, (tensor, _) in self.live.items()} | self.copies
        self.shapes = {name: torch.empty_like(own[name], device="meta") for name in in_file_order(own)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shape.nbytes for shape in self.shapes.values())

    def hold(self) -> dict[str, torch.Tensor]:
        """Copy what is not written yet, because it is about to change; returns the copies."""
        with self.lock:
            copies = {}
            for name, (tensor, version) in self.live.items():
                check_unchanged(name, tensor, version)
                copies[name] = full_copy(tensor, self.memory.get(name))
            self.copies |= copies
            self.live.clear()
            return copies

    def write(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write all into a safetensors file, and let go of each tensor after it."""
        try:
            write_file(path, self.shapes, self._pieces(), metadata)
        finally:
            # After a failure too, nothing is to be copied for a file that nobody writes.
            with self.lock:
                self.live.clear()
                self.copies.clear()

    def _pieces(self) -> Iterator[torch.Tensor]:
        """The content of all tensors in order, in pieces of bytes."""
        staging = torch.empty(PIECE_BYTES, dtype=torch.uint8) if self.live else None
        for name, shape in self.shapes.items():
            at = 0
            while at < shape.nbytes:
                with self.lock:
                    if name in self.live:
                        tensor, version = self.live[name]
                        check_unchanged(name, tensor, version)
                        source = as_bytes(tensor)[at : at + PIECE_BYTES]
                        assert staging is not None
                        piece = staging[: len(source)].copy_(source)
                    else:
                        piece = as_bytes(self.copies[name])[at:]
                yield piece
                at += len(piece)
            with self.lock:
                self.live.pop(name, None)
                self.copies.pop(name, None)


def can_wait(tensor: torch.Tensor) -> bool:
    """Whether a tensor is worth reading where it is."""
    is_here = tensor.device.type == "cpu" and not is_sharded(tensor)
    return is_here and tensor.nbytes > SMALL_BYTES and tensor.is_contiguous()


def check_unchanged(name: str, tensor: torch.Tensor, version: int) -> None:
    """Raises CheckpointError where a tensor was changed between its save and its writing."""
    if tensor._version != version:
        raise CheckpointError(
            f"{name} was changed by other code than the optimiser while its checkpoint was written.\n"
            "Change it in the recipe's end_step, which waits for the copy."
        )


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8)
