"""The experts of text2sql: routing, balance, capacity, dropout and noise against slow forms, and over processes."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from recipes.text2sql import experts
from recipes.text2sql import model as parts
from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import LoraSettings, ModelSettings
from runner import trials
from runner.assembly import enable_gradient_checkpointing
from runner.checkpoints.tensors import read_tensors
from runner.errors import ConfigError, DataError
from runner.recipe import Batch
from tests.launching import metrics, output, same_bits, weights
from tests.recipes.text2sql.test_recipe import write_folder

SMALL = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "dropout": 0.0, "num_local_experts": 6}


def recipe_of(**settings: Any) -> Recipe:
    """A small recipe without data."""
    recipe = Recipe(model_settings=ModelSettings(**{**SMALL, **settings}))
    return dataclasses.replace(recipe, tokenizer_settings=dataclasses.replace(recipe.tokenizer_settings, vocab_size=64))


def model_of(recipe: Recipe, seed: int = 0) -> Any:
    """Its model, with weights large enough that experts and routers matter."""
    torch.manual_seed(seed)
    model = recipe.model().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def batch_of(rows: int, time: int = 9, seed: int = 0) -> Batch:
    """Random tokens, with padding on the right that differs from row to row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, time), generator=generator)
    lengths = torch.randint(time // 2, time + 1, (rows,), generator=generator)
    mask = (torch.arange(time) < lengths[:, None]).long()
    labels = torch.where((mask == 1) & (torch.arange(time) > 2), ids, -100)
    weight = int((labels[:, 1:] != -100).sum())
    return Batch({"input_ids": ids, "labels": labels, "attention_mask": mask}, weight)


def block_of(recipe: Recipe) -> Any:
    """The mixture of the first layer."""
    return model_of(recipe).model.layers[0].mlp


def slowly(block: Any, hidden: Tensor, kept: Any = None, dropout: Tensor | None = None, noise: Any = None) -> Tensor:
    """One layer's experts, token by token and choice by choice; `noise` multiplies what the router is given."""
    gate, experts, bias = block.gate, block.experts, block.gate.balance_bias
    rows, choices = [], []
    for number, token in enumerate(hidden):
        given = token if noise is None else token * noise[number]
        scores = torch.exp(gate.weight @ given)
        scores = scores / scores.sum()
        ranked = scores if bias is None else scores + bias
        chosen = sorted(range(len(scores)), key=lambda each: -ranked[each].item())[: gate.top_k]
        choices += [(expert, number, place) for place, expert in enumerate(chosen)]
        rows.append([scores[expert] / sum(scores[each] for each in chosen) for expert in chosen])
    result = [torch.zeros_like(token) for token in hidden]
    # The grouped product takes the choices expert by expert.
    for line, (expert, number, place) in enumerate(sorted(choices)):
        if kept is not None and not kept[number][place]:
            continue
        gate_part, up = (experts.gate_up_proj[expert] @ hidden[number]).chunk(2)
        inner = nn.functional.silu(gate_part) * up
        inner = inner if dropout is None else inner * dropout[line]
        result[number] = result[number] + rows[number][place] * (experts.down_proj[expert] @ inner)
    return torch.stack(result)


def compared(block: Any, hidden: Tensor, slow: Tensor, fast: Tensor) -> None:
    """Values and gradients of two forms agree, and the gradients are not all zero."""
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    probe = torch.randn(slow.shape, generator=torch.Generator().manual_seed(9))
    wrt = [hidden, *block.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((fast * probe).sum(), wrt), torch.autograd.grad((slow * probe).sum(), wrt), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert theirs.abs().max() > 1e-4


# What stands in front of transformers' classes ---------------------------------------------------------


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_without_settings_it_is_transformers_to_the_bit(family: str) -> None:
    ours = model_of(recipe_of(family=family))
    torch.manual_seed(0)
    settings = ModelSettings(**{**SMALL, "family": family})
    theirs = parts.build(settings, 64, 64, None, None).train()
    theirs.load_state_dict(ours.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    found = []
    for model in (ours, theirs):
        batch = batch_of(3)
        result = model(input_ids=batch["input_ids"], labels=batch["labels"], output_router_logits=True)
        (result.loss + result.router_logits[0].square().mean()).backward()
        found.append((result.logits, *result.router_logits, *(each.grad for each in model.parameters())))
    assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True))
    assert ours.config.num_local_experts == 6 and ours.config.to_dict() == theirs.config.to_dict()


def test_under_autocast_the_router_computes_in_fp32_and_the_experts_in_bf16() -> None:
    block = block_of(recipe_of())
    hidden = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(1))
    products = []

    def spy(left: Tensor, right: Tensor, **rest: Any) -> Tensor:
        products.append((left.dtype, right.dtype))
        return grouped(left, right, **rest)

    grouped = nn.functional.grouped_mm
    with torch.autocast("cpu", dtype=torch.bfloat16), mock.patch.object(nn.functional, "grouped_mm", spy):
        logits, given, _ = block.gate(hidden)
        fast = block(hidden)
        few = block(hidden[:, :2])
    assert logits.dtype == given.dtype == torch.float32
    assert torch.equal(logits, nn.functional.linear(hidden[0], block.gate.weight))
    # So few tokens are not worth a copy of all the weights.
    assert products == [(torch.bfloat16,) * 2] * 2 + [(torch.float32,) * 2] * 2
    plain = block(hidden)
    assert fast.dtype == torch.float32 and few.dtype == torch.float32
    assert 1e-4 < (fast - plain).norm() / plain.norm() < 2e-2
    fast.square().sum().backward()
    assert block.experts.gate_up_proj.grad.dtype == torch.float32


