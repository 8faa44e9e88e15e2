"""The loop: fetch a step's lanes, forward and backward per lane, clip, update; then log, evaluate, save."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from runner import memory, optim, schedule
from runner.checkpoint import State
from runner.config import RunSettings
from runner.errors import BadStep, DivergedError, Interrupted, OutOfMemory
from runner.evaluation import evaluate, is_better, on_device
from runner.fetching import Fetched, batches
from runner.hardware import Hardware, seed_everything
from runner.lanes import Lanes, key
from runner.log import Ledger, Metrics, Progress, Speed
from runner.recipe import Batch, Loss
from runner.tree import Tree


@dataclasses.dataclass
class Run:
    """Everything the loop works with; `runner.session` puts it together."""

    settings: RunSettings
    recipe: Any
    hardware: Hardware
    model: nn.Module
    """As accelerate prepared it."""
    bare_model: nn.Module
    """The recipe's own module, without wrappers."""
    optimizer: Any
    lanes: Lanes
    train_data: Any
    eval_data: Sequence[Any]
    max_steps: int
    state: State
    metrics: Metrics | None
    """None but on the main process."""
    ledger: Ledger | None
    """What each step consumed; None but on the main process."""
    progress: Progress
    saver: Any
    """runner.saving.Saver: writes checkpoints."""
    signals: Any
    """runner.signals.Signals: whether the run was asked to stop."""
    best_metric: str
    in_hand: list[Fetched] = dataclasses.field(default_factory=list)
    """What this process's lanes hold in the current step."""
    tree: Tree | None = None
    """With --deterministic: adds up the lanes' gradients, instead of DDP."""
    tally: torch.Tensor | None = None
    """What this process's lanes have tallied of the current step."""
    remark: str | None = None
    """What the recipe last had to say about its numbers."""

    @property
    def share(self) -> range:
        """The lanes of this process."""
        return self.lanes.share(self.hardware.process, self.hardware.num_processes)


def train(run: Run) -> None:
    """Train from the state's step to the end.

    Raises DivergedError where the numbers go bad, BadStep where they do and the run is to go back, and Interrupted
    after a signal and a complete checkpoint.
    """
    settings, state, speed = run.settings, run.state, Speed()
    fetched = fetch(run)
    while state.evaluation_due or (state.step < run.max_steps and not out_of_patience(run)):
        if not state.evaluation_due:
            started = time.monotonic()
            lanes = run.in_hand = [next(fetched) for _ in run.share]
            totals = agree(run, lanes)
            if totals.stop:
                leave(run, totals.stop)
            loss, logs = accumulate(run, lanes, totals)
            gradient_norm = update(run, loss, totals)
            remember(run, lanes, totals)
            speed.add(totals.examples, totals.tokens, time.monotonic() - started)
            run.progress.advance(state.step)
            # Once in a while: say how it goes.
            if due(state.step, settings.logging_steps) or state.step == run.max_steps:
                log(run, loss, gradient_norm, logs, speed)
            state.evaluation_due = due(state.step, settings.eval_steps) or state.step == run.max_steps
        # Once in a while, and at the end: evaluate, and remember the best.
        is_best = judge(run) if state.evaluation_due else False
        finished = state.step >= run.max_steps or out_of_patience(run)
        # Once in a while, at the end, and where it was best: save.
        if due(state.step, settings.save_steps) or finished or is_best:
            run.saver.save(run, is_best)
        if due(state.step, settings.empty_cache_steps):
            run.hardware.accelerator.clear()
    if out_of_patience(run):
        run.progress.say(
            f"stopping early: {run.best_metric} has not improved for {settings.early_stopping_patience} evaluations; "
            f"the best was {state.best_score:.4f} at step {state.best_step}."
        )
    run.saver.wait()


def fetch(run: Run) -> Iterator[Fetched]:
    """The micro-batches of this process's lanes, from the state's step on."""
    steps = range(run.state.step, run.max_steps)
    return batches(run.recipe, run.train_data, run.lanes, run.share, steps, run.state.cursors, run.settings.num_workers)


@dataclasses.dataclass(frozen=True)
class Totals:
    """What the processes know of a step together."""

    weight: float
    """What the loss is divided by."""
    lanes: int
    """Lanes that hold examples: what the auxiliary losses are averaged over."""
    examples: int
    tokens: int
    checksum: int
    """63 bits per lane, summed: what the step consumed."""
    is_larger: bool
    """Whether a lane is larger than any before it, so that it may not fit into memory."""
    stop: str | None
    """The signal that asked for the end."""


