"""FSDP2: weights, gradients and optimiser state sharded over the processes, by torch's `fully_shard`."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: nn.Module, device_type: str, num_processes: int) -> nn.Module:
    """Shard every trained layer, then the rest, over all processes. The module has the same class and names as before.

    Layers are the children of the model's lists of modules. Each is gathered only while it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device_type, (num_processes,))
    whole_weights: set[nn.Parameter] = set()
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            weights = list(layer.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                # A frozen layer is not sharded: its results may be cached, so processes call it unequally often.
                whole_weights.update(weights)
            elif weights and not isinstance(layer, FSDPModule):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=whole_weights)
    return model


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every process, for an evaluation: processes call the model unequally often there."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
