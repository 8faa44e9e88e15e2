"""Settings: precedence, both spellings, YAML, and the file that repeats a run.

Run alone: python -m pytest tests/runner/test_config.py
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from runner.config import parse, settings_of, write_yaml
from runner.errors import ConfigError
from runner.settings import RunSettings
from tests.launching import REPOSITORY, TOY

CONTRACT = """output_dir seed max_steps num_train_epochs batch_size micro_batch_size gradient_accumulation_steps
learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type warmup_steps warmup_ratio
min_lr_ratio lr_step_size lr_gamma mixed_precision gradient_checkpointing torch_compile deterministic logging_steps
eval_steps save_steps save_total_limit early_stopping_patience metric_for_best_model resume_from_checkpoint init_from
report_to wandb_project wandb_run_name upload_to num_workers max_train_examples max_eval_examples on_bad_step
empty_cache_steps use_expandable_segments debug dry_run"""


def test_every_name_of_the_contract_is_a_flag() -> None:
    assert set(CONTRACT.split()) <= {setting.flag for setting in settings_of(RunSettings)}


def test_preset_below_yaml_below_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 0.5\nseed: 7\nmodel:\n  num_hidden_layers: 3\n", encoding="utf-8")
    words = ["--recipe", "text2sql", "--preset", "nano", "--config", str(file), "--seed", "8"]
    config = parse(words)
    preset = parse(words[:4])
    assert (config.run.learning_rate, config.run.seed) == (0.5, 8)
    assert config.recipe.model_settings.num_hidden_layers == 3
    assert config.recipe.model_settings.hidden_size == preset.recipe.model_settings.hidden_size


def test_dashes_underscores_and_equal_signs_are_the_same() -> None:
    spellings = (["--max-steps", "3"], ["--max_steps=3"], ["--max_steps", "3"])
    assert {parse(["--recipe", TOY, *words]).run.max_steps for words in spellings} == {3}
    assert parse(["--recipe", TOY, "--model.hidden-size=8"]).recipe.model_settings.hidden_size == 8


@pytest.mark.parametrize("word", [[], ["true"], ["True"], ["yes"], ["1"]])
def test_switches_take_a_word_or_none(word: list[str]) -> None:
    assert parse(["--recipe", TOY, "--deterministic", *word]).run.deterministic
    assert not parse(["--recipe", TOY, "--deterministic", "false"]).run.deterministic


def test_the_written_file_repeats_the_run(tmp_path: Path) -> None:
    config = parse(
        ["--recipe", "text2sql", "--preset", "nano", "--learning_rate", "3e-4", "--data.max_seq_length", "99"]
    )
    write_yaml(config, tmp_path / "config.yaml")
    again = parse(["--config", str(tmp_path / "config.yaml")])
    assert again.run == config.run and again.recipe == config.recipe
    content = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert content["data"]["max_seq_length"] == 99 and content["recipe"] == "text2sql"


def test_a_word_where_a_number_is_wanted_is_refused() -> None:
    with pytest.raises(ConfigError):
        parse(["--recipe", TOY, "--max_steps", "three"])


@pytest.mark.parametrize("words", [["--help"], ["train", "--recipe", "text2sql", "--help"]])
def test_help_is_complete_and_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module('runner', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'peft', 'evaluate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    print(f"{' '.join(words)} took {time.monotonic() - started:.2f} s")
    if "text2sql" in words:
        from recipes.text2sql.recipe import Recipe

        for setting in [*settings_of(RunSettings), *settings_of(Recipe)]:
            leaf = setting.flag.replace("_", "-")
            assert f"--{setting.flag}" in done.stdout or f"--{leaf}" in done.stdout, setting.flag


@pytest.mark.parametrize("word", ["true", "True", "yes", "on"])
def test_switches_that_may_be_unset_take_the_same_words(word: str) -> None:
    assert parse(["--recipe", TOY, "--greater_is_better", word]).run.greater_is_better is True
    assert parse(["--recipe", TOY]).run.greater_is_better is None