def test_what_a_class_cannot_do_is_said() -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    dense = transformers.LlamaForCausalLM(config)
    experts.route(dense, ModelSettings())
    asked: dict[str, Any] = {"expert_capacity": 1.0, "expert_dropout": 0.1, "router_jitter_noise": 0.1}
    for name, value in {**asked, "balance": "bias"}.items():
        with pytest.raises(ConfigError, match=f"model.{name}"):
            experts.route(dense, ModelSettings(**{name: value}))
    wrong: dict[str, Any] = {"expert_capacity": 0.0, "expert_dropout": 1.0, "router_jitter_noise": -0.1}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=f"model.{name}"):
            ModelSettings(**{name: value})


@pytest.mark.parametrize("with_adapters", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_routers_know_the_padding_of_the_models_call(with_adapters: bool, checkpointing: bool) -> None:
    recipe = recipe_of(expert_capacity=0.5)
    if with_adapters:
        recipe = dataclasses.replace(recipe, lora=dataclasses.replace(recipe.lora, rank=2))
    model = model_of(recipe)
    if checkpointing:
        enable_gradient_checkpointing(model)
    for seed in (0, 1):
        batch = batch_of(4, seed=seed)
        loss = recipe.loss(model, batch)
        (loss.sum + loss.auxiliary).backward()
        for router in experts.routers_of(model):
            assert router.mask is not None and torch.equal(router.mask, batch["attention_mask"].reshape(-1))
    # What padding holds changes nothing: it takes no expert's capacity.
    other = batch_of(4, seed=1)
    other.tensors["input_ids"] = torch.where(other["attention_mask"] == 1, other["input_ids"], 5)
    with torch.no_grad():
        assert torch.equal(recipe.loss(model, other).sum, recipe.loss(model, batch_of(4, seed=1)).sum)


# Capacity, dropout, noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 50.0])
def test_capacity_against_a_slow_form(factor: float) -> None:
    block = block_of(recipe_of(expert_capacity=factor))
    hidden = torch.randn(15, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    mask = torch.tensor([1] * 8 + [0] * 3 + [1] * 4)
    block.gate.mask = mask
    _, _, chosen = block.gate(hidden)
    room = math.ceil(factor * 12 * 2 / 6)
    taken, kept = [0] * 6, []
    for is_there, own_experts in zip(mask.tolist(), chosen.tolist(), strict=True):
        row = []
        for expert in own_experts:
            taken[expert] += is_there
            row.append(taken[expert] <= room)
        kept.append(row)
    assert experts.within_capacity(chosen, mask, 6, factor).tolist() == kept
    assert all(all(row) for row in kept) == (factor == 50.0)
    compared(block, hidden, slowly(block, hidden, kept=kept), block(hidden[None])[0])
    logits = block.gate(hidden)[0].detach()
    lost = sum(not each for row, here in zip(kept, mask.tolist(), strict=True) for each in row if here)
    shares = experts.dropped([logits, logits], mask, 2, [None, None], factor)
    torch.testing.assert_close(shares, torch.full((2,), lost / 24))
    # Where nothing is trained, nothing is left out.
    block.eval()
    compared(block, hidden, slowly(block, hidden), block(hidden[None])[0])


def test_expert_dropout_against_a_slow_form() -> None:
    block = block_of(recipe_of(expert_dropout=0.4))
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    torch.manual_seed(5)
    drawn = nn.functional.dropout(torch.ones(14, 24), 0.4)
    assert 0.3 < (drawn == 0).float().mean() < 0.5
    torch.manual_seed(5)
    compared(block, hidden, slowly(block, hidden, dropout=drawn), block(hidden[None])[0])
    # transformers' eager form has no place for it: ours is taken instead.
    block.experts.config._experts_implementation = "eager"
    torch.manual_seed(5)
    compared(block, hidden, slowly(block, hidden, dropout=drawn), block(hidden[None])[0])
    block.eval()
    compared(block, hidden, slowly(block, hidden), block(hidden[None])[0])


def test_jitter_against_a_slow_form() -> None:
    block = block_of(recipe_of(router_jitter_noise=0.3))
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    torch.manual_seed(5)
    noise = torch.empty(7, 32).uniform_(0.7, 1.3)
    torch.manual_seed(5)
    before = hidden.detach().clone()
    fast = block(hidden[None])[0]
    compared(block, hidden, slowly(block, hidden, noise=noise), fast)
    assert torch.equal(hidden.detach(), before) and not torch.allclose(fast, slowly(block, hidden))
    block.eval()
    compared(block, hidden, slowly(block, hidden), block(hidden[None])[0])


# Balance -----------------------------------------------------------------------------------------------


def test_a_bias_chooses_and_does_not_weigh() -> None:
    block = block_of(recipe_of(balance="bias"))
    block.gate.balance_bias.copy_(torch.tensor([0.9, 0.0, -0.9, 0.0, 0.5, 0.0]))
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    compared(block, hidden, slowly(block, hidden), block(hidden[None])[0])
    logits, _, chosen = block.gate(hidden)
    assert 2 not in chosen and not torch.equal(chosen, logits.topk(2).indices)
    counts = experts.expert_counts(logits, torch.ones(20), 2, block.gate.balance_bias)
    assert counts.tolist() == torch.bincount(chosen.reshape(-1), minlength=6).tolist()


def test_the_bias_moves_against_the_load() -> None:
    model = model_of(recipe_of(balance="bias"))
    before = [router.balance_bias.clone() for router in experts.routers_of(model) if router.balance_bias is not None]
    counts = torch.tensor([[4.0, 0, 2, 2, 2, 2], [0, 12, 0, 0, 0, 0]])
    recipe_of(balance="bias", balance_bias_rate=0.25).end_step(model, counts)
    moved = [router.balance_bias for router in experts.routers_of(model)]
    for old, new, layer in zip(before, moved, counts.tolist(), strict=True):
        mean = sum(layer) / 6
        wanted = [0.25 if count < mean else -0.25 if count > mean else 0.0 for count in layer]
        assert new is not None and (new - old).tolist() == wanted


def test_the_bias_balances() -> None:
    recipe = recipe_of(balance="bias", balance_bias_rate=0.02)
    model, batch = model_of(recipe), batch_of(8, 20)
    for router in experts.routers_of(model):
        assert router.balance_bias is not None
        # All begin with the same favourite.
        router.balance_bias[0] = 1.0
    spread = []
    for _ in range(80):
        loss = recipe.loss(model, batch)
        assert loss.statistics is not None and loss.auxiliary is not None
        spread.append(float(torch.as_tensor(loss.logs["expert/load_balance"]).max()))
        recipe.end_step(model, loss.statistics)
    assert spread[0] > 0.5 and spread[-1] < 0.2
    # Of the router's losses, the z-loss alone trains.
    assert loss.auxiliary is not None
    assert loss.auxiliary.item() == pytest.approx(0.001 * float(loss.logs["router/z_loss"]))


def gradients_of(recipe: Recipe, model: Any, lanes: list[Batch]) -> list[Tensor]:
    """The gradient of a step that is cut into lanes, as runner/loop.py makes it."""
    model.zero_grad()
    if recipe.needs_step_statistics:
        with torch.no_grad():
            whole = sum(recipe.loss(model, lane).statistics for lane in lanes)  # type: ignore[misc]
        lanes = [dataclasses.replace(lane, step_statistics=whole) for lane in lanes]
    total = sum(lane.weight for lane in lanes)
    for lane in lanes:
        loss = recipe.loss(model, lane)
        auxiliary = 0.0 if loss.auxiliary is None else loss.auxiliary / len(lanes)
        auxiliary += 0.0 if loss.step_auxiliary is None else loss.step_auxiliary
        (loss.sum / total + auxiliary).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def cut(batch: Batch, size: int) -> list[Batch]:
    """The rows in pieces."""
    pieces = []
    for first in range(0, len(batch["labels"]), size):
        tensors = {name: tensor[first : first + size] for name, tensor in batch.tensors.items()}
        pieces.append(Batch(tensors, int((tensors["labels"][:, 1:] != -100).sum())))
    return pieces


def test_global_balance_is_that_of_the_step_as_one_micro_batch() -> None:
    coefficients = {"router_aux_loss_coef": 1.0, "router_z_loss_coef": 0.1}
    micro = dataclasses.replace(recipe_of(), **coefficients)
    whole = dataclasses.replace(recipe_of(balance_scope="global"), **coefficients)
    model, batch = model_of(micro), batch_of(8)
    wanted = gradients_of(micro, model, [batch])
    for size in (8, 4, 3, 1):
        for ours, theirs in zip(gradients_of(whole, model, cut(batch, size)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    apart = gradients_of(micro, model, cut(batch, 1))
    assert max(float((a - b).abs().max()) for a, b in zip(apart, wanted, strict=True)) > 1e-3
    # And what is shown of the loss is the cross-entropy alone.
    shown = whole.loss(model, dataclasses.replace(batch, step_statistics=whole.loss(model, batch).statistics))
    assert shown.sum.item() == pytest.approx(micro.loss(model, batch).sum.item()) and shown.auxiliary is None


@pytest.mark.parametrize("settings", [{}, {"expert_capacity": 1.0, "expert_dropout": 0.3, "router_jitter_noise": 0.1}])
def test_gradient_checkpointing_changes_no_gradient(settings: dict[str, Any]) -> None:
    recipe = dataclasses.replace(recipe_of(**settings), router_aux_loss_coef=1.0)
    found = []
    for is_checkpointed in (False, True):
        model = model_of(recipe)
        if is_checkpointed:
            enable_gradient_checkpointing(model)
        torch.manual_seed(4)
        found.append(gradients_of(recipe, model, [batch_of(4)]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    without = gradients_of(dataclasses.replace(recipe, router_aux_loss_coef=0.0), model, [batch_of(4)])
    assert not torch.allclose(found[1][2], without[2])


# Collapse ----------------------------------------------------------------------------------------------


def test_a_collapse_is_said_with_the_setting_to_change() -> None:
    recipe = recipe_of()
    values = {"expert/tokens_per_expert": [[9.0, 9.0, 9.0, 0.0, 0.0, 0.0], [26.0, 1.0, 0.0, 0.0, 0.0, 0.0]]}
    remark = recipe.remark(20, values)
    assert remark is not None and "layer 1:" in remark and "33%" in remark and "--router_aux_loss_coef" in remark
    assert "--model.balance_bias_rate" in (recipe_of(balance="bias").remark(20, values) or "")
    assert recipe.remark(10, values) is None and recipe.remark(20, {}) is None
    # Two tokens reach no more than four experts.
    assert recipe.remark(20, {"expert/tokens_per_expert": [[2.0, 2.0, 0.0, 0.0, 0.0, 0.0]]}) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight training questions."""
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    return folder


# Adapters and trained models ---------------------------------------------------------------------------


def adapted(recipe: Recipe, **lora: Any) -> Recipe:
    """The recipe with adapters of rank 3."""
    return dataclasses.replace(recipe, lora=LoraSettings(**{"rank": 3, "alpha": 6.0, **lora}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_adapters_of_attention_experts_and_router(family: str, tmp_path: Path) -> None:
    import peft
    import transformers

    plain = recipe_of(family=family)
    recipe = adapted(dataclasses.replace(plain, router_aux_loss_coef=1.0), router=True)
    base, model, batch = model_of(plain), recipe.model().train(), batch_of(4)
    recipe.inherit(model, {name: value.clone() for name, value in base.named_parameters()})
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in trained)
    for part in ("q_proj", "o_proj", "experts.lora_", "experts.base_layer.lora_", "gate.lora_"):
        assert sum(part in name for name in trained) >= 2 * plain.model_settings.num_hidden_layers, part
    assert torch.equal(logits_of(model, batch), logits_of(base, batch))

    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.3)
    losses = []
    for _ in range(4):
        loss = recipe.loss(model, batch)
        assert loss.auxiliary is not None
        (loss.sum / batch.weight + loss.auxiliary).backward()
        losses.append(loss.sum.item())
        assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name in trained)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1
    wanted = logits_of(model, batch)
    assert (wanted - logits_of(base, batch)).abs().max() > 0.01

    # With gradient checkpointing, to the bit.
    again = copy.deepcopy(model)
    enable_gradient_checkpointing(again)
    for each in (model, again):
        loss = recipe.loss(each, batch)
        assert loss.auxiliary is not None
        (loss.sum + loss.auxiliary).backward()
    gradients = [{n: p.grad for n, p in each.named_parameters() if p.requires_grad} for each in (model, again)]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in trained)

    # PEFT reads what was saved, onto the base that transformers reads.
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapters")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(read, tmp_path / "adapters")
    torch.testing.assert_close(logits_of(theirs, batch), wanted, rtol=1e-4, atol=1e-5)
    # And transformers reads what was merged.
    recipe.export(model.merge_and_unload(), tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged, batch), wanted, rtol=1e-4, atol=1e-4)


def logits_of(model: Any, batch: Batch) -> Tensor:
    """What a model says without dropout."""
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"]).logits
    model.train()
    return logits


def test_settings_of_adapters_that_do_not_fit_are_said() -> None:
    for lora, message in (
        ({"dropout": 0.1}, "lora.dropout is 0.1"),
        ({"dropout": 0.1, "experts": False, "router": True}, "lora.dropout is 0.1"),
        ({"target_modules": "nothing"}, "lora.target_modules"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapted(recipe_of(), **lora).model()
    model = adapted(recipe_of(), dropout=0.1, experts=False).model()
    assert not any("experts" in name for name, each in model.named_parameters() if each.requires_grad)
    with pytest.raises(ConfigError, match="another model's weights"):
        recipe_of().inherit(model_of(recipe_of()), {"other": torch.ones(1)})


@pytest.mark.filterwarnings("ignore")
def test_a_dense_model_of_another_class_is_trained_on(tmp_path: Path, data: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "base")
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = ModelSettings(pretrained=str(tmp_path / "base"))
    recipe = Recipe(
        model_settings=settings,
        data_settings=dataclasses.replace(Recipe().data_settings, source="spider", dir=str(data), prompt="tokens"),
    )
    (tmp_path / "assets").mkdir()
    recipe = recipe.prepare(tmp_path / "assets")
    model = recipe.model()
    assert type(model).__name__ == "LlamaForCausalLM" and not recipe.needs_step_statistics
    assert model.get_input_embeddings().weight.shape[0] == len(recipe.tokenizer) > 260
    assert len(recipe.tokenizer("<schema>", add_special_tokens=False)["input_ids"]) == 1
    batch = recipe.collate([recipe.data("train")[0]])
    loss = recipe.loss(model, batch)
    loss.sum.backward()
    assert loss.auxiliary is None and loss.logs == {} and batch.weight > 0
    # With adapters, of the embeddings those of our tokens alone are trained.
    model = adapted(recipe).model()
    loss = recipe.loss(model, batch)
    loss.sum.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    (deltas,) = (value for name, value in trained.items() if "trainable_tokens_delta" in name)
    assert deltas.shape == (len(recipe.tokenizer) - 260, 16) and deltas.grad.abs().max() > 0
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    wanted = logits_of(model, batch)
    merged = model.merge_and_unload()
    recipe.export(merged, tmp_path / "merged")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(read, batch), wanted, rtol=1e-4, atol=1e-5)
    # The base may be moved away: a checkpoint has its weights.
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert sum(each.numel() for each in adapted(recipe).model().parameters()) > 5000
    with pytest.raises(DataError, match="model.pretrained"):
        recipe.prepare(tmp_path)


# Runs --------------------------------------------------------------------------------------------------


def train(data: Path, folder: Path, *flags: str, processes: int = 1, micro_batch_size: int = 8) -> str:
    """A few steps of all eight questions."""
    words = ["--recipe", "text2sql", "--preset", "nano", "--data.source", "spider", "--data.dir", str(data)]
    words += ["--tokenizer.vocab_size", "400", "--model.hidden_size", "32", "--model.intermediate_size", "32"]
    words += ["--model.dropout", "0", "--batch_size", "8", "--micro_batch_size", str(micro_batch_size)]
    words += ["--max_steps", "3", "--logging_steps", "1", "--eval_steps", "0", "--mixed_precision", "no"]
    words += ["--max_eval_examples", "1", "--generation.max_new_tokens", "2", "--output_dir", str(folder), *flags]
    return trials.train(words, processes, folder.with_suffix(".log"))


@pytest.mark.slow
def test_the_gradient_of_global_balance_does_not_know_processes_nor_lanes(data: Path, tmp_path: Path) -> None:
    flags = ("--model.balance_scope", "global", "--router_aux_loss_coef", "1", "--max_grad_norm", "0")
    norms = {}
    for processes, lanes in ((1, 1), (1, 4), (2, 1), (2, 4)):
        folder = tmp_path / f"{processes}-{lanes}"
        train(data, folder, *flags, processes=processes, micro_batch_size=8 // processes // lanes)
        norms[processes, lanes] = [line["grad_norm"] for line in metrics(folder)]
        assert norms[processes, lanes] == pytest.approx(norms[1, 1], rel=2e-5)
        losses = [line["loss"] for line in metrics(folder)]
        assert losses == pytest.approx([line["loss"] for line in metrics(tmp_path / "1-1")], rel=1e-5)
    # What would be seen if each micro-batch were balanced by itself.
    train(data, tmp_path / "micro", *flags, "--model.balance_scope", "micro", micro_batch_size=1)
    assert metrics(tmp_path / "micro")[0]["grad_norm"] != pytest.approx(norms[1, 1][0], rel=1e-3)


@pytest.mark.slow
def test_bias_and_randomness_do_not_know_the_processes_and_are_resumed(data: Path, tmp_path: Path) -> None:
    flags = ("--model.balance", "bias", "--model.expert_dropout", "0.2", "--model.router_jitter_noise", "0.1")
    flags += ("--model.expert_capacity", "1.0", "--model.dropout", "0.1", "--deterministic", "true")
    flags += ("--model.balance_bias_rate", "0.01", "--save_steps", "2")
    for processes in (1, 2):
        train(data, tmp_path / str(processes), *flags, processes=processes, micro_batch_size=2)
    whole = weights(tmp_path / "1")
    assert same_bits(weights(tmp_path / "2"), whole)
    biases = [value for name, value in whole.items() if name.endswith("balance_bias")]
    assert len(biases) == 2 and all(value.abs().max() > 0.005 for value in biases)
    assert any(max(line["expert/dropped"]) > 0 for line in metrics(tmp_path / "1"))
    (tmp_path / "1" / "checkpoint-3").rename(tmp_path / "aside")
    train(data, tmp_path / "1", *flags, "--resume_from_checkpoint", "auto", processes=2, micro_batch_size=2)
    assert "going on from" in output(tmp_path / "1") and same_bits(weights(tmp_path / "1"), whole)
    # The finished folder has the bias, and reads it.
    from runner.checkpoints.trained import find_recipe, load_trained

    _, model = load_trained(tmp_path / "1", find_recipe(tmp_path / "1"))
    for router, bias in zip(experts.routers_of(model), biases, strict=True):
        assert router.balance_bias is not None and torch.equal(router.balance_bias.cpu(), bias)


@pytest.mark.slow
def test_a_run_says_that_its_experts_collapse(data: Path, tmp_path: Path) -> None:
    flags = ("--router_aux_loss_coef", "0", "--learning_rate", "0.3", "--max_steps", "26", "--max_grad_norm", "0")
    train(data, tmp_path / "run", *flags, "--model.num_local_experts", "8", "--model.num_experts_per_tok", "1")
    assert output(tmp_path / "run").count("experts collapse in layer") >= 1
    assert "--router_aux_loss_coef" in output(tmp_path / "run")
    assert "expert/tokens_per_expert" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_on_a_trained_run_and_what_it_leaves(data: Path, tmp_path: Path) -> None:
    import transformers

    from runner.checkpoints.trained import find_recipe, load_trained
    from runner.commands.export import main as export

    train(data, tmp_path / "stage1")
    lora = ("--lora.rank", "2", "--lora.router", "true", "--gradient_checkpointing", "true")
    train(data, tmp_path / "own", *lora, "--init_from", str(tmp_path / "stage1"), processes=2, micro_batch_size=2)
    train(data, tmp_path / "read", *lora, "--model.pretrained", str(tmp_path / "stage1" / "final"))
    batch = batch_of(2)
    for run in ("own", "read"):
        final = tmp_path / run / "final"
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in final.iterdir()}
        first = read_tensors(tmp_path / "stage1" / "checkpoint-3" / "model.safetensors")
        last = read_tensors(tmp_path / run / "checkpoint-3" / "model.safetensors")
        # The base has not moved, and the adapters have.
        held = "base_model.model.model.embed_tokens.weight"
        # That of model.pretrained is not in the checkpoint.
        assert torch.equal(last[held], first["model.embed_tokens.weight"]) if run == "own" else held not in last
        assert all(value.abs().max() > 0 for name, value in last.items() if ".lora_B" in name)
        _, model = load_trained(tmp_path / run, find_recipe(tmp_path / run))
        export(["--checkpoint", str(tmp_path / run), "--output", str(tmp_path / f"{run}-merged")])
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{run}-merged")
        torch.testing.assert_close(logits_of(merged, batch), logits_of(model.cpu(), batch), rtol=1e-4, atol=1e-5)
