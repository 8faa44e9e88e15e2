"""A dense decoder that becomes a mixture of experts in text2sql: what holds for any mixture holds for it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from recipes.text2sql import experts
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import LoraSettings, ModelSettings
from runner import trials
from runner.checkpoints.tensors import read_tensors
from runner.errors import ConfigError
from runner.parts import chunked_loss
from tests.launching import metrics, output, same_bits
from tests.recipes.text2sql.prompts.test_plain import write_base
from tests.recipes.text2sql.test_recipe import write_folder

KINDS = ["Llama", "Qwen2", "Qwen3"]


def write_dense(folder: Path, kind: str) -> Path:
    """A tiny dense decoder of one family, with a tokenizer of bytes."""
    write_base(folder, None)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=260, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def recipe_of(tmp_path: Path, kind: str, lora: LoraSettings | None = None, **model: Any) -> Recipe:
    """A recipe that upcycles the tiny decoder, bound to its assets."""
    if not (tmp_path / "base").exists():
        write_folder(tmp_path)
        write_dense(tmp_path / "base", kind)
    data = dataclasses.replace(Recipe().data_settings, source="spider", dir=str(tmp_path), max_seq_length=2000)
    settings = ModelSettings(**{"pretrained": str(tmp_path / "base"), "num_local_experts": 4, **model})
    made = Recipe(data_settings=data, model_settings=settings, lora=lora or LoraSettings())
    assets = tmp_path / ("adapted" if lora else "assets")
    assets.mkdir(exist_ok=True)
    return made.prepare(assets)


@torch.no_grad()
def logits_of(model: Any, recipe: Recipe) -> torch.Tensor:
    batch = recipe.collate([recipe.data("train")[0], recipe.data("train")[1]])
    # Qwen's tokenizer has a token more.
    return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., :258]


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_with_the_logits_of_the_dense_model_and_has_all_of_a_mixture(tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, kind, expert_capacity=1.0, router_jitter_noise=0.1, expert_dropout=0.1)
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = recipe.model()
    assert len(experts.routers_of(model)) == 2
    assert float((logits_of(model, recipe) - logits_of(dense, recipe)).abs().max()) < 1e-5
    # Balance of nearly equal probabilities is 1; the capacity drops choices, and each router gets a gradient.
    loss = recipe.loss(model.train(), recipe.collate([recipe.data("train")[0]]))
    assert float(loss.logs["router/balance_loss"]) == pytest.approx(1, abs=0.05)
    assert loss.logs["expert/tokens_per_expert"].shape == (2, 4) and float(loss.logs["expert/dropped"].max()) > 0
    assert loss.auxiliary is not None
    (loss.sum + loss.auxiliary).backward()
    assert all(float(router.weight.grad.abs().max()) > 0 for router in experts.routers_of(model))  # type: ignore[union-attr]
    # With added tokens too.
    marked = dataclasses.replace(recipe, data_settings=dataclasses.replace(recipe.data_settings, prompt="tokens"))
    (tmp_path / "marked").mkdir()
    marked = marked.prepare(tmp_path / "marked")
    assert marked.model().get_input_embeddings().weight.shape[0] == len(marked.tokenizer) > 258


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_the_new_routers_and_find_the_same_base_again(tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, kind, LoraSettings(rank=4), upcycling_noise=0.1, upcycling_drop=0.25)
    model, again = recipe.model(), recipe.model()
    frozen = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    assert same_bits(frozen, {name: value for name, value in again.named_parameters() if name in frozen})
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name or "trainable_tokens" in name for name in trained)
    for part in ("experts.", "gate.lora_", "q_proj.lora_"):
        assert any(part in name for name in trained), part
    assert getattr(model, "base_is_elsewhere", False)
    with pytest.raises(ConfigError, match="lora.dropout is 0.1"):
        recipe_of(tmp_path, kind, LoraSettings(rank=4, dropout=0.1, experts=False)).model()


@pytest.mark.parametrize("rank", [0, 4])
def test_the_loss_in_chunks_is_that_of_all_logits(tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, "Qwen2", LoraSettings(rank=rank) if rank else None)
    batch = recipe.collate([recipe.data("train")[0], recipe.data("train")[1]])
    torch.manual_seed(0)
    model: Any = recipe.model().train()
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(0, 0.2)
    head, shapes, found = model.get_output_embeddings(), [], []
    head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    for most in (1 << 30, 600):
        for name in ("CHUNK", "LARGE_LOGITS"):
            monkeypatch.setattr(chunked_loss, name, most)
        loss = recipe.loss(model, batch)
        model.zero_grad()
        assert loss.auxiliary is not None
        (loss.sum + loss.auxiliary).backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append({"loss": loss.sum.detach()} | gradients)
    assert len(shapes[0]) == 3 and shapes[1] == (2,)
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_a_family_without_a_mixture_is_refused_before_data_are_read(tmp_path: Path) -> None:
    write_base(tmp_path / "base", None)
    transformers.GPT2Config(vocab_size=258, n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "base")
    settings = ModelSettings(pretrained=str(tmp_path / "base"), num_local_experts=2)
    # There is no data.dir.
    data = dataclasses.replace(Recipe().data_settings, source="spider")
    with pytest.raises(ConfigError, match="model.num_local_experts is 2, and model.pretrained is a gpt2") as caught:
        Recipe(model_settings=settings, data_settings=data).prepare(tmp_path)
    assert "\n" not in str(caught.value)


def train(tmp_path: Path, folder: Path, *flags: str, processes: int = 1) -> str:
    words = ["--recipe", "text2sql", "--model.pretrained", str(tmp_path / "base"), "--model.num_local_experts", "3"]
    words += ["--data.source", "spider", "--data.dir", str(tmp_path), "--data.max_seq_length", "700"]
    words += ["--batch_size", "8", "--micro_batch_size", "2", "--max_steps", "3", "--save_steps", "2"]
    words += ["--logging_steps", "1", "--eval_steps", "0", "--mixed_precision", "no", "--max_eval_examples", "1"]
    words += ["--generation.max_new_tokens", "2", "--deterministic", "true", "--output_dir", str(folder), *flags]
    return trials.train(words, processes, folder.with_suffix(".log"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("Qwen2", ["--learning_rate", "1e-3", "--model.upcycling_drop", "0.5", "--model.expert_capacity", "1.5"]),
        ("Llama", ["--preset", "lora", "--lora.rank", "2", "--model.upcycling_noise", "0.1"]),
    ],
)
def test_a_run_is_resumed_and_exported(tmp_path: Path, kind: str, flags: list[str]) -> None:
    from runner.checkpoints.trained import find_recipe, load_trained
    from runner.commands.export import main as export

    recipe = recipe_of(tmp_path, kind, num_local_experts=3)
    run = tmp_path / "run"
    train(tmp_path, run, *flags)
    whole = read_tensors(run / "checkpoint-3" / "model.safetensors")
    assert metrics(run)[-1]["router/balance_loss"] > 0.9
    has_adapters = "lora" in flags
    assert has_adapters == all("lora_" in name for name in whole)
    (run / "checkpoint-3").rename(tmp_path / "aside")
    train(tmp_path, run, *flags, "--resume_from_checkpoint", "auto", processes=2)
    assert "going on from" in output(run)
    assert same_bits(read_tensors(run / "checkpoint-3" / "model.safetensors"), whole)
    if not has_adapters:
        # The checkpoint has all weights: the dense model may be gone.
        (tmp_path / "base").rename(tmp_path / "elsewhere")
    _, model = load_trained(run, find_recipe(run))
    export(["--checkpoint", str(run), "--output", str(tmp_path / "exported")])
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert getattr(read.config, "num_local_experts", None) == 3 or read.config.num_experts == 3
    torch.testing.assert_close(logits_of(read, recipe), logits_of(model.cpu(), recipe), rtol=1e-4, atol=1e-5)
