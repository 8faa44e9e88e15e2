"""Trainings in processes of their own, for `relay verify` and the tests to interrupt and compare.

The processes are forked from a server that has already imported the heavy libraries, so that a hundred starts take
minutes instead of an hour. There is one process per rank, with the environment variables that torchrun sets.
"""

import dataclasses
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    from torch import Tensor

    from runner.fetching import Fetched
    from runner.run import Run

PLAIN_SUM = "RELAY_TRIAL_PLAIN_SUM"
"""The environment variable that turns auxiliary losses off and names the dtype of the computation."""
PHASES = ("fetch", "forward", "backward", "reduce", "evaluate", "save")
INTERRUPTED = "trial: interrupted in step"
"""What a process prints before the signal, in front of the number of steps that were done then."""


@dataclasses.dataclass(frozen=True)
class Interruption:
    """A signal that one process of a training sends to itself."""

    phase: str
    """Where: one of PHASES."""
    step: int
    """The step, counted from 0; for "evaluate" and "save", the first such phase from this step on. Several processes
    fetch and agree on short steps ahead: some steps before this one begins."""
    process: int = 0
    signal: int = signal.SIGKILL
    delay_seconds: float = 0.0
    """Delay after the start of the phase."""


class Trial:
    """A training that has been started."""

    def __init__(
        self,
        arguments: Sequence[str],
        processes: int,
        log: Path,
        environment: dict[str, str] | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
        context = _server()
        # A single process needs no process group and no port.
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        self.ranks = []
        for rank in range(processes):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            variables = {**(own if processes > 1 else {}), **(environment or {})}
            arguments_of_rank = (list(arguments), variables, str(log), rank, interruption)
            self.ranks.append(context.Process(target=_work, args=arguments_of_rank))
        for each in self.ranks:
            each.start()

    def wait(self, timeout_seconds: float = 600.0) -> list[int]:
        """The exit status of every process: the negative number of the signal that ended it. After one process was
        killed, the others are killed too.

        Raises TimeoutError if they hang.
        """
        deadline = time.monotonic() + timeout_seconds
        while any(each.is_alive() for each in self.ranks):
            if any(each.exitcode == -signal.SIGKILL for each in self.ranks):
                # As torchrun does: the group cannot continue without one of its processes.
                self.kill()
                break
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the training did not end within {timeout_seconds:.0f} s:\n{self.output()[-2000:]}")
            time.sleep(0.02)
        for each in self.ranks:
            each.join()
        return [each.exitcode for each in self.ranks]

    def kill(self) -> None:
        """End every process at once."""
        for each in self.ranks:
            if each.is_alive():
                each.kill()

    def output(self) -> str:
        """What the processes have printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def steps_of_a_stop(output: str, processes: int) -> range:
    """The steps at which a training may have stopped after an interruption by a signal, of what it printed.

    The step in which the signal comes is finished. Several processes that agreed on short steps together do the next
    one, too, because others may have begun it. Raises ValueError where no interruption came.
    """
    found = re.findall(rf"^{INTERRUPTED} (\d+)$", output, re.MULTILINE)
    if not found:
        raise ValueError("the training was not interrupted")
    return range(int(found[-1]), int(found[-1]) + 2 + (processes > 1))


def train(arguments: Sequence[str], processes: int, log: Path, environment: dict[str, str] | None = None) -> str:
    """Run a training that must succeed on this number of processes; returns what it printed."""
    trial = Trial(arguments, processes, log, environment)
    statuses, output = trial.wait(), trial.output()
    if any(statuses):
        raise RuntimeError(f"the training ended with {statuses}:\n{output[-3000:]}")
    expected = "1 process," if processes == 1 else f"{processes} processes,"
    if expected not in output:
        raise RuntimeError(f"the training did not run on {processes} processes:\n{output[-3000:]}")
    return output


_preload = ["runner.session", "transformers.modeling_utils", "transformers.generation"]


def preload_for(recipe: type) -> None:
    """Let the server import, before the first trial, the modules that a recipe's files import: some take seconds."""
    import ast

    file = Path(sys.modules[recipe.__module__].__file__ or "")
    for path in file.parent.rglob("*.py") if (file.parent / "__init__.py").exists() else [file]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                _preload.extend(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                _preload.append(node.module)


def _server() -> "ForkServerContext | SpawnContext":
    """The fork server; where there is none (Windows), each process imports everything itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(dict.fromkeys(_preload)))
    # More threads would change bits, and many processes of many threads crawl.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Killed processes leave semaphores behind; the resource tracker of multiprocessing would warn about them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    return context


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(
    arguments: list[str], environment: dict[str, str], log: str, rank: int, interruption: Interruption | None
) -> None:
    """Run the training program in a started process: its output goes into a file, its status is the process's."""
    os.environ.update(environment)
    if sys.platform == "linux":
        # Workers of the data loader must be children of this process, so that they end with it.
        multiprocessing.set_start_method("fork", force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from runner.train import main

    if PLAIN_SUM in environment:
        _compute_plain_sum(environment[PLAIN_SUM])
    if interruption is not None and interruption.process == rank:
        _arm(interruption)
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _compute_plain_sum(dtype: str) -> None:
    """Turn off the auxiliary losses, which couple the examples of a lane, and compute in `dtype`."""
    import torch

    from runner import step
    from runner.recipe import Loss

    torch.set_default_dtype(getattr(torch, dtype))
    if dtype == "float64":
        torch.nn.functional.grouped_mm = _slow_grouped_mm

    class Plain(Loss):
        """A loss without its auxiliary part."""

        @classmethod
        def of(cls, result: Loss | tuple[Any, ...]) -> Loss:
            loss = Loss.of(result)
            return Loss(loss.sum, logs=loss.logs)

    replace(step, Loss, Plain)


def _slow_grouped_mm(rows: "Tensor", weights: "Tensor", *, offs: "Tensor", **options: object) -> "Tensor":
    """The grouped matrix product, for a dtype that torch has no kernel for.

    rows: (tokens, in); weights: (groups, in, out); offs: (groups,), the end of each group's rows.
    """
    import torch

    ends = offs.tolist()
    starts = [0, *ends[:-1]]
    pieces = [rows[start:end] @ each for start, end, each in zip(starts, ends, weights.unbind(0), strict=True)]
    return torch.cat([*pieces, rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])])


def replace(owner: ModuleType | type, function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Let `owner` call `other` where it calls `function`.

    Raises AttributeError if `owner` does not have that function: a trial must not pass because of a renaming.
    """
    name = function.__name__
    if getattr(owner, name, None) is not function:
        raise AttributeError(f"{owner.__name__} does not call {name}: tell runner/trials.py what it calls now")
    setattr(owner, name, other)


def _arm(interruption: Interruption) -> None:
    """Put the interruption in front of the function in which its phase begins."""
    from runner import agreement, hardware, loop, step
    from runner.checkpoints import saver

    fired = threading.Event()
    step_now = [0]

    def fire(step: int) -> None:
        if fired.is_set():
            return
        fired.set()
        # In a line of its own, also where another process is in the middle of one.
        os.write(2, f"\n{INTERRUPTED} {step}\n".encode())
        if interruption.delay_seconds:
            timer = threading.Timer(interruption.delay_seconds, os.kill, (os.getpid(), interruption.signal))
            timer.daemon = True
            timer.start()
        else:
            os.kill(os.getpid(), interruption.signal)

    def before(owner: ModuleType | type, function: Callable[..., Any], is_due: Callable[..., bool]) -> None:
        """Put the interruption in front of `function` where `owner` calls it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if is_due(*args):
                fire(step_now[0])
            return function(*args, **kwargs)

        replace(owner, function, wrapped)

    def is_step(run: "Run", *rest: object) -> bool:
        step_now[0] = run.state.step
        return step_now[0] >= interruption.step

    def is_agreed(run: "Run", ahead: "Sequence[list[Fetched]]", _: float) -> bool:
        step_now[0] = run.state.step
        return step_now[0] + len(ahead) > interruption.step

    def is_saved(*arguments: Any) -> bool:
        step_now[0] = arguments[3].step
        return step_now[0] >= interruption.step

    if interruption.phase == "fetch":
        fetch = agreement.fetch_lanes

        def fetching(run: "Run") -> "Iterator[Fetched]":
            for number, fetched in enumerate(fetch(run), start=run.state.step * len(run.share)):
                if number // len(run.share) >= interruption.step:
                    fire(run.state.step)
                yield fetched

        replace(agreement, fetch, fetching)
    elif interruption.phase == "forward":
        before(step, step.backward, is_step)
    elif interruption.phase == "backward":
        # Hardware does not know the step: the call before tells it.
        before(step, step.backward, lambda *rest: is_step(*rest) and False)
        before(hardware.Hardware, hardware.Hardware.backward, lambda *rest: step_now[0] >= interruption.step)
    elif interruption.phase == "reduce":
        before(agreement, agreement.agree, is_agreed)
    elif interruption.phase == "evaluate":
        before(loop, loop.evaluate_and_track_best, is_step)
    elif interruption.phase == "save":
        before(saver, saver.write_checkpoint, is_saved)
    else:
        raise ValueError(f"phase {interruption.phase!r}; wanted: one of {', '.join(PHASES)}")
