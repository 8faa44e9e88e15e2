"""From the host's memory to the device, without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on the device.

    CUDA reads pinned memory by itself. From other memory it copies only after it has worked through what it was given
    before, and the process waits meanwhile. Torch keeps the pinned memory until it was read. Other devices may read
    memory that is freed by then, so there the process waits.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)
