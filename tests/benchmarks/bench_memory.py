"""Peak resident memory of a training that saves, in Relay and in transformers.Trainer: the same Llama, on a CPU.

make bench, or: python -m tests.benchmarks memory

Each training is a process of its own, because the peak is the process's. The program that this file starts:
python -m tests.benchmarks.bench_memory relay|trainer LAYERS WIDTH TOKENS FOLDER
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from tests.benchmarks import page
from tests.launching import REPOSITORY

STEPS, EVERY, BATCH = 6, 2, 2
SIZES = {"100 M, long steps": (14, 768, 256), "100 M, short steps": (14, 768, 16)}
"""Layers, width and tokens of a text."""


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def relay(layers: int, width: int, tokens: int, folder: Path) -> None:
    """Relay's command, with this file's recipe."""
    from runner.__main__ import main

    words = [
        "train", "--recipe", str(REPOSITORY / "tests/benchmarks/llama_recipe.py"), "--layers", str(layers),
        "--width", str(width), "--tokens", str(tokens), "--max_steps", str(STEPS), "--batch_size", str(BATCH),
        "--micro_batch_size", str(BATCH), "--mixed_precision", "no", "--eval_steps", "0", "--save_steps", str(EVERY),
        "--save_total_limit", "1", "--output_dir", str(folder),
    ]  # fmt: skip
    if main(words):
        raise SystemExit("Relay did not train.")


def trainer(layers: int, width: int, tokens: int, folder: Path) -> None:
    """transformers.Trainer, as its documentation shows it."""
    from transformers import Trainer, TrainingArguments

    from tests.benchmarks.llama_recipe import Recipe

    recipe = Recipe(layers=layers, width=width, tokens=tokens)
    rows = [{"input_ids": window, "labels": window} for window in recipe.data("train")]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, weight_decay=0.1,
        lr_scheduler_type="cosine", logging_steps=10, save_steps=EVERY, save_total_limit=1, report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused",
    )  # fmt: skip
    Trainer(model=cast(Any, recipe.model()), args=arguments, train_dataset=cast(Any, rows)).train()


@pytest.mark.parametrize("size", SIZES)
def test_peak_memory(size: str, tmp_path: Path) -> None:
    peaks = {}
    for name in ("trainer", "relay"):
        words = [*map(str, SIZES[size]), str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_memory", name, *words],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    rows = [(size, name, f"{peak:,.0f}") for name, peak in peaks.items()]
    page.record("memory", ("parameters", "program", "peak MB"), rows, "one training each")


if __name__ == "__main__":
    layers, width, tokens = map(int, sys.argv[2:5])
    {"relay": relay, "trainer": trainer}[sys.argv[1]](layers, width, tokens, Path(sys.argv[5]))
    print(json.dumps(peak_megabytes()))
