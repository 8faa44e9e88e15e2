"""Writing to a disk that may be full, broken, read-only or gone: one clear message, and no draft left behind."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from runner.errors import DiskError, RelayError

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EIO: "the disk reports an error",
    errno.EROFS: "the disk is read-only",
    errno.ENOENT: "the folder is gone",
    errno.ESTALE: "the network folder is gone",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
}


@contextlib.contextmanager
def writing(what: str, folder: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Raise DiskError, with the folder and the bytes needed and free, where `what` cannot be written into a folder."""
    try:
        yield
    except Exception as error:
        number = None if isinstance(error, RelayError) else error_number(error)
        if number is None:
            raise
        raise DiskError(describe(what, folder, number, needed_bytes)) from error


@contextlib.contextmanager
def naming_full_disks(folder: Path) -> Iterator[None]:
    """Raise DiskError for whatever meets a full or read-only disk, such as what a recipe writes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RelayError) or error_number(error) not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        name = getattr(error, "filename", None)
        raise DiskError(describe(str(name or "A file"), folder, error_number(error) or 0, 0)) from error


def error_number(error: BaseException) -> int | None:
    """The system's number of a failed write; None where the error is of another kind.

    safetensors writes in Rust, which puts the number into its message.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    said = re.search(r"os error (\d+)", str(error))
    return int(said[1]) if said is not None else None


def describe(what: str, folder: Path, number: int, needed_bytes: int) -> str:
    """What could not be written and why, with the space, and what to type."""
    return (
        f"{what} cannot be written into {folder}: {reason_of(folder, number, needed_bytes)}.\n"
        "The checkpoints that are complete stay as they are. Make room or mend the folder, then type\n"
        "--resume_from_checkpoint auto to go on; --save_total_limit 2 keeps fewer checkpoints."
    )


def reason_of(folder: Path, number: int, needed_bytes: int = 0) -> str:
    """Why nothing can be written into a folder, in words, with the bytes needed and free."""
    reason = REASONS.get(number, os.strerror(number))
    space = f"{shown_bytes(needed_bytes)} needed, " if needed_bytes else ""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    with contextlib.suppress(OSError):
        space += f"{shown_bytes(shutil.disk_usage(there).free)} free" if there is not None else "nothing is there"
    return f"{reason} ({space})"


def shown_bytes(size: float) -> str:
    """A size for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} bytes"
