"""The training program: find the recipe, read the settings, open the hardware, run, leave with a status."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a script, Python puts runner/ first on the path, where log.py or config.py could be taken for a
    # library's module. The folder above it is what imports of `runner` and `recipes` need, before those below.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runner.config import parse, wants_debug  # noqa: E402
from runner.errors import RelayError, leave_closed_pipe  # noqa: E402
from runner.run_folder import check_output, check_tracker, follow_moved_run  # noqa: E402
from runner.urls import without_secrets  # noqa: E402


def main(arguments: list[str] | None = None, program: str = "relay train") -> int:
    """Train as the command line says; returns the exit status, and reports mistakes in a line or two on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = None
    try:
        config = follow_moved_run(parse(arguments, program))
        check_output(config)
        check_tracker(config.run)
        # torch and accelerate take seconds to import: not before the settings are known to be right.
        from runner import session

        session.run(config)
    except RelayError as error:
        if config.run.debug if config is not None else wants_debug(arguments):
            raise
        if os.environ.get("RANK", "0") == "0":
            start = "" if error.exit_status == 75 else "error: "
            print(f"{start}{without_secrets(str(error))}", file=sys.stderr, flush=True)
        return error.exit_status
    except BrokenPipeError:
        if config is not None:
            raise
        # The help, and its reader has seen enough.
        return leave_closed_pipe()
    finally:
        if "torch" in sys.modules:
            from runner.hardware import close_hardware

            close_hardware()
    return 0


if __name__ == "__main__":
    # Leave without waiting for stray threads of libraries; everything of ours is written and flushed.
    sys.exit(main())
