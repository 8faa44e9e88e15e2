"""Settings of language_model that have no effect beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
    from runner.parts.adapters import LoraSettings

UPCYCLING = ("num_experts_per_tok", "upcycling_noise", "upcycling_drop", "router_aux_loss_coef")

Rule = tuple[bool, str, tuple[str, ...]]
"""Whether the settings have no effect, why, and their names."""

ARCHITECTURE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "max_position_embeddings", "dropout", "activation", "norm", "swiglu", "rope", "tie_embeddings", "initializer_range",
)  # fmt: skip


def setting_notes(
    data: DataSettings,
    tokenizer: TokenizerSettings,
    model: ModelSettings,
    lora: LoraSettings,
    changed: frozenset[str],
) -> list[str]:
    """One line for each setting in `changed` that has no effect."""
    rules = [*_data_rules(data), *_tokenizer_rules(tokenizer, model), *_model_rules(model, lora)]
    return [f"{name} has no effect {why}" for applies, why, names in rules if applies for name in names
            if name in changed]  # fmt: skip


def _data_rules(data: DataSettings) -> list[Rule]:
    has_own = data.validation_source is not None or data.val_split is not None
    return [
        (data.packing != "concat", f"with data.packing {data.packing}.", ("data.stride",)),
        (data.streaming is False, "with data.streaming false.", ("data.shuffle_window",)),
        (has_own, "where validation has its own text.", ("data.validation_fraction",)),
        (data.validation_source is not None, "beside data.validation_source.", ("data.val_split",)),
        (
            data.source is None,
            "on the generated stories: type --data.source.",
            ("data.config", "data.split", "data.text_column"),
        ),
    ]


def _tokenizer_rules(tokenizer: TokenizerSettings, model: ModelSettings) -> list[Rule]:
    kind, is_auto = tokenizer.kind, tokenizer.vocab_size == "auto"
    keeps = model.pretrained is not None and kind != "path"
    sizes = ("tokenizer.min_vocab_size", "tokenizer.max_vocab_size")
    trained = ("tokenizer.vocab_size", *sizes, "tokenizer.train_examples")
    return [
        (keeps, "with model.pretrained, which keeps its own tokenizer.", ("tokenizer.kind", *trained)),
        (not keeps and kind == "char", "with tokenizer.kind char.", trained[:-1]),
        (kind == "path", "with tokenizer.kind path.", trained),
        (not keeps and kind == "bpe" and not is_auto, "unless tokenizer.vocab_size is auto.", sizes),
    ]


def _model_rules(model: ModelSettings, lora: LoraSettings) -> list[Rule]:
    is_gpt2 = (model.norm, model.swiglu, model.rope) == ("layer", False, False)
    return [
        (
            not lora.rank,
            "while lora.rank is 0: all weights train.",
            ("lora.alpha", "lora.dropout", "lora.target_modules"),
        ),
        (
            model.pretrained is not None,
            "with model.pretrained, which has its own architecture.",
            tuple(f"model.{name}" for name in ARCHITECTURE),
        ),
        (model.pretrained is None, "without model.pretrained.", ("model.load_in", "model.num_local_experts")),
        (
            model.pretrained is None or model.num_local_experts is None,
            "without upcycling: type --model.pretrained with a dense decoder and --model.num_local_experts 4.",
            tuple(f"model.{name}" for name in UPCYCLING),
        ),
        (
            model.pretrained is None and is_gpt2,
            "in a GPT-2 (norm layer, swiglu false, rope false).",
            ("model.num_key_value_heads",),
        ),
    ]
