"""A run that goes on: with its own settings, with the data that it had, in the folder where it lies now.

Run alone: python -m pytest tests/runner/checkpoints/test_recorded.py
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from runner.checkpoints.manifest import MANIFEST, write_manifest
from runner.checkpoints.state import read_state
from runner.commands import checkpoints as checkpoints_command
from runner.commands.verify import check_ledger
from runner.trials import Trial
from tests.launching import REPOSITORY, metrics, mistaken, output, same_bits, train, weights

READING = str(REPOSITORY / "tests" / "reading_recipe.py")
AUTO = ("--resume_from_checkpoint", "auto")
SHORT = ("--recipe", READING, "--max_steps", "6", "--save_steps", "3", "--eval_steps", "3", "--logging_steps", "1")
SHORT += ("--mixed_precision", "no")


def rows(path: Path, number: int = 40, seed: int = 0) -> Path:
    chance = random.Random(seed)
    lines = [" ".join(f"{chance.uniform(-1, 1):.3f}" for _ in range(5)) for _ in range(number)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def start(words: list[str], log: Path, status: int = 0) -> str:
    trial = Trial(words, 1, log)
    assert trial.wait(120) == [status], trial.output()
    return trial.output()


def seal(folder: Path) -> None:
    """Give a changed checkpoint a manifest of what it holds now."""
    (folder / MANIFEST).unlink()
    write_manifest(folder)


def recorded(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


# Settings ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with settings of its own, that only its first command named."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    data = rows(folder.parent / "train.txt")
    own = ["--learning_rate", "5e-4", "--weight_decay", "0.1", "--lr_scheduler_type", "constant", "--seed", "3"]
    own += ["--batch_size", "8", "--micro_batch_size", "2", "--model.hidden_size", "8", "--model.dropout", "0.2"]
    own += ["--data.train", str(data), "--early_stopping_patience", "50", "--stage", "second"]
    start([*SHORT, *own, "--output_dir", str(folder)], folder.with_suffix(".log"))
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it that stopped after three steps."""
    shutil.copytree(begun, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    shutil.rmtree(tmp_path / "run" / "final")
    return tmp_path / "run"


def test_nothing_but_the_recipe_has_to_be_typed_again(run: Path, begun: Path, tmp_path: Path) -> None:
    before = recorded(run)
    said = start(["--recipe", READING, "--output_dir", str(run), *AUTO], tmp_path / "log")
    assert "going on from" in said and "changed setting" not in said
    assert same_bits(weights(run), weights(begun))
    after = recorded(run)
    # The original was started in another folder, and without --resume_from_checkpoint.
    assert {name for name in before if before[name] != after[name]} == {"output_dir", "resume_from_checkpoint"}
    assert [line["learning_rate"] for line in metrics(run)] == [5e-4] * 6


def test_a_typed_difference_is_told_in_one_line_each(run: Path, tmp_path: Path) -> None:
    words = ["--recipe", READING, "--output_dir", str(run), *AUTO, "--learning_rate", "0.002", "--model.dropout", "0"]
    said = start([*words, "--max_steps", "8", "--weight_decay", "0.1"], tmp_path / "log")
    for line in ("learning_rate: 0.0005 -> 0.002", "model.dropout: 0.2 -> 0.0", "max_steps: 6 -> 8"):
        assert said.count(line) == 1 and said.index(line) < said.index("step 4/8"), line
    assert said.count("changed setting") == 3
    assert [line["learning_rate"] for line in metrics(run)][3:] == [0.002] * 5
    # What was typed is the run's own from now on.
    again = start(["--recipe", READING, "--output_dir", str(run), *AUTO, "--max_steps", "9"], tmp_path / "log")
    assert again.count("changed setting") == 1 and recorded(run)["learning_rate"] == 0.002


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--seed", "4"], "seed is 4, but the run to go on with has 3"),
        (["--batch_size", "16"], "batch_size is 16, but the run to go on with has 8"),
        (["--model.hidden_size", "16"], "model.hidden_size is 16, but the run to go on with has 8"),
        (["--optim", "muon"], "optim is muon, but the run to go on with has adamw"),
        (["--stage", "third"], "stage is third, but the run to go on with has second"),
        (["--data.digits", "1"], "type --allow_changed_data"),
        (["--data.digits", "1", "--allow_changed_data"], "another fitted.json than the weights were trained with"),
        (["--recipe", "language_model"], "type --recipe"),
    ],
)
def test_what_cannot_change_is_refused(run: Path, tmp_path: Path, words: list[str], wanted: str) -> None:
    if words[0] == "--recipe":
        for file in (run / "config.yaml", run / "checkpoint-3" / "config.yaml"):
            file.write_text(file.read_text(encoding="utf-8").replace(READING, "tabular"), encoding="utf-8")
        seal(run / "checkpoint-3")
    said = start(["--recipe", READING, "--output_dir", str(run), *AUTO, *words], tmp_path / "log", status=2)
    error = said[said.index("error: ") :]
    assert wanted in error and len(error.strip().splitlines()) <= 3 and "Traceback" not in said
    assert not (run / "checkpoint-6").exists()


