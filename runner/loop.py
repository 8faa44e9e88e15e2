"""The loop: fetch a step's lanes, forward and backward per lane, clip, update; then log, evaluate, save."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from runner import optim, schedule
from runner.checkpoint import State
from runner.config import RunSettings
from runner.errors import DivergedError, Interrupted
from runner.evaluation import evaluate, is_better, on_device, take
from runner.hardware import Hardware, seed_everything
from runner.lanes import Lanes, key
from runner.log import Metrics, Progress, Speed
from runner.recipe import Batch, Loss
from runner.tree import Tree


@dataclasses.dataclass
class Run:
    """Everything the loop works with; `runner.train` puts it together."""

    settings: RunSettings
    recipe: Any
    hardware: Hardware
    model: nn.Module
    """As accelerate prepared it."""
    bare_model: nn.Module
    """The recipe's own module, without wrappers."""
    optimizer: Any
    lanes: Lanes
    train_data: Sequence[Any]
    eval_data: Sequence[Any]
    max_steps: int
    state: State
    metrics: Metrics | None
    """None but on the main process."""
    progress: Progress
    saver: Any
    """runner.saving.Saver: writes checkpoints."""
    signals: Any
    """runner.signals.Signals: whether the run was asked to stop."""
    best_metric: str
    tree: Tree | None = None
    """With --deterministic: adds up the lanes' gradients, instead of DDP."""


def train(run: Run) -> None:
    """Train from the state's step to the end.

    Raises DivergedError where the numbers go bad, and Interrupted after a signal and a complete checkpoint.
    """
    settings, state, speed = run.settings, run.state, Speed()
    batches = fetch(run, state.step)
    finished = state.step >= run.max_steps or out_of_patience(run)
    while not finished:
        started = time.monotonic()
        lanes = [next(batches) for _ in run.lanes.share(run.hardware.process, run.hardware.num_processes)]
        weight, stop = agree(run, sum(batch.weight for _, batch in lanes))
        loss, logs = accumulate(run, lanes, weight)
        gradient_norm = update(run, loss)
        state.step += 1
        speed.add(settings.batch_size or 0, tokens_of(lanes) * run.hardware.num_processes, time.monotonic() - started)
        run.progress.advance(state.step)

        finished = state.step >= run.max_steps
        # Once in a while: say how it goes.
        if state.step % settings.logging_steps == 0 or finished:
            log(run, loss, gradient_norm, logs, speed)
        # Once in a while, and at the end: evaluate, and remember the best.
        is_best = False
        if due(state.step, settings.eval_steps) or finished:
            is_best = judge(run)
            finished = finished or out_of_patience(run)
        # Once in a while, at the end, where it was best, and when asked to stop: save.
        if due(state.step, settings.save_steps) or finished or is_best or stop:
            run.saver.save(run, is_best)
        if due(state.step, settings.empty_cache_steps):
            run.hardware.accelerator.clear()
        if stop and not finished:
            run.saver.wait()
            raise Interrupted(
                f"Stopped by {stop} at step {state.step}; saved. Go on with --resume_from_checkpoint auto."
            )
    run.saver.wait()


def fetch(run: Run, first_step: int) -> Iterator[tuple[int, Batch]]:
    """(lane, micro-batch) for every lane of this process, step after step."""
    share = run.lanes.share(run.hardware.process, run.hardware.num_processes)
    loader = torch.utils.data.DataLoader(
        Fetcher(run.recipe, run.train_data, run.lanes, run.settings.seed),  # type: ignore[arg-type]
        sampler=Places(range(first_step, run.max_steps), share),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=run.settings.num_workers,
    )
    yield from loader


@dataclasses.dataclass(frozen=True)
class Places:
    """The (step, lane) pairs of one process, in order."""

    steps: range
    lanes: range

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, lane) for step in self.steps for lane in self.lanes)


def _as_it_is(fetched: Any) -> Any:
    return fetched


@dataclasses.dataclass
class Fetcher:
    """Makes the micro-batch of a (step, lane); lives in the worker processes where there are some."""

    recipe: Any
    data: Sequence[Any]
    lanes: Lanes
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Batch]:
        """The lane's number and micro-batch. A lane that the ragged last step leaves empty weighs nothing."""
        step, lane = place
        seed_everything(key(self.seed, "data", step, lane))
        ids = self.lanes.indices(step, lane)
        batch = self.recipe.collate(take(self.data, ids or [0]))
        if not ids:
            batch.weight = batch.tokens = 0
        return lane, batch


def agree(run: Run, weight: float) -> tuple[float, str | None]:
    """The weight of the whole step, and whether any process was asked to stop: one small all-reduce."""
    signal = run.signals.number
    if run.hardware.num_processes > 1:
        sums = torch.tensor([weight, signal > 0], dtype=torch.float32, device=run.hardware.device)
        total = run.hardware.accelerator.reduce(sums, "sum")
        assert isinstance(total, torch.Tensor)
        weight, asked = total.tolist()
        if asked and not signal:
            return weight, "a signal to another process"
    return weight, run.signals.name(signal) if signal else None


