"""torch.compile of layers: few compilations whatever the lengths, the same numbers, and evaluations as written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from recipes.text2sql.recipe import Recipe
from recipes.text2sql.settings import DataSettings, ModelSettings
from runner import assembly
from runner.assembly import open_run
from runner.compiling import as_written, compile_model, repeated
from runner.config import parse
from runner.evaluation import evaluate
from runner.loop import train
from tests.launching import TOY

# It counts and guards as the default one does, and needs no compiler of C++.
BACKEND = "eager"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was compiled before is forgotten, and nothing is counted yet."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


def llama(layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32
    )
    return LlamaForCausalLM(config)


def test_the_layers_share_one_compilation_and_lengths_a_second_one() -> None:
    model, other = llama(5), llama(5)
    names = list(model.state_dict())
    compile_model(model, backend=BACKEND)
    assert list(model.state_dict()) == names
    seen = []
    for batch, length in [(4, 9), (4, 17), (3, 12), (2, 30), (4, 21), (3, 8), (4, 25), (2, 11), (4, 14)]:
        ids = torch.randint(32, (batch, length))
        found, own = (each(input_ids=ids, use_cache=False).logits for each in (model, other))
        torch.testing.assert_close(found, own)
        found.sum().backward()
        seen.append(compilations())
    # For the first length, for all of them, and for another number of rows.
    assert seen[0] == 1 and seen[2] <= 3 and seen[-1] == seen[2], seen


def test_text2sql_does_not_compile_for_each_length(tmp_path: Path) -> None:
    settings = ModelSettings(hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                             num_key_value_heads=2, num_local_experts=4)  # fmt: skip
    recipe = Recipe(data_settings=DataSettings(source="demo"), model_settings=settings).prepare(tmp_path)
    model = recipe.model()
    compile_model(model, backend=BACKEND)
    data = recipe.data("train")
    lengths, seen = set(), []
    for number in range(16):
        batch = recipe.collate([data[17 * number + place] for place in range(4)])
        lengths.add(batch["input_ids"].shape[1])
        recipe.loss(model, batch).sum.backward()
        seen.append(compilations())
    assert len(lengths) > 8
    # Some for the first length, as many for all others.
    assert 0 < seen[-1] <= 2 * seen[0] and seen[-1] == seen[3], seen


class Heads(nn.Module):
    """A model whose repeated parts are few of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(40, 40)
        self.heads = nn.ModuleList(nn.Linear(40, 1) for _ in range(3))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(self.body(values)) for head in self.heads], 1)


def test_what_is_compiled() -> None:
    model = llama(3)
    assert list(repeated(model)) == list(model.model.layers)
    compile_model(model, backend=BACKEND)
    assert model._compiled_call_impl is None and model.model.layers[1]._compiled_call_impl is not None
    heads = Heads()
    compile_model(heads, backend=BACKEND)
    assert heads._compiled_call_impl is not None and heads.heads[0]._compiled_call_impl is None


def test_a_run_trains_compiled_and_evaluates_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Callable[..., None] = compile_model
    monkeypatch.setattr(assembly, "compile_model", lambda model: own(model, backend=BACKEND))
    words = ["--recipe", TOY, "--max_steps", "4", "--batch_size", "8", "--micro_batch_size", "4", "--torch_compile",
             "true", "--mixed_precision", "no", "--eval_steps", "0"]  # fmt: skip
    run = open_run(parse([*words, "--output_dir", str(tmp_path / "run")]))
    train(run)
    compiled = compilations()
    assert compiled > 0
    assert not any("_orig_mod" in name for name, _ in run.model.named_parameters())
    torch._dynamo.reset()
    scores = evaluate(run.recipe, run.bare_model, run.eval_data, run.hardware, 3)
    assert scores and compilations() == compiled
    with as_written(nn.Linear(1, 1)):
        pass
