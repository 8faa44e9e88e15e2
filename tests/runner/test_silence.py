"""What stalls or dies is named, and the run ends within the time of its settings.

Run alone: python -m pytest tests/runner/test_silence.py
"""

import os
import signal
import time
from pathlib import Path

import pytest

from runner.fetching import describe_failure
from runner.trials import Interruption, Trial
from tests.launching import SHORT

LIMIT = ("--ddp_timeout", "4")


def without_checkpoints(folder: Path) -> list[str]:
    return [*SHORT, "--output_dir", str(folder), "--save_steps", "0", "--eval_steps", "0", "--max_steps", "100000"]


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_that_stalls_is_named_within_the_limit(tmp_path: Path, silent: int) -> None:
    trial = Trial([*without_checkpoints(tmp_path / "run"), *LIMIT], 2, tmp_path / "log")
    while "step 20/" not in trial.output():
        time.sleep(0.05)
    os.kill(trial.ranks[silent].pid or 0, signal.SIGSTOP)
    other = trial.ranks[1 - silent]
    other.join(30)
    try:
        assert other.exitcode == 1, trial.output()
        printed = trial.output()
        assert f"rank {silent} does not answer" in printed or silent == 0 and "the main process (rank 0)" in printed
        assert "(--ddp_timeout)" in printed and "GLOO_SOCKET_IFNAME" in printed and "Traceback" not in printed
    finally:
        trial.kill()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_main_process_that_stalls_in_a_step_is_not_waited_for(tmp_path: Path, phase: str) -> None:
    # It holds torch's store: whoever asks the store while it is stopped waits for ever.
    for step in (20, 22):
        stop = Interruption(phase, step, process=0, signal=signal.SIGSTOP)
        trial = Trial([*without_checkpoints(tmp_path / str(step)), *LIMIT], 2, tmp_path / "log", None, stop)
        other = trial.ranks[1]
        other.join(60)
        try:
            assert other.exitcode == 1, trial.output()
            assert "Waited for the other processes: " in trial.output() and "Traceback" not in trial.output()
        finally:
            trial.kill()


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    trial = Trial(without_checkpoints(tmp_path / "run"), 2, tmp_path / "log")
    while "step 20/" not in trial.output():
        time.sleep(0.05)
    os.kill(trial.ranks[1].pid or 0, signal.SIGKILL)
    trial.ranks[0].join(30)
    assert trial.ranks[0].exitcode == 1
    assert "error: Waited for the other processes: rank 1 does not answer." in trial.output()
    assert "Traceback" not in trial.output()


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_mistake_of_one_process_is_printed_by_it_and_all_end_with_its_status(tmp_path: Path, broken: int) -> None:
    # The examples of one process's lanes are broken, and it alone knows. The others wait for it, or still compute.
    processes = 3 if broken == 2 else 2
    words = [*without_checkpoints(tmp_path / "run"), "--batch_size", "24", "--broken_process", str(broken)]
    trial = Trial(words, processes, tmp_path / "log")
    assert trial.wait(60) == [2] * processes, trial.output()
    printed = trial.output()
    assert printed.count("error: ") == 1 and ("error: row" if broken == 0 else f"error: rank {broken}: row") in printed
    assert "Traceback" not in printed and "Waited for" not in printed and "TCPStore" not in printed, printed


def test_a_process_that_computes_learns_at_once_that_the_main_one_ended(tmp_path: Path) -> None:
    # The main process meets its error while the other one reads an example for an hour.
    words = [*without_checkpoints(tmp_path / "run"), "--broken_process", "0", "--slow_process", "1"]
    words += ["--slow_rows", "3600"]
    trial = Trial(words, 2, tmp_path / "log")
    assert trial.wait(60) == [2, 2], trial.output()
    assert trial.output().count("error: ") == 1 and "TCPStore" not in trial.output()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--slow_rows", "3600", "--loader_timeout", "3"), "No micro-batch came from the loader workers within 3 s"),
        (("--dying_workers", "true"), "A loader worker failed"),
    ],
)
def test_a_loader_worker_that_hangs_or_dies(tmp_path: Path, flags: tuple[str, ...], wanted: str) -> None:
    trial = Trial([*without_checkpoints(tmp_path / "run"), "--num_workers", "2", *flags], 1, tmp_path / "log")
    assert trial.wait(60) == [2], trial.output()
    printed = trial.output()[trial.output().index("error: ") :]
    assert wanted in printed and "--num_workers 0" in printed and "--shm-size" in printed
    assert "Traceback" not in trial.output() and len(printed.strip().splitlines()) <= 3


def test_a_worker_that_cannot_hand_over_a_batch_ends(tmp_path: Path) -> None:
    # As where /dev/shm is full: pickling fails in a thread of the worker, and without care nobody would notice.
    trial = Trial(
        [*without_checkpoints(tmp_path / "run"), "--num_workers", "2", "--unsendable", "true"], 1, tmp_path / "log"
    )
    assert trial.wait(60) == [2], trial.output()
    assert "--num_workers 0" in trial.output()


def test_a_data_error_of_a_worker_is_its_message_alone(tmp_path: Path) -> None:
    words = [*without_checkpoints(tmp_path / "run"), "--num_workers", "2", "--broken_process", "0"]
    trial = Trial(words, 1, tmp_path / "log")
    assert trial.wait(60) == [2], trial.output()
    printed = trial.output()[trial.output().index("error: ") :]
    assert printed.strip().splitlines() == ["error: row 1 is broken: mend it."], printed


def test_what_a_failure_is_called() -> None:
    assert "within 9 s (--loader_timeout)" in describe_failure("DataLoader timed out after 9 seconds", 9)
    assert "Bus error" in describe_failure("DataLoader worker (pid 3) is killed by signal: Bus error.", 9)