def agree(run: Run, lanes: list[Fetched]) -> Totals:
    """Add up over the processes what each knows of this step: one small all-reduce."""
    signal = run.signals.number
    checksum = sum(lane.checksum(run.state.step) for lane in lanes)
    larger = [lane for lane in lanes if memory.size(lane.batch) > run.state.largest_lane]
    own = [
        sum(lane.batch.weight for lane in lanes),
        sum(not lane.is_empty for lane in lanes),
        sum(len(lane.consumed) for lane in lanes),
        sum(lane.batch.tokens for lane in lanes),
        # In halves, because a float holds 53 bits exactly.
        checksum >> 32,
        checksum & 0xFFFFFFFF,
        len(larger),
        signal > 0,
    ]
    weight, full, examples, tokens, high, low, num_larger, asked = run.hardware.sum(own)
    stop = None
    if asked:
        stop = run.signals.name(signal) if signal else "a signal to another process"
    return Totals(
        weight, int(full), int(examples), int(tokens), ((int(high) << 32) + int(low)) % 2**64, num_larger > 0, stop
    )


def leave(run: Run, signal: str) -> None:
    """Save completely, then raise Interrupted."""
    run.saver.save(run, is_best=False)
    run.saver.wait()
    raise Interrupted(f"Stopped by {signal} at step {run.state.step}; saved. Go on with --resume_from_checkpoint auto.")


def accumulate(run: Run, lanes: list[Fetched], totals: Totals) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Forward and backward of this process's lanes: the gradient of sum / weight, plus the lanes' mean auxiliary.

    Returns this process's share of the step's loss (a sum over its lanes, already divided) and the lanes' logs.
    """
    while True:
        # A lane that may not fit is tried without the others waiting inside DDP's reduction for this process.
        is_alone = run.hardware.num_processes == 1
        careful = not is_alone and totals.is_larger and not run.hardware.is_sharded
        overlaps = run.tree is None and not careful
        fits = True
        total = torch.zeros((), device=run.hardware.device)
        all_logs: list[dict[str, torch.Tensor]] = []
        run.tally = None
        try:
            whole_step = survey(run, lanes) if getattr(run.recipe, "tallies_first", False) else None
            for number, lane in enumerate(lanes):
                reduces = overlaps and number == len(lanes) - 1
                share, logs = backward(run, lane, totals, reduces, whole_step)
                total += share
                all_logs.append(logs)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error) or not (is_alone or careful):
                raise
            memory.check_splittable(run.recipe, lanes, run.state.parts, error)
            fits = False
        if careful:
            fits = not run.hardware.any(not fits)
        if fits:
            break
        split_lanes(run)
    if run.tree is not None:
        run.tree.finish()
    elif careful:
        run.hardware.mean_gradients(run.model)
    return total, all_logs


def survey(run: Run, lanes: list[Fetched]) -> torch.Tensor | None:
    """The tally of the step before its gradients: every lane once more, with the random numbers that it will have."""
    try:
        for lane in lanes:
            for _, batch, _ in parts_of(run, lane):
                with torch.no_grad(), run.hardware.accelerator.autocast():
                    add_tally(run, lane, Loss(*run.recipe.loss(run.bare_model, batch)).tally)
    except RuntimeError as error:
        # The others wait for this process's tally.
        if memory.is_out_of_memory(error) and run.hardware.num_processes > 1:
            raise OutOfMemory("Out of memory while a step was tallied: lower --micro_batch_size.") from error
        raise
    tally, run.tally = tally_of_step(run), None
    return tally


def add_tally(run: Run, lane: Fetched, tally: torch.Tensor | None) -> None:
    """Count what a lane, or a part of one, has tallied; an empty lane counts nothing."""
    if tally is not None:
        tally = tally.detach() * (not lane.is_empty)
        run.tally = tally if run.tally is None else run.tally + tally


def tally_of_step(run: Run) -> torch.Tensor | None:
    """The tally over all processes; None where the recipe keeps none."""
    if run.tally is None:
        return None
    return torch.tensor(run.hardware.sum(run.tally.reshape(-1).tolist()), device=run.tally.device).view_as(run.tally)


def parts_of(run: Run, lane: Fetched) -> Iterator[tuple[bool, Batch, float]]:
    """A lane in as many parts as memory asks for, each with its random numbers: (is the last, batch, fraction)."""
    parts = memory.split(lane.batch, run.state.parts)
    for number, (part, fraction) in enumerate(parts):
        batch = on_device(part, run.hardware.device)
        seed_everything(key(run.settings.seed, "model", run.state.step, lane.lane, *([number] if number else [])))
        yield number == len(parts) - 1, batch, fraction


def backward(
    run: Run, lane: Fetched, totals: Totals, reduces: bool, whole_step: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Forward and backward of one lane, in as many parts as memory asks for."""
    hardware = run.hardware
    # DDP and FSDP average the gradients over the processes; the loss is a sum over them. The tree sums.
    ranks = hardware.num_processes if run.tree is None else 1
    total, logs = torch.zeros((), device=hardware.device), {}
    for is_last, batch, fraction in parts_of(run, lane):
        batch.step = whole_step
        with reduction(run, reduces and is_last), hardware.accelerator.autocast():
            loss = Loss(*run.recipe.loss(run.model, batch))
            add_tally(run, lane, loss.tally)
            # An empty lane takes part, so that every process reduces, and counts nothing.
            share = loss.sum / totals.weight if not lane.is_empty and totals.weight else loss.sum * 0
            whole = share * ranks
            if loss.auxiliary is not None:
                scale = 0.0 if lane.is_empty else ranks * fraction / totals.lanes
                whole = whole + loss.auxiliary * scale
            # A loss that is not finite makes every gradient so, and with it the norm on every process.
            hardware.backward(whole * torch.where(whole.detach().isfinite(), 1.0, torch.nan))
        total += share.detach()
        logs = dict(loss.logs)
        if lane.is_empty:
            # The same names from every process, and nothing said of an example that only stands in.
            logs = {name: torch.as_tensor(value) * torch.nan for name, value in logs.items()}
    if run.tree is not None:
        run.tree.add_lane()
    return total, logs


