"""relay launch: several processes, and the training's own exit status. Run alone: pytest tests/runner/test_launch.py"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runner.__main__ import main
from runner.commands.launch import (
    Launch,
    LaunchSettings,
    count_processes,
    status_of,
    threads_per_process,
    with_config_file,
    with_own_names,
)
from runner.errors import ConfigError
from runner.signals import CAUGHT
from tests.launching import metrics
from tests.runner.test_signals import Started, saved, start

__all__ = ["start"]

TWO = ("-m", "runner", "launch", "--processes", "2")
SHORT_RUN = ("--max_steps", "12")


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([2, 1], 2),
        ([1, 2], 2),
        ([3, 3], 3),
        ([-9, 1], 137),
        ([1, -9], 1),
        ([75, -15], 143),
        ([-15, -15], 143),
    ],
)
def test_which_status_is_that_of_the_training(statuses: list[int], wanted: int) -> None:
    assert status_of(statuses) == wanted


def test_flags_of_other_launchers_are_understood() -> None:
    words = ["train", "--num_processes", "2", "--num-machines=3", "--recipe", "x", "--nproc_per_node=4"]
    wanted = ["--processes", "2", "--machines=3", "--recipe", "x", "--processes=4"]
    assert with_own_names(words) == wanted


@pytest.mark.parametrize(
    ("name", "processes", "variables"),
    [
        ("cpu_2", 2, {"ACCELERATE_USE_CPU": "true"}),
        ("cpu", 1, {"ACCELERATE_USE_CPU": "true"}),
        ("gpus_fsdp2", 8, {"ACCELERATE_USE_FSDP": "true"}),
        ("gpu", 1, {"CUDA_VISIBLE_DEVICES": "0"}),
        ("two_nodes", 8, {}),
    ],
)
def test_a_configuration_of_accelerate(name: str, processes: int, variables: dict[str, str]) -> None:
    settings, found = with_config_file(LaunchSettings(config_file=name))
    assert (settings.processes, found) == (processes, variables)
    assert with_config_file(LaunchSettings(config_file=name, processes=3))[0].processes == 3
    if name == "two_nodes":
        assert (settings.machines, settings.main_process_port) == (2, 29500)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--processes", "0"], "at least 1"),
        (["--machines", "2", "--machine_rank", "2", "--main_process_ip", "x"], "from 0 to 1"),
        (["--machines", "2"], "--main_process_ip"),
        (["--config_file", "nowhere"], "gpus_fsdp2"),
        (["--processes", "two"], "processes"),
    ],
)
def test_mistakes_of_the_launch(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", *words, "--recipe", "text2sql"]) == 2
    message = capsys.readouterr().err
    assert wanted in message and message.count("\n") <= 3


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.commands.launch.number_of_gpus", lambda: 4)
    assert count_processes(LaunchSettings()) == 4
    assert count_processes(LaunchSettings(cpu=True, processes=8)) == 8
    with pytest.raises(ConfigError, match="--processes 4"):
        count_processes(LaunchSettings(processes=8))


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 6)
    assert [threads_per_process(count) for count in (1, 2, 4, 16)] == [6, 3, 1, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_ends_with_0(tmp_path: Path, processes: int, start: Callable[..., Started]) -> None:
    words = ("-m", "runner", "launch", "--processes", str(processes))
    run = start(tmp_path / "run", *SHORT_RUN, command=words)
    assert run.status() == 0, run.output()
    expected = "1 process," if processes == 1 else "2 processes,"
    assert expected in run.output() and len(metrics(run.folder)) == 12
    # Nothing but the training's own lines; the flags of this test are given twice.
    lines = [line for line in run.output().splitlines() if " came twice, " not in line]
    assert lines[0].startswith("recipe ") and lines[-1].startswith("finished at step 12"), run.output()


@pytest.mark.parametrize(("flags", "status"), [(("--batch_size", "33"), 2), (("--bad_row", "150"), 3)])
def test_a_training_that_fails_has_its_own_status(
    tmp_path: Path, flags: tuple[str, ...], status: int, start: Callable[..., Started]
) -> None:
    run = start(tmp_path / "run", *flags, command=TWO)
    assert run.status() == status, run.output()
    message = run.output()[run.output().index("error: ") :]
    assert len(message.strip().splitlines()) <= 3 and "Traceback" not in run.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["the launcher", "everybody"])
def test_a_signal_saves_and_ends_with_75(
    tmp_path: Path, number: signal.Signals, to: str, start: Callable[..., Started]
) -> None:
    run = start(tmp_path / "run", command=TWO).until("step 20/")
    if to == "everybody":
        # As Ctrl-C in a terminal does.
        os.killpg(run.process.pid, number)
    else:
        run.process.send_signal(number)
    assert run.status() == 75, run.output()
    assert saved(run.folder) >= 20
    said = run.output()[run.output().index("saving after this step") :]
    assert "Traceback" not in said and len(said.splitlines()) <= 8, said
    assert said.count("Stopped by") == 1


def test_a_launcher_in_the_background_of_a_script_hears_sigint(tmp_path: Path, start: Callable[..., Started]) -> None:
    # A shell without job control starts what is put into the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = start(tmp_path / "run", command=TWO)
    finally:
        signal.signal(signal.SIGINT, before)
    run.until("step 20/").process.send_signal(signal.SIGINT)
    assert run.status() == 75, run.output()


@pytest.mark.parametrize(
    ("first", "patience"), [("exit(75)", "AFTER_A_SIGNAL_SECONDS"), ("exit(1)", "AFTER_A_FAILURE_SECONDS")]
)
def test_a_process_that_never_ends_is_killed(monkeypatch: pytest.MonkeyPatch, first: str, patience: str) -> None:
    monkeypatch.setattr(f"runner.commands.launch.{patience}", 0.1)
    code = f"import os, time\nif os.environ['RANK'] == '0': {first}\ntime.sleep(3600)"
    before = {number: signal.getsignal(number) for number in CAUGHT}
    try:
        launch = Launch([sys.executable, "-c", code], dict(os.environ), LaunchSettings(), 2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    launch.wait()
    assert [each.returncode for each in launch.processes][1] == -signal.SIGKILL


def test_a_launcher_that_is_killed_leaves_nobody_behind(tmp_path: Path, start: Callable[..., Started]) -> None:
    run = start(tmp_path / "run", command=TWO).until("step 20/")
    ranks = run.everybody()[1:]
    run.process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=40)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    assert saved(run.folder) >= 20


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path, start: Callable[..., Started]) -> None:
    run = start(tmp_path / "run", command=TWO).until("step 20/")
    time.sleep(0.2)
    run.everybody()[2].kill()
    assert run.status() == 137, run.output()
    assert "rank 1 does not answer" in run.output() and "was killed (SIGKILL)" in run.output()
