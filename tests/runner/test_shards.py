"""FSDP2: no process holds the whole model, and the results are those of whole models."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runner.checkpoints.tensors import model_tensors, read_tensors, write_one_by_one
from runner.config import parse
from runner.deferred import LARGE, Deferred, built, read_late
from runner.hardware import seed_everything
from tests.launching import metrics, same_bits, train, weights

NANO = ("--recipe", "text2sql", "--preset", "nano")
SHARDED = {"ACCELERATE_USE_FSDP": "true"}
WIDE = ("--model.hidden_size", "70000", "--eval_steps", "0", "--save_steps", "0")
STILL = (*WIDE, "--max_steps", "1", "--learning_rate", "1e-30")
"""One step that is too small to change a weight, of a model with tensors that are large enough to be deferred."""


def same_model(build: Callable[[], nn.Module]) -> Deferred | None:
    """Check a model that is filled late against one that is built at once; what was recorded of it."""
    seed_everything(5)
    whole, after = build().state_dict(), torch.rand(3)
    model, deferred = built(lambda: seed_everything(5), build)
    assert torch.rand(3).equal(after)
    if deferred is not None:
        assert any(parameter.is_meta for parameter in model.parameters())
        deferred.fill(model, model)
    assert same_bits(model.state_dict(), whole)
    return deferred


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "text2sql", "--preset", "tiny"],
        ["--recipe", "text2sql", "--preset", "tiny", "--model.family", "qwen3_moe"],
        ["--recipe", "text2sql", "--preset", "tiny", "--lora.rank", "4", "--lora.experts", "false"],
        ["--recipe", "language_model", "--preset", "tiny"],
        ["--recipe", "language_model", "--preset", "tiny", "--model.norm", "layer", "--model.tie_embeddings", "false"],
    ],
)
def test_a_recipes_model_that_is_filled_late_has_the_same_bits(words: list[str]) -> None:
    assert same_model(parse(words).recipe.model) is not None


BASES = {
    "mixtral": ["--recipe", "text2sql", "--preset", "tiny"],
    "qwen3_moe": ["--recipe", "text2sql", "--preset", "tiny", "--model.family", "qwen3_moe"],
    "llama": ["--recipe", "language_model", "--preset", "tiny"],
}
UPCYCLED = ["--model.num_local_experts", "3"]
VARIED = [*UPCYCLED, "--model.upcycling_noise", "0.1", "--model.upcycling_drop", "0.3"]


@pytest.mark.parametrize(
    ("base", "recipe", "words"),
    [
        *((base, "text2sql", words) for base in BASES for words in ([], ["--lora.rank", "4"])),
        *(("llama", "language_model", words) for words in ([], ["--lora.rank", "4"])),
        *(("llama", recipe, words) for recipe in ("text2sql", "language_model") for words in (UPCYCLED, VARIED)),
    ],
)
def test_a_trained_model_that_is_read_late_has_the_same_bits(
    base: str, recipe: str, words: list[str], tmp_path: Path
) -> None:
    # Some lie in several files with an index.
    parse(BASES[base]).recipe.model().save_pretrained(tmp_path, max_shard_size="5GB" if words else "300KB")
    config = parse(["--recipe", recipe, "--model.pretrained", str(tmp_path), *words])
    at_once, late = config.recipe.model(), built(lambda: None, config.recipe.model)[0]
    assert late.config.to_dict() == at_once.config.to_dict()
    assert late.training == at_once.training
    assert same_model(config.recipe.model) is not None


def test_new_tokens_and_a_base_in_bf16_are_made_late_too(tmp_path: Path) -> None:
    base = parse(BASES["llama"]).recipe.model()
    for parameter in base.parameters():
        # As if they were saved in bf16.
        parameter.data = parameter.data.bfloat16().float()
    base.save_pretrained(tmp_path)
    settings = ["--recipe", "language_model", "--model.pretrained", str(tmp_path), "--lora.rank", "4"]
    recipe = parse(settings).recipe

    def build() -> nn.Module:
        model = recipe.model()
        model.base_is_elsewhere = True  # type: ignore[assignment]
        recipe.use_precision(model, "bf16")
        return model

    deferred = same_model(build)
    assert deferred is not None
    assert {parameter.dtype for parameter in build().parameters()} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("in_shards", [False, True])
def test_weights_of_another_run_are_read_late(in_shards: bool, tmp_path: Path) -> None:
    words = ["--recipe", "text2sql", "--preset", "tiny"]
    seed_everything(9)
    other = parse(words).recipe.model()
    if in_shards:
        for number, half in enumerate((slice(0, 3), slice(3, None))):
            pieces = {name: value[half].contiguous() for name, value in other.named_parameters() if len(value[half])}
            places = {
                name: {"shape": list(other.get_parameter(name).shape), "at": [half.start] + [0] * (piece.ndim - 1)}
                for name, piece in pieces.items()
            }
            path = tmp_path / f"model.shard-{number}.safetensors"
            save_file(pieces, path, metadata={"places": json.dumps(places)})
    else:
        save_file(model_tensors(other), tmp_path / "model.safetensors")

    def build() -> nn.Module:
        recipe = parse(words).recipe
        model = recipe.model()
        with torch.no_grad():
            recipe.inherit(model, read_late(read_tensors(tmp_path / "model.safetensors")))
        return model

    deferred = same_model(build)
    assert deferred is not None
    large = sum(parameter.numel() >= LARGE for parameter in other.parameters())
    assert sum(isinstance(call.function, functools.partial) for call in deferred.calls) >= large
    assert same_bits(build().state_dict(), other.state_dict())


class Odd(nn.Module):
    """Weights that are made in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = self.table = nn.Embedding(300, 300, padding_idx=3)
        self.orthogonal = nn.Parameter(torch.empty(300, 300).uniform_(-1, 1) * 2 + 1)
        self.truncated = nn.Parameter(nn.init.orthogonal_(torch.empty(300, 300)))
        self.parts = nn.Parameter(torch.zeros(300, 300))
        self.register_buffer("state", torch.ones(70_000))
        with torch.no_grad():
            self.table.weight[7:9].mul_(3)
            self.parts[:100].copy_(self.truncated[100:200])
            self.parts.add_(self.orthogonal.T)
            self.orthogonal.mul_(0.5)