@contextmanager
def reduction(run: Run, now: bool) -> Iterator[None]:
    """Whether the gradients of this backward go over to the other processes at its end."""
    if hasattr(run.model, "set_requires_gradient_sync"):
        run.model.set_requires_gradient_sync(now)  # type: ignore[operator]
        yield
    elif now or run.tree is not None:
        yield
    else:
        with run.hardware.accelerator.no_sync(run.model):
            yield


def split_lanes(run: Run) -> None:
    """Halve the parts that every lane is computed in, and forget what was computed of this step."""
    run.optimizer.zero_grad()
    if run.tree is not None:
        run.tree.clear()
    run.hardware.accelerator.clear()
    run.state.parts *= 2
    run.progress.say(
        f"step {run.state.step + 1}: out of memory; every lane is computed in {run.state.parts} parts from here on, "
        f"with the same result. Set --micro_batch_size lower for the next run."
    )


def update(run: Run, loss: torch.Tensor, totals: Totals) -> float:
    """Clip and take one step of the optimiser, unless the numbers are bad. Returns the gradient's norm.

    The gradients have been summed: a process with a bad one has made them bad, and seen, on all.
    """
    settings, state = run.settings, run.state
    learning_rate = schedule.learning_rate(settings, state.step, run.max_steps)
    beta1 = schedule.adam_beta1(settings, state.step, run.max_steps)
    optim.set_step(run.optimizer, learning_rate, beta1)
    norm = run.hardware.clip_gradients(run.model, settings.max_grad_norm or math.inf)
    wrong = trouble(run, norm)
    if wrong is None:
        # A step of which every example was left out has nothing to teach.
        if totals.lanes:
            run.optimizer.step()
            tally = tally_of_step(run)
            if tally is not None:
                run.recipe.end_step(run.bare_model, tally)
            mean = state.mean_gradient_norm
            state.mean_gradient_norm = norm if mean is None else 0.98 * mean + 0.02 * norm
    elif settings.on_bad_step == "skip":
        run.progress.say(f"step {state.step + 1}: {wrong}; the update is left out.")
    elif settings.on_bad_step == "rollback":
        raise BadStep(f"Step {state.step + 1}: {wrong}.")
    else:
        raise DivergedError(
            f"Step {state.step + 1}: {wrong} (loss {float(loss):.4g} on this process); nothing of that step was kept."
            "\nLower --learning_rate, lengthen --warmup_steps, or go on from the last checkpoint with "
            "--on_bad_step rollback --resume_from_checkpoint auto."
        )
    if due(state.step + 1, settings.eval_steps) or state.step + 1 == run.max_steps:
        track_histograms(run)
    run.optimizer.zero_grad()
    return norm


def trouble(run: Run, norm: float) -> str | None:
    """What is wrong with a step whose gradient has this norm; None where nothing is."""
    # fp16's loss scale steps over what is not finite by itself, and looks for a smaller scale.
    if not math.isfinite(norm):
        return None if run.hardware.precision == "fp16" else f"the gradient norm is {norm}"
    mean, factor = run.state.mean_gradient_norm, run.settings.grad_norm_spike_factor
    if factor and mean and run.state.step >= 20 and norm > factor * mean:
        return f"the gradient norm is {norm:.3g}, {norm / mean:.1f} times its running mean"
    return None


