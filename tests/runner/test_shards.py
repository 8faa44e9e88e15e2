"""FSDP2: no process holds the whole model, and the results are those of whole models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.config import parse
from runner.deferred import Deferred, built
from runner.hardware import seed_everything
from tests.launching import metrics, same_bits, train, weights

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


@pytest.mark.parametrize(("processes", "environment"), [(2, {}), (2, SHARDED), (4, SHARDED)])
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

    words = [
        "--recipe",
        "text2sql",
        "--preset",
        "nano",
        "--max_steps",
        "3",
        "--eval_steps",
        "3",
    ]
    words += ["--max_eval_examples", "7", "--eval_batch_size", "2", "--generation.max_new_tokens", "12"]
    words += ["--mixed_precision", "no"]
    runs = {"one": (1, {}), "two": (2, SHARDED)}
    for name, (processes, environment) in runs.items():
        folder = tmp_path / name
        trials.train([*words, "--output_dir", str(folder)], processes, folder.with_suffix(".log"), environment)
    one, two = (metrics(tmp_path / name, "eval") for name in runs)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
