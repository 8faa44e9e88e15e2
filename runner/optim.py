"""The optimisers: AdamW with weight decay on matrices only, and Muon for the matrices of layers."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from runner.checkpoints.tensors import clean_name
from runner.errors import ConfigError
from runner.settings import RunSettings

SCALE = "learning_rate_scale"
"""What a group of parameters calls its share of the run's learning rate."""

Scales = dict[int, float]
"""By the id of each parameter of a model: the share of the run's learning rate that it has."""


def optimizer(
    model: nn.Module,
    settings: RunSettings,
    device: torch.device,
    scale_of: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """The optimiser that the settings name, for the parameters that are trained.

    `scale_of` gives the share of the run's learning rate that the parameter of a name has.
    """
    scales = {id(each): scale_of(clean_name(name)) for name, each in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optim == "adamw":
        return adamw(trained, settings, device, scales)
    inside = {id(parameter) for parameter in matrices_of_layers(model)}
    matrices = [parameter for parameter in trained if id(parameter) in inside]
    if not matrices:
        raise ConfigError("The model has no layers with matrices for Muon: type --optim adamw.")
    others = [parameter for parameter in trained if id(parameter) not in inside]
    return MuonAndAdamW(matrices, others, settings, device, scales)


def groups_of(
    parameters: Iterable[nn.Parameter], rate: float, decay: float, scales: Scales
) -> Iterator[dict[str, Any]]:
    """Groups of one weight decay, one for each share of the learning rate."""
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_scale.setdefault(scales[id(parameter)], []).append(parameter)
    for scale, members in by_scale.items():
        yield {"params": members, "lr": rate * scale, "weight_decay": decay, SCALE: scale}


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
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        settings: RunSettings,
        device: torch.device,
        scales: Scales,
    ) -> None:
        rate = settings.learning_rate
        groups = list(groups_of(matrices, rate, settings.weight_decay, scales))
        muon = torch.optim.Muon(groups, lr=rate, adjust_lr_fn="match_rms_adamw")
        self.parts: list[torch.optim.Optimizer] = [muon, *([adamw(others, settings, device, scales)] if others else [])]
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


class AdamW(torch.optim.AdamW):
    """torch's AdamW, which imports torch's compiler only where something is compiled: that takes most of a second.

    torch wraps these two methods so that `torch.compile` leaves them out, and the wrappers import `torch._dynamo`. What
    they wrap is called here; where a version of torch wraps nothing, it is the method itself.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what `closure` does."""
        return UPDATE(self, closure)


UPDATE = inspect.unwrap(torch.optim.Adam.step)
"""One update of Adam and AdamW, without what torch wraps around it."""


def adamw(
    trained: list[nn.Parameter], settings: RunSettings, device: torch.device, scales: Scales
) -> torch.optim.AdamW:
    """AdamW, with the fused kernel where the device has one.

    Biases, norms and other vectors get no weight decay, which would only shrink their scale.
    Source: Loshchilov and Hutter 2017, arXiv 1711.05101.
    """
    rate = settings.learning_rate
    groups = [
        *groups_of((p for p in trained if p.ndim >= 2), rate, settings.weight_decay, scales),
        *groups_of((p for p in trained if p.ndim < 2), rate, 0.0, scales),
    ]
    return AdamW(
        groups,
        lr=rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=device.type in ("cpu", "cuda", "mps"),
    )


def set_step(optimizer: torch.optim.Optimizer, learning_rate: float, beta1: float) -> None:
    """Give every group its share of the learning rate of this step, and the first decay rate."""
    for group in optimizer.param_groups:
        # The groups of another optimiser than ours have no share.
        group["lr"] = learning_rate * group.get(SCALE, 1.0)
        if "betas" in group:
            group["betas"] = (beta1, group["betas"][1])
