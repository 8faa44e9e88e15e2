"""Out of memory: a lane that does not fit is computed in parts, with the same sum and weight."""

from typing import Any

import torch

from runner.errors import OutOfMemory
from runner.recipe import Batch


def size(batch: Batch) -> int:
    """Numbers in a micro-batch: what its memory grows with."""
    return sum(tensor.numel() for tensor in batch.tensors.values())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get memory on the device: CUDA has a class for it, MPS and CPU only words."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def split(batch: Batch, parts: int) -> list[tuple[Batch, float]]:
    """The micro-batch in up to `parts` pieces along its examples, each with the fraction of the examples it holds.

    Tensors, and lists in `extra` that are as long, are cut; everything else goes to every piece. A piece's
    weight is its fraction of the whole's, and is not what the loss is divided by.
    """
    if parts == 1:
        return [(batch, 1.0)]
    count = len(next(iter(batch.tensors.values())))
    size_of_part = -(-count // parts)
    pieces = []
    for first in range(0, count, size_of_part):
        own = slice(first, min(first + size_of_part, count))
        fraction = (own.stop - own.start) / count
        tensors = {name: tensor[own] for name, tensor in batch.tensors.items()}
        extra = {name: _cut(value, own, count) for name, value in batch.extra.items()}
        pieces.append((Batch(tensors, batch.weight * fraction, int(batch.tokens * fraction), extra), fraction))
    return pieces


def _cut(value: Any, own: slice, count: int) -> Any:
    return value[own] if isinstance(value, (list, tuple)) and len(value) == count else value


def check_splittable(recipe: Any, lanes: list[Any], parts: int, error: RuntimeError) -> None:
    """Raises OutOfMemory where the lanes cannot be cut further."""
    advice = recipe.memory_advice
    if recipe.couples_examples:
        raise OutOfMemory(
            f"Out of memory, and the loss compares the examples of a micro-batch, so it cannot be cut.\n{advice}"
        ) from error
    largest = max(len(next(iter(lane.batch.tensors.values()))) for lane in lanes)
    if parts >= largest:
        raise OutOfMemory(
            "Out of memory with a single example.\nChoose a smaller model, type --gradient_checkpointing true, or: "
            f"{advice}"
        ) from error
