"""Upcycling: the mixture computes what the dense decoder does, and its experts differ as the settings say."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runner.errors import ConfigError
from runner.parts.upcycling import MIXTURES, is_to_be_upcycled, upcycled

WINDOW = {"use_sliding_window": True, "sliding_window": 4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "wide heads": ("Llama", {"head_dim": 16}),
    "scaled positions": ("Llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with windows": ("Qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 with windows": ("Qwen3", {**WINDOW, "head_dim": 8, "max_window_layers": 0}),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    num_local_experts: int | None = 4
    num_experts_per_tok: int = 2
    upcycling_noise: float = 0.0
    upcycling_drop: float = 0.0


@torch.no_grad()
def dense(kind: str, tied: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    name, settings = KINDS[kind]
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(num_key_value_heads=2, tie_word_embeddings=tied)
    config = getattr(transformers, f"{name}Config")(**{**sizes, **settings, **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return model.eval()(input_ids=torch.randint(0, 64, (2, 17))).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("experts", "per_token"), [(4, 2), (5, 1), (3, 3)])
def test_the_logits_are_those_of_the_dense_model(
    kind: str, tied: bool, experts: int, per_token: int, tmp_path: Path
) -> None:
    wanted = logits(dense(kind, tied))
    mixture = upcycled(dense(kind, tied), Settings(experts, per_token))
    assert type(mixture).__name__ == f"{MIXTURES[KINDS[kind][0].lower()]}ForCausalLM"
    assert not any(each.is_meta for each in [*mixture.parameters(), *mixture.buffers()])
    assert float((logits(mixture) - wanted).abs().max()) < 1e-5
    routers = [value.detach() for name, value in mixture.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2 and all(each.shape == (experts, 32) for each in routers)
    assert all(0 < float(each.abs().max()) < 0.01 for each in routers) and not routers[0].equal(routers[1])
    # Other tools read it as it is.
    mixture.save_pretrained(tmp_path)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert float((logits(read) - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_experts_and_routers_train_and_nothing_else_is_new(kind: str) -> None:
    mixture = upcycled(dense(kind), Settings(upcycling_noise=0.1)).train()
    ids = torch.randint(0, 64, (2, 17))
    mixture(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in mixture.named_parameters():
        # Qwen2Moe has a shared expert, which stays as nothing.
        is_idle = "shared_expert" in name
        assert parameter.grad is not None and bool(parameter.grad.abs().max() > 0) != is_idle, name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("change", [{"upcycling_noise": 0.05}, {"upcycling_drop": 0.5}, {"upcycling_drop": 1.0}])
def test_experts_are_told_apart_and_the_same_each_time(kind: str, change: dict[str, float]) -> None:
    base, settings = dense(kind).requires_grad_(False), Settings(**change)
    gate, down = (base.model.layers[1].mlp.get_submodule(f"{name}_proj").weight for name in ("gate", "down"))
    first, again = (upcycled(dense(kind), settings).requires_grad_(False).model.layers[1].mlp.experts for _ in range(2))
    assert first.gate_up_proj.equal(again.gate_up_proj) and first.down_proj.equal(again.down_proj)
    assert not any(first.gate_up_proj[0].equal(first.gate_up_proj[other]) for other in (1, 2, 3))
    for expert in range(4):
        rows, columns = first.gate_up_proj[expert, :40] - gate, first.down_proj[expert] - down
        if "upcycling_noise" in change:
            assert float(rows.std() / gate.std()) == pytest.approx(0.05, rel=0.1)
            assert float(columns.std() / down.std()) == pytest.approx(0.05, rel=0.1)
            continue
        changed = (rows != 0).all(1)
        assert int(changed.sum()) == round(40 * change["upcycling_drop"])
        # The same units in all three matrices; the others are as they were.
        assert bool((columns[:, changed] != 0).all()) and bool((columns[:, ~changed] == 0).all())
        assert float(first.gate_up_proj[expert, :40][changed].std() / gate.std()) == pytest.approx(1, rel=0.15)


def test_without_a_number_of_experts_or_with_its_own_a_model_stays_as_it_is() -> None:
    model = dense("llama")
    assert upcycled(model, Settings(None)) is model
    mixture = upcycled(model, Settings(4))
    assert upcycled(mixture, Settings(4)) is mixture and upcycled(mixture, Settings(None)) is mixture


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (transformers.Gemma3TextConfig(), "gemma3_text which cannot llama, mistral, qwen2, qwen3"),
        (transformers.GPT2Config(), "gpt2 which cannot llama, mistral, qwen2, qwen3"),
        (transformers.Olmo2Config(), "olmo2 which cannot"),
        (transformers.LlamaConfig(attention_bias=True), "biases Mixtral"),
        (transformers.LlamaConfig(mlp_bias=True), "biases Mixtral"),
        (transformers.Qwen3Config(**WINDOW, max_window_layers=8), "sliding window Qwen3Moe"),
        (transformers.MixtralConfig(), "8 experts per layer already leave model.num_local_experts out"),
        (transformers.Qwen2MoeConfig(), "60 experts per layer already"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match="model.num_local_experts is 4") as caught:
        is_to_be_upcycled(config, 4)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words.split())
    assert not is_to_be_upcycled(config, None)
