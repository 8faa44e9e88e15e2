"""Mistakes end with status 2 and at most three lines that say what to type.

Run alone: python -m pytest tests/runner/test_mistakes.py
"""

import errno
import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.__main__ import main
from runner.config import parse
from runner.errors import ConfigError
from runner.fields import Setting, settings_of
from runner.parts.setting_types import range_of
from runner.run_folder import lock_run_folder
from runner.settings import RunSettings
from runner.trials import Trial
from tests.launching import SHORT, TOY


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """A small folder in Spider's format, to be broken."""
    folder = tmp_path / "data" / "spider"
    database = folder / "database" / "shop" / "shop.sqlite"
    database.parent.mkdir(parents=True)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)")
        connection.execute("INSERT INTO book VALUES (1, 'Ubik')")
    pairs = [{"db_id": "shop", "question": "how many books ?", "query": "SELECT count(*) FROM book"}] * 8
    table = {
        "db_id": "shop",
        "table_names_original": ["book"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "title"]],
        "column_types": ["text", "number", "text"],
        "primary_keys": [1],
        "foreign_keys": [],
    }
    for name, content in (("train_spider", pairs), ("dev", pairs[:2]), ("tables", [table])):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "data"


def text2sql(folder: Path, data: Path) -> list[str]:
    return ["--recipe", "text2sql", "--output_dir", str(folder), "--data.source", "spider", "--data.dir", str(data)]


def ends(words: list[str], tmp_path: Path, *wanted: str) -> None:
    """Asserts status 2 and the message, in a process of its own."""
    trial = Trial(words, 1, tmp_path / "mistake.log")
    assert trial.wait(120) == [2], trial.output()
    message = trial.output()[trial.output().index("error: ") :]
    assert len(message.strip().splitlines()) <= 3, message
    assert "Traceback" not in trial.output()
    for words_of_message in wanted:
        assert words_of_message in message


def test_an_unknown_recipe(tmp_path: Path) -> None:
    ends(["--recipe", "text2sq"], tmp_path, "Did you mean --recipe text2sql?", "There are:")


def test_a_recipe_file_that_is_not_there(tmp_path: Path) -> None:
    ends(["--recipe", "nowhere/recipe.py"], tmp_path, "There is no recipe file")


def test_a_misspelt_flag(tmp_path: Path) -> None:
    ends([*SHORT, "--learning-rat", "1"], tmp_path, "There is no setting --learning_rat", "--learning_rate?")


def test_a_misspelt_yaml_key(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  hiden_size: 8\n", encoding="utf-8")
    ends([*SHORT, "--config", str(file)], tmp_path, "model.hiden_size", "model.hidden_size?")


def test_a_yaml_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe{[")
    ends([*SHORT, "--config", str(file)], tmp_path, "cannot be read as YAML")


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--max_steps", "many", "max_steps"),
        ("--lr_scheduler_type", "cosin", "cosine"),
        ("--max_steps", "0", "at least 1"),
        ("--batch_size", "1099511627776", "at most 2147483647"),
        ("--gradient_accumulation_steps", "4294967296", "at most 2147483647"),
        ("--micro_batch_size", "0", "at least 1"),
        ("--warmup_ratio", "2", "from 0 to 1"),
        ("--learning_rate", "nan", "at least 0"),
        ("--exclude_examples", "one,two", "numbers with commas"),
        ("--init_from", "nowhere", "There is no folder nowhere"),
        ("--resume_from_checkpoint", "nowhere", "There is no checkpoint folder"),
        ("--upload_to", "bucket", "type a URL"),
        ("--mixed_precision", "fp16", "fp16"),
        ("--batch_size", "33", "--micro_batch_size with one of"),
        ("--num_rows", "0", "num_rows is 0"),
    ],
)
def test_a_value_that_cannot_be(tmp_path: Path, flag: str, value: str, wanted: str) -> None:
    ends([*SHORT, "--output_dir", str(tmp_path / "run"), flag, value], tmp_path, wanted)


@pytest.mark.parametrize("number", [257, 1_000_000, 2**31 - 1])
def test_a_number_of_workers_that_would_fill_the_machine_is_refused(number: int) -> None:
    # Without a training: were it not refused, this test would start them.
    with pytest.raises(ConfigError, match="type --num_workers with a whole number from 0 to 256"):
        RunSettings(num_workers=number)
    assert RunSettings(num_workers=256).num_workers == 256


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else find(name))
    assert main(["train", *SHORT, "--output_dir", str(tmp_path / "run"), "--report_to", tracker]) == 2
    wanted = "pip install wandb" if tracker == "wandb" else f"pip install -e '.[{tracker}]'"
    assert wanted in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize("package", ["pandas", "scipy", "sklearn"])
