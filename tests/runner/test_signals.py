"""Signals, closed outputs and what they leave behind. Run alone: python -m pytest tests/runner/test_signals.py"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from runner.checkpoints.folders import newest_checkpoint
from runner.evaluation import StopEvaluation, stoppable
from runner.signals import Signals, ignore_in_worker
from runner.trials import Interruption
from tests.launching import REPOSITORY, SHORT, interrupted, output

LONG = ("--max_steps", "100000", "--eval_steps", "0", "--save_steps", "0")


class Started:
    """A training in a process group of its own, its output in a file."""

    def __init__(self, folder: Path, *words: str, command: tuple[str, ...] = ("-m", "runner", "train")) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *SHORT, "--output_dir", str(folder), *LONG, *words],
                cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, text: str, limit: float = 90) -> "Started":
        deadline = time.monotonic() + limit
        while text not in self.output():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return self

    def everybody(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def status(self, limit: float = 60) -> int:
        return self.process.wait(limit)


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def begin(*arguments: object, **options: object) -> Started:
        started.append(Started(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for each in started:
        try:
            os.killpg(each.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        each.process.wait(10)


def saved(folder: Path) -> int:
    found, skipped = newest_checkpoint(folder)
    assert found is not None and not skipped
    return int(found.name.partition("-")[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_each_signal_saves_and_ends_with_75(tmp_path: Path, number: int) -> None:
    assert interrupted(tmp_path / "run", Interruption("fetch", 7, signal=number)) == [75]
    assert saved(tmp_path / "run") == 7
    assert f"Stopped by {signal.Signals(number).name} at step 7; saved." in output(tmp_path / "run")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_signal_to_everybody_at_once_is_one_request(
    tmp_path: Path, workers: str, start: Callable[..., Started]
) -> None:
    # What `timeout`, schedulers and cgroup managers do; and again a moment later.
    run = start(tmp_path / "run", "--num_workers", workers).until("step 20/")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for each in run.everybody():
            each.send_signal(number)
        time.sleep(0.1)
    assert run.status() == 75, run.output()
    assert "Traceback" not in run.output() and run.output().count("saving after this step") == 1
    assert saved(tmp_path / "run") >= 20


def test_another_signal_after_some_seconds_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    streams, ends = (sys.stdout, sys.stderr), []
    try:
        signals = Signals()
        monkeypatch.setattr(os, "_exit", ends.append)
        signals._note(signal.SIGTERM, None)
        signals._note(signal.SIGINT, None)
        assert not ends and signals.reason == "SIGTERM"
        signals.since -= 60
        signals._note(signal.SIGINT, None)
        assert ends == [130]
    finally:
        sys.stdout, sys.stderr = streams
        for number, handler in before.items():
            signal.signal(number, handler)


def test_nohup_is_respected(tmp_path: Path, start: Callable[..., Started]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = start(tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    run.until("step 20/").process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.status() == 75


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_output_is_saved_like_a_closed_terminal(tmp_path: Path, stream: str) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "runner", "train", *SHORT, "--output_dir", str(folder), *LONG]
    # A warning of an old setting goes to stderr, and every line of a step to stdout.
    with (tmp_path / "other").open("wb") as other:
        pipes = {"stdout": other, "stderr": other, stream: subprocess.PIPE}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, **pipes)  # type: ignore[call-overload]
        pipe = getattr(process, stream)
        if stream == "stdout":
            while b"step 20/" not in pipe.readline():
                pass
            pipe.close()
            assert process.wait(60) == 75
            assert "Stopped by a closed output" in (tmp_path / "other").read_text()
        else:
            pipe.close()
            while b"step 20/" not in (tmp_path / "other").read_bytes():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 75
    assert saved(folder) >= 20


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_ctrl_c_while_libraries_are_imported_prints_no_traceback(
    tmp_path: Path, seconds: float, start: Callable[..., Started]
) -> None:
    run = start(tmp_path / "run")
    # Seconds of work: on a busy machine, Python itself may need longer than the first ones of the clock to start.
    while sum(psutil.Process(run.process.pid).cpu_times()[:2]) < seconds:
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    assert run.status() in (75, 130, -signal.SIGINT)
    assert "Traceback" not in run.output(), run.output()


def test_a_launcher_that_is_killed_leaves_nobody_behind(tmp_path: Path, start: Callable[..., Started]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "runner", "train")
    for number in (signal.SIGKILL, signal.SIGUSR1):
        run = start(tmp_path / f"run{int(number)}", command=torchrun).until("step 20/")
        ranks = run.everybody()[1:]
        assert len(ranks) >= 2
        run.process.send_signal(number)
        _, alive = psutil.wait_procs(ranks, timeout=40)
        assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
        assert saved(run.folder) >= 20


def test_a_worker_goes_on_while_its_main_process_saves() -> None:
    pid = os.fork()
    if pid == 0:
        ignore_in_worker()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        os._exit(7 if signal.alarm(0) > 0 else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_generation_is_interrupted_between_two_calls_of_the_model() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    # A recipe's own loop may call a part of the model.
    for part in (model, model[0]):
        calls: list[int] = []
        with pytest.raises(StopEvaluation), stoppable(model, lambda calls=calls: len(calls) == 3):
            while True:
                part(torch.zeros(1, 2))
                calls.append(1)
        assert len(calls) == 3
    model(torch.zeros(1, 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_long_batch_of_an_evaluation_ends_with_a_signal(tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    # Each of its tokens takes a second; the signal comes after a second, and the batch would take an hour.
    flags = ("--slow_tokens", "3600", "--eval_steps", "6", "--eval_batch_size", "31")
    stop = Interruption("evaluate", 6, process=processes - 1, signal=signal.SIGTERM, delay_seconds=1)
    if processes == 2:
        flags = (*flags, "--slow_process", "1")
    assert interrupted(run, stop, *flags, processes=processes) == [75] * processes
    assert saved(run) == 6


def test_a_program_that_trains_does_not_pass_ignored_signals_on(tmp_path: Path) -> None:
    """Whoever calls main goes on afterwards, and what it starts must still hear signals."""
    code = (
        "import signal, sys\nfrom runner.train import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, [signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGTERM, signal.SIGINT)])"
    )
    words = [sys.executable, "-c", code, *SHORT, "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 [False, False]"


@pytest.mark.skipif(sys.platform != "linux", reason="a socket of Unix that is closed with unread data")
@pytest.mark.parametrize("quiet", [True, False])
def test_a_worker_whose_main_process_is_gone_prints_no_traceback(quiet: bool) -> None:
    # As a main process that dies while a worker hands it a batch.
    program = "import os, socket, time; from multiprocessing import resource_sharer; from runner import signals; "
    program += "signals.leave_quietly(); " if quiet else ""
    program += "place = resource_sharer.DupFd(os.pipe()[0])._id[0]; main = socket.socket(socket.AF_UNIX); "
    program += "main.connect(place); time.sleep(0.3); main.close(); time.sleep(0.3)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and ("ConnectionResetError" in done.stderr) != quiet, done.stderr


def test_a_worker_prints_other_errors() -> None:
    program = "from runner import signals; signals.leave_quietly(); raise ValueError('of the data')"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ValueError: of the data" in done.stderr
