"""Adapters: the merged model computes what the adapted one does, whatever has adapters and whatever is tied."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import ConfigError
from runner.parts.adapters import LoraSettings, merged, with_adapters

SIZES: dict[str, Any] = dict(vocab_size=64, bos_token_id=1, eos_token_id=2)


def decoder(kind: str, tied: bool) -> Any:
    """A small model of a class of transformers."""
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    sizes |= dict(intermediate_size=48, tie_word_embeddings=tied)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            **SIZES, n_embd=32, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=tied
        )
        return transformers.GPT2LMHeadModel(config)
    if kind == "gemma":
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, **sizes, head_dim=16))
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **sizes, num_local_experts=4))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **sizes))


@torch.no_grad()
def trained(model: Any, **settings: Any) -> Any:
    """The model with adapters whose weights are no longer zero."""
    new_tokens = settings.pop("new_tokens", None)
    adapted = with_adapters(model, LoraSettings(rank=4, **settings), new_tokens=new_tokens).eval()
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.normal_(0, 0.3)
    return adapted


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("modules", [None, "output", "input", "input, output", "output,attention"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_merged_model_has_the_logits_of_the_adapted_one(
    tmp_path: Path, kind: str, tied: bool, modules: str | None
) -> None:
    from transformers import AutoModelForCausalLM

    names = {"input": "wte" if kind == "gpt2" else "embed_tokens", "output": "lm_head"}
    names["attention"] = "c_attn" if kind == "gpt2" else "q_proj"
    targets = ",".join(names[word.strip()] for word in modules.split(",")) if modules else None
    adapted = trained(decoder(kind, tied), target_modules=targets)
    ids = torch.randint(3, 64, (2, 10))
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        merged = adapted.merge_and_unload()
        after = merged(input_ids=ids).logits
        merged.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    tolerance = 1e-4 * float(before.abs().max())
    assert float((before - after).abs().max()) < tolerance
    assert float((before - loaded).abs().max()) < tolerance
    # Weights stay tied where no adapter tells the two apart.
    assert merged.config.tie_word_embeddings == (tied and modules is None)


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2", "mixtral"])
@pytest.mark.parametrize(("tied", "new_tokens"), [(True, None), (False, None), (True, [3, 5]), (False, [3, 5])])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_part_of_the_weights_for_a_while(kind: str, tied: bool, new_tokens: list[int] | None) -> None:
    from recipes.text2sql.model import with_adapters as of_text2sql
    from recipes.text2sql.settings import LoraSettings as WithExperts

    if kind == "mixtral":
        adapted: Any = of_text2sql(
            decoder(kind, tied), WithExperts(rank=4, router=True), new_tokens or [], False
        ).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.3)
    else:
        adapted = trained(decoder(kind, tied), new_tokens=new_tokens)
    before = {name: (value.data_ptr(), value.detach().clone()) for name, value in adapted.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6, 7, 5]])
    calls: list[Any] = []
    for name, module in adapted.named_modules():
        if ".lora_A" in name and isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        assert calls
        calls.clear()
        with pytest.raises(KeyboardInterrupt), merged(adapted):
            found = adapted(input_ids=ids).logits
            assert not calls
            raise KeyboardInterrupt
        again = adapted(input_ids=ids)  # The adapters count again.
    assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max())) and found is not again
    assert again.logits.equal(wanted)
    for name, value in adapted.named_parameters():
        pointer, content = before[name]
        assert value.data_ptr() == pointer and value.detach().equal(content), name


def test_adapters_stay_apart_where_merging_would_change_results() -> None:
    adapted = trained(decoder("llama", True), target_modules="lm_head")
    weights = {name: value.data_ptr() for name, value in adapted.named_parameters()}
    with merged(adapted):
        assert {name: value.data_ptr() for name, value in adapted.named_parameters()} == weights
    adapted = trained(decoder("llama", True))
    ids = torch.tensor([[3, 4]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = adapted(input_ids=ids).logits
        with merged(adapted):
            assert adapted(input_ids=ids).logits.equal(wanted)
    with merged(torch.nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_and_adapters_merge_into_what_they_compute(tmp_path: Path, tied: bool) -> None:
    adapted = trained(decoder("llama", tied), new_tokens=[3, 5])
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        after = adapted.merge_and_unload()(input_ids=ids).logits
    assert float((before - after).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("tied", "modules"), [(True, "lm_head"), (True, "embed_tokens"), (False, "model.embed_tokens, q_proj")]
)
def test_embeddings_have_new_tokens_or_adapters(tied: bool, modules: str) -> None:
    with pytest.raises(ConfigError, match=r"in which the new tokens train already"):
        with_adapters(decoder("llama", tied), LoraSettings(rank=4, target_modules=modules), new_tokens=[3, 5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -4}, r"lora\.rank is -4"),
        ({"rank": 4, "dropout": 1.0}, r"lora\.dropout is 1\.0"),
        ({"rank": 4, "dropout": -0.1}, r"lora\.dropout is -0\.1"),
        ({"rank": 4, "alpha": 0.0}, r"lora\.alpha is 0\.0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**settings)


def test_modules_that_the_model_lacks_are_named() -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules does not fit this model: .*no_such_module"):
        with_adapters(decoder("llama", True), LoraSettings(rank=4, target_modules="no_such_module"))
