"""Out of memory: a lane that does not fit is computed in parts, with the same loss."""

from collections.abc import Sequence

import torch

from runner.errors import OutOfMemory
from runner.recipe import Batch, Recipe


def size(batch: Batch) -> int:
    """Elements of all tensors of a micro-batch; its memory grows with them."""
    return sum(tensor.numel() for tensor in batch.tensors.values())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate memory. CUDA raises a class of its own, MPS and CPU only a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def split(batch: Batch, parts: int) -> list[tuple[Batch, float]]:
    """The micro-batch in up to `parts` pieces along its examples, each with the fraction of the examples it holds.

    Tensors, and lists in `extra` with one entry per example, are split; everything else goes to every piece. The
    weight of a piece is its fraction of the weight; the loss is not divided by it.
    """
    if parts == 1:
        return [(batch, 1.0)]
    count = len(next(iter(batch.tensors.values())))
    size_of_part = -(-count // parts)
    pieces = []
    for first in range(0, count, size_of_part):
        own = slice(first, min(first + size_of_part, count))
        fraction = (own.stop - own.start) / count
        tensors, host = ({name: each[own] for name, each in of.items()} for of in (batch.tensors, batch.host))
        extra = {name: _cut(value, own, count) for name, value in batch.extra.items()}
        tokens = int(batch.tokens * fraction)
        pieces.append((Batch(tensors, batch.weight * fraction, tokens, extra, host=host), fraction))
    return pieces


def _cut(value: object, own: slice, count: int) -> object:
    return value[own] if isinstance(value, (list, tuple)) and len(value) == count else value


def check_splittable(recipe: Recipe, batches: Sequence[Batch], parts: int, error: RuntimeError) -> None:
    """Raises OutOfMemory if the micro-batches cannot be split further."""
    advice = recipe.memory_advice
    if recipe.couples_examples:
        raise OutOfMemory(
            f"Out of memory. The loss compares the examples of a micro-batch, so Relay cannot split it.\n{advice}"
        ) from error
    largest = max(len(next(iter(batch.tensors.values()))) for batch in batches)
    if parts >= largest:
        raise OutOfMemory(
            "Out of memory with a single example.\nChoose a smaller model, type --gradient_checkpointing true, or: "
            f"{advice}"
        ) from error
