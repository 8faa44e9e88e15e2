"""Peak memory of every process of a sharded training of 500 million parameters, in each phase, on 2 and 4 processes.

make bench, or: python -m pytest tests/benchmarks/bench_shard_memory.py -s -o 'python_files=bench_*.py'

It takes 10 GB of memory and 12 GB of disk. LAYERS=6 in front of the command takes a seventh of the layers, and only
prints: the limit allows two layers beside a quarter of the shards, which are then smaller than the layers in transit.
tests/runner/test_shard_memory.py does the same with a smaller model.
Pages of mapped files are not counted: the system takes them back when it needs them.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from runner import trials
from runner.config import parse
from tests import shard_memory

TINY = ["--recipe", "text2sql", "--preset", "nano"]
LAYERS = os.environ.get("LAYERS", "42")
LARGE = [
    *TINY, "--model.hidden_size", "1024", "--model.num_hidden_layers", LAYERS, "--model.num_attention_heads", "16",
    "--model.num_key_value_heads", "4", "--model.intermediate_size", "768", "--save_total_limit", "1",
]  # fmt: skip
SHORT = ["--mixed_precision", "no", "--micro_batch_size", "1", "--logging_steps", "1", "--save_steps", "1"]
SHORT += ["--eval_steps", "1", "--max_eval_examples", "4", "--eval_batch_size", "1", "--generation.max_new_tokens", "2"]
PHASES = ("start", "train", "evaluate", "save", "end")


@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_holds_its_shard(processes: int, tmp_path: Path) -> None:
    batch = ["--batch_size", str(processes)]
    (tmp_path / "tiny").mkdir()
    tiny = [*TINY, *SHORT, *batch, "--max_steps", "1", "--output_dir", str(tmp_path / "tiny" / "run")]
    constant = max(max(each.values()) for each in shard_memory.train(tiny, processes, tmp_path / "tiny"))
    with torch.device("meta"):
        model = parse(LARGE).recipe.model()
    (layers,) = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layer = 4 * sum(parameter.numel() for parameter in layers[0].parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    limit = constant + 1.25 * 16 * total / processes + 2 * layer
    print(f"\n{total:,} parameters, {processes} processes, a layer of {layer / 1e6:.0f} MB", end=", ")
    print(f"a process with a tiny model {constant / 1e6:.0f} MB")
    print(f"shard of weights, gradients and moments {16 * total / processes / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB")
    words = [*LARGE, *SHORT, *batch, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]
    # The optimiser has moments from the second step on.
    found = {"fresh": shard_memory.train([*words, "--max_steps", "2"], processes, tmp_path)}
    show(found["fresh"], "fresh")
    kill = trials.Interruption("forward", 3, process=1, signal=signal.SIGKILL)
    killed = trials.Trial(
        [*words, "--max_steps", "4"], processes, tmp_path / "killed.log", {"ACCELERATE_USE_FSDP": "true"}, kill
    )
    assert any(killed.wait(1800)), killed.output()
    found["resumed"] = shard_memory.train([*words, "--max_steps", "4"], processes, tmp_path)
    show(found["resumed"], "resumed after kill -9")
    shutil.rmtree(tmp_path / "run")
    above = [
        (kind, rank, phase, size)
        for kind, ranks in found.items()
        for rank, each in enumerate(ranks)
        for phase, size in each.items()
        if size > limit
    ]
    assert not above or LAYERS != "42", above


def show(found: list[dict[str, int]], kind: str) -> None:
    """Print GB of each process in each phase."""
    for rank, each in enumerate(found):
        print(
            f"{kind}, rank {rank}: " + ", ".join(f"{phase} {each.get(phase, 0) / 1e9:.2f}" for phase in PHASES),
            flush=True,
        )
