"""The training program: find the recipe, read the settings, open the hardware, run, leave with a status."""

import atexit
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

if __name__ == "__main__":
    # Started as a script, Python puts runner/ first on the path, where log.py or config.py could be taken for a
    # library's module. The folder above it is what imports of `runner` and `recipes` need, before those below.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runner.collecting import collect_as_usual, collect_seldom  # noqa: E402
from runner.config import parse, wants_debug  # noqa: E402
from runner.errors import LostProcess, RelayError, leave_closed_pipe  # noqa: E402
from runner.preflight import check_settings  # noqa: E402
from runner.run_folder import check_output, follow_moved_run  # noqa: E402
from runner.signals import ignore_at_the_end, leaving_at_once  # noqa: E402
from runner.urls import without_secrets  # noqa: E402


def main(arguments: list[str] | None = None, program: str = "relay train") -> int:
    """Train as the command line says; returns the exit status, and reports mistakes in a line or two on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = None
    collect_seldom()
    try:
        with leaving_at_once():
            config = follow_moved_run(parse(arguments, program))
            check_output(config)
            config = check_settings(config)
            # torch and accelerate take seconds to import: not before the settings are known to be right.
            from runner import session
            from runner.ending import leave_together

        session.run(config)
        leave_together(0)
    except RelayError as error:
        if config.run.debug if config is not None else wants_debug(arguments):
            sys.excepthook = print_traceback
            raise
        say(error)
        if isinstance(error, LostProcess):
            # Leaving the group in order would wait for the processes that do not answer.
            os._exit(error.exit_status)
        if "torch" in sys.modules:
            from runner.ending import announce_end, leave_together

            (announce_end if error.is_of_one_process else leave_together)(error.exit_status)
        return error.exit_status
    except BrokenPipeError:
        if config is not None:
            raise
        # The help, and its reader has seen enough.
        return leave_closed_pipe()
    finally:
        collect_as_usual()
        if "torch" in sys.modules:
            from runner.ending import close_group

            close_group()
        # Not now: a program that calls this function goes on, and what it starts would inherit ignored signals.
        atexit.register(ignore_at_the_end)
    return 0


def print_traceback(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Print what ended the run as Python does, without secrets: libraries put URLs and keys into their messages."""
    print(without_secrets("".join(traceback.format_exception(kind, error, place))), end="", file=sys.stderr, flush=True)


def say(error: RelayError) -> None:
    """Print what ended the run: once, where all processes know it."""
    rank = os.environ.get("RANK", "0")
    if str(error) and (rank == "0" or error.is_of_one_process):
        kind = "" if error.exit_status == 75 else "error: "
        own = "" if rank == "0" else f"rank {rank}: "
        print(f"{kind}{own}{without_secrets(str(error))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Leave without waiting for stray threads of libraries; everything of ours is written and flushed.
    sys.exit(main())
