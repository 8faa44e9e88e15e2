"""The decoder: a class of transformers where one fits the settings, so that other tools can read it; and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.parts.pretrained import LoadIn, read_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from recipes.language_model.settings import ModelSettings


class DroppingEmbedding(nn.Embedding):
    """Token embeddings with dropout, which training on small data needs. Llama has dropout in its attention alone."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(...) int64 -> (..., hidden)."""
        return nn.functional.dropout(super().forward(input), self.dropout, self.training)


class DroppingLinear(nn.Linear):
    """The last matrix of an attention or feed-forward block, with dropout of its output.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 5.4.
    """

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return nn.functional.dropout(super().forward(input), self.dropout, self.training)


LARGE_LOGITS = 1 << 26
"""Number of logits of a micro-batch above which the loss is computed in chunks: 256 MB in fp32."""
CHUNK = 1 << 22
"""Number of logits of a chunk."""


class ScoringLinear(nn.Linear):
    """The output matrix. While it has `labels`, it returns the loss of each row in place of logits, which then never
    are in memory all at once. This happens inside the model's forward pass, as DDP, FSDP and torch.compile need it."""

    labels: Tensor | None = None
    cap: float | None = None
    """Gemma's soft cap of the logits: cap * tanh(logits / cap)."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, time, hidden) -> (batch, time, vocab), or, with labels, (batch,) nats."""
        if self.labels is None:
            return super().forward(input)
        return ChunkedCrossEntropy.apply(input, self.weight, self.labels, self.cap)


class Context(Protocol):
    """What autograd hands to both passes of a function."""

    dtype: torch.dtype
    cap: float | None
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
        ...


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over each row, with logits computed in chunks.

    (batch, time, hidden), (vocab, hidden), (batch, time) int64, cap -> (batch,) fp32. Labels of -100 are not scored
    and have no logits. Where the output matrix is frozen, the forward pass computes the gradient too; else the backward
    pass computes the logits again.
    """

    @staticmethod
    def forward(ctx: Context, hidden: Tensor, weight: Tensor, labels: Tensor, cap: float | None = None) -> Tensor:
        """Products are computed in the dtype of autocast, the rest in fp32."""
        kind = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        ctx.cap = cap
        scored, targets = _scored(labels)
        flat, matrix = hidden.detach().flatten(0, 1)[scored].to(ctx.dtype), weight.to(ctx.dtype)
        is_frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        losses, gradient = [], torch.empty_like(flat) if is_frozen else None
        for part in _parts(len(flat), len(weight)):
            logits = _capped(_wide(flat[part] @ matrix.T), cap)
            losses.append(nn.functional.cross_entropy(logits, targets[part], reduction="none"))
            if gradient is not None:
                gradient[part] = _slopes(logits, targets[part], cap).to(ctx.dtype) @ matrix
        if gradient is None:
            ctx.save_for_backward(hidden, weight, labels)
        else:
            ctx.save_for_backward(gradient, labels)
        each = torch.zeros(labels.numel(), dtype=losses[0].dtype if losses else torch.float32, device=labels.device)
        each[scored] = torch.cat(losses) if losses else each[scored]
        return each.view(labels.shape).sum(1)

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[override]
        """The gradients of hidden states and output matrix."""
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
            logits = _capped(_wide(flat[part] @ matrix.T), ctx.cap)
            slopes = _slopes(logits, targets[part], ctx.cap).mul_(scale[part, None]).to(ctx.dtype)
            to_hidden[part] = slopes @ matrix
            if to_weight is not None:
                to_weight += slopes.T @ flat[part]
        found = flat.new_zeros(labels.numel(), flat.shape[1])
        found[scored] = to_hidden
        return found.view(hidden.shape).to(hidden.dtype), to_weight, None, None


def _scored(labels: Tensor) -> tuple[Tensor | slice, Tensor]:
    """Which places of all rows are scored, and their labels."""
    targets = labels.flatten()
    scored = targets != -100
    # Indexing copies: it is left out where everything is scored.
    return (slice(None), targets) if bool(scored.all()) else (scored, targets[scored])


def _wide(logits: Tensor) -> Tensor:
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
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None and type(model).__name__.startswith(PLAIN_OUTPUT + CAPPED_OUTPUT):
        head.__class__ = ScoringLinear


class Scored(NamedTuple):
    """What a model's loss is made of."""

    nats: Tensor
    """(batch,): the loss of each row."""
    balance: Tensor | None
    """The load-balancing loss of the routers, where `output_router_logits` is among the inputs."""


def nats_of_rows(model: nn.Module, inputs: dict[str, object], labels: Tensor, chunked: bool | None) -> Scored:
    """The loss of each row in nats. `chunked` None: in chunks if the logits are large."""
    head = next((each for each in model.modules() if isinstance(each, ScoringLinear)), None)
    if head is None or not (labels.numel() * head.out_features > LARGE_LOGITS if chunked is None else chunked):
        output = model(**inputs)
        return Scored(sums_of_rows(output.logits, labels), getattr(output, "aux_loss", None))
    config = next((each.config for each in model.modules() if hasattr(each, "config")), None)
    cap = getattr(config, "final_logit_softcapping", None)
    head.labels, head.cap = labels, cap
    try:
        if cap is not None:
            # The model would cap the losses.
            config.final_logit_softcapping = None  # type: ignore[union-attr]
        output = model(**inputs)
        return Scored(output.logits, getattr(output, "aux_loss", None))
    finally:
        head.labels = None
        if cap is not None:
            config.final_logit_softcapping = cap  # type: ignore[union-attr]