def test_a_package_of_tables_that_is_not_installed(
    command: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main([command, "--recipe", "tabular", "--max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 2
    assert "pip install -e '.[tabular]'" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", [each for each in settings_of(RunSettings) if {int, float} & {*each.kinds}],
                         ids=lambda setting: setting.flag)  # fmt: skip
@pytest.mark.parametrize("value", ["-1000000", "-5", "-2", "-1", "nan", "inf", "-inf", "1e300", str(2**80)])
def test_a_number_out_of_range_is_refused_by_name(setting: Setting, value: str) -> None:
    limit = range_of(setting.hint)
    assert limit is not None, f"{setting.flag} has no range"
    if limit.holds(float(value)) or (value == "-1" and setting.flag == "max_steps"):
        return
    with pytest.raises(ConfigError, match=setting.flag):
        parse(["--recipe", TOY, f"--{setting.flag}", value])


@pytest.mark.parametrize("value", ["-5", "-2", "0"])
def test_only_minus_one_stands_for_the_default_length(value: str) -> None:
    assert parse(["--recipe", TOY, "--max_steps", "-1"]).run.max_steps is None
    with pytest.raises(ConfigError, match="max_steps is"):
        parse(["--recipe", TOY, "--max_steps", value])


def test_a_world_that_does_not_divide(tmp_path: Path) -> None:
    words = [*SHORT, "--output_dir", str(tmp_path / "run"), "--batch_size", "12"]
    trial = Trial(words, 2, tmp_path / "mistake.log")
    assert trial.wait(120) == [2, 2]
    assert "Start with one of 1, 3 processes" in trial.output()


def test_an_output_dir_with_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    ends([*SHORT, "--output_dir", str(tmp_path / "run")], tmp_path, "--resume_from_checkpoint auto", "--output_dir")


def test_two_runs_in_one_output_dir(tmp_path: Path) -> None:
    hardware: Any = SimpleNamespace(is_main=True, from_main=lambda value: value)
    with lock_run_folder(tmp_path / "run", hardware):
        with (
            pytest.raises(ConfigError, match="--output_dir"),
            lock_run_folder(tmp_path / "run", hardware, patience=0.1),
        ):
            pass
        with lock_run_folder(tmp_path / "another", hardware, patience=0.1):
            pass
    with lock_run_folder(tmp_path / "run", hardware, patience=0.1):
        pass


def test_a_folder_that_is_taken_loses_the_drafts_of_a_dead_run(tmp_path: Path) -> None:
    hardware: Any = SimpleNamespace(is_main=True, from_main=lambda value: value)
    (tmp_path / ".draft-checkpoint-5-abc").mkdir()
    (tmp_path / ".draft-checkpoint-latest-abc").write_text("", encoding="utf-8")
    with lock_run_folder(tmp_path, hardware, patience=0.1):
        assert not list(tmp_path.glob(".draft-*"))


def test_waiting_for_a_folder_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hardware: Any = SimpleNamespace(is_main=True, from_main=lambda value: value)
    with lock_run_folder(tmp_path, hardware):
        assert capsys.readouterr().out == ""
        with pytest.raises(ConfigError), lock_run_folder(tmp_path, hardware, patience=0.1):
            pass
    assert "waiting up to 0 s for another run to leave" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP", "EIO", "EACCES", "ENOSYS"])
def test_a_network_folder_that_refuses_locks_is_no_other_run(
    tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    hardware: Any = SimpleNamespace(is_main=True, from_main=lambda value: value)
    with lock_run_folder(tmp_path, hardware, patience=0.1):
        pass


def test_a_data_folder_that_is_not_there(tmp_path: Path) -> None:
    ends(text2sql(tmp_path / "run", tmp_path / "nowhere"), tmp_path, "nowhere", "--data.dir")


def test_a_database_that_is_none(tmp_path: Path, spider: Path) -> None:
    (spider / "spider/database/shop/shop.sqlite").write_text("not a database, but long enough", encoding="utf-8")
    ends(text2sql(tmp_path / "run", spider), tmp_path, "shop.sqlite")


@pytest.mark.parametrize("content", ["[]", "", "{", "[1, 2]", '[{"question": "?"}]'])
def test_a_training_file_that_is_empty_or_broken(tmp_path: Path, spider: Path, content: str) -> None:
    (spider / "spider/train_spider.json").write_text(content, encoding="utf-8")
    ends(text2sql(tmp_path / "run", spider), tmp_path, "train_spider.json")


def test_a_database_that_is_not_there_is_counted(tmp_path: Path, spider: Path) -> None:
    # tables.json says enough to train on and to check names; only execution cannot be scored.
    shutil.rmtree(spider / "spider/database/shop")
    trial = Trial([*text2sql(tmp_path / "run", spider), "--max_steps", "1"], 1, tmp_path / "counted.log")
    assert trial.wait(120) == [0]
    assert "without_database 2.0000" in trial.output()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tran"], "Did you mean relay train?"),
        (["predict"], "--checkpoint"),
        (["predict", "--checkpoint", "nowhere"], "nowhere"),
        (["predict", "--recipe", "tabulr", "--help"], "Did you mean --recipe tabular?"),
        (["predict", "--recipe"], "type --recipe NAME"),
        (["train"], "No recipe was given"),
    ],
)
def test_mistakes_of_the_console_command(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert wanted in error and len(error.strip().splitlines()) <= 3


def test_a_toy_is_no_mistake(tmp_path: Path) -> None:
    # What all of the above would not notice: that nothing starts at all.
    words = ["--recipe", TOY, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    assert Trial(words, 1, tmp_path / "mistake.log").wait(120) == [0]
