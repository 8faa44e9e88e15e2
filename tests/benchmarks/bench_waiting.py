"""How long each recipe's training waits for its data: the demo data with the default preset, no loader workers.

make bench BENCH=waiting, or: python -m tests.benchmarks waiting

The command trains, and metrics.jsonl has the share of each logged step (`data_wait`). The first log line is left out:
it holds what happens once. RELAY_STEPS is the number of steps.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import page
from tests.launching import REPOSITORY, metrics

STEPS, EVERY = int(os.environ.get("RELAY_STEPS", "60")), 5


@pytest.mark.parametrize("name", ["language_model", "text2sql", "tabular", "microbiome"])
def test_waiting_for_data(name: str, tmp_path: Path) -> None:
    words = [
        sys.executable, "-m", "runner", "train", "--recipe", name, "--output_dir", str(tmp_path / "run"),
        "--max_steps", str(STEPS), "--logging_steps", str(EVERY), "--eval_steps", "0", "--save_steps", "0",
        "--eval_on_start", "false", "--max_eval_examples", "4", "--mixed_precision", "no",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    logged = metrics(tmp_path / "run")
    assert [event["step"] for event in logged] == list(range(EVERY, STEPS + 1, EVERY))
    seconds = [EVERY * event["seconds_per_step"] for event in logged[1:]]
    waited = [of * event["data_wait"] for of, event in zip(seconds, logged[1:], strict=True)]
    steps = STEPS - EVERY
    row = (name, f"{1000 * sum(seconds) / steps:,.0f}", f"{1000 * sum(waited) / steps:.1f}",
           f"{sum(waited) / sum(seconds):.1%}")  # fmt: skip
    columns = ("recipe, default preset, demo data", "ms a step", "of it waiting, ms", "share")
    page.record("waiting", columns, [row], f"one training of {STEPS} steps")
