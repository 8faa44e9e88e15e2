"""Going back to an older checkpoint, or on from that of another run.

Run alone: python -m pytest tests/runner/checkpoints/test_branches.py
"""

import json
import shutil
import signal
from pathlib import Path

import pytest

from runner.checkpoints.bucket import Remote
from runner.checkpoints.folders import list_checkpoints, newest_checkpoint, prune_checkpoints
from runner.checkpoints.manifest import find_damage
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.resume import find_resume_point
from runner.commands import checkpoints as checkpoints_command
from runner.commands.verify import check_ledger
from runner.settings import RunSettings
from runner.trials import Interruption, Trial
from tests.launching import SHORT, metrics, output, same_bits, train, weights

FLAGS = ("--max_steps", "12", "--save_steps", "3", "--eval_steps", "0")
AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 3, 6, 9 and 12."""
    folder = tmp_path_factory.mktemp("original") / "run"
    train(folder, *FLAGS)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def killed(folder: Path, step: int, *arguments: str) -> None:
    words = [*SHORT, *FLAGS, "--output_dir", str(folder), *arguments]
    trial = Trial(words, 1, folder.with_suffix(".log"), None, Interruption("fetch", step))
    assert trial.wait(120) == [-signal.SIGKILL], trial.output()


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in metrics(folder)]


def holds(folder: Path) -> bool:
    return all(result.holds for result in check_ledger(folder))


@pytest.mark.parametrize("limit", ["1", "2", "none"])
def test_going_back_loses_neither_branch(
    run: Path, original: Path, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    back = ("--resume_from_checkpoint", str(run / "checkpoint-3"), "--save_total_limit", limit)
    killed(run, 11, *back)
    assert "set aside, as they are of another branch: checkpoint-6, checkpoint-9, checkpoint-12" in output(run)
    # The save of step 6 is complete before that of step 9 begins, which the kill may have interrupted.
    newest = names(run)[-1]
    assert newest in ("checkpoint-6", "checkpoint-9")
    # A kill between the renaming of checkpoint-9 and its pointer leaves the pointer at the one before.
    assert resolve_pointer(run / "checkpoint-latest") in (run / newest, run / "checkpoint-6")
    assert limit != "1" or "checkpoint-3" not in names(run)
    aside = run / "set-aside-1"
    assert names(aside) == ["checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert all(find_damage(folder) is None for folder in list_checkpoints(aside))
    assert steps(aside) == list(range(1, 13)) and (aside / "final").is_dir() and not (run / "final").exists()
    train(run, *FLAGS, *AUTO)
    assert f"at step {newest.removeprefix('checkpoint-')}" in output(run)
    assert same_bits(weights(run), weights(original)) and steps(run) == list(range(1, 13)) and holds(run)
    starts = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines() if "start" in line]
    assert [line["start"].get("set_aside") for line in starts] == [None, "set-aside-1", None]
    capsys.readouterr()
    assert checkpoints_command.main([str(run)]) == 0
    assert "set-aside-1: of another branch, checkpoint-6, checkpoint-9, checkpoint-12" in capsys.readouterr().out


def test_killed_before_its_first_save_the_new_branch_goes_on(run: Path) -> None:
    killed(run, 4, "--resume_from_checkpoint", str(run / "checkpoint-3"))
    killed(run, 5, "--resume_from_checkpoint", str(run / "checkpoint-3"), "--save_total_limit", "1")
    assert not (run / "set-aside-2").exists()
    train(run, *FLAGS, *AUTO)
    assert "at step 3" in output(run)


def test_going_back_twice_keeps_three_branches(run: Path) -> None:
    for step in ("6", "3"):
        train(run, *FLAGS, "--resume_from_checkpoint", str(run / f"checkpoint-{step}"), "--learning_rate", f"0.0{step}")
    assert names(run / "set-aside-1") == ["checkpoint-9", "checkpoint-12"]
    assert names(run / "set-aside-2") == ["checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert holds(run)


def test_a_dry_run_moves_nothing(run: Path) -> None:
    train(run, *FLAGS, "--resume_from_checkpoint", str(run / "checkpoint-3"), "--dry_run")
    assert names(run) == ["checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-12"]


def test_a_damaged_newest_does_not_have_the_new_ones_pruned(run: Path) -> None:
    (run / "checkpoint-12" / "state.json").unlink()
    killed(run, 11, *AUTO, "--save_total_limit", "1", "--save_steps", "1")
    # The damaged one neither counts nor is removed.
    assert names(run) in (["checkpoint-10", "checkpoint-12"], ["checkpoint-11", "checkpoint-12"])
    found, _ = newest_checkpoint(run)
    assert found == list_checkpoints(run)[0]


@pytest.mark.parametrize("newest", [3, 6, 9])
def test_pruning_never_removes_what_was_just_written(run: Path, newest: int) -> None:
    prune_checkpoints(run, 1, None, newest)
    assert names(run) == [f"checkpoint-{step}" for step in (3, 6, 9, 12) if step >= newest]


@pytest.mark.parametrize("streamed", ["false", "true"])
def test_a_run_goes_on_in_a_new_folder(tmp_path: Path, streamed: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    train(old, *FLAGS, "--streamed", streamed)
    before = sorted(path.relative_to(old) for path in old.rglob("*"))
    killed(new, 7, "--resume_from_checkpoint", str(old / "checkpoint-6"), "--streamed", streamed)
    # It was killed before a save of its own; what it needs is in the new folder.
    assert names(new) == ["checkpoint-6"] and find_damage(new / "checkpoint-6") is None
    shutil.move(old, tmp_path / "elsewhere")
    train(new, *FLAGS, *AUTO, "--streamed", streamed)
    assert "at step 6" in output(new) and steps(new) == list(range(1, 13)) and holds(new)
    assert same_bits(weights(new), weights(tmp_path / "elsewhere"))
    after = sorted(path.relative_to(tmp_path / "elsewhere") for path in (tmp_path / "elsewhere").rglob("*"))
    assert after == before


def test_without_the_old_ledger_the_new_one_begins_where_the_run_does(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "checkpoint-6", tmp_path / "alone" / "checkpoint-6")
    train(tmp_path / "new", *FLAGS, "--resume_from_checkpoint", str(tmp_path / "alone" / "checkpoint-6"))
    assert steps(tmp_path / "new") == list(range(7, 13)) and holds(tmp_path / "new")
    assert same_bits(weights(tmp_path / "new"), weights(original))


def test_another_runs_checkpoint_sets_aside_what_is_in_the_folder(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(other, "--max_steps", "4", "--save_steps", "2", "--eval_steps", "0", "--seed", "1")
    train(run, *FLAGS, "--resume_from_checkpoint", str(other / "checkpoint-2"), "--seed", "1")
    assert names(run / "set-aside-1") == ["checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert names(run) == ["checkpoint-2", "checkpoint-3", "checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert steps(run) == list(range(1, 13)) and holds(run)


@pytest.mark.parametrize("into", ["the same folder", "a new folder"])
def test_a_checkpoint_at_the_end_ends_in_order(run: Path, tmp_path: Path, into: str) -> None:
    folder = run if into == "the same folder" else tmp_path / "new"
    train(folder, *FLAGS, "--resume_from_checkpoint", str(run / "checkpoint-12"))
    assert (folder / "final" / "model.safetensors").is_file() and (folder / "report.html").is_file()
    assert same_bits(weights(folder), weights(run)) and holds(folder)
    assert resolve_pointer(folder / "checkpoint-latest") == folder / "checkpoint-12"


def test_the_bucket_continues_the_new_branch_too(tmp_path: Path) -> None:
    folder, url = tmp_path / "run", (tmp_path / "bucket").as_uri()
    train(folder, *FLAGS, "--upload_to", url)
    killed(folder, 11, "--resume_from_checkpoint", str(folder / "checkpoint-3"), "--save_total_limit", "1")
    remote = Remote.open(url)
    # The upload runs beside the training, and was killed with it: the abandoned ones are gone in any case.
    assert set(remote.steps()) <= {3, 6, 9}
    aside = tmp_path / "bucket" / "set-aside-1"
    assert names(aside) == ["checkpoint-6", "checkpoint-9", "checkpoint-12"]
    assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(aside))
    shutil.rmtree(folder)
    train(folder, *FLAGS, *AUTO, "--upload_to", url)
    assert any(f"at step {step}" in output(folder) for step in (3, 6, 9))
    assert remote.steps()[-1] == 12 and find_damage(tmp_path / "bucket" / "checkpoint-12") is None


def test_a_second_run_does_not_write_over_the_copies_of_the_first(tmp_path: Path) -> None:
    train(tmp_path / "first", *FLAGS, "--upload_to", (tmp_path / "bucket").as_uri())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").rglob("*")}
    words = ["--resume_from_checkpoint", str(tmp_path / "first" / "checkpoint-3"), "--learning_rate", "0.02"]
    train(tmp_path / "second", *FLAGS, *words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bucket").rglob("*")} == before


def test_an_unreadable_request_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import Any

    from runner.errors import CheckpointError

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    hardware: Any = SimpleNamespace(is_main=True, from_main=lambda value: value)
    monkeypatch.setattr(Path, "is_dir", forbidden)
    settings = RunSettings(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(CheckpointError, match="checkpoint-3 cannot be read: Permission denied"):
        find_resume_point(settings, tmp_path, hardware)
