"""The loops that bench_loop.py compares: bare PyTorch, accelerate's own, transformers.Trainer, Lightning and Relay.

Each trains the same model on the same micro-batches in the same order, with fused AdamW, decay of matrices alone,
clipping, a cosine without warm-up, and a log line every ten steps. Each returns the times at the end of every
step, and the weights after the last.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from runner import recipe as contract
from runner.assembly import NoSaver, NoSignals, build_run
from runner.checkpoints.state import State
from runner.config import Config
from runner.hardware import open_hardware
from runner.lanes import Lanes
from runner.log import Ledger, Metrics
from runner.loop import train
from runner.progress import Progress
from runner.recipe import Batch, Loss
from runner.settings import RunSettings
from tests.benchmarks.llama_recipe import summed_loss

BATCH, CONTEXT, VOCABULARY = 12, 64, 65
"""Examples of a micro-batch, tokens of an example, different tokens."""
LOGGING_STEPS = 10
MOST_NORM = 0.1
"""What gradients are clipped at: low enough that they are."""


def llama(layers: int, width: int) -> nn.Module:
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

    def model(self) -> nn.Module:
        """The Llama."""
        return llama(self.layers, self.width)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy."""
        return Loss(summed_loss(model, batch["input_ids"]))


@dataclasses.dataclass(frozen=True)
class Work:
    """What every contender is to do."""

    layers: int
    width: int
    accumulation: int
    """Micro-batches a step of each process."""
    steps: int
    processes: int = 1
    process: int = 0
    """The rank of this one."""

    @property
    def recipe(self) -> Recipe:
        """The model and the data."""
        return Recipe(layers=self.layers, width=self.width)

    @property
    def batch_size(self) -> int:
        """Examples a step, of all processes."""
        return BATCH * self.accumulation * self.processes

    def micro_batches(self, processes: Iterable[int]) -> list[int]:
        """The examples of these processes, in Relay's order: their micro-batches take turns within each step."""
        lanes = Lanes(len(self.recipe.data("train")), self.batch_size, BATCH, seed=0)
        shares = [lanes.share(process, self.processes) for process in processes]
        return [
            example
            for step in range(self.steps)
            for turn in zip(*shares, strict=True)
            for lane in turn
            for example in lanes.indices(step, lane)
        ]

    @property
    def own_examples(self) -> list[int]:
        """The examples of this process, one micro-batch after another."""
        return self.micro_batches([self.process])

    @property
    def all_examples(self) -> list[int]:
        """The examples of all processes, for libraries that give each process a micro-batch in turn."""
        return self.micro_batches(range(self.processes))

    def loader(self, examples: list[int]) -> Any:
        """The micro-batches of these examples, in their order."""
        return torch.utils.data.DataLoader(
            self.recipe.data("train"), batch_size=BATCH, sampler=examples, collate_fn=stacked
        )


def stacked(windows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A micro-batch as transformers' models take it."""
    return {"input_ids": torch.stack(windows)}


def mean_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of a micro-batch."""
    return summed_loss(model, ids) / ids[:, 1:].numel()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Fused, with decay of matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def weights_of(model: nn.Module) -> torch.Tensor:
    """All weights, one after another."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


class Ends(list[tuple[float, float]]):
    """The clock and the processor's seconds at the end of each step."""

    def note(self) -> None:
        """One step is done."""
        self.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds a step, of the clock and of the processor."""
        clock, processor = ((last - first) / (len(self) - 1) for first, last in zip(self[0], self[-1], strict=True))
        return clock, processor


def log_line(folder: Path, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
    """Every ten steps, the numbers of a step to a file."""
    if step % LOGGING_STEPS == 0:
        with (folder / "log.txt").open("a") as file:
            file.write(f"{step} {float(loss)} {float(norm)}\n")


def bare(work: Work, folder: Path) -> tuple[Ends, torch.Tensor]:
    """Plain PyTorch, with its DDP where there are several processes."""
    model: Any = work.recipe.model().train()
    own = model
    if work.processes > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.steps)
    micro_batches = iter(work.loader(work.own_examples))
    ends = Ends()
    for step in range(1, work.steps + 1):
        for number in range(1, work.accumulation + 1):
            waits = work.processes > 1 and number < work.accumulation
            with model.no_sync() if waits else nullcontext():
                loss = mean_loss(model, next(micro_batches)["input_ids"])
                (loss / work.accumulation).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MOST_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ends.note()
        log_line(folder, step, loss, norm)
    return ends, weights_of(own)


def accelerates_own(work: Work, folder: Path) -> tuple[Ends, torch.Tensor]:
    """The loop of accelerate's documentation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=work.accumulation)
    own = work.recipe.model().train()
    optimizer = adamw(own)
    # Its schedules take a step for each process.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.steps * work.processes)
    model, optimizer, micro_batches, scheduler = accelerator.prepare(
        own, optimizer, work.loader(work.all_examples), scheduler
    )
    ends = Ends()
    norm = torch.tensor(0.0)
    for batch in micro_batches:
        with accelerator.accumulate(model):
            loss = mean_loss(model, batch["input_ids"])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), MOST_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ends.note()
            log_line(folder, len(ends), loss, cast(torch.Tensor, norm))
    return ends, weights_of(own)


