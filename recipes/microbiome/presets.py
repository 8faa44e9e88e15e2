"""Named settings: small ones for a CPU, and the guide's own."""

from typing import Any

Values = dict[str, Any]
"""Settings by name, each with a type of its own."""


def _layers(number: int) -> Values:
    return {f"model.{stack}_layers": number for stack in ("asv", "sample", "encoder", "count", "target")}


def presets() -> dict[str, Values]:
    """Every preset by name."""
    optimizer = {"weight_decay": 0.01, "max_warmup_ratio": 0.1, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0}
    # Measured in recipes/microbiome/README.md: patches of ten letters and one layer each learn UniFrac fastest.
    small = {
        **_layers(1),
        **optimizer,
        "asv_penalty": 1.0,
        "nuc_penalty": 0.1,
        "model.hidden_size": 128,
        "model.embedding_size": 256,
        "model.encoder_layers": 0,
        "model.patch_size": 10,
        "model.dropout": 0.0,
        "model.token_limit": 128,
        "model.masked_asvs": 0.5,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.02,
        "batch_size": 32,
        "micro_batch_size": 32,
    }
    guide = {
        **_layers(4),
        **optimizer,
        "model.hidden_size": 128,
        "model.distance": "tanh",
        "model.target_from": "tokens",
        "model.linear_readout": False,
        "asv_penalty": 0.0,
        "learning_rate": 1e-4,
        # Most runs never see its end: it is cut to a tenth of the steps.
        "warmup_steps": 10_000,
        "batch_size": 8,
        "micro_batch_size": 8,
        "num_train_epochs": 100.0,
        "early_stopping_patience": 50,
        "report_to": "tensorboard",
    }
    return {
        "default": {
            **small,
            "model.hidden_size": 64,
            "mixed_precision": "no",
            "max_steps": 300,
            "eval_steps": 100,
            "logging_steps": 25,
        },
        "small": {**small, "mixed_precision": "no", "logging_steps": 50, "save_total_limit": 2},
        "guide": guide,
    }
