"""The settings of text2sql: which of them another setting switches off, and what a run says about it."""

from pathlib import Path

import pytest
import yaml

from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import settings_without_effect
from runner.config import Config, parse, recorded_config, settings_of, yaml_of
from runner.errors import ConfigError


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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--model.hidden_size 100 --model.num_attention_heads 3 --model.num_key_value_heads 1",
            "hidden_size 100 num_attention_heads 3 multiple 6",
        ),
        ("--tokenizer.vocab_size 0", "vocab_size 0 least 1"),
        ("--generation.seed -1", "generation.seed -1 least 0"),
        ("--router_aux_loss_coef -0.1", "router_aux_loss_coef -0.1 least 0"),
        ("--router_z_loss_coef nan", "router_z_loss_coef nan"),
        ("--model.hidden_size 12 --model.num_attention_heads 4", "hidden_size 12 multiple 8"),
        ("--model.num_attention_heads 4 --model.num_key_value_heads 3", "num_key_value_heads 3 divide 4 1,"),
        ("--model.num_key_value_heads 8", "num_key_value_heads 8 divide 4 1,"),
        ("--model.num_experts_per_tok 5", "num_experts_per_tok 5 num_local_experts 4"),
        ("--model.num_local_experts 1", "num_experts_per_tok 2 num_local_experts 1"),
        ("--preset mini --model.num_experts_per_tok 9", "num_experts_per_tok 9 num_local_experts 8"),
        ("--model.num_local_experts 0", "num_local_experts 0 least 1"),
        ("--model.hidden_size -64", "hidden_size -64 least 1"),
        ("--model.num_hidden_layers 0", "num_hidden_layers 0 least 1"),
        ("--model.dropout 1", "model.dropout 1 below 1"),
        ("--model.dropout -0.1", "model.dropout -0.1"),
        ("--model.balance_bias_rate -1", "balance_bias_rate -1"),
        ("--data.word_dropout 1.5", "word_dropout 1.5 from 0 to 1"),
        ("--data.recombination_prob -1", "recombination_prob -1"),
        ("--data.schema_perturbation_prob nan", "schema_perturbation_prob nan"),
        ("--data.question_repeats 0", "question_repeats 0 least 1"),
        ("--data.schema_samples -1", "schema_samples -1"),
        ("--data.max_seq_length 0", "max_seq_length 0"),
        ("--generation.max_new_tokens 0", "max_new_tokens 0"),
    ],
)
def test_what_no_model_can_have_is_refused_before_data_are_read(flags: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["--recipe", "text2sql", *flags.split()])
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words.split())


def test_a_trained_model_brings_its_own_dimensions() -> None:
    parse(["--recipe", "text2sql", "--model.pretrained", "x", "--model.num_attention_heads", "7"])


def experts_of(config: Config) -> int | None:
    settings = config.recipe.model_settings  # type: ignore[attr-defined]
    return settings.num_local_experts


@pytest.mark.parametrize("preset", [[], ["--preset", "nano"], ["--preset", "tiny"], ["--preset", "lora"]])
def test_a_trained_model_becomes_a_mixture_only_where_the_user_says_so(preset: list[str], tmp_path: Path) -> None:
    words = ["--recipe", "text2sql", *preset, "--model.pretrained", "x"]
    assert experts_of(parse(words)) is None
    assert experts_of(parse([*words, "--model.num_local_experts", "4"])) == 4
    with pytest.raises(ConfigError, match="num_experts_per_tok is 2, and model.num_local_experts is 1"):
        parse([*words, "--model.num_local_experts", "1"])
    # By a file as by a flag, and so it is recorded.
    (tmp_path / "own.yaml").write_text("recipe: text2sql\nmodel: {pretrained: x, num_local_experts: 4}\n")
    config = parse(["--config", str(tmp_path / "own.yaml"), *preset])
    assert experts_of(config) == 4
    assert experts_of(recorded_config(yaml_of(config), "it", "text2sql", Recipe)) == 4
    (tmp_path / "recorded.yaml").write_text(yaml_of(config))
    assert experts_of(parse(["--config", str(tmp_path / "recorded.yaml")])) == 4


@pytest.mark.parametrize("pretrained", [None, "x"])
def test_the_experts_that_an_older_version_recorded_are_those_of_a_fresh_model(
    pretrained: str | None, tmp_path: Path
) -> None:
    new = ["--model.pretrained", pretrained] if pretrained else []
    nested = parse(["--recipe", "text2sql", *new, "--model.num_local_experts", "4"]).nested()
    for name in ("upcycling_noise", "upcycling_drop"):
        del nested["model"][name]
    text = yaml.safe_dump(nested)
    (tmp_path / "old.yaml").write_text(text)
    wanted = None if pretrained else 4
    assert experts_of(recorded_config(text, "it", "text2sql", Recipe)) == wanted
    assert experts_of(parse(["--config", str(tmp_path / "old.yaml")])) == wanted
    # A model that is typed beside it was dense too.
    assert experts_of(parse(["--config", str(tmp_path / "old.yaml"), "--model.pretrained", "y"])) is None


@pytest.mark.parametrize(
    ("flags", "least"),
    [([], 271), (["--data.schema_tokens", "true"], 421), (["--data.word_dropout", "0.1"], 272)],
)
def test_a_vocabulary_that_is_too_small_is_refused(flags: list[str], least: int, tmp_path: Path) -> None:
    for size in (least - 1, 1):
        words = ["--recipe", "text2sql", "--preset", "nano", "--data.source", "spider", *flags]
        recipe = parse([*words, "--tokenizer.vocab_size", str(size)]).recipe
        # No file is read: there is no data.dir.
        with pytest.raises(ConfigError, match=f"vocab_size is {size}: .* at least {least} tokens"):
            recipe.prepare(tmp_path)


@pytest.mark.parametrize("flags", [["--data.max_seq_length", "128"], ["--generation.max_new_tokens", "800"]])
def test_a_prompt_without_a_place_for_the_schema_is_refused(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match="no schema fits"):
        parse(["--recipe", "text2sql", *flags]).recipe.fresh_start()
    assert parse(["--recipe", "text2sql", "--data.schema_in_prompt", "false", *flags]).recipe.fresh_start() is None
    assert parse(["--recipe", "text2sql"]).recipe.fresh_start() is None


@pytest.mark.parametrize("flags", [["--preset", "lora"], ["--lora.rank", "1"]])
def test_adapters_need_a_model_to_adapt(flags: list[str]) -> None:
    recipe = parse(["--recipe", "text2sql", *flags]).recipe
    with pytest.raises(ConfigError, match="lora.rank is .*type --model.pretrained FOLDER") as caught:
        recipe.fresh_start()
    assert len(str(caught.value).splitlines()) <= 3
    assert parse(["--recipe", "text2sql", *flags, "--model.pretrained", "x"]).recipe.fresh_start() is None


def test_the_preset_for_adapters_has_a_rate_for_trained_weights() -> None:
    config = parse(["--recipe", "text2sql", "--preset", "lora", "--model.pretrained", "x"])
    assert config.run.learning_rate <= 5e-4 and config.recipe.lora.rank > 0  # type: ignore[attr-defined]
    assert config.run.mixed_precision == "auto"
