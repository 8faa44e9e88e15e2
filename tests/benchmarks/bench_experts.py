"""A layer of experts, forward and backward: ours, transformers' grouped product, and transformers' eager experts.

make bench, or: python -m tests.benchmarks experts

The forms take turns within one run, and what counts is the ratio within a round. bf16 is autocast, with fp32 weights:
what a training in bf16 does. All forms of a row hold the same weights, and their outputs are compared.
`test_adapters` does so for low-rank adapters: PEFT's own, which are added to the weights, and Relay's.
"""

import copy
import statistics
import time
from typing import Any

import pytest
import torch

from recipes.text2sql.experts import route
from recipes.text2sql.settings import ModelSettings
from runner.parts.adapters import LoraSettings, hold_base_in_bf16, linear_names, with_adapters
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
    if isinstance(block, torch.nn.Module):
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


def adapted() -> dict[str, Any]:
    """One layer of Qwen2.5-Coder-0.5B as a mixture of 4 experts with adapters of rank 16, twice."""
    from peft.tuners.lora.layer import ParamWrapper
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=8, hidden_size=896, intermediate_size=4864, moe_intermediate_size=4864, num_hidden_layers=1,
        shared_expert_intermediate_size=1, num_attention_heads=14, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=TOP_K, norm_topk_prob=True,
    )  # fmt: skip
    base = Qwen2MoeForCausalLM(config)
    route(base, ModelSettings(pretrained="none", num_local_experts=4))
    parameters = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    ours = with_adapters(base, LoraSettings(rank=16), linear_names(base), parameters, base_is_elsewhere=True)
    for name, value in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, 0, 0.01)
    theirs = copy.deepcopy(ours)
    for wrapper in theirs.modules():
        if isinstance(wrapper, ParamWrapper):
            wrapper.__class__ = ParamWrapper
    for model in (ours, theirs):
        hold_base_in_bf16(model, "bf16")
    return {"PEFT": theirs, "Relay": ours}


@pytest.mark.filterwarnings("ignore")
def test_adapters() -> None:
    models = adapted()
    hidden = torch.randn(4, 400, 896, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        outputs = {}
        for name, model in models.items():
            layer = model.base_model.model.model
            outputs[name], _, processor = once(
                lambda given, layer=layer: layer(inputs_embeds=given, use_cache=False).last_hidden_state, hidden, True
            )
            model.zero_grad()
            if turn:
                seconds[name].append(processor)
        assert (outputs["Relay"] - outputs["PEFT"]).norm() < 0.1 * outputs["PEFT"].norm()
    ratios = [theirs / ours for theirs, ours in zip(seconds["PEFT"], seconds["Relay"], strict=True)]
    assert statistics.median(ratios) > 1
    rows = [(name, f"{statistics.median(column) * 1000:,.0f}") for name, column in seconds.items()]
    rows.append(("times as fast", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"))
    page.record("experts", ("adapters of 4 experts", "CPU ms"), rows, f"medians of {ROUNDS} interleaved rounds")