def trainer(work: Work, folder: Path) -> tuple[Ends, torch.Tensor]:
    """transformers.Trainer, without saving and reporting."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends = Ends()

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            ends.note()

    class Own(Trainer):
        def _get_train_sampler(self, *rest: Any) -> Any:
            return work.all_examples

        # Without the mask that its default collator would not make either.
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            return mean_loss(model, inputs["input_ids"])

    rows = [{"input_ids": window} for window in work.recipe.data("train")]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=work.steps, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=work.accumulation, learning_rate=1e-3, weight_decay=0.1,
        lr_scheduler_type="cosine", logging_steps=LOGGING_STEPS, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused",
        max_grad_norm=MOST_NORM, ddp_find_unused_parameters=False,
    )  # fmt: skip
    model = work.recipe.model()
    watched = Own(model=model, args=arguments, train_dataset=cast(Any, rows), callbacks=[Watch()])
    watched.log = lambda *words, **named: None  # type: ignore[method-assign]
    watched.train()
    return ends, weights_of(model)


def lightning(work: Work, folder: Path) -> tuple[Ends, torch.Tensor]:
    """Lightning's Trainer, without saving, bars and checks of the validation set."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    ends = Ends()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.recipe.model().train()

        def training_step(self, batch: Any, number: int) -> Any:
            loss = mean_loss(self.model, batch["input_ids"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
            if (number + 1) % work.accumulation == 0:
                ends.note()

    owner = lightning.Trainer(
        max_steps=work.steps, accelerator="cpu", devices=work.processes, accumulate_grad_batches=work.accumulation,
        strategy="ddp" if work.processes > 1 else "auto", use_distributed_sampler=False,
        logger=CSVLogger(str(folder)), log_every_n_steps=LOGGING_STEPS, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=MOST_NORM,
        default_root_dir=str(folder),
    )  # fmt: skip
    module = Module()
    owner.fit(module, work.loader(work.own_examples))
    return ends, weights_of(module)


def relay(work: Work, folder: Path) -> tuple[Ends, torch.Tensor]:
    """Relay's loop, with its metrics and its ledger."""
    settings = RunSettings(
        output_dir=str(folder), max_steps=work.steps, batch_size=work.batch_size, micro_batch_size=BATCH,
        learning_rate=1e-3, weight_decay=0.1, max_grad_norm=MOST_NORM, logging_steps=LOGGING_STEPS,
        mixed_precision="no", eval_steps=0, save_steps=0,
    )  # fmt: skip
    config = Config("bench", None, settings, work.recipe).with_batch(work.processes)
    run = build_run(config, open_hardware(config.run), NoSignals(), None, State())
    # Like the others, it neither saves nor prints.
    run.saver, run.progress = NoSaver(), Progress(False, run.max_steps, run.progress.examples_per_epoch)
    if run.hardware.is_main:
        run.metrics, run.ledger = Metrics(folder / "metrics.jsonl", 0), Ledger(folder / "ledger.jsonl", 0, {})
    ends = Ends()
    advance = run.progress.advance

    def note(step: int) -> None:
        advance(step)
        ends.note()

    run.progress.advance = note  # type: ignore[method-assign]
    train(run)
    return ends, weights_of(run.bare_model)


CONTENDERS: dict[str, Callable[[Work, Path], tuple[Ends, torch.Tensor]]] = {
    "bare PyTorch": bare,
    "Relay": relay,
    "accelerate's own loop": accelerates_own,
    "transformers.Trainer": trainer,
    "Lightning": lightning,
}
