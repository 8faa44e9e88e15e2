"""A Llama with learnt positions, with LayerNorm or without gates where asked: what no class of transformers is.

Importing this file tells AutoConfig and AutoModelForCausalLM of the class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.arcee.modeling_arcee import ArceeMLP


class PositionedConfig(LlamaConfig):
    """Llama's, and what differs."""

    model_type = "relay_positioned"
    norm: str = "rms"
    swiglu: bool = True
    rope: bool = False


class NoRotation(nn.Module):
    """Stands in for rotary positions, and turns nothing."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of no angle, for every width: (1, 1, 1)."""
        return x.new_ones(1, 1, 1), x.new_zeros(1, 1, 1)


class PositionedForCausalLM(LlamaForCausalLM):
    """Llama, but that a learnt vector of its place is added to each token, as in GPT-2, and nothing is turned."""

    config_class = PositionedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder: Any = self.model
        if config.norm == "layer":
            decoder.norm = nn.LayerNorm(config.hidden_size)
        for layer in decoder.layers:
            if config.norm == "layer":
                layer.input_layernorm = nn.LayerNorm(config.hidden_size)
                layer.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
            if not config.swiglu:
                layer.mlp = ArceeMLP(config)
        self.positions = None
        if not config.rope:
            decoder.rotary_emb = NoRotation()
            self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        # Once more, for the parts that are new.
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        **rest: Any,
    ) -> Any:
        """As Llama's."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
        if self.positions is not None:
            inputs_embeds = inputs_embeds + self.positions(position_ids)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **rest,
        )


AutoConfig.register(PositionedConfig.model_type, PositionedConfig)
AutoModelForCausalLM.register(PositionedConfig, PositionedForCausalLM)
