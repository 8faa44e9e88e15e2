"""The console command `relay`: one verb per file of `runner.commands`, imported only when asked for."""

import difflib
import importlib
import sys

from runner import __version__
from runner.errors import ConfigError, RelayError, leave_closed_pipe
from runner.urls import MaskedStream, without_secrets

VERBS = {
    "train": "train a model (the same as accelerate launch runner/train.py)",
    "launch": "train on several processes, on one machine or several",
    "predict": "answer one request with a trained model",
    "plan": "parameters, memory and steps of a training, before it is started",
    "find-lr": "find a learning rate: a range test, or a short sweep",
    "sweep": "train with different settings, and find the best ones",
    "check": "try on a few examples that a recipe keeps the contract",
    "evaluate": "score a trained model on a split, or files of predictions",
    "data": "download the data sets of a recipe",
    "new": "write a recipe that trains, and its test, to start from",
    "recipes": "list the recipes and their presets",
    "average": "average the weights of a run's best checkpoints",
    "export": "write a trained model as a folder that other tools load",
    "report": "write report.html of a run",
    "checkpoints": "list the checkpoints of a run, and verify them",
    "verify": "prove invariance, resume and durability on this machine",
    "configs": "where the files for accelerate launch --config_file are",
    "doctor": "what hardware is here, and what would be used",
}


def module_of(verb: str) -> str:
    """The module that runs a verb; that of `data` is named after what it does."""
    return f"runner.commands.{'download' if verb == 'data' else verb.replace('-', '_')}"


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
        sys.stdout, sys.stderr = MaskedStream(sys.stdout), MaskedStream(sys.stderr)  # type: ignore[assignment]
    if arguments[:1] == ["train"]:
        from runner.train import main as train

        return train(arguments[1:])
    try:
        status = run_verb(arguments)
        # A reader that has gone, such as `head`, is noticed here and not when Python ends.
        sys.stdout.flush()
        return status
    except RelayError as error:
        kind = "" if error.exit_status == 75 else "error: "
        print(f"{kind}{without_secrets(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        # What a shell makes of a program that SIGINT ended.
        return 130
    except BrokenPipeError:
        return leave_closed_pipe()


def run_verb(arguments: list[str]) -> int:
    """Run a verb other than `train`. Raises ConfigError where there is none of that name."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: relay VERB [--flag value ...]\n")
        for verb, meaning in VERBS.items():
            print(f"  {verb:12} {meaning}")
        print("\nrelay VERB --help lists the flags; relay train --recipe NAME --help those of a training.")
        print("relay --version prints the version.")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb in ("--version", "-V", "version"):
        print(f"relay {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb.replace("_", "-"), VERBS, n=1)
        hint = f"Did you mean relay {near[0]}?" if near else f"There are: {', '.join(VERBS)}."
        raise ConfigError(f"relay has no verb {verb!r}. {hint}")
    return importlib.import_module(module_of(verb)).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
