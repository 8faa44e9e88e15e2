"""Evaluation: Relay's beside `transformers.Trainer.evaluate` and a plain loop, with the same model, rows and batch.

make bench BENCH=evaluation, or: python -m tests.benchmarks evaluation

All three compute the loss with the recipe's own function. Relay also keeps a row of numbers for each example, and
computes its scores from these rows; Trainer keeps the loss of each batch alone. The three losses are compared. CPU
seconds of this process are counted.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator

from runner.evaluation import evaluate
from runner.hardware import Hardware
from runner.recipe import Batch
from tests.benchmarks import llama_recipe, page

ROUNDS, BATCH = int(os.environ.get("RELAY_ROUNDS", "7")), 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(llama_recipe.Recipe):
    """The Llama, with a row of two numbers for each example and a score."""

    def predict(self, model: Any, batch: Batch) -> list[dict[str, float]]:
        """The number of tokens and the first of them, for each example."""
        ids = batch["input_ids"]
        return [{"tokens": ids.shape[1], "first": first} for first in ids[:, 0].tolist()]

    def score(self, rows: list[Any]) -> dict[str, float]:
        """The mean number of tokens."""
        return {"tokens": statistics.fmean(row["tokens"] for row in rows)}


def relay(recipe: Recipe, model: torch.nn.Module, rows: torch.Tensor) -> Callable[[], float]:
    """Relay's evaluation."""
    hardware = Hardware(Accelerator(cpu=True), "no", "as asked")

    def work() -> float:
        scores = evaluate(recipe, model, cast(Any, rows), hardware, BATCH)
        assert scores is not None and scores["tokens"] == recipe.tokens
        return scores["loss"]

    return work


def trainer(recipe: Recipe, model: torch.nn.Module, rows: torch.Tensor, folder: Path) -> Callable[[], float]:
    """transformers.Trainer's."""
    from transformers import Trainer, TrainingArguments

    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            ids = inputs["input_ids"]
            return llama_recipe.summed_loss(model, ids) / ids[:, 1:].numel()

        def prediction_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=BATCH, report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, prediction_loss_only=True,
    )  # fmt: skip
    owner = Own(
        model=cast(Any, model), args=arguments, eval_dataset=cast(Any, [{"input_ids": each} for each in rows]),
        data_collator=lambda examples: {"input_ids": torch.stack([each["input_ids"] for each in examples])},
    )  # fmt: skip
    owner.log = lambda *words, **named: None  # type: ignore[method-assign]
    return lambda: owner.evaluate()["eval_loss"]


def plain(recipe: Recipe, model: torch.nn.Module, rows: torch.Tensor) -> Callable[[], float]:
    """A loop over torch's loader that adds the losses up."""
    loader = torch.utils.data.DataLoader(cast(Any, rows), batch_size=BATCH, collate_fn=recipe.collate)

    @torch.no_grad()
    def work() -> float:
        model.eval()
        total = weight = 0.0
        for batch in loader:
            total += recipe.loss(model, batch).sum.item()
            weight += batch.weight
        return total / weight

    return work


@pytest.mark.parametrize(("layers", "width"), [(4, 128), (1, 32)])
@pytest.mark.filterwarnings("ignore")
def test_evaluation(layers: int, width: int, tmp_path: Path) -> None:
    recipe = Recipe(layers=layers, width=width)
    torch.manual_seed(0)
    model, rows = recipe.model(), recipe.data("train")
    contenders = {
        "transformers.Trainer": trainer(recipe, model, rows, tmp_path),
        "Relay": relay(recipe, model, rows),
        "plain PyTorch": plain(recipe, model, rows),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    losses = {}
    for turn in range(ROUNDS + 1):
        names = list(contenders)
        for name in names[turn % 3 :] + names[: turn % 3]:
            before = time.process_time()
            losses[name] = contenders[name]()
            if turn:
                taken[name].append(time.process_time() - before)
    assert max(losses.values()) - min(losses.values()) < 1e-5, losses
    count = sum(parameter.numel() for parameter in model.parameters())
    table = []
    for name, seconds in taken.items():
        ratios = [other / own for own, other in zip(seconds, taken["transformers.Trainer"], strict=True)]
        table.append((
            name, f"{1000 * statistics.median(seconds):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
        ))  # fmt: skip
    size = f"{count:,} parameters, {len(rows)} rows of {recipe.tokens} tokens, {BATCH} at a time"
    columns = (size, "CPU ms", "times as fast as Trainer (least - most)")
    page.record("evaluation", columns, table, f"medians of {ROUNDS} interleaved rounds")
