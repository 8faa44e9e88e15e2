"""Signals and closed outputs: both ask the run to save and stop at the end of the step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TextIO

from runner.urls import MaskedStream

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
CAUGHT = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""What asks a run to save and stop. Windows has two of them."""

REPEAT_SECONDS = 5.0
"""Further signals within this time are the same request: a scheduler's signal reaches the launcher, which passes it on,
and the processes themselves."""

WORKER_LIMIT_SECONDS = 60
"""How long a loader worker goes on after SIGTERM, so that one that hangs does not stay for ever."""


class Signals:
    """Listens for the signals in CAUGHT, and for the end of whoever reads the output, from its making on."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that came; 0: none yet."""
        self.reason = ""
        """What asked for the end, in words."""
        self.since = 0.0
        self.process = os.getpid()
        catch(self._note)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, GuardedStream):
                setattr(sys, name, GuardedStream(stream, self))
        follow_launcher()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            # A child that has not yet set its own handlers.
            return
        if self.number and time.monotonic() - self.since > REPEAT_SECONDS:
            os._exit(128 + number)
        if self.number:
            return
        self.ask(number, self.name(number))
        # Straight to the file descriptor: print is not safe inside a signal handler. The terminal may be gone.
        with contextlib.suppress(OSError):
            text = (
                f"\n{self.reason}: saving after this step; another signal after {REPEAT_SECONDS:.0f} s ends at once.\n"
            )
            os.write(2, text.encode())

    def ask(self, number: int, reason: str) -> None:
        """Ask the run to save and stop."""
        self.number, self.reason, self.since = number, reason, time.monotonic()

    def output_closed(self) -> None:
        """Whoever read the output is gone (`| head`, a closed terminal): the same as SIGHUP."""
        if not self.number:
            self.ask(int(getattr(signal, "SIGHUP", signal.SIGTERM)), "a closed output, whose reader is gone,")

    @staticmethod
    def name(number: int) -> str:
        """The signal as people call it."""
        return signal.Signals(number).name


def catch(handler: Callable[[int, FrameType | None], None]) -> None:
    """Let a function handle the signals in CAUGHT, also one that was ignored until now.

    A script's shell starts what it puts into the background (`&`) with SIGINT ignored. Only SIGHUP may stay ignored:
    that is what nohup does, so that a run outlives its terminal.
    """
    for number in CAUGHT:
        if Signals.name(number) != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class GuardedStream(MaskedStream):
    """An output stream that hides secrets, and asks the run to stop, instead of raising, once nobody reads it."""

    def __init__(self, stream: TextIO, signals: Signals) -> None:
        super().__init__(stream)
        self._signals = signals

    def write(self, text: str) -> int:
        """Write without secrets; drop the text where the reader is gone."""
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left where the reader is gone."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Let what follows go nowhere, for libraries that write past this object as well."""
        if os.getpid() == self._signals.process:
            self._signals.output_closed()
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def ignore_at_the_end() -> None:
    """Let a signal that comes while Python shuts down change nothing: all is saved, and the status is decided.

    Python takes its handlers away before it ends, and a late repeat would replace the status.
    """
    for number in CAUGHT:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Signals):
            signal.signal(number, signal.SIG_IGN)


def ignore_in_worker() -> None:
    """Let a loader worker go on while its main process saves: the main process ends it."""
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: _end_later())


def leave_quietly() -> None:
    """Let a loader worker print no traceback where its main process is gone.

    A thread of `multiprocessing` that hands it a batch prints the error by itself.
    """
    usual = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            usual(kind, error, where)

    sys.excepthook = say


def _end_later() -> None:
    signal.alarm(WORKER_LIMIT_SECONDS)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """While libraries are imported, SIGINT ends the program with a line instead of their traceback."""

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
        # What a shell makes of a program that SIGINT ended.
        os._exit(128 + number)

    try:
        before = signal.signal(signal.SIGINT, leave)
    except ValueError:
        # Not in the main thread: whoever called has the signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def follow_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies, so that no process stays behind. Only on Linux.

    accelerate's launcher of one process passes no signal on, and torchrun dies of some without ending its processes.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ
    if launched and sys.platform == "linux":
        end_with_parent()


def end_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when its parent dies, also after it has become another program."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
