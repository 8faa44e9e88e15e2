"""The optimisers: AdamW with weight decay on matrices only, and Muon for the matrices of layers."""

from collections import defaultdict

import torch
from torch import nn

from runner.errors import ConfigError
from runner.settings import RunSettings


def optimizer(model: nn.Module, settings: RunSettings, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that the settings name, for the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optim == "adamw":
        return adamw(trained, settings, device)
    inside = {id(parameter) for parameter in matrices_of_layers(model)}
    matrices = [parameter for parameter in trained if id(parameter) in inside]
    if not matrices:
        raise ConfigError("The model has no layers with matrices for Muon: type --optim adamw.")
    others = [parameter for parameter in trained if id(parameter) not in inside]
    return MuonAndAdamW(matrices, others, settings, device)


def matrices_of_layers(model: nn.Module) -> list[nn.Parameter]:
    """Weights with two axes in the model's lists of modules, without embeddings."""
    layers = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = [module for layer in layers for module in layer.modules() if not isinstance(module, nn.Embedding)]
    found = {id(p): p for module in inside for p in module.parameters(recurse=False) if p.ndim == 2}
    return list(found.values())


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimiser for the loop and for checkpoints, with shared groups and state.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate and one weight decay suit both.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982, equation 4.
    """

    def __init__(
        self, matrices: list[nn.Parameter], others: list[nn.Parameter], settings: RunSettings, device: torch.device
    ) -> None:
        decay, rate = settings.weight_decay, settings.learning_rate
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.parts: list[torch.optim.Optimizer] = [muon, *([adamw(others, settings, device)] if others else [])]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = defaultdict(dict)
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One update of all parameters."""
        for part in self.parts:
            part.step()


def adamw(trained: list[nn.Parameter], settings: RunSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW, with the fused kernel where the device has one.

    Biases, norms and other vectors get no weight decay, which would only shrink their scale.
    Source: Loshchilov and Hutter 2017, arXiv 1711.05101.
    """
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
        if "betas" in group:
            group["betas"] = (beta1, group["betas"][1])
