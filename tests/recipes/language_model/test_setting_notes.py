"""Settings that have no effect beside others are named, each with its reason; those that have one are not."""

from typing import Any

import pytest

from recipes.language_model.recipe import Recipe
from recipes.language_model.settings import DataSettings, ModelSettings, TokenizerSettings
from runner.config import settings_of
from runner.parts.adapters import LoraSettings

GROUPS: dict[str, Any] = {
    "data_settings": DataSettings, "tokenizer_settings": TokenizerSettings, "model_settings": ModelSettings,
    "lora": LoraSettings,
}  # fmt: skip


def notes(changed: str, **groups: dict[str, Any]) -> list[str]:
    """What a recipe with these settings notes, where the user has changed some, named with spaces between them."""
    recipe = Recipe(**{name: GROUPS[name](**values) for name, values in groups.items()})
    return recipe.setting_notes(frozenset(changed.split()))


@pytest.mark.parametrize(
    ("changed", "groups", "reason"),
    [
        ("data.stride", {"data_settings": {"packing": "best_fit"}}, "with data.packing best_fit"),
        ("data.stride", {"data_settings": {"packing": "document"}}, "with data.packing document"),
        ("data.shuffle_window", {"data_settings": {"streaming": False}}, "with data.streaming false"),
        (
            "data.validation_fraction",
            {"data_settings": {"source": "a", "validation_source": "b"}},
            "where validation has its own text",
        ),
        (
            "data.validation_fraction",
            {"data_settings": {"source": "a", "val_split": "b"}},
            "where validation has its own text",
        ),
        (
            "data.val_split",
            {"data_settings": {"source": "a", "val_split": "b", "validation_source": "c"}},
            "beside data.validation_source",
        ),
        ("data.config", {}, "type --data.source"),
        ("data.split", {}, "type --data.source"),
        ("data.text_column", {}, "type --data.source"),
        ("tokenizer.vocab_size", {"tokenizer_settings": {"kind": "char"}}, "with tokenizer.kind char"),
        ("tokenizer.max_vocab_size", {"tokenizer_settings": {"kind": "char"}}, "with tokenizer.kind char"),
        ("tokenizer.train_examples", {"tokenizer_settings": {"kind": "path", "path": "a"}}, "with tokenizer.kind path"),
        ("tokenizer.min_vocab_size", {"tokenizer_settings": {"vocab_size": "300"}}, "unless tokenizer.vocab_size"),
        ("tokenizer.kind", {"model_settings": {"pretrained": "a"}}, "which keeps its own tokenizer"),
        ("tokenizer.vocab_size", {"model_settings": {"pretrained": "a"}}, "which keeps its own tokenizer"),
        ("model.hidden_size", {"model_settings": {"pretrained": "a"}}, "which has its own architecture"),
        ("model.rope", {"model_settings": {"pretrained": "a"}}, "which has its own architecture"),
        (
            "model.num_key_value_heads",
            {"model_settings": {"norm": "layer", "swiglu": False, "rope": False}},
            "in a GPT-2",
        ),
        ("lora.alpha", {}, "while lora.rank is 0"),
        ("lora.target_modules", {}, "while lora.rank is 0"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_named_with_its_reason(
    changed: str, groups: dict[str, dict[str, Any]], reason: str
) -> None:
    (note,) = notes(changed, **groups)
    assert note.startswith(f"{changed} has no effect ") and reason in note and note.endswith(".")
    # Nobody is told of what nobody has typed.
    assert notes("", **groups) == []


@pytest.mark.parametrize(
    ("changed", "groups"),
    [
        ("data.stride data.shuffle_window data.validation_fraction", {}),
        ("data.text_column data.config data.split", {"data_settings": {"source": "a"}}),
        ("tokenizer.vocab_size tokenizer.train_examples", {"tokenizer_settings": {"vocab_size": "300"}}),
        ("tokenizer.min_vocab_size tokenizer.max_vocab_size", {}),
        ("tokenizer.train_examples", {"tokenizer_settings": {"kind": "char"}}),
        (
            "tokenizer.kind",
            {"model_settings": {"pretrained": "a"}, "tokenizer_settings": {"kind": "path", "path": "b"}},
        ),
        ("model.hidden_size model.rope model.num_key_value_heads", {}),
        ("lora.alpha lora.dropout", {"model_settings": {"pretrained": "a"}, "lora": {"rank": 4}}),
        ("model.chunked_loss", {"model_settings": {"pretrained": "a"}}),
    ],
)  # fmt: skip
def test_a_setting_with_an_effect_is_not_named(changed: str, groups: dict[str, dict[str, Any]]) -> None:
    assert notes(changed, **groups) == []


def test_every_name_in_the_rules_is_a_setting() -> None:
    everything = frozenset(each.flag for each in settings_of(Recipe))
    for groups in (
        {"model_settings": {"pretrained": "a"}},
        {"tokenizer_settings": {"kind": "char"}, "data_settings": {"packing": "document", "streaming": False}},
        {"model_settings": {"norm": "layer", "swiglu": False, "rope": False}},
    ):
        found = notes(" ".join(everything), **groups)
        assert found and {note.partition(" ")[0] for note in found} <= everything


def test_evaluation_needs_one_forward_pass(tmp_path: Any) -> None:
    import torch

    from runner.evaluation import evaluate_rows
    from runner.hardware import open_hardware
    from runner.settings import RunSettings

    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    recipe = Recipe(
        model_settings=ModelSettings(**sizes), tokenizer_settings=TokenizerSettings(kind="char"),
        data_settings=DataSettings(max_seq_length=32), sample_tokens=0,
    ).prepare(tmp_path)  # fmt: skip
    model: Any = recipe.model().eval()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    rows: Any = recipe.data("validation")
    some = [rows[number] for number in range(6)]
    found = evaluate_rows(recipe, model, some, open_hardware(RunSettings(mixed_precision="no")), 2)
    assert found is not None and len(forwards) == 3
    # A batch on its own is predicted as well, and leaves nothing behind.
    batch = recipe.collate(some)
    with torch.no_grad():
        alone = recipe.predict(model.eval(), batch)
    assert [row["tokens"] for row in alone] == [row["tokens"] for row in found[1]] and set(batch.extra) == {"lengths"}
    assert sum(row["nats"] for row in alone) == pytest.approx(sum(row["nats"] for row in found[1]), rel=1e-5)
