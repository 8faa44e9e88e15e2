"""The settings of text2sql: which of them another setting switches off, and what a run says about it."""

import pytest

from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import settings_without_effect
from runner.config import parse, settings_of


def notes(*flags: str) -> list[str]:
    """What a run with these flags says about settings without effect."""
    config = parse(["--recipe", "text2sql", *flags])
    return config.recipe.setting_notes(config.changed)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--generation.num_candidates", "4"], "generation.num_candidates has no effect at generation.temperature 0"),
        (["--generation.top_p", "0.9"], "generation.top_p has no effect at generation.temperature 0"),
        (["--generation.seed", "1"], "generation.seed has no effect at generation.temperature 0"),
        (["--generation.execution_guided", "true"], "generation.execution_guided has no effect with one candidate"),
        (["--model.balance", "bias", "--model.balance_scope", "global"], "model.balance_scope has no effect"),
        (["--model.balance", "bias", "--router_aux_loss_coef", "1"], "router_aux_loss_coef has no effect"),
        (["--model.balance_bias_rate", "0.1"], "model.balance_bias_rate has no effect with model.balance aux"),
        (["--router_aux_loss_coef", "0", "--model.balance_scope", "global"], "model.balance_scope has no effect"),
        (["--lora.alpha", "8"], "lora.alpha has no effect with lora.rank 0"),
        (["--lora.router", "true"], "lora.router has no effect with lora.rank 0"),
        (["--model.pretrained", "x", "--model.hidden_size", "8"], "model.hidden_size has no effect"),
        (["--model.pretrained", "x", "--tokenizer.vocab_size", "999"], "tokenizer.vocab_size has no effect"),
        (["--data.dir", "x"], "data.dir has no effect with data.source demo"),
        (["--data.source", "spider", "--data.bird_sql_weight", "0.5"], "data.bird_sql_weight has no effect"),
        (["--data.source", "spider,bird", "--data.wiki_sql_weight", "0.5"], "data.wiki_sql_weight has no effect"),
        (["--data.source", "atis", "--data.max_source_epochs", "2"], "data.max_source_epochs has no effect"),
        (["--data.source", "spider", "--data.evidence", "false"], "data.evidence has no effect"),
        (["--data.schema_in_prompt", "false", "--data.schema_samples", "2"], "data.schema_samples has no effect"),
    ],
)
def test_a_setting_that_another_switches_off_is_reported(flags: list[str], wanted: str) -> None:
    (line,) = notes(*flags)
    assert line.startswith(wanted)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--generation.temperature", "0.8", "--generation.num_candidates", "4", "--generation.top_p", "0.9"],
        ["--generation.num_beams", "4", "--generation.execution_guided", "true"],
        ["--model.balance_scope", "global"],
        ["--model.balance", "bias", "--model.balance_bias_rate", "0.1"],
        ["--lora.rank", "4", "--lora.alpha", "8"],
        ["--data.source", "spider,bird", "--data.bird_sql_weight", "0.1"],
        ["--data.source", "mix", "--data.max_source_epochs", "2", "--data.dir", "x"],
    ],
)
def test_settings_with_an_effect_are_not_reported(flags: list[str]) -> None:
    # Only what the user typed counts: presets set more than one run needs.
    assert notes(*flags) == []


def test_a_preset_is_never_reported() -> None:
    for preset in Recipe.presets():
        assert notes("--preset", preset) == []


def test_every_reported_name_is_a_setting() -> None:
    recipe = Recipe()
    found = settings_without_effect(
        recipe.data_settings, recipe.model_settings, recipe.generation_settings, recipe.lora, 0.0
    )
    known = {each.flag for each in settings_of(Recipe)}
    assert {name for name, _ in found} <= known
