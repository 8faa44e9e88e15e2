"""From the host's memory to the device, without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on the device.

    CUDA reads pinned memory by itself. From other memory it copies only after it has worked through what it was given
    before, and the process waits meanwhile.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
