"""What can go wrong, and the exit status each kind of trouble ends with.

    RelayError
    |-- UserError         status 2: a mistake the user can mend
    |   |-- ConfigError       a setting is unknown, misspelt or does not fit the others
    |   |-- DataError         the data are missing, empty or not what they claim to be
    |   |-- CheckpointError   a checkpoint is missing, damaged or of another run
    |   |-- OutOfMemory       even the smallest part of a micro-batch does not fit
    |   |-- LoaderError       a process that prepares micro-batches died or hangs
    |   `-- DiskError         a file could not be written: the disk is full, read-only or gone
    |-- LostProcess       status 1: another process of the run does not answer
    |-- DivergedError     status 3: the numbers went bad
    |   `-- BadStep           they did in one step, and the run is to go back and leave it out
    |-- Interrupted       status 75: a signal came, and a complete checkpoint was saved
    `-- UploadError       status 1: the training is finished, but not all of it is where it was to be copied

A message has three parts: what came, what was wanted, what to type. It fits in three lines.
"""

import os
import sys


class RelayError(Exception):
    """Anything that Relay itself reports; ends the program with `exit_status`, without a traceback."""

    exit_status = 1
    is_of_one_process = False
    """Whether the other processes do not know of it, so that this one has to print it."""


class UserError(RelayError):
    """A mistake that the user can mend."""

    exit_status = 2


class ConfigError(UserError):
    """A setting is unknown, misspelt, out of range or contradicts another."""


class DataError(UserError):
    """The data are missing, empty or not what they claim to be."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete, damaged or belongs to another model."""


class OutOfMemory(UserError):
    """The model does not fit into the device's memory, however small the parts."""


class LoaderError(UserError):
    """A process that prepares micro-batches died, or gives none any more."""

    is_of_one_process = True


class DiskError(UserError):
    """A file of the run could not be written: the disk is full, broken, read-only or gone."""

    is_of_one_process = True


class LostProcess(RelayError):
    """Another process of the run does not answer any more."""

    is_of_one_process = True


class DivergedError(RelayError):
    """The loss or the gradient is not finite any more."""

    exit_status = 3


class BadStep(DivergedError):
    """A step whose numbers are bad, of a run that goes back to its last checkpoint and leaves the examples out."""


class Interrupted(RelayError):
    """A signal asked the run to stop; everything is saved."""

    exit_status = 75


class UploadError(RelayError):
    """The training is finished and whole on this machine, but its copies are not."""


def warn(sentence: str) -> None:
    """Print a warning on stderr, on the main process. The program goes on where the reader of stderr has gone."""
    if os.environ.get("RANK", "0") == "0":
        try:
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            # What could not be written stays in Python's buffer, and would fail again with the next line.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def leave_closed_pipe() -> int:
    """The exit status where the reader of this program's output, such as `head`, has gone; stops further output."""
    # Python would complain once more when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