def remember(run: Run, lanes: list[Fetched], totals: Totals) -> None:
    """Count the step as done, and note what it consumed."""
    state = run.state
    if run.ledger is not None:
        run.ledger.add(state.step, totals.checksum)
    state.step += 1
    state.examples_seen += totals.examples
    state.cursors |= {str(lane.lane): lane.cursor for lane in lanes if lane.cursor is not None}
    if totals.is_larger:
        state.largest_lane = int(run.hardware.max(max(memory.size(lane.batch) for lane in lanes)))


def log(run: Run, loss: torch.Tensor, norm: float, logs: list[dict[str, torch.Tensor]], speed: Speed) -> None:
    """Write and show the numbers of this step: one small all-reduce. A lane's NaN counts as not said."""
    step = run.state.step
    names = sorted({name for lane in logs for name in lane})
    device = run.hardware.device
    packed: list[torch.Tensor] = [loss.reshape(1).float()]
    shapes = []
    for name in names:
        seen = torch.stack(
            [torch.as_tensor(lane[name], dtype=torch.float32, device=device) for lane in logs if name in lane]
        )  # (lanes, ...)
        shapes.append(seen.shape[1:])
        packed += [seen.nansum(0).reshape(-1), (~seen.isnan()).sum(0).reshape(-1)]
    flat = torch.cat(packed)
    if run.hardware.num_processes > 1:
        flat = run.hardware.accelerator.reduce(flat, "sum")
    assert isinstance(flat, torch.Tensor)
    numbers = flat.tolist()
    values: dict[str, Any] = {
        "loss": numbers.pop(0),
        "learning_rate": schedule.learning_rate(run.settings, step - 1, run.max_steps),
        "grad_norm": norm,
        **epoch_of(run),
        **speed.take(),
    }
    for name, shape in zip(names, shapes, strict=True):
        size = math.prod(shape)
        totals, counts, numbers = numbers[:size], numbers[size : 2 * size], numbers[2 * size :]
        means = [total / count if count else math.nan for total, count in zip(totals, counts, strict=True)]
        if shape:
            values[name] = torch.tensor(means).reshape(shape).tolist()
        elif counts[0]:
            values[name] = means[0]
    if run.metrics is not None:
        run.metrics.write(step, "train", values)
    if run.ledger is not None:
        run.ledger.flush()
    run.progress.step(step, values)
    remark = run.recipe.remark(step, values) if hasattr(run.recipe, "remark") else None
    if remark is not None and remark != run.remark:
        run.progress.say(remark)
    run.remark = remark
    track(run, "train", values)


def epoch_of(run: Run) -> dict[str, float]:
    """Passes over the training split so far; nothing for a stream of unknown length."""
    per_epoch = run.progress.examples_per_epoch
    return {"epoch": run.state.examples_seen / per_epoch} if per_epoch else {}


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


def track_histograms(run: Run) -> None:
    """Show TensorBoard how weights, and the gradients of this step, are distributed, wherever an evaluation follows.

    Of a tensor it gets up to 65,536 numbers, evenly spread; of weights that are cut over processes, nothing.
    """
    if run.settings.report_to != "tensorboard" or not run.hardware.is_main or run.hardware.is_sharded:
        return
    writer: Any = run.hardware.accelerator.get_tracker("tensorboard", unwrap=True)
    for name, parameter in run.bare_model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is None:
                continue
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 65536)].float().cpu()
            some = some[some.isfinite()]
            if some.numel():
                writer.add_histogram(f"{kind}/{name}", some.numpy(), run.state.step + 1)


def judge(run: Run) -> bool:
    """Evaluate, and keep the best score, its step and the patience in the state. True where this is the best.

    Where a signal comes in between, the evaluation is broken off, and done again after the restart.
    """
    state, name = run.state, run.best_metric
    if len(run.eval_data):

        def asked() -> bool:
            return run.hardware.any(run.signals.number > 0)

        size = run.settings.examples_per_evaluation_batch
        scores = evaluate(run.recipe, run.bare_model, run.eval_data, run.hardware, size, asked)
        if scores is None:
            number = run.signals.number
            leave(run, run.signals.name(number) if number else "a signal to another process")
            return False
    else:
        scores = {}
    state.evaluation_due = False
    if not scores:
        return False
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
    """Whether evaluation has not improved for as long as the settings allow."""
    patience = run.settings.early_stopping_patience
    return patience is not None and run.state.evaluations_without_improvement >= patience


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 means never."""
    return every > 0 and step % every == 0
