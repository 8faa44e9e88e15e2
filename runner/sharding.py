"""FSDP2: weights, gradients and optimiser state sharded over the processes, by torch's `fully_shard`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from runner.deferred import Deferred

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(
    model: nn.Module, device: torch.device, num_processes: int, precision: str = "no", deferred: Deferred | None = None
) -> nn.Module:
    """Shard every trained layer, then the rest, over all processes. The module has the same class and names as before.

    Layers are the children of the model's lists of modules. Each is gathered only while it computes. With `deferred`,
    the model has no content yet: each layer is filled and sharded before the next one is filled, so that no process
    holds more than its shards and one layer. With bf16 as `precision`, layers are gathered in bf16, in which autocast
    computes with them anyway; their gradients are summed in fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (num_processes,))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

    def place(part: nn.Module) -> None:
        if deferred is not None:
            deferred.fill(model, part)
        part.to(device)

    whole_weights: set[nn.Parameter] = set()
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            weights = list(layer.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                # A frozen layer is not sharded: its results may be cached, so processes call it unequally often.
                place(layer)
                whole_weights.update(layer.parameters())
            elif weights and not isinstance(layer, FSDPModule):
                place(layer)
                fully_shard(layer, mesh=mesh, mp_policy=policy)
    place(model)
    fully_shard(root_of(model), mesh=mesh, ignored_params=whole_weights)
    return model


def root_of(model: nn.Module) -> nn.Module:
    """The module that every use of the model calls: inside adapters their base, which is all that `generate` calls."""
    return cast("nn.Module", model.get_base_model()) if hasattr(model, "peft_config") else model  # type: ignore[operator]


def parts_of(model: nn.Module) -> "list[FSDPModule]":
    """The modules that are gathered one by one; none where the model is not sharded."""
    if "torch.distributed.fsdp" not in sys.modules:
        # Nothing can be sharded yet, and the import takes seconds.
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def in_turns(model: nn.Module, meet: Callable[[bool], bool]) -> Iterator[Callable[[], None]]:
    """Call a sharded model unequally often on the processes: one that is done takes part in the others' gathers.

    `meet` says on each process whether it is about to call the model, and returns whether any process is. Yields a
    function that every process calls when its work is done; it returns when all are done. The model must call its
    layers in the same order each time.
    """
    parts, root, order = parts_of(model), root_of(model), []
    is_known = False

    def begin(module: nn.Module, inputs: object) -> None:
        nonlocal is_known
        is_known = bool(order)
        meet(True)

    def note(module: nn.Module, inputs: object) -> None:
        if not is_known:
            order.append(module)

    def finish() -> None:
        while meet(False):
            for part in order:
                part.unshard()
                if part is not root:
                    part.reshard()

    # Before FSDP's own hooks, which gather.
    hooks = [part.register_forward_pre_hook(note, prepend=True) for part in parts]  # type: ignore[attr-defined]
    hooks.append(root.register_forward_pre_hook(begin, prepend=True))
    try:
        yield finish
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every process, for an evaluation: processes call the model unequally often there."""
    parts, root = parts_of(model), root_of(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not root, recurse=False)
            part.reshard()
