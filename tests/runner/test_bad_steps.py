"""Law 7, rollback and running out of memory. Run alone: python -m pytest tests/runner/test_bad_steps.py"""

from pathlib import Path

import pytest

from runner.checkpoints.folders import newest_checkpoint, step_of
from runner.checkpoints.state import read_state
from runner.checkpoints.tensors import read_tensors
from runner.trials import Interruption, Trial
from tests.launching import SHORT, difference, interrupted, metrics, output, same_bits, train, weights


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_number_stops_every_process_before_anything_is_saved(tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--bad_row", "150", "--save_steps", "1"]
    assert Trial(words, processes, folder.with_suffix(".log")).wait(120) == [3] * processes
    found, _ = newest_checkpoint(folder)
    assert found is not None
    tensors = read_tensors(found / "model.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    assert f"Step {step_of(found) + 1}: the gradient norm is nan" in output(folder)


def test_skip_leaves_the_update_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "--bad_row", "150", "--on_bad_step", "skip")
    assert "the update is left out" in output(folder)
    assert len(metrics(folder)) == 24
    assert all(value.isfinite().all() for value in weights(folder).values())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("save_steps", ["2", "0"])
def test_rollback_equals_a_run_told_to_exclude_from_the_start(tmp_path: Path, processes: int, save_steps: str) -> None:
    back, told = tmp_path / "back", tmp_path / "told"
    flags = ("--bad_row", "150", "--save_steps", save_steps)
    train(back, *flags, "--on_bad_step", "rollback", processes=processes)
    found, _ = newest_checkpoint(back)
    assert found is not None
    excluded = read_state(found).excluded
    assert 150 in excluded and len(excluded) == 16
    train(told, *flags, "--exclude_examples", ",".join(map(str, excluded)), processes=processes)
    assert same_bits(weights(back), weights(told))
    assert [line["loss"] for line in metrics(back)] == [line["loss"] for line in metrics(told)]


def test_rollback_leaves_out_what_a_stream_brought(tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    flags = ("--streamed", "True", "--bad_row", "150", "--on_bad_step", "rollback")
    train(folder, *flags)
    assert output(folder).count("Going back") >= 1
    found, _ = newest_checkpoint(folder)
    assert found is not None and len(read_state(found).excluded) >= 16
    # What was left out stays so over a restart.
    interrupted(again, Interruption("backward", 20), *flags)
    train(again, *flags, "--resume_from_checkpoint", "auto")
    assert same_bits(weights(again), weights(folder))


def test_a_spike_is_a_bad_step_if_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--grad_norm_spike_factor", "1.2"]
    words += ["--max_steps", "100"]
    assert Trial(words, 1, folder.with_suffix(".log")).wait(120) == [3]
    assert "times its running mean" in output(folder)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_lane_that_does_not_fit_is_split_and_the_step_done_again(tmp_path: Path, processes: int) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    # The auxiliary loss and dropout see the parts; the summed loss does not.
    flags = ("--model.dropout", "0", "--num_rows", "203")
    train(whole, *flags, processes=processes)
    train(split, *flags, "--most_rows", "1", processes=processes)
    assert "every lane is computed in 2 parts" in output(split)
    assert "every lane is computed in 4 parts" in output(split)
    losses = [[line["loss"] for line in metrics(folder)] for folder in (whole, split)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_what_does_not_fit_at_all_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "--most_rows", "1", "--micro_batch_size", "1")
    words = [*SHORT, "--output_dir", str(tmp_path / "none"), "--most_rows", "-1"]
    assert Trial(words, 1, folder.with_suffix(".log")).wait(120) == [2]
    assert "Out of memory with a single example" in output(folder)


def test_all_of_it_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(tmp_path / name, "--bad_row", "150", "--on_bad_step", "rollback")
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) == 0


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        # Every step after the first twenty counts as a spike.
        (("--on_bad_step", "skip", "--grad_norm_spike_factor", "0.0001"), "the update is left out"),
        (("--weightless", "true"), "are all labels masked?"),
    ],
)
def test_many_steps_in_a_row_that_teach_nothing_end_with_3(
    tmp_path: Path, processes: int, flags: tuple[str, ...], wanted: str
) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "--output_dir", str(folder), "--max_steps", "40", "--max_skipped_steps", "5", *flags]
    assert Trial(words, processes, folder.with_suffix(".log")).wait(120) == [3] * processes
    assert "5 steps in a row taught nothing (--max_skipped_steps)" in output(folder) and wanted in output(folder)
    assert not (folder / "final").exists()
