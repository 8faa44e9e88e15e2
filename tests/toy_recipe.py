"""A recipe as small as they come, for the laws of the runner: dropout on, odd numbers, every verb but one."""

import dataclasses
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import runner.recipe
from runner.errors import DataError
from runner.lanes import key, permute
from runner.recipe import Batch, Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    hidden_size: int = 16
    """Width."""
    dropout: float = 0.1
    """Dropout, as a share."""


class Numbered(list[Any]):
    """Rows by number, which pretend to have lengths."""

    def length_of(self, index: int) -> int:
        """From 0 to 6."""
        return index % 7


@dataclasses.dataclass(frozen=True)
class Rows:
    """A stream: lane i reads rows i, i + num_lanes, ..., every window of 16 of them shuffled anew in every epoch."""

    examples: list[Any]

    def read(self, lane: int, num_lanes: int, seed: int, cursor: Any | None) -> Iterator[tuple[Any, Any]]:
        """A cursor is [epoch, window, offset in the window]."""
        mine = self.examples[lane::num_lanes]
        windows = [mine[first : first + 16] for first in range(0, len(mine), 16)]
        epoch, window, offset = cursor or (0, 0, 0)
        while True:
            rows = windows[window]
            order = permute(np.arange(len(rows)), len(rows), key(seed, "window", lane, epoch, window))
            for place in order[offset:]:
                offset += 1
                yield rows[place], [epoch, window, offset]
            offset, window = 0, window + 1
            if window == len(windows):
                epoch, window = epoch + 1, 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(runner.recipe.Recipe):
    """Squares of sums, from four numbers; the loss weighs rows unevenly, as tokens do."""

    num_rows: int = 203
    """Training rows."""
    noise: float = 0.0
    """Random augmentation of the inputs."""
    nan_from_row: int = -1
    """Validation rows from here on have a target that is not a number; -1: none."""
    bad_row: int = -1
    """The row whose target is not a number; -1: none."""
    streamed: bool = False
    """Read the rows as a stream, shuffled in windows."""
    only_auxiliary: bool = False
    """Train on the auxiliary loss alone."""
    slow_tokens: int = 0
    """Calls of the model, of a second each, that a prediction takes, as if it generated tokens."""
    slow_process: int = -1
    """The process that is so slow; -1: all."""
    weightless: bool = False
    """Score nothing, as where every label is masked."""
    slow_rows: float = 0.0
    """Seconds that a micro-batch takes to be put together: in a loader worker, and on the slow process."""
    dying_workers: bool = False
    """Let every loader worker die as if memory ran out."""
    unsendable: bool = False
    """Put something into each micro-batch that cannot be sent to another process."""
    broken_process: int = -1
    """The process that meets a row which is broken; -1: none."""
    num_test_rows: int = 31
    """Rows of the test split."""
    shows_answers: bool = False
    """Show two errors of each evaluation."""
    most_rows: int = 0
    """Rows that fit into the pretended memory; 0: any number."""
    model_settings: ModelSettings = ModelSettings()

    best_metric = "mae"

    def data(self, split: str) -> Any:
        """Rows of four numbers and a target."""
        if self.num_rows == 0:
            raise DataError("num_rows is 0: type --num_rows with at least 1.")
        generator = torch.Generator().manual_seed(1 if split == "train" else 2)
        number_of_rows = {"train": self.num_rows, "test": self.num_test_rows}.get(split, 31)
        rows = torch.randn(number_of_rows, 4, generator=generator)
        targets = rows.sum(1) ** 2
        if split != "train" and self.nan_from_row >= 0:
            targets[self.nan_from_row :] = torch.nan
        if split == "train" and self.bad_row >= 0:
            targets[self.bad_row] = torch.nan
        examples = [(number, row, target) for number, (row, target) in enumerate(zip(rows, targets, strict=True))]
        return Rows(examples) if self.streamed and split == "train" else Numbered(examples)

    def collate(self, examples: list[Any]) -> Batch:
        """Stack the rows; a row of number n counts 1 + n % 3 times."""
        ids = [example[0] for example in examples]
        self._misbehave()
        ledger = os.environ.get("TOY_LEDGER")
        if ledger:
            with open(ledger, "a", encoding="utf-8") as file:
                file.write(" ".join(map(str, ids)) + "\n")
        inputs = torch.stack([example[1] for example in examples])
        if self.noise:
            inputs = inputs + self.noise * random.random()
        counts = torch.tensor([0.0 if self.weightless else 1.0 + number % 3 for number in ids])
        tensors = {"inputs": inputs, "targets": torch.stack([example[2] for example in examples]), "counts": counts}
        extra = {"unsendable": lambda: None} if self.unsendable else {}
        return Batch(tensors, weight=float(counts.sum()), extra=extra)

    def _misbehave(self) -> None:
        rank, in_worker = int(os.environ.get("RANK", "0")), torch.utils.data.get_worker_info() is not None
        if in_worker or self.slow_process == rank:
            time.sleep(self.slow_rows)
        if in_worker and self.dying_workers:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.broken_process == rank:
            raise DataError("row 1 is broken: mend it.")

    def model(self) -> nn.Module:
        """A small network with dropout."""
        width = self.model_settings.hidden_size
        return nn.Sequential(
            nn.Linear(4, width),
            nn.ReLU(),
            nn.Dropout(self.model_settings.dropout),
            nn.LayerNorm(width),
            nn.Linear(width, 1),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Weighted squared error, and an auxiliary loss that couples the rows of a micro-batch."""
        if self.most_rows and model.training and len(batch["inputs"]) > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        outputs = model(batch["inputs"])[:, 0]
        errors = (outputs - batch["targets"]) ** 2
        scale = 0.0 if self.only_auxiliary else 1.0
        total = scale * (errors * batch["counts"]).sum()
        mean = errors.detach().mean()
        # Only some lanes have something to say, and it has two parts.
        sometimes = torch.where(batch["counts"][0] == 1, torch.stack([mean, -mean]), torch.nan)
        return Loss(total, logs={"toy": mean, "sometimes": sometimes}, auxiliary=0.01 * outputs.mean() ** 2)

    def predict(self, model: nn.Module, batch: Batch) -> list[float]:
        """Absolute errors."""
        if self.slow_process in (-1, int(os.environ.get("RANK", "0"))):
            for _ in range(self.slow_tokens):
                time.sleep(1)
                model(batch["inputs"])
        return (model(batch["inputs"])[:, 0] - batch["targets"]).abs().tolist()

    def samples(self, rows: list[float]) -> list[dict[str, object]]:
        """Two errors, with characters that end a cell elsewhere."""
        return [{"error": f"{row:.2f} | a\nb", "right": row < 1} for row in rows[:2]] if self.shows_answers else []

    def score(self, rows: list[float]) -> dict[str, float]:
        """Mean absolute error, and how many rows were seen."""
        return {"mae": sum(rows) / len(rows), "rows": float(len(rows))}
