"""Named settings: small ones for a CPU, and TabSTAR's own dimensions."""


def presets() -> dict[str, dict[str, object]]:
    """Every preset by name."""
    small = {
        "batch_size": 64,
        "micro_batch_size": 32,
        "learning_rate": 5e-4,
        "weight_decay": 1e-3,
        "lr_scheduler_type": "one_cycle",
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "eval_steps": 0,
        "save_steps": 0,
    }
    tabstar = {
        "model.hidden_size": 384,
        "model.num_attention_heads": 6,
        "model.interaction_layers": 6,
        "model.unfrozen_layers": 6,
        # TabSTAR has one learning rate for all.
        "model.text_learning_rate_scale": 1.0,
        "model.text_chunk_size": 128,
        "data.max_text_tokens": 512,
        "model.final_norm": False,
        "model.linear_part": False,
        "model.cell_dropout": 0.0,
        "data.wording": "tabstar",
        "batch_size": 128,
        "micro_batch_size": 32,
        "learning_rate": 5e-5,
        "weight_decay": 1e-3,
        "lr_scheduler_type": "one_cycle",
        "warmup_ratio": 0.1,
        "num_train_epochs": 50.0,
    }
    return {
        "default": {**small, "num_train_epochs": 6.0, "data.max_rows_per_table_per_epoch": 768},
        "nano": {
            **small,
            "num_train_epochs": 10.0,
            "model.text_layers": 1,
            "model.interaction_layers": 2,
            "data.max_text_tokens": 32,
            "data.max_rows_per_table_per_epoch": 512,
        },
        "tabstar": {**tabstar, "model.numerical_fusion": "sum"},
        "tabstar-v1.0": {**tabstar, "model.numerical_fusion": "transformer", "data.numbers_as_text": True},
    }