def build(
    settings: ModelSettings, vocab_size: int, max_seq_length: int, special: dict[str, int | None]
) -> PreTrainedModel:
    """A model with random weights, of the class of transformers with this norm, gate and position, or of Relay's."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "num_attention_heads": settings.num_attention_heads,
        "max_position_embeddings": max(settings.max_position_embeddings, max_seq_length),
        "tie_word_embeddings": settings.tie_embeddings,
        "attention_dropout": settings.dropout,
        "use_cache": True,
        # Nguyen and Salazar 2019, arXiv 1910.05895 ("SmallInit"). GPT-2's 0.02 is too small for narrow models.
        "initializer_range": settings.initializer_range or (2 / (5 * settings.hidden_size)) ** 0.5,
        **special,
    }
    heads = settings.num_key_value_heads or settings.num_attention_heads
    kind = (settings.norm, settings.swiglu, settings.rope)
    wide = {**shape, "num_key_value_heads": heads, "intermediate_size": settings.intermediate_size}
    wide["hidden_act"] = settings.activation
    if kind == ("rms", True, True):
        model: PreTrainedModel = transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide))
    elif kind == ("rms", False, True):
        model = transformers.ArceeForCausalLM(transformers.ArceeConfig(**wide))
    elif kind == ("layer", True, True):
        rotary = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
        config = transformers.StableLmConfig(**wide, use_parallel_residual=False, rope_parameters=rotary)
        model = transformers.StableLmForCausalLM(config)
    elif kind == ("layer", False, True):
        model = transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(**wide, sliding_window=None))
    elif kind == ("layer", False, False):
        model = _gpt2(settings, shape)
    else:
        from recipes.language_model.positioned import PositionedConfig, PositionedForCausalLM

        own = PositionedConfig(**wide, norm=settings.norm, swiglu=settings.swiglu)
        model = PositionedForCausalLM(own)
    _add_dropout(model, settings.dropout)
    _scale_residuals(model, settings.num_hidden_layers)
    return model


def _gpt2(settings: ModelSettings, shape: dict[str, Any]) -> PreTrainedModel:
    import transformers

    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=shape["vocab_size"],
            n_embd=settings.hidden_size,
            n_layer=settings.num_hidden_layers,
            n_head=settings.num_attention_heads,
            n_inner=settings.intermediate_size,
            n_positions=shape["max_position_embeddings"],
            activation_function=settings.activation,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            tie_word_embeddings=settings.tie_embeddings,
            initializer_range=shape["initializer_range"],
            bos_token_id=shape["bos_token_id"],
            eos_token_id=shape["eos_token_id"],
        )
    )


LAST_OF_BLOCK = ("o_proj", "down_proj", "c_proj")


def _add_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Add dropout of the embeddings and of the output of each block, where the class has none. No weight is renamed."""
    if not dropout or type(model).__name__ == "GPT2LMHeadModel":
        return
    embedding: nn.Module = model.get_input_embeddings()
    embedding.__class__ = DroppingEmbedding
    cast(DroppingEmbedding, embedding).dropout = dropout
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in LAST_OF_BLOCK and type(module) is nn.Linear:
            module.__class__ = DroppingLinear
            cast(DroppingLinear, module).dropout = dropout


@torch.no_grad()
def _scale_residuals(model: PreTrainedModel, num_layers: int) -> None:
    """Make the last matrix of each block smaller, because the outputs of two blocks per layer add up.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    if type(model).__name__ == "GPT2LMHeadModel":
        return
    for name, parameter in model.named_parameters():
        if name.endswith(tuple(f"{last}.weight" for last in LAST_OF_BLOCK)):
            parameter.mul_((2 * num_layers) ** -0.5)


def pretrained(place: Path, load_in: LoadIn | None = None) -> PreTrainedModel:
    """The model of a folder or a .gguf file, as `read_pretrained` reads it."""
    if is_positioned(place):
        # The import registers the class.
        import recipes.language_model.positioned  # noqa: F401

    return read_pretrained(place, load_in)


def check_length(model: PreTrainedModel, max_seq_length: int) -> None:
    """Raise ConfigError where rows are longer than the positions that a pretrained model has learnt."""
    longest = getattr(model.config, "max_position_embeddings", None)
    # Rotary positions have no last one.
    if longest is not None and longest < max_seq_length and not getattr(model.config, "rope_parameters", None):
        raise ConfigError(
            f"data.max_seq_length is {max_seq_length}, and model.pretrained has positions for {longest} tokens:\n"
            f"type --data.max_seq_length {longest} or less."
        )


def is_positioned(folder: Path) -> bool:
    """Whether the model of a folder is a `PositionedForCausalLM`."""
    try:
        return '"relay_positioned"' in (folder / "config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def other_parameters(settings: ModelSettings) -> int:
    """Parameters outside of the embeddings, counted without allocating them."""
    with torch.device("meta"):
        one = build(settings, 64, 64, {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None})
    outside = {id(table.weight) for table in (one.get_input_embeddings(), one.get_output_embeddings()) if table}
    return sum(each.numel() for each in one.parameters() if id(each) not in outside)


def sums_of_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over each row, in nats, in fp32. (batch, time, vocab), (batch, time) -> (batch,)."""
    each = nn.functional.cross_entropy(
        _wide(logits).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return each.view(labels.shape).sum(1)


def places(documents: Tensor) -> Tensor:
    """Position ids that start again at 0 in every document. (batch, time) -> (batch, time).

    Where a position is not the one before plus 1, transformers starts a new document, which does not attend to the
    tokens before it.
    """
    time = torch.arange(documents.shape[1]).expand(documents.shape)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return time - torch.where(begins, time, 0).cummax(1).values