def test_settings_in_yaml_count_as_typed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.01\nmodel:\n  dropout: 0.2\n", encoding="utf-8")
    words = ["--recipe", READING, "--output_dir", str(run), *AUTO, "--config", str(tmp_path / "mine.yaml")]
    said = start(words, tmp_path / "log")
    assert said.count("changed setting") == 1 and "learning_rate: 0.0005 -> 0.01" in said


def test_the_weights_to_begin_from_are_not_needed_again(begun: Path, tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(begun, base, symlinks=True)
    words = ["--recipe", READING, "--output_dir", str(folder), "--data.train", str(begun.parent / "train.txt")]
    words += ["--model.hidden_size", "8", "--batch_size", "8", "--micro_batch_size", "2"]
    start([*words, "--init_from", str(base), "--max_steps", "2"], tmp_path / "log")
    shutil.rmtree(base)
    assert "going on from" in start([*words, *AUTO, "--max_steps", "4"], tmp_path / "log")
    repeated = ["--config", str(folder / "config.yaml"), *AUTO, "--max_steps", "5"]
    assert "going on from" in start(repeated, tmp_path / "log")


# Data --------------------------------------------------------------------------------------------------


def append(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("0.1 0.2 0.3 0.4 0.5\n")


def replace_by_equal_length(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    last = text.splitlines()[-1]
    path.write_text(text.replace(last, "0" * 5 + last[5:]), encoding="utf-8")


def other_content(path: Path) -> None:
    rows(path, seed=9)


CHANGES: dict[str, Callable[[Path], None]] = {
    "appended": append, "replaced": replace_by_equal_length, "other": other_content
}  # fmt: skip


@pytest.mark.parametrize("streamed", ["false", "true"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_refused_and_allowed_by_a_flag(tmp_path: Path, change: str, streamed: str) -> None:
    data, folder = rows(tmp_path / "train.txt"), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--data.train", str(data), "--streamed", streamed]
    words += ["--batch_size", "8", "--micro_batch_size", "4"]
    start([*words, "--max_steps", "3"], tmp_path / "log")
    assert all(result.holds for result in check_ledger(folder))
    CHANGES[change](data)
    said = start([*words, *AUTO], tmp_path / "log", status=2)
    assert "The data are not those of the run to go on with: train.txt has changed" in said
    said = start([*words, *AUTO, "--allow_changed_data"], tmp_path / "log")
    assert said.count("going on with other data than before") == 1 and "train.txt has changed" in said
    assert "the best score" in said and "is forgotten: it was measured on other data" in said
    assert recorded(folder)["allow_changed_data"] is False
    state = read_state(folder / "checkpoint-6")
    assert state.best_step == 6 and state.data_changes == [[3, "train.txt has changed"]]
    # From now on these are the run's data.
    assert "other data" not in start([*words, *AUTO, "--max_steps", "7"], tmp_path / "log")


def test_other_validation_data_begin_the_search_for_the_best_again(tmp_path: Path) -> None:
    data, held_out, folder = rows(tmp_path / "train.txt"), rows(tmp_path / "held_out.txt", 20, 1), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--data.train", str(data), "--data.validation", str(held_out)]
    words += ["--learning_rate", "0", "--early_stopping_patience", "2"]
    start([*words, "--max_steps", "6"], tmp_path / "log")
    assert read_state(folder / "checkpoint-6").evaluations_without_improvement == 1
    append(held_out)
    assert "held_out.txt has changed" in start([*words, *AUTO, "--max_steps", "9"], tmp_path / "log", status=2)
    said = start([*words, *AUTO, "--max_steps", "9", "--allow_changed_data"], tmp_path / "log")
    assert "is forgotten" in said
    state = read_state(folder / "checkpoint-9")
    assert (state.best_step, state.evaluations_without_improvement) == (9, 0)


def test_the_same_content_elsewhere_is_no_change(tmp_path: Path) -> None:
    data, folder = rows(tmp_path / "train.txt"), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--max_steps"]
    start([*words, "3", "--data.train", str(data)], tmp_path / "log")
    (tmp_path / "elsewhere").mkdir()
    data.rename(tmp_path / "elsewhere" / "renamed.txt")
    moved = ["--data.train", str(tmp_path / "elsewhere" / "renamed.txt"), *AUTO]
    said = start([*words, "4", *moved], tmp_path / "log")
    assert "going on from" in said and "other data" not in said


def test_a_checkpoint_that_recorded_no_data_goes_on_in_silence(tmp_path: Path) -> None:
    data, folder = rows(tmp_path / "train.txt"), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--data.train", str(data), "--max_steps"]
    start([*words, "3"], tmp_path / "log")
    state = folder / "checkpoint-3" / "state.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["data"], content["data_changes"]
    state.write_text(json.dumps(content), encoding="utf-8")
    seal(folder / "checkpoint-3")
    replace_by_equal_length(data)
    assert "other data" not in start([*words, "4", *AUTO], tmp_path / "log")


def test_the_ledger_does_not_say_that_changed_data_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = rows(tmp_path / "train.txt"), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--data.train", str(data)]
    start([*words, "--max_steps", "3"], tmp_path / "log")
    replace_by_equal_length(data)
    wrong = [result.result for result in check_ledger(folder) if not result.holds]
    assert wrong == ["the data files are not those that the run read"]
    start([*words, *AUTO, "--allow_changed_data"], tmp_path / "log")
    wrong = [result.result for result in check_ledger(folder) if not result.holds]
    assert wrong == ["changed at step 3: train.txt has changed"]
    capsys.readouterr()
    assert checkpoints_command.main([str(folder)]) == 0
    assert "the data changed at step 3: train.txt has changed" in capsys.readouterr().out


# What was fitted ---------------------------------------------------------------------------------------


def test_a_start_that_died_leaves_nothing_fitted_behind(tmp_path: Path) -> None:
    data, folder = rows(tmp_path / "train.txt"), tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--data.train", str(data), "--max_steps", "2"]
    # Dies before its first checkpoint, after the fit.
    start([*words, "--max_train_examples", "9", "--exclude_examples", "99"], tmp_path / "log", status=2)
    stale = (folder / "assets" / "fitted.json").read_text(encoding="utf-8")
    (folder / "assets" / "left.json").write_text("of the dead start", encoding="utf-8")
    rows(data, seed=5)
    for more in ((), AUTO):
        shutil.rmtree(folder / "checkpoint-2", ignore_errors=True)
        start([*words, *more], tmp_path / "log")
        assert (folder / "assets" / "fitted.json").read_text(encoding="utf-8") != stale
        assert sorted(path.name for path in (folder / "checkpoint-2" / "assets").iterdir()) == ["fitted.json"]


def test_assets_of_somebody_else_are_not_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "logo.svg").write_text("of a web site", encoding="utf-8")
    train(folder, "--max_steps", "1")
    assert (folder / "assets-before-1" / "logo.svg").read_text(encoding="utf-8") == "of a web site"
    assert "is called assets-before-1 now" in output(folder)
    assert not (folder / "assets" / "logo.svg").exists()


# Moved runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.yaml", "checkpoint-3/config.yaml"])
def test_a_moved_run_goes_on_where_its_config_lies(run: Path, begun: Path, tmp_path: Path, file: str) -> None:
    moved = tmp_path / "another place" / "renamed"
    moved.parent.mkdir()
    run.rename(moved)
    said = start(["--config", str(moved / file), *AUTO], tmp_path / "log")
    assert f"going on in {moved}" in said and "at step 3" in said
    assert same_bits(weights(moved), weights(begun))
    assert not run.exists() and recorded(moved)["output_dir"] == str(moved)


def test_a_typed_output_dir_and_a_config_that_is_no_runs_decide_nothing_else(run: Path, tmp_path: Path) -> None:
    words = ["--config", str(run / "config.yaml"), "--output_dir", str(tmp_path / "typed"), *AUTO, "--max_steps", "1"]
    assert "going on in" not in start(words, tmp_path / "log")
    assert (tmp_path / "typed" / "final").is_dir()
    mine = tmp_path / "configs" / "config.yaml"
    mine.parent.mkdir()
    content = recorded(run) | {"output_dir": str(tmp_path / "named"), "max_steps": 1}
    mine.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "going on in" not in start(["--config", str(mine), *AUTO], tmp_path / "log")
    assert (tmp_path / "named" / "final").is_dir()


def test_the_examples_of_a_run_are_its_own(tmp_path: Path) -> None:
    train(tmp_path / "run", "--max_steps", "2")
    said = mistaken(tmp_path / "run", *AUTO, "--max_train_examples", "100")
    assert "had 203 training examples; now there are 100" in said and "--allow_changed_data" in said
    train(tmp_path / "run", *AUTO, "--max_train_examples", "100", "--allow_changed_data", "--max_steps", "4")
