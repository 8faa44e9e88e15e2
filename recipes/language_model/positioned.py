"""A Llama with learnt positions, optionally with LayerNorm or without gates: no class of transformers is like this.

Importing this file registers the class with AutoConfig and AutoModelForCausalLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.arcee.modeling_arcee import ArceeMLP

if TYPE_CHECKING:
    from transformers import Cache, LlamaModel
    from transformers.modeling_outputs import CausalLMOutputWithPast


class PositionedConfig(LlamaConfig):
    """Llama's settings, and those that differ."""

    model_type = "relay_positioned"
    norm: str = "rms"
    swiglu: bool = True
    rope: bool = False


class NoRotation(nn.Module):
    """Takes the place of rotary positions and rotates nothing."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of no angle, for every width: (1, 1, 1)."""
        return x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)


class PositionedForCausalLM(LlamaForCausalLM):
    """Llama with a learnt vector per position, added to each token as in GPT-2, in place of rotary positions."""

    config_class = PositionedConfig

    def __init__(self, config: PositionedConfig) -> None:
        super().__init__(config)
        decoder = cast("LlamaModel", self.model)
        if config.norm == "layer":
            decoder.norm = nn.LayerNorm(config.hidden_size)  # type: ignore[assignment]
        for layer in decoder.layers:
            if config.norm == "layer":
                layer.input_layernorm = nn.LayerNorm(config.hidden_size)
                layer.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
            if not config.swiglu:
                layer.mlp = ArceeMLP(config)
        self.positions = None
        if not config.rope:
            decoder.rotary_emb = NoRotation()  # type: ignore[assignment]
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        # Again, for the modules that are new.
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **rest: object,
    ) -> CausalLMOutputWithPast:
        """As Llama's."""
        if inputs_embeds is None:
            inputs_embeds = cast(Tensor, self.get_input_embeddings()(input_ids))
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        if self.positions is not None:
            inputs_embeds = inputs_embeds + self.positions(position_ids)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=cast("torch.LongTensor", position_ids),
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,  # type: ignore[arg-type]
            **rest,  # type: ignore[arg-type]
        )


AutoConfig.register(PositionedConfig.model_type, PositionedConfig)
AutoModelForCausalLM.register(PositionedConfig, PositionedForCausalLM)
