"""A layer of experts, forward and backward: ours, transformers' grouped product, and transformers' eager experts.

make bench, or: python -m tests.benchmarks experts

The forms take turns within one run, and what counts is the ratio within a round. bf16 is autocast, with fp32 weights:
what a training in bf16 does. All forms of a row hold the same weights, and their outputs are compared.
"""

import copy
import statistics
import time
from typing import Any

import pytest
import torch

from recipes.text2sql.experts import route
from recipes.text2sql.settings import ModelSettings
from tests.benchmarks import page

ROUNDS = 3
WIDTH, INNER, TOP_K, TOKENS = 512, 1024, 2, 4096


def forms(experts: int) -> dict[str, Any]:
    """The same mixture three times, by name."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_local_experts=experts,
        num_experts_per_tok=TOP_K,
    )
    found = {}
    for name in ("transformers eager", "transformers grouped_mm", "Relay"):
        model: Any = MixtralForCausalLM(copy.deepcopy(config))
        model.set_experts_implementation("eager" if name.endswith("eager") else "grouped_mm")
        if name == "Relay":
            route(model, ModelSettings())
        block = model.model.layers[0].mlp
        block.load_state_dict(next(iter(found.values())).state_dict() if found else block.state_dict())
        found[name] = block
    return found


def once(block: Any, hidden: torch.Tensor, is_bf16: bool) -> tuple[torch.Tensor, float, float]:
    """What comes out, and the seconds of the clock and of the processor."""
    block.zero_grad()
    clock, processor = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
        given = block(hidden)
        loss = given.float().square().mean()
    loss.backward()
    return given.detach(), time.perf_counter() - clock, time.process_time() - processor


@pytest.mark.parametrize("experts", [16, 64])
def test_experts(experts: int) -> None:
    blocks = forms(experts)
    hidden = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seconds: dict[tuple[bool, str], list[tuple[float, float]]] = {}
    for turn in range(ROUNDS + 1):
        for is_bf16 in (False, True):
            outputs = {}
            for name, block in blocks.items():
                outputs[name], clock, processor = once(block, hidden, is_bf16)
                # The first round touches fresh memory.
                if turn:
                    seconds.setdefault((is_bf16, name), []).append((clock, processor))
            for given in outputs.values():
                # A token whose second and third choice are nearly as likely may go elsewhere in bf16.
                apart = (given - outputs["transformers eager"]).norm() / outputs["transformers eager"].norm()
                assert apart < (0.1 if is_bf16 else 1e-5)
    rows = []
    for is_bf16, name in seconds:
        own, eager = seconds[is_bf16, name], seconds[is_bf16, "transformers eager"]
        ratios = [theirs[1] / ours[1] for ours, theirs in zip(own, eager, strict=True)]
        clock, processor = (statistics.median(column) * 1000 for column in zip(*own, strict=True))
        rows.append((
            "bf16" if is_bf16 else "fp32", name, f"{clock:,.0f}", f"{processor:,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        ))  # fmt: skip
        if name == "Relay":
            assert statistics.median(ratios) > 1
    columns = (f"{experts} experts", "form", "ms", "CPU ms", "times as fast as eager (CPU; least - most)")
    page.record("experts", columns, rows, f"medians of {ROUNDS} interleaved rounds")
