"""How the cost of a step grows: with parameters, batch, length, lanes, experts, examples and cursors.

python -m tests.benchmarks growth

One quantity changes at a time. The sizes take turns, and the lowest of several rounds counts, because other programs
only ever add to it. The pictures of docs/ are drawn from the same numbers where matplotlib is installed, or later:
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
from runner.checkpoints.state import State
from runner.lanes import Lanes, _block
from tests.benchmarks import page
from tests.benchmarks.bench_loop import BATCH, VOCABULARY, llama
from tests.benchmarks.growth_picture import draw
from tests.launching import REPOSITORY

ROUNDS = int(os.environ.get("RELAY_ROUNDS", "5"))
FOUND: dict[str, list[tuple[int, float]]] = {}
"""By axis: (size, cost)."""


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


def parameters_of(width: int) -> int:
    """Parameters of the Llama of a width."""
    return sum(each.numel() for each in llama(2, width).parameters())


AXES: dict[str, Callable[[], dict[int, Callable[[], object]]]] = {
    "parameters": lambda: {parameters_of(width): step_of(width=width) for width in (32, 64, 128, 256, 512)},
    "examples in a step": lambda: {batch: step_of(batch=batch) for batch in (4, 8, 16, 32, 64)},
    "tokens of an example": lambda: {length: step_of(length=length) for length in (32, 64, 128, 256, 512)},
    "lanes, 64 examples": lambda: {lanes: step_of(batch=64, lanes=lanes) for lanes in (1, 2, 4, 8, 16, 32, 64)},
    "experts, 2 of them for each token": lambda: {count: experts_of(count) for count in (2, 4, 8, 16, 32, 64)},
    "examples of the data (order and seek)": lambda: {10**power: seek_of(10**power) for power in range(4, 10)},
    "cursors (written and read)": lambda: {10**power: cursors_of(10**power) for power in range(1, 6)},
}


@pytest.mark.parametrize("axis", AXES)
def test_growth(axis: str) -> None:
    torch.manual_seed(0)
    FOUND[axis] = lowest(AXES[axis]())


def test_write() -> None:
    """The table and, where matplotlib is installed, the pictures."""
    rows = []
    for axis, points in FOUND.items():
        sizes = ", ".join(f"{size:,}: {cost:.3g}" for size, cost in points)
        rows.append((axis, sizes, f"{exponent(points):.2f}"))
    page.record(
        "growth", ("grows", "size: CPU ms", "exponent between the last two"), rows, f"lowest of {ROUNDS} rounds"
    )
    if path := os.environ.get("RELAY_GROWTH"):
        Path(path).write_text(json.dumps(FOUND), encoding="utf-8")
    draw(FOUND, REPOSITORY / "docs" / "pictures")


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """p of cost ~ size ** p between the two largest sizes: 1 is linear, 0 no growth."""
    (small, less), (large, more) = points[-2:]
    return math.log(more / less) / math.log(large / small)
