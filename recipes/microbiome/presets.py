"""Named settings: small ones for a CPU, and the guide's own."""

from typing import Any


def _layers(number: int) -> dict[str, Any]:
    return {f"model.{stack}_layers": number for stack in ("asv", "sample", "encoder", "count", "target")}


def presets() -> dict[str, dict[str, Any]]:
    """Every preset by name."""
    optimizer = {"weight_decay": 0.01, "warmup_ratio": 0.1, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0}
    small = {
        **_layers(1),
        **optimizer,
        "model.hidden_size": 64,
        "model.embedding_size": 256,
        "model.encoder_layers": 0,
        "asv_penalty": 1.0,
        "model.patch_size": 4,
        "model.dropout": 0.0,
        "model.token_limit": 128,
        "model.masked_asvs": 0.25,
        "learning_rate": 2e-3,
        "batch_size": 32,
        "micro_batch_size": 32,
    }
    guide = {
        **_layers(4),
        **optimizer,
        "model.hidden_size": 128,
        "model.distance": "tanh",
        "model.target_from": "tokens",
        "asv_penalty": 0.0,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "micro_batch_size": 8,
        "num_train_epochs": 100.0,
        "early_stopping_patience": 50,
        "report_to": "tensorboard",
    }
    return {
        "default": {**small, "mixed_precision": "no", "max_steps": 300, "eval_steps": 100, "logging_steps": 25},
        "small": small,
        "guide": guide,
    }
