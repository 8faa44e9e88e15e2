"""Named settings; tests/recipes/language_model/test_recipe.py counts the parameters of each."""

Preset = dict[str, object]
"""Settings by their names."""


def _sizes(hidden: int, layers: int, heads: int, width: int, length: int) -> Preset:
    return {
        "model.hidden_size": hidden,
        "model.num_hidden_layers": layers,
        "model.num_attention_heads": heads,
        "model.intermediate_size": width,
        "data.max_seq_length": length,
    }


def presets() -> dict[str, Preset]:
    """Every preset by name."""
    word: Preset = {
        "tokenizer.kind": "bpe",
        "batch_size": 32,
        "micro_batch_size": 8,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "warmup_ratio": 0.02,
        "min_lr_ratio": 0.1,
        "learning_rate": 3e-3,
    }
    character: Preset = {**word, "tokenizer.kind": "char", "adam_beta2": 0.99}
    large: Preset = {**word, "gradient_checkpointing": True}
    return {
        "default": {
            **character,
            **_sizes(96, 3, 3, 256, 64),
            "batch_size": 16,
            "micro_batch_size": 16,
            "max_steps": 300,
            "warmup_steps": 20,
            "logging_steps": 20,
            "eval_steps": 100,
            "mixed_precision": "no",
        },
        "nano": {**word, **_sizes(128, 6, 4, 512, 256)},
        "tiny": {**word, **_sizes(256, 8, 8, 1024, 256), "learning_rate": 2e-3},
        "small": {**word, **_sizes(512, 12, 8, 2048, 512), "learning_rate": 1e-3},
        "medium": {**large, **_sizes(768, 12, 12, 3072, 1024), "learning_rate": 6e-4},
        "large": {**large, **_sizes(1024, 24, 16, 4096, 1024), "learning_rate": 3e-4},
        "xlarge": {**large, **_sizes(1280, 32, 20, 5120, 1024), "learning_rate": 2e-4},
        "char-small": {**character, **_sizes(128, 2, 4, 352, 256)},
        "char-medium": {**character, **_sizes(512, 6, 8, 1376, 256), "learning_rate": 1e-3, "model.dropout": 0.1},
        "char-large": {**character, **_sizes(768, 12, 12, 2048, 512), "learning_rate": 6e-4, "model.dropout": 0.1},
    }
