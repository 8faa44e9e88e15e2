"""Being asked to stop: a first signal is noted and acted on at the end of the step, a second one leaves at once."""

import ctypes
import os
import signal
import sys
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Signals:
    """Listens for SIGTERM, SIGINT and SIGUSR1 from its making on."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that came; 0: none yet."""
        for number in CAUGHT:
            signal.signal(number, self._note)
        follow_launcher()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        # Straight to the file descriptor: print is not safe inside a signal handler.
        os.write(2, f"\n{self.name(number)}: saving after this step; a second signal leaves at once.\n".encode())

    @staticmethod
    def name(number: int) -> str:
        """The signal as people call it."""
        return signal.Signals(number).name


def follow_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies: accelerate's launcher of one process does not pass it on.

    Only under `accelerate launch` without torchrun, and only on Linux.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
    if not launched or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
