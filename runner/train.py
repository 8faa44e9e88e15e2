"""The training program: find the recipe, read the settings, open the hardware, run, leave with a status."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a script, Python puts runner/ first on the path, where log.py or config.py could be taken for a
    # library's module. The folder above it is what imports of `runner` and `recipes` need.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import os

from runner.config import Config, parse
from runner.errors import ConfigError, RelayError


def main(arguments: list[str] | None = None, program: str = "relay train") -> int:
    """Train as the command line says; returns the exit status, and says mistakes in a line or two on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = None
    try:
        config = parse(arguments, program)
        check_output(config)
        # torch and accelerate take seconds to import: not before the settings are known to be right.
        from runner import session

        session.run(config)
    except RelayError as error:
        if "--debug" in arguments:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"{'' if error.exit_status == 75 else 'error: '}{error}", file=sys.stderr, flush=True)
        return error.exit_status
    finally:
        if "torch" in sys.modules:
            from runner.hardware import close_hardware

            close_hardware()
    return 0


def check_output(config: Config) -> None:
    """Raises ConfigError where the run would write over another one."""
    output_dir = config.run.output_dir
    if config.run.upload_to is not None:
        from runner.storage import check_url

        check_url(config.run.upload_to)
    if output_dir is None or config.run.resume_from_checkpoint or config.run.dry_run:
        return
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir {path} is a file: type --output_dir with a folder.")
    if path.is_dir() and any(path.glob("checkpoint-*")):
        raise ConfigError(
            f"{path} already holds checkpoints.\nType --resume_from_checkpoint auto to go on with that run, "
            "or --output_dir with another folder."
        )


if __name__ == "__main__":
    # Leave without waiting for stray threads of libraries; everything of ours is written and flushed.
    sys.exit(main())