def accumulate(
    run: Run, lanes: list[tuple[int, Batch]], weight: float
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Forward and backward of this process's lanes: the gradient of sum / weight, plus the lanes' mean auxiliary.

    Returns this process's share of the step's loss (a sum over its lanes, already divided) and the lanes' logs.
    """
    accelerator = run.hardware.accelerator
    total = torch.zeros((), device=run.hardware.device)
    all_logs = []
    # DDP averages the gradients over the processes; the loss is a sum over them. The tree sums.
    ranks = run.hardware.num_processes if run.tree is None else 1
    for number, (lane, batch) in enumerate(lanes):
        batch = on_device(batch, run.hardware.device)
        seed_everything(key(run.settings.seed, "model", run.state.step, lane))
        reduces = run.tree is None and number == len(lanes) - 1
        with nullcontext() if reduces else accelerator.no_sync(run.model), accelerator.autocast():
            loss = Loss(*run.recipe.loss(run.model, batch))
            # An empty lane takes part, so that every process reduces, and counts nothing.
            share = loss.sum / max(weight, 1e-9) if batch.weight else loss.sum * 0
            whole = share * ranks
            if loss.auxiliary is not None:
                whole = whole + loss.auxiliary * (ranks / run.lanes.num_lanes)
            accelerator.backward(whole)
        if run.tree is not None:
            run.tree.add_lane()
        total += share.detach()
        all_logs.append(dict(loss.logs))
    if run.tree is not None:
        run.tree.finish()
    return total, all_logs


def update(run: Run, loss: torch.Tensor) -> float:
    """Clip and take one step of the optimiser, unless the gradient is not finite. Returns the gradient's norm.

    DDP has summed the gradients: a process with a bad one has made them bad, and seen, on all.
    """
    settings, accelerator = run.settings, run.hardware.accelerator
    learning_rate = schedule.learning_rate(settings, run.state.step, run.max_steps)
    beta1 = schedule.adam_beta1(settings, run.state.step, run.max_steps)
    optim.set_step(run.optimizer, learning_rate, beta1)
    limit = settings.max_grad_norm or math.inf
    norm = float(accelerator.clip_grad_norm_(run.model.parameters(), limit))  # type: ignore[arg-type]
    if math.isfinite(norm) or run.hardware.precision == "fp16":
        run.optimizer.step()
    elif settings.on_bad_step == "skip":
        run.progress.say(f"step {run.state.step + 1}: the gradient is {norm}; the update is left out.")
    else:
        raise DivergedError(
            f"The gradient norm of step {run.state.step + 1} is {norm} (loss {float(loss):.4g} on this process); "
            "nothing of that step was kept.\nLower --learning_rate, lengthen --warmup_steps, or go on from the last "
            "checkpoint with --on_bad_step skip --resume_from_checkpoint auto."
        )
    run.optimizer.zero_grad()
    return norm


def log(run: Run, loss: torch.Tensor, norm: float, logs: list[dict[str, torch.Tensor]], speed: Speed) -> None:
    """Write and show the numbers of this step: one small all-reduce."""
    step = run.state.step
    names = sorted({name for lane in logs for name in lane})
    device = run.hardware.device
    packed: list[torch.Tensor] = [loss.reshape(1).float()]
    shapes = []
    for name in names:
        seen = [torch.as_tensor(lane[name], dtype=torch.float32, device=device) for lane in logs if name in lane]
        mean = torch.stack(seen).mean(0)
        shapes.append(mean.shape)
        packed.append(mean.reshape(-1) / run.hardware.num_processes)
    flat = torch.cat(packed)
    if run.hardware.num_processes > 1:
        flat = run.hardware.accelerator.reduce(flat, "sum")
    assert isinstance(flat, torch.Tensor)
    numbers = flat.tolist()
    values: dict[str, Any] = {
        "loss": numbers.pop(0),
        "learning_rate": schedule.learning_rate(run.settings, step - 1, run.max_steps),
        "grad_norm": norm,
        "epoch": step * run.lanes.batch_size / max(run.lanes.num_examples, 1),
        **speed.take(),
    }
    for name, shape in zip(names, shapes, strict=True):
        count = math.prod(shape)
        taken, numbers = numbers[:count], numbers[count:]
        values[name] = taken[0] if not shape else torch.tensor(taken).reshape(shape).tolist()
    if run.metrics is not None:
        run.metrics.write(step, "train", values)
    run.progress.step(step, values)
    track(run, "train", values)


def track(run: Run, split: str, values: dict[str, Any]) -> None:
    """Tell the experiment tracker; it knows numbers only, so lists become one number per place."""
    if run.settings.report_to == "none":
        return
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            row = torch.tensor(value).reshape(-1).tolist() if value else []
            flat |= {f"{split}/{name}/{place}": number for place, number in enumerate(row)}
        else:
            flat[f"{split}/{name}"] = value
    run.hardware.accelerator.log(flat, step=run.state.step)


def judge(run: Run) -> bool:
    """Evaluate, and keep the best score, its step and the patience in the state. True where this is the best."""
    if not len(run.eval_data):
        return False
    scores = evaluate(run.recipe, run.bare_model, run.eval_data, run.hardware, run.settings.micro_batch_size)
    name, state = run.best_metric, run.state
    better = is_better(name, scores.get(name, math.nan), state.best_score, run.settings.greater_is_better)
    if better:
        state.best_score, state.best_step = scores[name], state.step
        state.evaluations_without_improvement = 0
    else:
        state.evaluations_without_improvement += 1
    if run.metrics is not None:
        run.metrics.write(state.step, "eval", scores)
    run.progress.evaluation(state.step, scores, f"  (best {name} so far)" if better else "")
    track(run, "eval", scores)
    return better


def out_of_patience(run: Run) -> bool:
    """Whether evaluation has not improved for as long as the settings allow; says so."""
    patience = run.settings.early_stopping_patience
    if patience is None or run.state.evaluations_without_improvement < patience:
        return False
    run.progress.say(
        f"stopping early: {run.best_metric} has not improved for {patience} evaluations; "
        f"the best was {run.state.best_score:.4f} at step {run.state.best_step}."
    )
    return True


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 means never."""
    return every > 0 and step % every == 0


def tokens_of(lanes: list[tuple[int, Batch]]) -> int:
    """Tokens in this process's lanes."""
    return sum(batch.tokens for _, batch in lanes)
