"""A Llama on random tokens, for the benchmarks that start a training of their own."""

import dataclasses
from typing import Any

import torch

from runner import recipe as contract
from runner.recipe import Batch, Loss

VOCABULARY = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(contract.Recipe):
    """Next-token prediction on random tokens."""

    layers: int = 4
    """Layers."""
    width: int = 128
    """Width."""
    tokens: int = 64
    """Tokens of a text."""
    rows: int = 512
    """Texts."""
    best_metric = "loss"

    def data(self, split: str) -> Any:
        """Windows of random tokens."""
        count = self.rows if split == "train" else 0
        return torch.randint(VOCABULARY, (count, self.tokens), generator=torch.Generator().manual_seed(0))

    def collate(self, examples: list[torch.Tensor]) -> Batch:
        """Stack the windows."""
        ids = torch.stack(examples)
        return Batch({"input_ids": ids}, weight=ids[:, 1:].numel(), tokens=ids.numel())

    def model(self) -> torch.nn.Module:
        """The Llama."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // 64),
            num_key_value_heads=max(1, self.width // 64),
            intermediate_size=self.width * 8 // 3,
            max_position_embeddings=self.tokens,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy."""
        return Loss(summed_loss(model, batch["input_ids"]))


def summed_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each next token of (batch, time) ids, summed."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1), reduction="sum")
