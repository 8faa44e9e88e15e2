"""Adapters of experts that multiply tokens give what PEFT's own give, which are added to the weights."""

import copy
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper

from runner.parts.adapters import LoraSettings, hold_base_in_bf16, linear_names, with_adapters
from runner.parts.expert_adapters import AdaptedExperts

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = ("gate_up_proj", "down_proj")


def adapted(kind: str, weights: tuple[str, ...] = WEIGHTS, **settings: Any) -> Any:
    """A small mixture whose adapters are no longer zero."""
    sizes: dict[str, Any] = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(num_key_value_heads=1, intermediate_size=24, num_experts_per_tok=2)
    sizes |= dict(num_local_experts=8) if kind == "Mixtral" else dict(num_experts=8, moe_intermediate_size=24)
    torch.manual_seed(0)
    base = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    for parameter in base.parameters():
        parameter.data.normal_(0, 0.2)
    names = [f"experts.{name}" for name in weights]
    model: Any = with_adapters(base, LoraSettings(rank=3, alpha=5.0), linear_names(base), names, **settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2)
    return model.train()


def of_peft(model: Any) -> Any:
    """A copy of the model in which PEFT's own adapters compute."""
    model = copy.deepcopy(model)
    wrappers = [each for each in model.modules() if isinstance(each, ParamWrapper)]
    assert wrappers and all(type(each) is not ParamWrapper for each in wrappers)
    for wrapper in wrappers:
        wrapper.__class__ = ParamWrapper
    return model


def found(model: Any, time: int = 9) -> dict[str, torch.Tensor]:
    """The logits, and the gradients of what trains and of the input."""
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(2, time, 32, generator=generator).requires_grad_()
    probe = torch.randn(2, time, 64, generator=generator)
    model.zero_grad()
    logits = model(inputs_embeds=embeds, use_cache=False).logits
    (logits.float() * probe).mean().backward()
    assert embeds.grad is not None
    trained = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {"logits": logits.detach(), "input": embeds.grad} | trained


def compared(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = float(value.abs().max())
        assert scale > 0 and float((ours[name] - value).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS[:1], WEIGHTS[1:]])
@pytest.mark.parametrize("time", [2, 40])
def test_values_and_gradients_are_those_of_peft(
    kind: str, weights: tuple[str, ...], time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(kind, weights)
    theirs = found(of_peft(model), time)
    # A tensor as large as the weights of all experts is never made.
    for name in ("get_delta_weight", "get_delta_factors", "_activate_lora"):
        monkeypatch.setattr(ParamWrapper, name, None)
    used: list[Any] = []
    experts: list[Any] = [each for each in model.modules() if isinstance(each, AdaptedExperts)]
    for each in experts:
        each.register_forward_hook(lambda module, inputs, _: used.append((inputs[1].unique(), {*module.factors})))
    compared(found(model, time), theirs)
    assert len(used) == 2 and all(names == set(weights) for _, names in used)
    # With few tokens, some experts have none.
    assert time > 2 or all(len(chosen) < 8 for chosen, _ in used)
    assert all(not each.factors for each in experts)


@pytest.mark.parametrize("state", ["disabled", "merged", "eager", "two adapters"])
def test_what_is_no_single_adapter_of_grouped_products_stays_with_peft(state: str) -> None:
    model = adapted("Mixtral")
    theirs = of_peft(model)
    wanted = []
    for each in (model, theirs):
        if state == "merged":
            each.merge_adapter()
        if state == "eager":
            each.set_experts_implementation("eager")
        if state == "two adapters":
            each.add_adapter("other", each.peft_config["default"])
            torch.manual_seed(3)
            for name, value in each.named_parameters():
                if ".other." in name:
                    value.data.normal_(0, 0.2)
            each.base_model.set_adapter(["default", "other"])
        with torch.no_grad():
            if state == "disabled":
                with each.disable_adapter():
                    wanted.append(each(input_ids=torch.arange(12)[None]).logits)
            else:
                wanted.append(each(input_ids=torch.arange(12)[None]).logits)
    assert wanted[0].equal(wanted[1])
    # They are no zeros, and adapters make a difference.
    with torch.no_grad():
        assert not wanted[0].equal(adapted("Mixtral")(input_ids=torch.arange(12)[None]).logits)


@pytest.mark.parametrize("time", [4, 80])
def test_under_autocast_a_base_in_bf16_changes_no_bit_and_is_close_to_fp32(time: int) -> None:
    model = adapted("Qwen2Moe", base_is_elsewhere=True)
    exact = found(of_peft(model), time)
    held = copy.deepcopy(model)
    hold_base_in_bf16(held, "bf16")
    experts = [each for each in held.modules() if isinstance(each, AdaptedExperts)]
    assert all(getattr(each, name).dtype == torch.bfloat16 for each in experts for name in WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, recast = found(held, time), found(model, time)
    assert all(value.dtype == torch.float32 for name, value in rounded.items() if "lora_" in name)
    # bf16 has 8 bits; a choice of experts may change with them, so that single numbers differ more.
    error = (rounded["logits"].float() - exact["logits"]).abs().mean() / exact["logits"].abs().mean()
    assert 1e-5 < float(error) < 0.05
    if time == 80:
        # As many tokens are worth a copy of fp32 weights in bf16, and the copy is what is held.
        assert all(value.equal(recast[name]) for name, value in rounded.items() if "embed" not in name)


def test_adapters_to_which_peft_adds_keep_weights_in_fp32() -> None:
    model = of_peft(adapted("Mixtral", base_is_elsewhere=True))
    hold_base_in_bf16(model, "bf16")
    experts = [each for each in model.modules() if isinstance(each, AdaptedExperts)]
    assert experts and all(getattr(each, name).dtype == torch.float32 for each in experts for name in WEIGHTS)
