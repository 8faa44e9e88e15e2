"""FSDP2: weights, gradients and optimiser cut over the processes, by torch's own `fully_shard`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: nn.Module, device_type: str, num_processes: int) -> nn.Module:
    """Cut every layer that learns, then what is left, over all processes; the module keeps its class and names.

    Layers are the children of the model's lists of modules: each is gathered while it computes, and only then.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device_type, (num_processes,))
    whole_weights: set[nn.Parameter] = set()
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            weights = list(layer.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                # What learns nothing stays whole: what it computes may be kept, so processes call it unevenly often.
                whole_weights.update(weights)
            elif weights and not isinstance(layer, FSDPModule):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=whole_weights)
    return model


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Keep the weights together on every process: for evaluation, where processes call the model unevenly often."""
    parts: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
