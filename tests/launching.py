"""Starting trainings as users do, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TOY = REPOSITORY / "tests" / "toy_recipe.py"


def start(*arguments: str, processes: int = 1, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a training of 1, 2 or 4 processes; more than one run on gloo, under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*launcher, str(REPOSITORY / "runner" / "train.py"), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments: str, processes: int = 1, environment: dict[str, str] | None = None) -> str:
    """Run a training to its end, which must be good, with the number of processes that was asked for."""
    process = start(*arguments, processes=processes, environment=environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    expected = "1 process," if processes == 1 else f"{processes} processes,"
    assert expected in output, output
    return output


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
