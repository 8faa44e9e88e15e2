"""What `--torch_compile true` brings: a step of each recipe as written and compiled, and the time of compiling.

make bench BENCH=compile, or: python -m tests.benchmarks compile

The default preset on the demo data. The two trainings of a recipe have the same micro-batches, of the same lengths.
CPU seconds are counted, of this process and of the C++ compiler that it calls. What was compiled before is not used.
RELAY_STEPS is the number of steps; the first two thirds are for compiling.
"""

import os
import shutil
import statistics
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

STEPS = int(os.environ.get("RELAY_STEPS", "12"))

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and waited for."""
    return sum(os.times()[:4])


def steps_of(name: str, folder: Path, compiled: bool) -> tuple[list[float], list[int], list[float]]:
    """CPU seconds, graphs compiled so far and train loss of each step."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    words = [
        "--recipe", name, "--output_dir", str(folder), "--max_steps", str(STEPS), "--mixed_precision", "no",
        "--eval_steps", "0", "--eval_on_start", "false", "--logging_steps", "1",
        "--torch_compile", str(compiled).lower(),
    ]  # fmt: skip
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
    return [end - start for start, end in zip(ends, ends[1:], strict=False)], graphs, losses


@pytest.mark.parametrize("name", ["language_model", "text2sql", "tabular", "microbiome"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_training(name: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    written, none, losses = steps_of(name, tmp_path / "written", False)
    compiled, graphs, others = steps_of(name, tmp_path / "compiled", True)
    assert none[-1] == 0 < graphs[-1] and len(written) == len(compiled) == STEPS
    # Dropout draws other numbers where it is compiled.
    assert losses[0] == pytest.approx(others[0], rel=0.05)
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
    print(f"{time.perf_counter() - started:.0f} s")
