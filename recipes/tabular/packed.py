"""Layers of a BERT over texts of many lengths without padding, and dropout, as a CPU computes them fast.

The tokens of all texts lie one after another: T tokens, D width. What a layer does to each token alone is computed for
all of them at once; only attention goes through the texts, those of one length together. A GPU is faster with padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer, BertModel

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def dropout(states: Tensor, rate: float) -> Tensor:
    """Set a share `rate` to 0 and scale the rest. On a CPU, each number costs 16 random bits instead of torch's 32.

    The rate is rounded to 1/65,536 there.
    """
    if states.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(states, rate)
    size, dropped = states.numel(), round(rate * 65536)
    drawn = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:size]
    kept = (drawn >= dropped - 32768).to(states.dtype).mul_(65536 / (65536 - dropped))
    return states * kept.view(states.shape)


class Dropout(nn.Dropout):
    """As torch's, by `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        return dropout(input, self.p) if self.training and self.p else input


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where texts lie among their tokens; they are sorted by length."""

    sizes: list[int]
    """Tokens of each text."""

    def split(self, states: Tensor) -> list[Tensor]:
        """(T, D) to (texts, tokens, D) for each length."""
        runs = [(length, len(list(same))) for length, same in itertools.groupby(self.sizes)]
        pieces = states.split([length * count for length, count in runs])
        return [piece.view(count, length, -1) for piece, (length, count) in zip(pieces, runs, strict=True)]

    def first(self, states: Tensor) -> Tensor:
        """(T, D) to the first token of each text, (texts, D)."""
        return torch.cat([piece[:, 0] for piece in self.split(states)])

    def mean(self, states: Tensor) -> Tensor:
        """(T, D) to the mean of each text, (texts, D)."""
        return torch.cat([piece.mean(1) for piece in self.split(states)])


def linear(states: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """(..., in) to (..., out), and GELU of it.

    On a CPU where nothing is trained, oneDNN computes all in one pass, as torch's compiler has it do. torch's own
    `linear` takes MKL, which is slower on AMD, and copies the bias first.
    """
    is_plain = states.dtype == weight.dtype == torch.float32 and states.device.type == "cpu"
    is_bare = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    if HAS_ONEDNN and is_plain and is_bare:
        kind, algorithm = ("gelu", "none") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(states, weight, bias, kind, [], algorithm)
    found = functional.linear(states, weight, bias)
    return functional.gelu(found) if gelu else found


class Adapted(nn.Module):
    """A linear layer with a low-rank addition. Source: Hu et al. 2021, arXiv 2106.09685, eq. 3."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = Dropout(dropout)
        self._merged: Tensor | None = None
        self._merged_of: tuple[object, ...] = ()

    def forward(self, states: Tensor, gelu: bool = False) -> Tensor:
        """(..., in) to (..., out), and GELU of it."""
        if not torch.is_grad_enabled() and not self.training:
            parts = self.layer.weight, self.lora_a, self.lora_b
            merged_of = (parts[0].device, parts[0].dtype, *(part._version for part in parts))
            if self._merged is None or merged_of != self._merged_of:
                with torch.autocast(states.device.type, enabled=False):
                    self._merged, self._merged_of = parts[0] + self.lora_b @ self.lora_a * self.scale, merged_of
            return linear(states, self._merged, self.layer.bias, gelu)
        self._merged = None
        low = functional.linear(self.dropout(states), self.lora_a)
        found = self.layer(states)
        # In one pass over the output.
        added = torch.addmm(found.flatten(0, -2), low.flatten(0, -2), self.lora_b.t(), alpha=self.scale)
        added = added.view(found.shape)
        return functional.gelu(added) if gelu else added


def project(layer: nn.Module, states: Tensor, gelu: bool = False) -> Tensor:
    """(..., in) to (..., out) by a linear layer, with adapters or without, and GELU of it."""
    if isinstance(layer, Adapted):
        return layer(states, gelu)
    assert isinstance(layer, nn.Linear)
    return linear(states, layer.weight, layer.bias, gelu)


# A compiled layer would be compiled again for other lengths of texts.
_first: Any = torch.compiler.disable(Layout.first)


class PackedLayer(BertLayer):
    """A layer of a BERT that takes tokens without padding too."""

    def forward(self, hidden_states: Tensor, *rest: Any, layout: Layout | None = None, only_first: bool = False,
                **others: Any) -> Tensor:  # fmt: skip
        """(T, D) to (T, D) with `layout`; `only_first`: to (texts, D) of each text's first token.

        Without `layout` as a BERT's own: (B, S, D) and a mask to (B, S, D).
        """
        if layout is None:
            return super().forward(hidden_states, *rest, **others)
        own = self.attention.self
        asking = _first(layout, hidden_states) if only_first else hidden_states
        query = project(own.query, asking)
        key, value = project(own.key, hidden_states), project(own.value, hidden_states)
        rate = own.dropout.p if self.training else 0.0
        mixed = _attend(query, key, value, own.num_attention_heads, layout, rate, only_first)  # type: ignore
        after, wide, last = self.attention.output, self.intermediate, self.output
        states = after.LayerNorm(after.dropout(project(after.dense, mixed)) + asking)
        is_gelu = type(wide.intermediate_act_fn) is GELUActivation
        inner = project(wide.dense, states, is_gelu)
        inner = inner if is_gelu else wide.intermediate_act_fn(inner)
        return last.LayerNorm(last.dropout(project(last.dense, inner)) + states)


@torch.compiler.disable
def _attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, layout: Layout, rate: float, only_first: bool
) -> Tensor:
    """(T, D) each to (T, D); (texts, D) and twice (T, D) to (texts, D) with `only_first`."""
    keys, values = layout.split(key), layout.split(value)
    if only_first:
        queries = [each[:, None] for each in query.split([len(each) for each in keys])]
    else:
        queries = layout.split(query)
    found = []
    for parts in zip(queries, keys, values, strict=True):
        asking, read, given = (part.view(part.shape[0], part.shape[1], heads, -1).transpose(1, 2) for part in parts)
        mixed = attention(asking, read, given, None, rate)
        found.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(found)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """(B, H, S, d) and twice (B, H, L, d) to (B, H, S, d); `mask` is true where a key is read.

    With dropout, torch's own attention on a CPU computes it in parts too, with a slower dropout.
    """
    if not rate or query.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return dropout(scores.softmax(-1), rate) @ value


def embed(bert: BertModel, texts: list[Tensor]) -> Tensor:
    """The token ids of each text to (T, D)."""
    places = torch.cat([torch.arange(len(text)) for text in texts])
    return bert.embeddings(input_ids=torch.cat(texts)[None], position_ids=places[None])[0]


def pack(bert: BertModel) -> bool:
    """Let the layers of a BERT take tokens without padding; False where it is none of transformers' own BERTs."""
    layers = list(bert.encoder.layer)
    if any(type(layer) is not BertLayer or layer.is_decoder for layer in layers):
        return False
    for layer in layers:
        # Parameters keep their names, and a layer stays one module that is called as a whole, as FSDP2 asks.
        layer.__class__ = PackedLayer
    return True


def draw_fast(model: nn.Module) -> None:
    """Let all dropout of a model be that of `dropout`: as likely, and of other numbers."""
    for owner in list(model.modules()):
        if hasattr(owner, "draws_fast"):
            owner.draws_fast = True  # type: ignore[assignment]
        for name, child in list(owner.named_children()):
            if type(child) is nn.Dropout:
                setattr(owner, name, Dropout(child.p))
