"""torch.compile, one layer of a model at a time.

Layers of one class share what is compiled, so the time for it does not grow with their number. The first micro-batch of
another length makes torch compile once more, for any length; those after it find that.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def compile_model(model: nn.Module, **options: Any) -> None:
    """Compile in place, when first called, each layer of a model; the whole model if its layers are not most of it.

    A mixture of experts is compiled as a whole: transformers records what its routers say, which cuts a layer that is
    compiled alone into pieces, and these are slower than the layer as written. No parameter gets another name.
    `options` are torch.compile's.
    """
    from torch._dynamo.external_utils import wrap_inline

    # torch warns of what it does itself, at the input of each layer but the first.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    config = getattr(model, "config", None)
    has_experts = bool(getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None))
    layers = [] if has_experts else list(repeated(model))
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    whole = sum(each.numel() for each in model.parameters() if id(each) not in tables)
    within = sum(each.numel() for layer in layers for each in layer.parameters())
    for part in layers if 2 * within >= whole else [model]:
        if type(part).__module__.startswith("torch.nn."):
            # torch compiles nothing of its own files that no other frame has called.
            part._compiled_call_impl = torch.compile(wrap_inline(part._call_impl), **options)
        else:
            part.compile(**options)


def repeated(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of each list of two or more of one class, such as the layers of a decoder; none inside another."""
    for child in module.children():
        members = list(child) if isinstance(child, nn.ModuleList) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            yield from members
        else:
            yield from repeated(child)


def as_written(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which a compiled model runs as it is written.

    An evaluation has other shapes: generation has one more token in each step.
    """
    if any(each._compiled_call_impl is not None for each in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