def test_views_products_and_ties_are_filled_late() -> None:
    assert same_model(Odd) is not None


def scaled() -> nn.Module:
    """A layer whose weights have a standard deviation of 1."""
    model = nn.Linear(300, 300)
    model.weight.data /= float(model.weight.detach().std())
    return model


def truncated() -> nn.Module:
    """A layer with weights that torch samples until none is too large."""
    model = nn.Linear(300, 300)
    nn.init.trunc_normal_(model.weight)
    return model


@pytest.mark.parametrize("build", [scaled, truncated])
def test_a_model_that_reads_its_weights_while_it_is_built_is_built_at_once(build: Callable[[], nn.Module]) -> None:
    assert same_model(build) is None


@pytest.mark.parametrize(("processes", "environment"), [(2, {}), (4, {}), (2, SHARDED), (4, SHARDED)])
def test_a_run_starts_with_the_same_bits_on_any_number_of_processes(
    tmp_path: Path, processes: int, environment: dict[str, str]
) -> None:
    train(tmp_path / "one", *STILL)
    train(tmp_path / "many", *STILL, processes=processes, environment=environment)
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    # The step changes what is 0 by 1e-30, and no other bit.
    assert all(float((many[name] - value).abs().max()) < 1e-29 for name, value in one.items())


def test_processes_evaluate_in_turns_as_one_process_does(tmp_path: Path) -> None:
    from runner import trials

    words = [*NANO, "--max_steps", "3", "--eval_steps", "3"]
    words += ["--max_eval_examples", "7", "--eval_batch_size", "2", "--generation.max_new_tokens", "12"]
    words += ["--mixed_precision", "no"]
    runs = {"one": (1, {}), "two": (2, SHARDED)}
    for name, (processes, environment) in runs.items():
        folder = tmp_path / name
        trials.train([*words, "--output_dir", str(folder)], processes, folder.with_suffix(".log"), environment)
    one, two = (metrics(tmp_path / name, "eval") for name in runs)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)


