"""Steps per second of Relay's loop, a bare PyTorch loop, transformers.Trainer and Lightning: same model and data.

make bench, or: python -m tests.benchmarks loop

The four take turns, a stretch of steps each, for several rounds, so that a machine that is busy with other things is
busy for all of them; what counts is the ratio within a round. Beside the time of the clock stands the processor's
own, which other programs disturb less. A stretch is timed from the end of its first step to the end of its last, so
that putting the parts together is nobody's loss. All have fused AdamW with decay of matrices alone, clipping at 1, a
cosine, and a log line every ten steps, read from the numbers of that step.
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

from runner import recipe as contract
from runner.assembly import open_run
from runner.config import Config
from runner.log import Ledger, Metrics
from runner.loop import train
from runner.recipe import Batch, Loss
from runner.settings import RunSettings
from tests.benchmarks import page
from tests.benchmarks.llama_recipe import summed_loss

ROUNDS, STEPS = int(os.environ.get("RELAY_ROUNDS", "15")), 30
BATCH, CONTEXT, VOCABULARY = 12, 64, 65


def llama(layers: int, width: int) -> torch.nn.Module:
    """A Llama of the size of nanoGPT's character model on a CPU: 0.8 M parameters with 4 layers, 128 wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=width * 8 // 3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


class Ends(list[tuple[float, float]]):
    """The clock and the processor's seconds at the end of each step."""

    def note(self) -> None:
        """One step is done."""
        self.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds a step, of the clock and of the processor."""
        return tuple((last - first) / (len(self) - 1) for first, last in zip(self[0], self[-1], strict=True))  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(contract.Recipe):
    """Next-token prediction on random characters."""

    layers: int = 4
    width: int = 128
    best_metric = "loss"

    def data(self, split: str) -> Any:
        """Windows of random characters."""
        generator = torch.Generator().manual_seed(0)
        count = 4096 if split == "train" else 0
        return torch.randint(VOCABULARY, (count, CONTEXT), generator=generator)

    def collate(self, examples: list[torch.Tensor]) -> Batch:
        """Stack the windows."""
        ids = torch.stack(examples)
        return Batch({"input_ids": ids}, weight=ids[:, 1:].numel(), tokens=ids.numel())

    def model(self) -> torch.nn.Module:
        """The Llama."""
        return llama(self.layers, self.width)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy."""
        return Loss(summed_loss(model, batch["input_ids"]))


def relay(recipe: Recipe, folder: Path) -> Ends:
    """Relay's loop, with its metrics and its ledger; the times at the end of every step."""
    settings = RunSettings(
        output_dir=str(folder), max_steps=STEPS, batch_size=BATCH, micro_batch_size=BATCH, mixed_precision="no",
        weight_decay=0.1, eval_steps=0, save_steps=0,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    run = open_run(Config("bench", None, settings, recipe))
    run.metrics, run.ledger = Metrics(folder / "metrics.jsonl", 0), Ledger(folder / "ledger.jsonl", 0, {})
    ends = Ends()
    run.progress.advance = lambda step: ends.note()  # type: ignore[method-assign]
    train(run)
    return ends


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """Fused, with decay of matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def loader_of(recipe: Recipe) -> Any:
    """Shuffled batches."""
    return torch.utils.data.DataLoader(
        recipe.data("train"), batch_size=BATCH, shuffle=True, collate_fn=recipe.collate, drop_last=True
    )


def bare(recipe: Recipe, folder: Path) -> Ends:
    """The same in plain PyTorch: a loader, fused AdamW, clipping, a schedule, a log line every ten steps."""
    model = recipe.model().train()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    ends = Ends()
    for step, batch in enumerate(loader_of(recipe), 1):
        loss = recipe.loss(model, batch)
        mean = loss.sum / batch.weight
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            with (folder / "bare.log").open("a") as file:
                file.write(f"{step} {mean.item()} {float(norm)}\n")
        ends.note()
        if step == STEPS:
            break
    return ends


def trainer(recipe: Recipe, folder: Path) -> Ends:
    """transformers.Trainer, without saving and reporting."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends = Ends()

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            ends.note()

    # Without the mask that its default collator would not make either; with the recipe's own loss.
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            batch = Batch(dict(inputs), weight=inputs["input_ids"][:, 1:].numel())
            return recipe.loss(model, batch).sum / batch.weight

    rows = [{"input_ids": window} for window in recipe.data("train")]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=1e-3,
        weight_decay=0.1, lr_scheduler_type="cosine", logging_steps=10, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused",
    )  # fmt: skip
    watched = Own(model=recipe.model(), args=arguments, train_dataset=cast(Any, rows), callbacks=[Watch()])
    watched.log = lambda *words, **named: None  # type: ignore[method-assign]
    watched.train()
    return ends


def lightning(recipe: Recipe, folder: Path) -> Ends:
    """Lightning's Trainer, without saving, bars and checks of the validation set."""
    import lightning

    ends = Ends()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = recipe.model().train()

        def training_step(self, batch: Any, number: int) -> Any:
            loss = recipe.loss(self.model, batch)
            mean = loss.sum / batch.weight
            self.log("loss", mean)
            return mean

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_batch_end(self, *rest: Any) -> None:
            ends.note()

        def transfer_batch_to_device(self, batch: Any, *rest: Any) -> Any:
            return batch

    from lightning.pytorch.loggers import CSVLogger

    owner = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, logger=CSVLogger(str(folder)), log_every_n_steps=10,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        default_root_dir=str(folder),
    )  # fmt: skip
    owner.fit(Module(), loader_of(recipe))
    return ends


CONTENDERS: dict[str, Callable[[Recipe, Path], Ends]] = {
    "bare PyTorch": bare,
    "Relay": relay,
    "transformers.Trainer": trainer,
    "Lightning": lightning,
}


@pytest.mark.parametrize(("layers", "width"), [(4, 128), (1, 32)])
@pytest.mark.filterwarnings("ignore")
def test_steps_per_second(layers: int, width: int, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    recipe = Recipe(layers=layers, width=width)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(ROUNDS + 1):
        # Who goes first changes; the first round warms caches and is not counted.
        names = list(CONTENDERS)
        for name in names[turn % 4 :] + names[: turn % 4]:
            folder = tmp_path / f"{turn}"
            folder.mkdir(exist_ok=True)
            ends = CONTENDERS[name](recipe, folder)
            assert len(ends) == STEPS
            if turn:
                taken[name].append(ends.seconds)
    count = sum(parameter.numel() for parameter in recipe.model().parameters())
    ratios, rows = {}, []
    for name, seconds in taken.items():
        pairs = list(zip(taken["bare PyTorch"], seconds, strict=True))
        clock, processor = ([one[kind] / other[kind] for one, other in pairs] for kind in (0, 1))
        ratios[name] = statistics.median(processor)
        rows.append((
            name, f"{1 / statistics.median(each for each, _ in seconds):.1f}", f"{statistics.median(clock):.3f}",
            f"{1000 * statistics.median(each for _, each in seconds):.2f}",
            f"{ratios[name]:.3f} ({min(processor):.3f} - {max(processor):.3f})",
        ))  # fmt: skip
    page.record(
        "loop",
        (f"{count:,} parameters, {BATCH} x {CONTEXT} tokens a step", "steps/s", "of bare", "CPU ms a step",
         "CPU, of bare (least - most)"),
        rows, f"medians of {ROUNDS} interleaved rounds of {STEPS} steps",
    )  # fmt: skip
    # On a busy machine rounds scatter: this is a net under the figures in docs/benchmarks.md, not their proof.
    assert ratios["Relay"] > (0.9 if width >= 128 else 0.5)
