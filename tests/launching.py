"""What the tests of the laws share: the toy recipe's command line, and what a run has left."""

import json
from pathlib import Path
from typing import Any

from runner import trials

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
"""Real data beside the checkout; tests that read them skip where they are not there."""
TOY = str(REPOSITORY / "tests" / "toy_recipe.py")
SHORT = ("--recipe", TOY, "--max_steps", "24", "--batch_size", "16", "--micro_batch_size", "4", "--logging_steps", "1")
SHORT += ("--eval_steps", "10", "--save_steps", "5", "--mixed_precision", "no", "--learning_rate", "0.01")
# The laws are about the weights of the last step.
SHORT += ("--final", "last")


def train(folder: Path, *arguments: str, processes: int = 1, environment: dict[str, str] | None = None) -> str:
    """Run a short training of the toy recipe to its good end; the number of processes is checked."""
    words = [*SHORT, "--output_dir", str(folder), *arguments]
    return trials.train(words, processes, folder.with_suffix(".log"), environment)


def interrupted(
    folder: Path,
    interruption: trials.Interruption,
    *arguments: str,
    processes: int = 1,
    environment: dict[str, str] | None = None,
) -> list[int]:
    """Run a short training that is interrupted; returns the exit status of every process."""
    words = [*SHORT, "--output_dir", str(folder), "--resume_from_checkpoint", "auto", *arguments]
    return trials.Trial(words, processes, folder.with_suffix(".log"), environment, interruption).wait(120)


def mistaken(folder: Path, *arguments: str) -> str:
    """Run a training of the toy recipe that ends with status 2; returns what it printed."""
    words = [*SHORT, "--output_dir", str(folder), *arguments]
    trial = trials.Trial(words, 1, folder.with_suffix(".log"))
    assert trial.wait(120) == [2], trial.output()
    return trial.output()


def output(folder: Path) -> str:
    """What the last training into a folder has printed."""
    return folder.with_suffix(".log").read_text(encoding="utf-8")


def weights(folder: Path) -> dict[str, Any]:
    """The final weights of a run, by name."""
    from safetensors.torch import load_file

    return load_file(folder / "final" / "model.safetensors")


def metrics(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The events of one split in metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["split"] == split]


def same_bits(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two sets of weights are equal to the bit."""
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest difference of two sets of weights, relative to the largest weight."""
    assert left.keys() == right.keys()
    largest = max(float(value.abs().max()) for value in right.values())
    return max(float((left[name] - right[name]).abs().max()) for name in left) / largest
