"""Settings: precedence, both spellings, YAML, and the file that repeats a run.

Run alone: python -m pytest tests/runner/test_config.py
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from runner import registry
from runner.config import parse, settings_of, write_yaml
from runner.errors import ConfigError
from runner.recipe import note_outdated
from runner.settings import RENAMED, RunSettings, setting_notes
from runner.trials import Trial
from tests.launching import REPOSITORY, SHORT, TOY

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


@pytest.mark.parametrize(
    "words", [["--help"], *(["train", "--recipe", name, "--help_all"] for name in registry.names())]
)
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


def test_the_program_begins_without_what_only_some_trainings_need() -> None:
    program = (
        "import runner.session, sys\n"
        "late = {'torch.distributed.tensor', 'torch.distributed.fsdp', 'torch._dynamo', 'transformers', 'datasets',\n"
        "        'pandas', 'scipy', 'sklearn', 'peft', 'rich', 'sympy'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_training_imports_no_compiler_and_no_sharding_that_it_does_not_use(tmp_path: Path) -> None:
    words = [*SHORT, "--max_steps", "3", "--output_dir", str(tmp_path), "--optim", "adamw"]
    program = (
        "import gc, sys\n"
        "usual = gc.get_threshold()\n"
        "from runner.train import main\n"
        f"assert main({words}) == 0\n"
        "assert gc.get_threshold() == usual\n"
        "late = {'torch.distributed.tensor', 'torch.distributed.fsdp', 'torch._dynamo', 'transformers', 'datasets',\n"
        "        'pandas', 'scipy', 'sklearn', 'peft', 'sympy'}\n"
        "assert not late & set(sys.modules), late & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["true", "True", "yes", "on"])
def test_switches_that_may_be_unset_take_the_same_words(word: str) -> None:
    assert parse(["--recipe", TOY, "--greater_is_better", word]).run.greater_is_better is True
    assert parse(["--recipe", TOY]).run.greater_is_better is None


BAD_ROW = ["--recipe", TOY, "--num_rows", "0"]


@pytest.mark.parametrize(
    ("words", "raises"),
    [
        (["--debug"], True),
        (["--debug", "true"], True),
        (["--debug=yes"], True),
        (["--debug", "false"], False),
        (["--debug=0"], False),
        ([], False),
    ],
)
def test_debug_shows_tracebacks_where_it_is_on(words: list[str], raises: bool, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"debug: {str(raises).lower()}\nnum_rows: 0\nrecipe: {TOY}\n", encoding="utf-8")
    run = ["--output_dir", str(tmp_path / "run")]
    # A mistake in the settings, one that is found after they were read, and the same setting in YAML.
    for arguments in (["--recipe", "nothing", *words], [*BAD_ROW, *run, *words], ["--config", str(file), *run]):
        trial = Trial(arguments, 1, tmp_path / "run.log")
        assert trial.wait(120) == [1 if raises else 2]
        assert ("Traceback" in trial.output()) == raises


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        (["--lr_scheduler_type", "one_cycle", "--adam_beta1", "0.8"], "adam_beta1"),
        (["--lr_gamma", "0.5"], "lr_gamma"),
        (["--lr_step_size", "5"], "lr_step_size"),
        (["--lr_scheduler_type", "constant", "--min_lr_ratio", "0.1"], "min_lr_ratio"),
        (["--warmup_steps", "3", "--warmup_ratio", "0.1"], "warmup_ratio"),
        (["--max_steps", "3", "--num_train_epochs", "2"], "num_train_epochs"),
        (["--wandb_project", "mine", "--report_to", "tensorboard"], "wandb_project"),
        (["--cloud_region", "eu-west-1"], "cloud_region"),
        (["--lr_scheduler_type", "step", "--lr_gamma", "0.5", "--warmup_ratio", "0.1", "--adam_beta1", "0.8"], None),
        (["--wandb_project", "mine", "--report_to", "wandb", "--num_train_epochs", "2"], None),
        (["--max_steps", "3"], None),
    ],
)
def test_a_setting_without_effect_is_noted(words: list[str], noted: str | None) -> None:
    config = parse(["--recipe", TOY, *words])
    notes = setting_notes(config.run, config.changed)
    assert [note.split()[0] for note in notes] == ([noted] if noted else []), notes


def test_an_old_name_of_a_setting_works_and_the_new_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note_outdated.cache_clear()
    monkeypatch.setitem(RENAMED, "steps_between_logs", "logging_steps")
    recipe = tmp_path / "renaming.py"
    text = Path(TOY).read_text(encoding="utf-8")
    renamed = '    renamed_settings = {"rows": "num_rows", "model.width": "model.hidden_size"}\n'
    recipe.write_text(
        text.replace('    best_metric = "mae"\n', f'    best_metric = "mae"\n{renamed}'), encoding="utf-8"
    )
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  width: 5\nsteps_between_logs: 7\n", encoding="utf-8")
    config = parse(["--recipe", str(recipe), "--config", str(file), "--rows=40"])
    assert (config.recipe.num_rows, config.recipe.model_settings.hidden_size, config.run.logging_steps) == (40, 5, 7)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(" is called ")[1] for line in lines) == [
        "logging_steps now.", "model.hidden_size now.", "num_rows now."
    ]  # fmt: skip
    # What the run keeps has the new names alone.
    assert not {"rows", "steps_between_logs", "model.width"} & set(config.flat())


@pytest.mark.parametrize("recipe", [*registry.names(), TOY], ids=lambda name: Path(name).stem)
def test_a_run_that_is_repeated_from_its_config_changes_nothing_and_notes_nothing(recipe: str, tmp_path: Path) -> None:
    """The file names every setting: those that are as the preset or the default has them are no choice of the user."""
    first = parse(["--recipe", recipe, "--max_steps", "3"])
    write_yaml(first.with_batch(1), tmp_path / "config.yaml")
    again = parse(["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert first.changed == {"max_steps"} and again.changed <= {"max_steps", "batch_size", "output_dir"}
    assert setting_notes(again.run, again.changed) + again.recipe.setting_notes(again.changed) == []
    # What differs is still noticed.
    louder = parse(["--config", str(tmp_path / "config.yaml"), "--cloud_region", "eu-west-1"])
    assert len(setting_notes(louder.run, louder.changed)) == 1
