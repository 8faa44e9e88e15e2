"""relay plan against measured memory."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.commands.plan import Measured, gathered_bytes
from runner.config import parse
from tests.benchmarks.bench_shard_memory import LARGE
from tests.launching import REPOSITORY

TRAIN = """
import sys
from runner.tracking import peak_bytes
from runner.train import main
status = main(sys.argv[1:])
print("peak", peak_bytes())
raise SystemExit(status)
"""


@pytest.mark.parametrize(
    ("layers", "processes", "measured"),
    [
        (42, 2, {"start": 1.40e9, "training": 4.77e9, "evaluation": 3.69e9, "save": 3.55e9, "end": 3.57e9}),
        (42, 4, {"start": 0.90e9, "training": 2.76e9, "evaluation": 2.15e9, "save": 2.01e9, "end": 2.03e9}),
        (6, 4, {"start": 0.46e9, "training": 0.86e9, "evaluation": 0.75e9, "save": 0.60e9, "end": 0.65e9}),
        (6, 2, {"start": 0.52e9, "training": 1.12e9, "evaluation": 0.96e9, "save": 0.82e9, "end": 0.86e9}),
    ],
)
def test_planned_moments_are_those_measured_in_shards(layers: int, processes: int, measured: dict[str, float]) -> None:
    """Of tests/benchmarks/bench_shard_memory.py on 2026-11-29: 0.34 GB with a tiny model, and 6.1 MB of activations for
    each layer (relay plan)."""
    with torch.device("meta"):
        model = parse([*LARGE, "--model.num_hidden_layers", str(layers)]).recipe.model()
    sizes = [parameter.numel() for parameter in model.parameters()]
    plan = Measured(
        sum(sizes), sum(sizes), sum(sizes), "fp32", activations=6.1e6 * layers, process=0.34e9,
        gathered=gathered_bytes(model, 4), largest=4.0 * max(sizes),
    )  # fmt: skip
    moments = plan.moments(processes)
    assert moments.keys() == measured.keys()
    for name, size in measured.items():
        assert moments[name] == pytest.approx(size, rel=0.1), name


def test_the_largest_moment_of_one_process() -> None:
    plan = Measured(100, 100, 100, "bf16", activations=70.0, copies=200.0, process=1000.0, largest=80.0)
    assert plan.moments(1) == {"start": 1400, "training": 2870, "evaluation": 2400, "save": 2200, "end": 2600}
    on_gpu = dataclasses.replace(plan, process=0.0)
    assert on_gpu.moments(1)["end"] == 1280 and "process" not in on_gpu.memory(1)


def output(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("recipe", ["text2sql", "language_model", "microbiome", "tabular"])
def test_a_training_needs_the_memory_of_its_plan(recipe: str, tmp_path: Path) -> None:
    words = ["--recipe", recipe, "--mixed_precision", "no", "--max_steps", "3", "--max_eval_examples", "16"]
    planned = output("-m", "runner", "plan", *words)
    found = re.search(r"^moments .* training (\S+) MB", planned, re.MULTILINE)
    assert found, planned
    ended = output("-c", TRAIN, *words, "--output_dir", str(tmp_path / "run"))
    peak = int(ended.split()[-1]) / 1e6
    print(f"\n{recipe}: planned {found[1]} MB, measured {peak:.1f} MB")
    assert peak == pytest.approx(float(found[1]), rel=0.2)
