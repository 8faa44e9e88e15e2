"""What `--torch_compile true` brings: a step of each recipe as written and compiled, and the time of compiling.

make bench BENCH=compile, or: python -m tests.benchmarks compile

The default preset on the demo data. The two trainings of a recipe have the same micro-batches, of the same lengths.
CPU seconds are counted, of this process and of the C++ compiler that it calls. What was compiled before is not used.
RELAY_STEPS is the number of steps; the first two thirds are for compiling.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# In this process, whose time is counted.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

from runner.assembly import open_run
from runner.config import parse
from runner.loop import train
from tests.benchmarks import page
from tests.launching import REPOSITORY

STEPS = int(os.environ.get("RELAY_STEPS", "12"))

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and waited for."""
    return time.process_time() + sum(os.times()[2:4])


def train_and_time(words: list[str]) -> dict[str, list[float]]:
    """CPU seconds, graphs compiled so far and train loss of each step of a training."""
    from torch._dynamo.utils import counters

    run = open_run(parse(words))
    run.eval_data = []
    ends, graphs, losses = [cpu_seconds()], [], []

    def advance(step: int) -> None:
        ends.append(cpu_seconds())
        graphs.append(counters["stats"]["unique_graphs"])

    def log(step: int, values: Any, mean_loss: float, count: int) -> None:
        losses.append(mean_loss)

    run.progress.advance, run.progress.step = advance, log  # type: ignore[method-assign]
    train(run)
    seconds = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return {"seconds": seconds, "graphs": graphs, "losses": losses}


def steps_of(name: str, folder: Path, compiled: bool) -> dict[str, list[float]]:
    """The same in a process of its own: under pytest, the shapes of tensors are checked, which torch cannot compile."""
    words = [
        "--recipe", name, "--output_dir", str(folder / "run"), "--max_steps", str(STEPS), "--mixed_precision", "no",
        "--eval_steps", "0", "--eval_on_start", "false", "--logging_steps", "1",
        "--torch_compile", str(compiled).lower(),
    ]  # fmt: skip
    folder.mkdir()
    command = [sys.executable, "-m", "tests.benchmarks.bench_compile", str(folder / "steps.json"), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "steps.json").read_text())


@pytest.mark.parametrize("name", ["language_model", "text2sql", "tabular", "microbiome"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_training(name: str, tmp_path: Path) -> None:
    plain, other = (steps_of(name, tmp_path / str(compiled), compiled) for compiled in (False, True))
    written, compiled, graphs = plain["seconds"], other["seconds"], other["graphs"]
    assert plain["graphs"][-1] == 0 < graphs[-1] and len(written) == len(compiled) == STEPS
    # Dropout draws other numbers where it is compiled.
    assert plain["losses"][0] == pytest.approx(other["losses"][0], rel=0.05)
    first = 2 * STEPS // 3
    ratios = [one / other for one, other in zip(written[first:], compiled[first:], strict=True)]
    usual = statistics.median(compiled[first:])
    row = (
        name, f"{1000 * statistics.median(written[first:]):,.0f}", f"{1000 * usual:,.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        f"{sum(compiled[:first]) - first * usual:.0f}", f"{graphs[0]}, {graphs[first - 1]}, {graphs[-1]}",
    )  # fmt: skip
    columns = ("recipe, default preset, demo data", "as written, CPU ms a step", "compiled",
               "times as fast (least - most)", "CPU s of compiling",
               f"graphs after step 1, {first} and {STEPS}")  # fmt: skip
    page.record("compile", columns, [row], f"one training of {STEPS} steps each")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(train_and_time(sys.argv[2:])), encoding="utf-8")
