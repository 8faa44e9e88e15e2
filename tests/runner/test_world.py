"""Laws 2 and 6: the number of processes changes nothing. Run alone: python -m pytest tests/runner/test_world.py"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.checkpoints.folders import newest_checkpoint
from runner.trials import Interruption
from tests.launching import REPOSITORY, SHORT, difference, interrupted, metrics, same_bits, train, weights

KINDS = {"map": (), "stream": ("--streamed", "True"), "augmented": ("--noise", "0.1")}


@pytest.mark.parametrize("kind", KINDS)
def test_processes_agree_to_rounding(tmp_path: Path, kind: str) -> None:
    runs = {}
    for processes in (1, 2, 4):
        # 51 steps of 16 from 203 rows: epochs end within a lane, and the last step of the run is ragged.
        flags = ("--max_steps", "50") if kind == "stream" else ("--max_steps", "-1", "--num_train_epochs", "4")
        train(tmp_path / str(processes), *flags, *KINDS[kind], processes=processes)
        runs[processes] = metrics(tmp_path / str(processes))
    assert len(runs[1]) == (50 if kind == "stream" else 51)
    for processes in (2, 4):
        gaps = [abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(runs[processes], runs[1], strict=True)]
        assert max(gaps) < 1e-5
        assert difference(weights(tmp_path / str(processes)), weights(tmp_path / "1")) < 1e-5
        for here, alone in zip(runs[processes], runs[1], strict=True):
            assert here["toy"] == pytest.approx(alone["toy"], rel=1e-5)
            # A mean over the lanes that say something, on whichever process they are; null where none does.
            said = alone["sometimes"] != [None, None]
            assert here["sometimes"] == (pytest.approx(alone["sometimes"], rel=1e-5) if said else [None, None])


def test_a_lane_without_examples_says_nothing(tmp_path: Path) -> None:
    words = ("--max_steps", "-1", "--num_train_epochs", "1", "--max_train_examples", "5", "--micro_batch_size", "1")
    said = []
    for batch_size, processes in ((5, 1), (16, 1), (16, 2)):
        folder = tmp_path / f"{batch_size}-{processes}"
        train(folder, *words, "--batch_size", str(batch_size), "--model.dropout", "0", processes=processes)
        (event,) = metrics(folder)
        said.append((event["toy"], event["loss"]))
    assert said[1] == pytest.approx(said[0], rel=1e-5) and said[2] == pytest.approx(said[0], rel=1e-5)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_gives_the_same_bits_on_any_number_of_processes(
    tmp_path: Path, kind: str, precision: str
) -> None:
    flags = ("--deterministic", "True", "--mixed_precision", precision, *KINDS[kind])
    for processes in (1, 2, 4):
        train(tmp_path / str(processes), *flags, processes=processes)
        assert same_bits(weights(tmp_path / str(processes)), weights(tmp_path / "1"))


def test_plain_sums_differ_in_their_last_bits(tmp_path: Path) -> None:
    # What the test above would not notice, if it compared a run with itself.
    for processes in (1, 4):
        train(tmp_path / str(processes), processes=processes)
    assert not same_bits(weights(tmp_path / "4"), weights(tmp_path / "1"))


def test_a_run_that_wanders_over_machines_has_the_bits_of_one_that_stayed(tmp_path: Path) -> None:
    flags = ("--deterministic", "True", "--streamed", "True")
    train(tmp_path / "stayed", *flags)
    wandered = tmp_path / "wandered"
    for processes, step in ((2, 6), (4, 11), (1, 16)):
        interrupted(wandered, Interruption("forward", step, process=processes - 1), *flags, processes=processes)
    train(wandered, *flags, "--resume_from_checkpoint", "auto", processes=2)
    assert same_bits(weights(wandered), weights(tmp_path / "stayed"))


@pytest.mark.parametrize("sharing", [(1, 4), (2, 1), (2, 4)])
def test_the_auxiliary_gradient_does_not_know_processes_nor_lanes(tmp_path: Path, sharing: tuple[int, int]) -> None:
    # Every lane holds the same row, so the mean over the lanes is that of one lane, however many there are.
    flags = ("--only_auxiliary", "True", "--num_rows", "1", "--model.dropout", "0", "--max_steps", "3")
    flags += ("--max_grad_norm", "0")
    train(tmp_path / "one", *flags, "--batch_size", "4")
    processes, lanes = sharing
    train(tmp_path / "many", *flags, "--batch_size", str(4 * processes * lanes), processes=processes)
    one, many = metrics(tmp_path / "one"), metrics(tmp_path / "many")
    assert one[0]["grad_norm"] > 1e-4
    assert [line["grad_norm"] for line in many] == pytest.approx([line["grad_norm"] for line in one], rel=1e-5)


def test_weights_go_from_one_process_over_ddp_and_fsdp_and_back(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    stages = ((1, ""), (2, ""), (2, "true"), (4, "true"), (1, ""))
    train(whole, "--max_steps", "25")
    for number, (processes, fsdp) in enumerate(stages):
        flags = ("--max_steps", "25", "--save_steps", "1", "--resume_from_checkpoint", "auto")
        kill = Interruption("forward", 5 * (number + 1), process=processes - 1)
        if number < len(stages) - 1:
            interrupted(run, kill, *flags, processes=processes, environment={"ACCELERATE_USE_FSDP": fsdp})
        else:
            train(run, *flags, processes=processes)
    assert difference(weights(run), weights(whole)) < 1e-6


def test_shards_are_written_without_gathering_and_read_by_anyone(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    fsdp = {"ACCELERATE_USE_FSDP": "true"}
    flags = ("--save_in_shards", "true", "--save_steps", "1", "--model.hidden_size", "7")
    train(whole, *flags)
    for processes, step in ((2, 6), (4, 11)):
        kill = Interruption("forward", step, process=processes - 1)
        interrupted(run, kill, *flags, processes=processes, environment=fsdp)
        found, skipped = newest_checkpoint(run)
        assert found is not None and not skipped
        assert len(list(found.glob("optimizer.shard-*.safetensors"))) == processes
        assert not (found / "model.safetensors").exists()
        # No process has written more than its share, and a little for what does not divide.
        sizes = [path.stat().st_size for path in found.glob("model.shard-*.safetensors")]
        assert max(sizes) < 1.6 * sum(sizes) / processes
    train(run, *flags, "--resume_from_checkpoint", "auto")
    assert difference(weights(run), weights(whole)) < 1e-6


def test_cpu_2_starts_two_real_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2.yaml"]
    command += ["runner/train.py", *SHORT, "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes," in done.stdout


def test_fsdp_of_a_launch_config_really_shards(tmp_path: Path) -> None:
    text = (REPOSITORY / "accelerate_configs" / "gpus_fsdp2.yaml").read_text(encoding="utf-8")
    text = text.replace("gpu_ids: all", "use_cpu: true").replace("num_processes: 8", "num_processes: 2")
    (tmp_path / "fsdp.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml")]
    command += ["runner/train.py", *SHORT, "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes, sharded (FSDP2)" in done.stdout


def test_one_process_where_two_were_asked_for_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["runner/train.py", *SHORT, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "2 processes were asked for, but accelerate launch started 1" in done.stderr