def test_adapters_of_a_trained_model_are_trained_and_evaluated_in_shards(tmp_path: Path) -> None:
    from runner import trials

    base = [*NANO, "--max_steps", "1", "--max_eval_examples", "2", "--output_dir", str(tmp_path / "base")]
    trials.train(base, 1, tmp_path / "base.log")
    words = ["--recipe", "text2sql", "--model.pretrained", str(tmp_path / "base" / "final"), "--lora.rank", "2"]
    words += ["--max_steps", "2", "--eval_steps", "2", "--max_eval_examples", "5", "--eval_batch_size", "2"]
    words += ["--generation.max_new_tokens", "5", "--mixed_precision", "no"]
    words += ["--batch_size", "4", "--micro_batch_size", "2"]
    for name, (processes, environment) in {"one": (1, {}), "two": (2, SHARDED)}.items():
        folder = tmp_path / name
        trials.train([*words, "--output_dir", str(folder)], processes, folder.with_suffix(".log"), environment)
    one, two = (metrics(tmp_path / name, "eval") for name in ("one", "two"))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()


def test_the_end_of_a_sharded_run_is_written_one_tensor_at_a_time_as_transformers_writes_it(tmp_path: Path) -> None:
    from transformers import MixtralForCausalLM

    from runner import trials

    words = [*NANO, "--max_steps", "1", "--max_eval_examples", "2", "--generation.max_new_tokens", "4"]
    words += ["--mixed_precision", "no", "--learning_rate", "1e-30", "--final", "last"]
    for name, processes, environment in (("one", 1, {}), ("two", 2, SHARDED), ("cut", 2, SHARDED)):
        folder = tmp_path / name
        words += ["--max_shard_size", "600KB"] if name == "cut" else []
        trials.train([*words, "--output_dir", str(folder)], processes, folder.with_suffix(".log"), environment)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(float((two[name] - value).abs().max()) < 1e-29 for name, value in one.items())
    names = [sorted(path.name for path in (tmp_path / name / "final").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    configs = [(tmp_path / name / "final" / "config.json").read_text(encoding="utf-8") for name in ("one", "two")]
    assert configs[0] == configs[1]
    assert MixtralForCausalLM.from_pretrained(tmp_path / "two" / "final").num_parameters() == 755_328
    cut = sorted((tmp_path / "cut" / "final").glob("model-*.safetensors"))
    assert len(cut) > 3 and (tmp_path / "cut" / "final" / "model.safetensors.index.json").is_file()
    read = MixtralForCausalLM.from_pretrained(tmp_path / "cut" / "final").state_dict()
    assert same_bits(read, MixtralForCausalLM.from_pretrained(tmp_path / "two" / "final").state_dict())
    # The next stage reads several files as one.
    next_stage = ["--recipe", "text2sql", "--model.pretrained", str(tmp_path / "cut" / "final"), "--max_steps", "1"]
    next_stage += [
        "--max_eval_examples",
        "2",
        "--generation.max_new_tokens",
        "4",
        "--output_dir",
        str(tmp_path / "next"),
    ]
    trials.train(next_stage, 1, tmp_path / "next.log")


@pytest.mark.parametrize(("limit", "files"), [(1e9, 1), (300.0, 2), (1.0, 5)])
def test_tensors_are_written_one_by_one_into_files_with_an_index(tmp_path: Path, limit: float, files: int) -> None:
    from safetensors.torch import load_file

    tensors = {f"matrix.{number}": torch.randn(4, 9) for number in range(3)}
    tensors |= {"half": torch.randn(5, 3).bfloat16(), "flags": torch.tensor([True, False, True])}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    write_one_by_one(tmp_path, shapes, tensors.values(), limit)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) == files
    found = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert same_bits(found, tensors)
    if files > 1:
        places = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
        assert all(name in load_file(tmp_path / places[name]) for name in tensors)


def test_the_plan_counts_gathered_layers_in_place_of_copies_of_all_weights() -> None:
    from runner.commands.plan import Measured, gathered_bytes

    layer = nn.Linear(10, 10, bias=False)
    model = nn.ModuleDict({"layers": nn.ModuleList([layer, nn.Linear(5, 5, bias=False)]), "head": nn.Linear(7, 1)})
    assert gathered_bytes(model, 2) == 100 * (3 * 2 + 4) + 8 * 8
    found = Measured(1000, 1000, 1000, "bf16", copies=2000.0, gathered=gathered_bytes(model, 2))
    assert found.memory(1)["bf16 copies"] == 2000 and "gathered layers" not in found.memory(1)
    assert found.memory(8)["gathered layers"] == 1064 and "bf16 copies" not in found.memory(8)
    assert found.memory(8)["weights"] == 500


@pytest.mark.parametrize(("device_bytes", "devices"), [(20e3, 1), (17_500, 2), (9.5e3, 4), (4e3, None)])
def test_the_plan_names_the_smallest_number_of_devices(device_bytes: float, devices: int | None) -> None:
    from runner.commands.plan import Measured

    # 16 bytes a parameter, and 4,500 bytes that each device needs in shards, 1,500 on one device alone.
    found = Measured(1000, 1000, 1000, "bf16", activations=1000.0, recomputed=500.0, gathered=3000.0)
    assert found.smallest(device_bytes) == devices


def test_the_plan_counts_what_torchs_tracker_counts() -> None:
    """text2sql tiny with 20 layers on 2 processes, a lane of 1 x 63 tokens, fp32, two lanes.

    FSDPMemTracker of torch 2.13 on a fake process group and fake tensors: 213.2 MB without the optimiser, of which
    33.8 MB are activations.
    """
    from runner.commands.plan import Measured, gathered_bytes

    with torch.device("meta"):
        model = parse(["--recipe", "text2sql", "--preset", "tiny", "--model.num_hidden_layers", "20"]).recipe.model()
    total = sum(parameter.numel() for parameter in model.parameters())
    parts = Measured(total, total, total, "fp32", activations=33.8e6, gathered=gathered_bytes(model, 4)).memory(2)
    assert sum(parts.values()) - parts["optimiser (AdamW)"] == pytest.approx(213.2e6, rel=0.05)


@pytest.mark.parametrize(("weight_bytes", "tracked"), [(4, 211.0e6), (2, 138.5e6)])
def test_the_plan_gathers_what_torchs_tracker_sees_gathered(weight_bytes: int, tracked: float) -> None:
    """12 layers of tests/benchmarks/bench_shard_memory.py on 2 processes, in fp32 and bf16, one lane of 1 x 63 tokens.

    FSDPMemTracker of torch 2.13 at its peak, in MB: unsharded weights 56.7 and 32.5, their gradients 57.7 and 33.6,
    all-gather 48.3 and 24.1, reduce-scatter 48.3.
    """
    from runner.commands.plan import gathered_bytes
    from tests.benchmarks.bench_shard_memory import LARGE

    with torch.device("meta"):
        model = parse([*LARGE, "--model.num_hidden_layers", "12"]).recipe.model()
    assert gathered_bytes(model, weight_bytes) == pytest.approx(tracked, rel=0.02)


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("preset", ["small-2b", "medium-8b", "large-24b"])
def test_the_lanes_of_a_large_preset_divide_over_its_processes(preset: str, processes: int) -> None:
    from runner.lanes import check_batch, check_world

    run = parse(["--recipe", "text2sql", "--preset", preset]).with_batch(processes).run
    check_batch(run.batch_size or 0, run.micro_batch_size)
    check_world((run.batch_size or 0) // run.micro_batch_size, processes)
