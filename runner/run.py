"""A run: everything that the loop works with."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

import torch
from torch import nn

from runner import schedule
from runner.checkpoints.state import State
from runner.energy import Meter
from runner.errors import Interrupted
from runner.fetching import Fetched
from runner.hardware import Hardware
from runner.lanes import Lanes
from runner.log import Ledger, Metrics
from runner.progress import Progress
from runner.recipe import Data, Example, Recipe
from runner.settings import RunSettings
from runner.tree import Tree
from runner.watching import Watch


@dataclasses.dataclass(frozen=True)
class Unjudged:
    """A step whose gradient norm nobody has looked at yet."""

    step: int
    """Its number, counted from 0."""
    norm: SupportsFloat
    loss: torch.Tensor
    """This process's share."""
    lanes: list[Fetched]
    """The micro-batches of this process."""
    num_lanes: int
    """Lanes of all processes that hold examples."""
    weight: float
    """What the loss was divided by."""


@dataclasses.dataclass
class Run:
    """Everything the loop works with; `runner.assembly` puts it together."""

    settings: RunSettings
    recipe: Recipe
    hardware: Hardware
    model: nn.Module
    """As accelerate prepared it."""
    bare_model: nn.Module
    """The recipe's own module, without wrappers."""
    optimizer: Any
    lanes: Lanes
    train_data: Data
    eval_data: Sequence[Example]
    max_steps: int
    state: State
    metrics: Metrics | None
    """None but on the main process."""
    ledger: Ledger | None
    """What each step consumed; None but on the main process."""
    progress: Progress
    saver: Any
    """runner.checkpoints.saver.Saver: writes checkpoints."""
    signals: Any
    """runner.signals.Signals: whether the run was asked to stop."""
    best_metric: str
    in_hand: list[Fetched] = dataclasses.field(default_factory=list)
    """What this process's lanes hold in the current step."""
    tree: Tree | None = None
    """With --deterministic: adds up the lanes' gradients, instead of DDP."""
    unjudged: Unjudged | None = None
    """The last step, where nobody has looked at its gradient norm yet."""
    gradient_norm: float = math.nan
    """That of the last step which was looked at."""
    losses: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """This process's share of the loss of each good step since the last log line."""
    statistics: torch.Tensor | None = None
    """The sum of `Loss.statistics` over this process's lanes of the current step."""
    watch: Watch = dataclasses.field(default_factory=Watch)
    """The curves so far, and what was said about them."""
    meter: Meter | None = None
    """Counts energy, on the main process; None before the first log line."""
    remark: str | None = None
    """What the recipe last had to say about its numbers."""
    skipped_in_a_row: int = 0
    """Steps without an update, or without anything to score, up to now."""
    lacks_best_metric: bool = False
    """Whether the user has read that evaluations have no `best_metric`."""

    rates: Callable[[int], float] | None = None
    """Learning rates by step, instead of those of the schedule: for a range test."""
    set_aside: str | None = None
    """The folder with the checkpoints of another branch, if this start has set some aside."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Warnings to print before the first step."""

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters, which are looked up once: the way through all modules takes long."""
        return list(self.model.parameters())

    def learning_rate(self, step: int) -> float:
        """The learning rate of update number `step`, counted from 0."""
        if self.rates is not None:
            return self.rates(step)
        return schedule.learning_rate(self.settings, step, self.max_steps)

    def ends_epoch(self, seen: int, examples: int) -> bool:
        """Whether an epoch ends in a step of `examples` examples, after which there are `seen` in all."""
        per_epoch = self.progress.examples_per_epoch
        return bool(per_epoch) and seen // per_epoch > (seen - examples) // per_epoch

    def evaluates_after(self, step: int, seen: int, examples: int) -> bool:
        """Whether there is an evaluation after `step` updates; of the last one, see `ends_epoch`."""
        if self.settings.eval_every == "epoch":
            return self.ends_epoch(seen, examples) or step == self.max_steps
        return schedule.due(step, self.settings.eval_steps) or step == self.max_steps

    @property
    def share(self) -> range:
        """The lanes of this process."""
        return self.lanes.share(self.hardware.process, self.hardware.num_processes)


def save_and_stop(run: Run, signal: str) -> None:
    """Save completely, then raise Interrupted."""
    run.saver.save(run, is_best=False)
    run.saver.wait(run.hardware)
    raise Interrupted(f"Stopped by {signal} at step {run.state.step}; saved. Go on with --resume_from_checkpoint auto.")
