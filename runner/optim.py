"""AdamW with weight decay on matrices only."""

import torch
from torch import nn

from runner.config import RunSettings


def adamw(model: nn.Module, settings: RunSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the parameters that train; fused where the device has the kernel.

    Biases, norms and other vectors are not decayed: decay there only shrinks scales.
    Source: Loshchilov and Hutter 2017, arXiv 1711.05101.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=device.type in ("cpu", "cuda", "mps"),
    )


def set_step(optimizer: torch.optim.Optimizer, learning_rate: float, beta1: float) -> None:
    """Give every group the learning rate and first decay rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["betas"] = (beta1, group["betas"][1])
