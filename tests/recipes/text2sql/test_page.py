"""The presets' sizes, and that the recipe's page has every setting, preset and metric."""

import re
from typing import Any

import pytest
import torch

from recipes.text2sql.experts import expert_logs
from recipes.text2sql.recipe import Recipe
from runner.commands.plan import count_parameters
from runner.config import parse, settings_of
from tests.recipes.text2sql.settings_table import PAGE, table, with_table

# What the presets are called after: all parameters, and those that one token meets.
SIZES = {
    "default": (755_328, 558_720),
    "nano": (755_328, 558_720),
    "tiny": (8_005_888, 3_287_296),
    "mini": (59_810_304, 22_061_568),
    "small-2b": (1_979_025_408, 525_699_072),
    "medium-8b": (7_920_160_768, 1_880_363_008),
    "large-24b": (23_617_050_624, 4_601_124_864),
}


def test_the_presets_are_as_large_as_they_are_called() -> None:
    billions = {name: tuple(count / 1e9 for count in SIZES[name]) for name in ("small-2b", "medium-8b", "large-24b")}
    assert [f"{total:.2f} {active:.2f}" for total, active in billions.values()] == [
        "1.98 0.53",
        "7.92 1.88",
        "23.62 4.60",
    ]
    assert Recipe.presets().keys() >= SIZES.keys()


# The preset for adapters takes its model from model.pretrained.
@pytest.mark.parametrize("preset", sorted({*Recipe.presets()} - {"lora"}))
def test_the_parameters_of_a_preset(preset: str) -> None:
    recipe = parse(["--recipe", "text2sql", "--preset", preset]).recipe
    with torch.device("meta"):
        model = recipe.model()
    sizes, vocab_size = recipe.model_settings, recipe.tokenizer_settings.vocab_size
    total, active = (
        by_formula(sizes, vocab_size, experts) for experts in (sizes.num_local_experts, sizes.num_experts_per_tok)
    )
    assert count_parameters(model) == (total, active, total)
    assert SIZES.get(preset, (total, active)) == (total, active)


def by_formula(sizes: Any, vocab_size: int, experts: int) -> int:
    """Parameters of a Mixtral with tied embeddings that has, or uses, so many experts (research, 5.6)."""
    hidden, head = sizes.hidden_size, sizes.hidden_size // sizes.num_attention_heads
    attention = 2 * hidden * (sizes.num_attention_heads + sizes.num_key_value_heads) * head
    gate = hidden * sizes.num_local_experts
    layer = attention + gate + 3 * experts * hidden * sizes.intermediate_size + 2 * hidden
    return vocab_size * hidden + sizes.num_hidden_layers * layer + hidden


def test_the_page_has_every_setting_with_its_help() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "type: python -m tests.recipes.text2sql.settings_table"
    flags = [setting.flag for setting in settings_of(Recipe)]
    assert re.findall(r"^\| `([a-z_]+[a-z0-9_.]*)` \| \S+ \| .{9,} \|$", table(), re.MULTILINE) == flags


def test_the_page_has_every_presets_size() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [preset for preset in Recipe.presets() if f"`{preset}`" not in page] == []
    for preset, (total, active) in SIZES.items():
        assert re.search(rf"^\| `{preset}` \|.* {total:,} \| {active:,} \|", page, re.MULTILINE), preset


def test_the_page_has_every_metric() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = [
        "exact_match",
        "exact_set_match",
        "valid_sql",
        "execution_accuracy",
        "without_database",
        "gold_errors",
        "loss",
    ]
    names += ["router/balance_loss", "router/z_loss", *expert_logs(torch.ones(1, 4))]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_lanes_of_the_large_presets_fit_up_to_16_processes() -> None:
    for name in ("small-2b", "medium-8b", "large-24b"):
        run = parse(["--recipe", "text2sql", "--preset", name]).with_batch(1).run
        lanes = (run.batch_size or 0) // run.micro_batch_size
        assert all(lanes % processes == 0 for processes in (1, 2, 4, 8, 16))
