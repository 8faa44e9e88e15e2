"""Where one attack takes place: a small training, ways to disturb it, and what must hold afterwards."""

import contextlib
import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import psutil

from runner.checkpoints.disk import REASONS
from runner.checkpoints.folders import list_checkpoints, newest_checkpoint, step_of
from runner.commands.verify import Bench, VerifySettings, final_weights, hash_of
from runner.trials import Interruption, Trial
from tests.launching import REPOSITORY, TOY

Launcher = subprocess.Popen[bytes]
STEPS, INTERVAL = 24, 3
LIMIT_SECONDS = 90.0
"""A training of a second that has not ended after this time hangs."""


class LostSave(AssertionError):
    """A checkpoint that was complete, or that the run had said was saved, is not found again."""


class Hang(AssertionError):
    """A training did not end."""


class Reference:
    """The bench that all attacks share, and the hashes of undisturbed runs."""

    def __init__(self, folder: Path) -> None:
        flags = ["--recipe", TOY, "--save_steps", str(INTERVAL), "--final", "last"]
        self.bench = Bench(folder, VerifySettings(steps=STEPS, world="1,2"), flags)
        self.hashes: dict[tuple[object, ...], str] = {}

    def hash_of(self, processes: int, flags: Sequence[str]) -> str:
        """The hash of the weights of a run that nobody disturbs."""
        key = (processes, *flags)
        if key not in self.hashes:
            folder = self.bench.run(f"undisturbed-{len(self.hashes)}", processes, *self.intervals, *flags)
            self.hashes[key] = hash_of(final_weights(folder))
        return self.hashes[key]

    intervals = ("--save_steps", str(INTERVAL))


@dataclasses.dataclass
class Arena:
    """One try of one attack."""

    reference: Reference
    random: random.Random
    name: str
    promised: int = 0
    """The newest step that must be found again; 0: none."""
    folder: Path = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.reference.bench.folder / self.name

    @cached_property
    def processes(self) -> int:
        """The number of processes of this try."""
        return self.random.choice((1, 2))

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """The kind of training of this try."""
        kinds = ((), ("--streamed", "true"), ("--save_total_limit", "1"), ("--num_workers", "1"))
        return self.random.choice(kinds)

    @property
    def log(self) -> Path:
        """The file of what the trainings of this try print. It does not lie on a disk that is attacked."""
        return self.reference.bench.folder / f"{self.name}.log"

    def output(self) -> str:
        """What the last training of this try printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def words(self, *flags: str, steps: int | None = None) -> list[str]:
        """The command line of the training."""
        words = self.reference.bench.words(self.name, *self.reference.intervals, *self.flags, *flags, steps=steps)
        return [*words, "--output_dir", str(self.folder)]

    def start(
        self, *flags: str, interruption: Interruption | None = None, environment: dict[str, str] | None = None
    ) -> Trial:
        """Start the training, or go on with it."""
        return Trial(self.words(*flags), self.processes, self.log, environment, interruption)

    def wait(self, trial: Trial, limit: float = LIMIT_SECONDS) -> list[int]:
        """The exit statuses. Raises Hang where the training does not end."""
        try:
            return trial.wait(limit)
        except TimeoutError:
            raise Hang(f"no end after {limit:.0f} s") from None

    @contextlib.contextmanager
    def launched(
        self, *command: str, prefix: Sequence[str] = (), **variables: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A training that a launcher starts in a process group of its own. It is killed if it outlives the block."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
        environment.pop("LD_PRELOAD", None)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *command], cwd=REPOSITORY, env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def until_step(self, step: int, process: Launcher) -> None:
        """Wait until a launched training has taken this step; a busy machine takes long, which breaks no promise."""
        deadline = time.monotonic() + 3 * LIMIT_SECONDS
        while not re.search(rf"step ({step}|{step + 1}|{step + 2}|{step + 3})/", self.output()):
            expect(process.poll() is None, f"ended with {process.returncode} too early: {self.output()[-500:]}")
            if time.monotonic() > deadline:
                raise Hang(f"step {step} never came")
            time.sleep(0.01)

    def status(self, process: Launcher, limit: float = LIMIT_SECONDS) -> int:
        """The launcher's exit status. Raises Hang where it does not end."""
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Hang(f"the launcher did not end within {limit:.0f} s") from None

    def note_promises(self) -> None:
        """Call it before the attack: what is a checkpoint now must be found afterwards."""
        self.promised = max([self.promised, *map(step_of, list_checkpoints(self.folder))])

    def keeps_promises(self) -> int:
        """The step at which the run goes on. Raises LostSave where a promised checkpoint is not found."""
        saved = [int(step) for step in re.findall(r"at step (\d+); saved", self.output())] if self.log.exists() else []
        found, skipped = newest_checkpoint(self.folder)
        reached = step_of(found) if found is not None else 0
        wanted = max([self.promised, *saved])
        if reached < wanted or skipped:
            raise LostSave(f"step {wanted} was saved, {reached} is found; {'; '.join(skipped)}")
        return reached

    def finishes(self) -> None:
        """Go on to the end; the weights are those of an undisturbed run, and no draft is left."""
        statuses = self.wait(self.start())
        expect(statuses == [0] * self.processes, f"resuming ended with {statuses}: {self.output()[-800:]}")
        wanted = self.reference.hash_of(self.processes, self.flags)
        expect(hash_of(final_weights(self.folder)) == wanted, "the weights are not those of an undisturbed run")
        self.has_no_drafts()

    def has_no_drafts(self) -> None:
        """Nothing half-written lies in the folder."""
        drafts = [path.name for path in self.folder.glob(".*draft*")]
        expect(not drafts, f"left behind: {drafts}")

    def names_the_disk(self) -> None:
        """The run ended with one message of at most three lines that says what is wrong with the disk."""
        printed = self.output()
        expect("Traceback" not in printed, f"a traceback: {printed[-1500:]}")
        messages = printed.split("error: ")[1:]
        expect(len(messages) == 1, f"{len(messages)} messages: {printed[-800:]}")
        lines = messages[0].strip().splitlines()
        # torch may have added lines of its own about the other process.
        expect(len(lines) <= 3 or self.processes > 1, f"{len(lines)} lines: {lines}")
        expect(any(reason in "\n".join(lines) for reason in REASONS.values()), f"no reason: {lines}")


def expect(holds: bool, otherwise: str) -> None:
    """Raises AssertionError where something that must hold does not; also under python -O."""
    if not holds:
        raise AssertionError(otherwise)


def orphans(before: set[int], patience: float = 10.0) -> int:
    """End the processes that an attack left behind, and count them. Those in `before` belong to the harness."""

    def left() -> list[psutil.Process]:
        found = []
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.pid not in before and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    deadline = time.monotonic() + patience
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    remaining = left()
    for each in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    return len(remaining)
