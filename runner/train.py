"""The training program: find the recipe, read the settings, open the hardware, run, leave with a status."""

import sys
from pathlib import Path

from runner.config import parse, wants_debug
from runner.errors import RelayError
from runner.run_folder import check_output, follow_moved_run

if __name__ == "__main__":
    # Started as a script, Python puts runner/ first on the path, where log.py or config.py could be taken for a
    # library's module. The folder above it is what imports of `runner` and `recipes` need.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import os


def main(arguments: list[str] | None = None, program: str = "relay train") -> int:
    """Train as the command line says; returns the exit status, and says mistakes in a line or two on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = None
    try:
        config = follow_moved_run(parse(arguments, program))
        check_output(config)
        # torch and accelerate take seconds to import: not before the settings are known to be right.
        from runner import session

        session.run(config)
    except RelayError as error:
        if config.run.debug if config is not None else wants_debug(arguments):
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"{'' if error.exit_status == 75 else 'error: '}{error}", file=sys.stderr, flush=True)
        return error.exit_status
    finally:
        if "torch" in sys.modules:
            from runner.hardware import close_hardware

            close_hardware()
    return 0


if __name__ == "__main__":
    # Leave without waiting for stray threads of libraries; everything of ours is written and flushed.
    sys.exit(main())
