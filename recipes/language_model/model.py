"""The decoder: a class of transformers where one fits the settings, so that other tools can read it; and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.parts.chunked_loss import scored_in_chunks, wide
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


class Scored(NamedTuple):
    """What a model's loss is made of."""

    nats: Tensor
    """(batch,): the loss of each row."""
    balance: Tensor | None
    """The load-balancing loss of the routers, where `output_router_logits` is among the inputs."""


def nats_of_rows(model: nn.Module, inputs: dict[str, object], labels: Tensor, chunked: bool | None) -> Scored:
    """The loss of each row in nats. `chunked` None: in chunks if the logits are large."""
    with scored_in_chunks(model, labels, chunked) as is_scored:
        output = model(**inputs)
    nats = output.logits if is_scored else sums_of_rows(output.logits, labels)
    return Scored(nats, getattr(output, "aux_loss", None))


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
        wide(logits).flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
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
