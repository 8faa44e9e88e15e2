"""Cross-entropy with logits computed in chunks, inside the model's forward pass.

A vocabulary of 262,144 words makes the logits of a micro-batch larger than all other activations.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from runner.parts.own_class import put_in_front

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

LARGE_LOGITS = 1 << 26
"""Number of logits of a micro-batch above which the loss is computed in chunks, if the output matrix trains: 256 MB in
fp32."""
CHUNK = 1 << 24
"""Number of logits of a chunk. With 16 rows of 262,144, a row took 1.7 times as long as with 64."""


class ScoringLinear:
    """The output matrix, in front of Linear. While it has `labels`, it returns the loss of each row in place of logits.

    These then never are in memory all at once. This happens inside the model's forward pass, as DDP, FSDP and
    torch.compile need it.
    """

    labels: Tensor | None = None
    weight: Tensor
    cap: float | None = None
    """Gemma's soft cap of the logits: cap * tanh(logits / cap)."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, time, hidden) -> (batch, time, vocab), or, with labels, (batch,) nats."""
        if self.labels is None:
            return super().forward(input)  # type: ignore[misc]
        return chunked_cross_entropy(input, self.weight, self.labels, self.cap)


class Context(Protocol):
    """What autograd hands to both passes of a function."""

    dtype: torch.dtype
    cap: float | None
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, cap: float | None = None) -> Tensor:
    """Cross-entropy summed over each row, with logits computed in chunks.

    (batch, time, hidden), (vocab, hidden), (batch, time) int64, cap -> (batch,) fp32. Labels of -100 are not scored
    and have no logits. Where the output matrix is frozen, the forward pass computes the gradient too; else the backward
    pass computes the logits again.
    """
    return cast(Any, _function()).apply(hidden, weight, labels, cap)


def _forward(ctx: Context, hidden: Tensor, weight: Tensor, labels: Tensor, cap: float | None = None) -> Tensor:
    """Products are computed in the dtype of autocast, the rest in fp32."""
    import torch

    kind = hidden.device.type
    ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    ctx.cap = cap
    scored, targets = _scored(labels)
    flat, matrix = hidden.detach().flatten(0, 1)[scored].to(ctx.dtype), weight.to(ctx.dtype)
    is_frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
    losses, gradient = [], torch.empty_like(flat) if is_frozen else None
    for part in _parts(len(flat), len(weight)):
        logits = _capped(wide(flat[part] @ matrix.T), cap)
        losses.append(torch.nn.functional.cross_entropy(logits, targets[part], reduction="none"))
        if gradient is not None:
            gradient[part] = _slopes(logits, targets[part], cap).to(ctx.dtype) @ matrix
    if gradient is None:
        ctx.save_for_backward(hidden, weight, labels)
    else:
        ctx.save_for_backward(gradient, labels)
    each = torch.zeros(labels.numel(), dtype=losses[0].dtype if losses else torch.float32, device=labels.device)
    each[scored] = torch.cat(losses) if losses else each[scored]
    return each.view(labels.shape).sum(1)


def _backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    """The gradients of hidden states and output matrix."""
    import torch

    labels = ctx.saved_tensors[-1]
    scored, targets = _scored(labels)
    scale = gradients[0].repeat_interleave(labels.shape[1])[scored]
    if len(ctx.saved_tensors) == 2:
        gradient = ctx.saved_tensors[0]
        found = gradient.new_zeros(labels.numel(), gradient.shape[1])
        found[scored] = gradient * scale[:, None].to(gradient.dtype)
        return found.view(*labels.shape, -1), None, None, None
    hidden, weight, _ = ctx.saved_tensors
    flat, matrix = hidden.flatten(0, 1)[scored].to(ctx.dtype), weight.to(ctx.dtype)
    to_hidden, to_weight = torch.empty_like(flat), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
    for part in _parts(len(flat), len(weight)):
        logits = _capped(wide(flat[part] @ matrix.T), ctx.cap)
        slopes = _slopes(logits, targets[part], ctx.cap).mul_(scale[part, None]).to(ctx.dtype)
        to_hidden[part] = slopes @ matrix
        if to_weight is not None:
            to_weight += slopes.T @ flat[part]
    found = flat.new_zeros(labels.numel(), flat.shape[1])
    found[scored] = to_hidden
    return found.view(hidden.shape).to(hidden.dtype), to_weight, None, None


@functools.cache
def _function() -> type:
    import torch

    passes = {"forward": staticmethod(_forward), "backward": staticmethod(_backward)}
    return type("ChunkedCrossEntropy", (torch.autograd.Function,), passes)


def _scored(labels: Tensor) -> tuple[Tensor | slice, Tensor]:
    """Which places of all rows are scored, and their labels."""
    targets = labels.flatten()
    scored = targets != -100
    # Indexing copies: it is left out where everything is scored.
    return (slice(None), targets) if bool(scored.all()) else (scored, targets[scored])


def wide(logits: Tensor) -> Tensor:
    """The logits in fp32 at least."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _slopes(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """Gradient of the cross-entropy by the logits before their cap: softmax minus the label. Reuses no memory."""
    slopes = logits.softmax(-1)
    places = targets[:, None]
    slopes.scatter_add_(1, places, slopes.new_full(places.shape, -1.0))
    return slopes if cap is None else slopes.mul_(1 - (logits / cap) ** 2)


def _parts(rows: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK // vocab_size)
    return [slice(first, first + size) for first in range(0, rows, size)]


PLAIN_OUTPUT = (
    "Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Arcee", "StableLm", "Starcoder2", "GPT2LMHead", "SmolLM3",
    "Olmo2", "GemmaForCausalLM", "Positioned",
)  # fmt: skip
"""Beginnings of the names of classes whose logits are the plain product with the output matrix."""
CAPPED_OUTPUT = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
"""Classes that cap their logits by config.final_logit_softcapping, if it is set."""


def let_score(model: PreTrainedModel) -> None:
    """Replace the output matrix by a ScoringLinear, where the class of the model allows it."""
    from torch import nn

    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None and type(model).__name__.startswith(PLAIN_OUTPUT + CAPPED_OUTPUT):
        put_in_front(ScoringLinear, head)


@contextlib.contextmanager
def scored_in_chunks(model: nn.Module, labels: Tensor, chunked: bool | None = None) -> Iterator[bool]:
    """While it is active, the model returns the loss of each row, (batch,) nats, as its logits, if this yields True.

    labels: (batch, time) int64, one for each place of which the model computes logits. `chunked` None: in chunks if the
    logits are large.
    """
    head = next((each for each in model.modules() if isinstance(each, ScoringLinear)), None)
    if head is None or not (_is_worth_it(head, labels) if chunked is None else chunked):
        yield False
        return
    config = next((cast(Any, each).config for each in model.modules() if hasattr(each, "config")), None)
    cap = getattr(config, "final_logit_softcapping", None)
    head.labels, head.cap = labels, cap
    try:
        if cap is not None:
            # The model would cap the losses.
            config.final_logit_softcapping = None  # type: ignore[union-attr]
        yield True
    finally:
        head.labels = None
        if cap is not None:
            config.final_logit_softcapping = cap  # type: ignore[union-attr]


def _is_worth_it(head: ScoringLinear, labels: Tensor) -> bool:
    # A frozen matrix costs nothing more in chunks; one that trains computes its logits twice.
    return labels.numel() * len(head.weight) > (LARGE_LOGITS if head.weight.requires_grad else CHUNK)
