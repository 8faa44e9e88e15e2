"""How the cost of a step grows: with parameters, batch, length, lanes, experts, processes, examples and cursors.

python -m tests.benchmarks growth

One quantity changes at a time. The sizes take turns, and the lowest of several rounds counts, because other programs
only ever add to it. Memory and processes are those of whole trainings by the command. The pictures of docs/ are drawn
from the same numbers where matplotlib is installed, or later:
python -m tests.benchmarks.growth_picture NUMBERS.json FOLDER. RELAY_GROWTH names the file of the numbers.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.text2sql.experts import route
from recipes.text2sql.settings import ModelSettings
from runner import trials
from runner.checkpoints.state import State
from runner.lanes import Lanes, _block
from tests.benchmarks import page
from tests.benchmarks.growth_picture import draw
from tests.benchmarks.llama_recipe import Recipe
from tests.benchmarks.loop_contenders import BATCH, VOCABULARY, llama
from tests.launching import REPOSITORY, metrics

ROUNDS = int(os.environ.get("RELAY_ROUNDS", "5"))
FOUND: dict[str, list[tuple[int, float]]] = {}
"""By axis, whose name ends in the unit of the cost: (size, cost)."""
STEPS = 8
"""Steps of a training by the command."""


def lowest(works: dict[int, Callable[[], object]]) -> list[tuple[int, float]]:
    """The lowest CPU milliseconds of each piece of work; they take turns."""
    taken: dict[int, list[float]] = {size: [] for size in works}
    for turn in range(ROUNDS + 1):
        for size, work in works.items():
            started = time.process_time()
            work()
            if turn:
                taken[size].append(1000 * (time.process_time() - started))
    return [(size, min(each)) for size, each in taken.items()]


def step_of(width: int = 64, batch: int = BATCH, length: int = 64, lanes: int = 1) -> Callable[[], None]:
    """A step of a Llama as the runner computes it: forward and backward per lane, clipping, fused AdamW."""
    model = llama(2, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        for lane in ids.chunk(lanes):
            logits: Any = model(input_ids=lane, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), lane[:, 1:].reshape(-1), reduction="sum")
            (loss / ids[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def experts_of(count: int) -> Callable[[], None]:
    """One layer of text2sql's experts, forward and backward: top 2, 1,024 tokens."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=8, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=count, num_experts_per_tok=2,
    )  # fmt: skip
    model: Any = MixtralForCausalLM(config)
    route(model, ModelSettings())
    block, hidden = model.model.layers[0].mlp, torch.randn(1, 1024, 128, requires_grad=True)

    def step() -> None:
        block.zero_grad()
        block(hidden).square().mean().backward()

    return step


def seek_of(examples: int) -> Callable[[], None]:
    """The examples of the last step of an epoch, with nothing worked out before."""
    lanes = Lanes(num_examples=examples, batch_size=64, micro_batch_size=8, seed=0)

    def seek() -> None:
        _block.cache_clear()
        lanes.everything(examples // 64 - 1)

    return seek


def cursors_of(count: int) -> Callable[[], None]:
    """A stream's cursors into the JSON of a checkpoint and back."""
    state = State(cursors={str(lane): [3, lane * 1000, 17] for lane in range(count)})
    return lambda: json.loads(json.dumps(state.cursors))


def trained(folder: Path, processes: int, width: int) -> list[dict[str, Any]]:
    """What a training by the command logs of each step: 16 examples in 4 lanes, a Llama of two layers."""
    words = [
        "--recipe", str(REPOSITORY / "tests/benchmarks/llama_recipe.py"), "--layers", "2", "--width", str(width),
        "--max_steps", str(STEPS), "--batch_size", "16", "--micro_batch_size", "4", "--mixed_precision", "no",
        "--eval_steps", "0", "--save_steps", "0", "--logging_steps", "1", "--output_dir", str(folder),
    ]  # fmt: skip
    trials.train(words, processes, folder.with_suffix(".log"))
    return metrics(folder)


def parameters_of(width: int) -> int:
    """Parameters of the Llama of a width."""
    return sum(each.numel() for each in llama(2, width).parameters())


AXES: dict[str, Callable[[], dict[int, Callable[[], object]]]] = {
    "parameters: CPU ms": lambda: {parameters_of(width): step_of(width=width) for width in (32, 64, 128, 256, 512)},
    "examples in a step: CPU ms": lambda: {batch: step_of(batch=batch) for batch in (4, 8, 16, 32, 64)},
    "tokens of an example: CPU ms": lambda: {length: step_of(length=length) for length in (32, 64, 128, 256, 512)},
    "lanes, 64 examples: CPU ms": lambda: {lanes: step_of(batch=64, lanes=lanes) for lanes in (1, 2, 4, 8, 16, 32, 64)},
    "experts, 2 of them for each token: CPU ms": lambda: {count: experts_of(count) for count in (2, 4, 8, 16, 32, 64)},
    "examples of the data (order and seek): CPU ms": lambda: {10**power: seek_of(10**power) for power in range(4, 10)},
    "cursors (written and read): CPU ms": lambda: {10**power: cursors_of(10**power) for power in range(1, 6)},
}


@pytest.mark.parametrize("axis", AXES)
def test_growth(axis: str) -> None:
    torch.manual_seed(0)
    FOUND[axis] = lowest(AXES[axis]())


def test_processes(tmp_path: Path) -> None:
    """One training on 1, 2 and 4 processes, each with one thread: the same examples a step, cut into the same lanes."""
    seconds: dict[int, list[float]] = {processes: [] for processes in (1, 2, 4)}
    for turn in range(ROUNDS):
        for processes, found in seconds.items():
            lines = trained(tmp_path / f"{processes}-{turn}", processes, width=512)
            # The first steps compile kernels and make the optimiser's moments.
            found += [line["seconds_per_step"] for line in lines[2:]]
    FOUND["processes, 16 examples in 4 lanes: ms"] = [(size, 1000 * min(each)) for size, each in seconds.items()]


def test_memory(tmp_path: Path) -> None:
    """The most memory of a training by its number of parameters: 0.4 M to 100 M."""
    FOUND["parameters: peak MB"] = []
    for width in (128, 256, 512, 1024, 2048):
        recipe = Recipe(layers=2, width=width)
        lines = trained(tmp_path / str(width), 1, width)
        size = sum(each.numel() for each in recipe.model().parameters())
        FOUND["parameters: peak MB"].append((size, 1000 * max(line["memory_gb"] for line in lines)))


def test_write() -> None:
    """The table and, where matplotlib is installed, the pictures."""
    rows = []
    for axis, points in FOUND.items():
        grows, _, unit = axis.rpartition(": ")
        sizes = ", ".join(f"{size:,}: {cost:,.0f}" if cost >= 100 else f"{size:,}: {cost:.3g}" for size, cost in points)
        rows.append((grows, unit, sizes, f"{exponent(points):.2f}"))
    page.record(
        "growth", ("grows", "cost", "size: cost", "exponent between the last two"), rows, f"lowest of {ROUNDS} rounds"
    )
    if path := os.environ.get("RELAY_GROWTH"):
        Path(path).write_text(json.dumps(FOUND), encoding="utf-8")
    draw(FOUND, REPOSITORY / "docs" / "pictures")


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """p of cost ~ size ** p between the two largest sizes: 1 is linear, 0 no growth."""
    (small, less), (large, more) = points[-2:]
    return math.log(more / less) / math.log(large / small)
