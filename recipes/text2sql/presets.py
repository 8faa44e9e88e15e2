"""Named settings; dimensions are those whose parameter counts tests/recipes/text2sql/test_page.py checks."""

from typing import Any


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, experts: int, width: int, vocab: int) -> dict[str, Any]:
    return {
        "model.hidden_size": hidden,
        "model.num_hidden_layers": layers,
        "model.num_attention_heads": heads,
        "model.num_key_value_heads": kv_heads,
        "model.num_local_experts": experts,
        "model.num_experts_per_tok": 2,
        "model.intermediate_size": width,
        "tokenizer.vocab_size": vocab,
    }


def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name."""
    small = {
        "batch_size": 32,
        "micro_batch_size": 8,
        "eval_batch_size": 64,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.05,
        "weight_decay": 0.1,
    }
    large = {**small, "learning_rate": 3e-4, "adam_beta2": 0.95, "min_lr_ratio": 0.1, "gradient_checkpointing": True,
             "micro_batch_size": 2, "eval_batch_size": 8}  # fmt: skip
    nano = {**_sizes(128, 2, 4, 2, 4, 128, 2048), **small}
    return {
        "default": {
            **nano,
            "mixed_precision": "no",
            "data.schema_tokens": True,
            "data.word_dropout": 0.15,
            "num_train_epochs": 4.0,
            "learning_rate": 2e-3,
            "logging_steps": 50,
            "eval_steps": 250,
        },
        "geography": {
            **_sizes(192, 3, 6, 6, 4, 192, 1000),
            "model.dropout": 0.2,
            "data.source": "geography",
            "data.schema_in_prompt": False,
            "data.question_repeats": 2,
            "data.word_dropout": 0.1,
            "data.recombination_prob": 0.5,
            "data.value_swap_prob": 0.5,
            "generation.max_new_tokens": 200,
            "batch_size": 16,
            "micro_batch_size": 8,
            "eval_batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.05,
            "weight_decay": 0.1,
            "num_train_epochs": 70.0,
            "mixed_precision": "no",
            "logging_steps": 50,
            "eval_steps": 0,
        },
        # OmniSQL (32B) and DB-GPT-Hub train adapters of decoders on SQL at this rate.
        "lora": {
            "lora.rank": 16,
            "lora.alpha": 32.0,
            "learning_rate": 2e-4,
            "warmup_ratio": 0.05,
            "weight_decay": 0.0,
            "batch_size": 16,
            "micro_batch_size": 4,
            "eval_batch_size": 16,
            "num_train_epochs": 1.0,
            "logging_steps": 10,
            "eval_steps": 0,
        },
        "nano": nano,
        "tiny": {**_sizes(256, 4, 8, 2, 8, 256, 4096), **small},
        "mini": {**_sizes(512, 8, 8, 2, 8, 512, 8192), **small, "learning_rate": 6e-4},
        "small-2b": {**_sizes(2048, 24, 32, 8, 16, 704, 32000), **large},
        "medium-8b": {**_sizes(4096, 32, 64, 16, 32, 512, 32000), **large, "learning_rate": 2e-4},
        "large-24b": {**_sizes(6144, 40, 96, 24, 64, 416, 32000), **large, "learning_rate": 1e-4},
    }
