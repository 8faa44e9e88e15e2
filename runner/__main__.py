"""The console command `relay`: one verb per file of `runner.commands`, imported only when asked for."""

import importlib
import os
import sys

from runner.errors import RelayError

VERBS = {
    "train": "train a model (the same as accelerate launch runner/train.py)",
    "predict": "answer one request with a trained model",
    "plan": "parameters, memory and steps of a training, before it is started",
    "find-lr": "find a learning rate: a range test, or a short sweep",
    "check": "try on a few examples that a recipe keeps the contract",
    "evaluate": "score a trained model on a split, or files of predictions",
    "data": "download the data sets of a recipe",
    "recipes": "list the recipes and their presets",
    "average": "average the weights of a run's best checkpoints",
    "export": "write a trained model as a folder that other tools load",
    "report": "write report.html of a run",
    "checkpoints": "list the checkpoints of a run, and verify them",
    "verify": "prove invariance, resume and durability on this machine",
    "doctor": "what hardware is here, and what would be used",
}


def module_of(verb: str) -> str:
    """The module that runs a verb; that of `data` is named after what it does."""
    return f"runner.commands.{'download' if verb == 'data' else verb.replace('-', '_')}"


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: relay VERB [--flag value ...]\n")
        for verb, meaning in VERBS.items():
            print(f"  {verb:12} {meaning}")
        print("\nrelay VERB --help lists the flags; relay train --recipe NAME --help all settings of a recipe.")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean relay {near[0]}?" if near else f"There are: {', '.join(VERBS)}."
        print(f"error: relay has no verb {verb!r}. {hint}", file=sys.stderr)
        return 2
    if verb == "train":
        from runner.train import main as train

        return train(rest)
    try:
        return importlib.import_module(module_of(verb)).main(rest) or 0
    except RelayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        # What a shell makes of a program that SIGINT ended.
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python would complain once more while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
