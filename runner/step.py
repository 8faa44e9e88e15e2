"""One step: forward and backward per lane, clip, update."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch

from runner import memory, optim, schedule
from runner.agreement import Totals
from runner.errors import BadStep, DivergedError, OutOfMemory
from runner.evaluation import on_device
from runner.fetching import Fetched
from runner.hardware import Arriving, seed_everything
from runner.lanes import key
from runner.recipe import Batch, Loss
from runner.run import Run, Unjudged
from runner.tracking import track_histograms


def accumulate(run: Run, lanes: list[Fetched], totals: Totals) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Forward and backward of this process's lanes: the gradient of sum / weight, plus the lanes' mean auxiliary.

    Returns this process's share of the step's loss (a sum over its lanes, already divided) and the lanes' logs.
    """
    while True:
        # A lane that may not fit is tried without the others waiting inside DDP's reduction for this process.
        is_alone = run.hardware.num_processes == 1
        is_larger = totals.largest_lane > run.state.largest_lane
        careful = not is_alone and is_larger and not run.hardware.is_sharded
        overlaps = run.tree is None and not careful
        fits = True
        total = torch.zeros((), device=run.hardware.device)
        all_logs: list[dict[str, torch.Tensor]] = []
        run.statistics = None
        try:
            whole_step = statistics_pass(run, lanes) if run.recipe.needs_step_statistics else None
            for number, lane in enumerate(lanes):
                reduces = overlaps and number == len(lanes) - 1
                share, logs = backward(run, lane, totals, reduces, whole_step)
                total += share
                all_logs.append(logs)
                run.hardware.end_lane()
        except RuntimeError as error:
            if not memory.is_out_of_memory(error) or not (is_alone or careful):
                raise
            memory.check_splittable(run.recipe, [lane.batch for lane in lanes], run.state.parts, error)
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


def statistics_pass(run: Run, lanes: list[Fetched]) -> torch.Tensor | None:
    """The statistics of the step before its gradients: every lane once more, with its own random numbers."""
    try:
        for lane in lanes:
            for _, batch, _ in parts_of(run, lane):
                with torch.no_grad(), run.hardware.autocast():
                    add_statistics(run, lane, Loss.of(run.recipe.loss(run.bare_model, batch)).statistics)
    except RuntimeError as error:
        # The others wait for this process's statistics.
        if memory.is_out_of_memory(error) and run.hardware.num_processes > 1:
            raise OutOfMemory(
                "Out of memory while the statistics of a step were counted: lower --micro_batch_size."
            ) from error
        raise
    statistics, run.statistics = statistics_of_step(run), None
    return statistics


def add_statistics(run: Run, lane: Fetched, statistics: torch.Tensor | None) -> None:
    """Add the statistics of a lane, or of a part of one. An empty lane adds nothing."""
    if statistics is not None:
        statistics = statistics.detach() * (not lane.is_empty)
        run.statistics = statistics if run.statistics is None else run.statistics + statistics


def statistics_of_step(run: Run) -> torch.Tensor | None:
    """The statistics over all processes; None if the recipe returns none."""
    return None if run.statistics is None else run.hardware.summed(run.statistics)


def parts_of(run: Run, lane: Fetched) -> Iterator[tuple[bool, Batch, float]]:
    """A lane in as many parts as memory requires, each with its random numbers: (is the last, batch, fraction)."""
    parts = memory.split(lane.batch, run.state.parts)
    for number, (part, fraction) in enumerate(parts):
        batch = on_device(part, run.hardware.device)
        seed_everything(key(run.lanes.seed, "model", run.state.step, lane.lane, *([number] if number else [])))
        yield number == len(parts) - 1, batch, fraction


def backward(
    run: Run, lane: Fetched, totals: Totals, reduces: bool, whole_step: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Forward and backward of one lane, in as many parts as memory requires."""
    hardware = run.hardware
    # DDP and FSDP average the gradients over the processes; the loss is a sum over them. The tree sums.
    ranks = hardware.num_processes if run.tree is None else 1
    shares: list[torch.Tensor] = []
    logs_of_parts: list[tuple[float, Mapping[str, Any]]] = []
    for is_last, batch, fraction in parts_of(run, lane):
        batch.step_statistics = whole_step
        with reduction(run, reduces and is_last), hardware.autocast():
            loss = Loss.of(run.recipe.loss(run.model, batch))
            add_statistics(run, lane, loss.statistics)
            # An empty lane takes part, so that every process reduces, and counts nothing.
            share = loss.sum / totals.weight if not lane.is_empty and totals.weight else loss.sum * 0
            whole = share * ranks if ranks > 1 else share
            if loss.auxiliary is not None:
                scale = 0.0 if lane.is_empty else ranks * fraction / totals.lanes
                whole = whole + loss.auxiliary * scale
            if loss.step_auxiliary is not None:
                whole = whole + loss.step_auxiliary * (0.0 if lane.is_empty else ranks)
            # A loss that is not finite makes every gradient so, and with it the norm on every process.
            hardware.backward(whole)
        shares.append(share.detach().float())
        logs_of_parts.append((fraction, loss.logs))
    if run.tree is not None:
        run.tree.add_lane()
    logs = mean_logs(logs_of_parts)
    if lane.is_empty:
        # The same names from every process, and no value of an example that only stands in.
        logs = {name: torch.as_tensor(value) * torch.nan for name, value in logs.items()}
    return functools.reduce(torch.add, shares), logs


def mean_logs(parts: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """The logs of a lane from those of its parts, each with the fraction of the examples it holds; NaN is left out."""
    if len(parts) == 1:
        return dict(parts[0][1])
    fractions = torch.tensor([fraction for fraction, _ in parts])
    means = {}
    for name in parts[0][1]:
        values = torch.stack([torch.as_tensor(logs[name], dtype=torch.float32).cpu() for _, logs in parts])
        shares = fractions.view(-1, *[1] * (values.ndim - 1)) * ~values.isnan()
        # 0 / 0 is NaN where no part has a value.
        means[name] = (values.nan_to_num(nan=0.0) * shares).sum(0) / shares.sum(0)
    return means


def reduction(run: Run, now: bool) -> AbstractContextManager[None]:
    """The context of a backward pass: whether DDP reduces its gradients at the end."""
    # FSDP2 reduces each lane's gradients: kept until the last lane, they would be as large as the whole model.
    if now or run.tree is not None or run.hardware.is_sharded or run.hardware.num_processes == 1:
        return nullcontext()
    return run.hardware.accelerator.no_sync(run.model)


def split_lanes(run: Run) -> None:
    """Compute every lane in twice as many parts from now on, and discard the gradients of this step."""
    run.optimizer.zero_grad()
    if run.tree is not None:
        run.tree.clear()
    run.hardware.accelerator.clear()
    run.state.parts *= 2
    run.progress.print_line(
        f"step {run.state.step + 1}: out of memory; every lane is computed in {run.state.parts} parts from here on, "
        f"with the same result. Set --micro_batch_size lower for the next run."
    )


def update(run: Run, loss: torch.Tensor, totals: Totals) -> None:
    """Clip the gradients and update the weights, unless the gradient is not finite.

    The gradients are already summed, so a gradient that is not finite on one process is so on all. Where the device
    runs behind this process, it leaves out such an update by itself, and `judge` looks at the norm during the next
    step: this process never waits for the device.
    """
    judge(run)
    settings, state = run.settings, run.state
    optim.set_step(
        run.optimizer, run.learning_rate(state.step), schedule.adam_beta1(settings, state.step, run.max_steps)
    )
    limit, is_good, is_finite = settings.max_grad_norm or math.inf, True, None
    if judges_late(run):
        unseen = run.hardware.clip_unseen(run.parameters, limit)
        norm, is_finite = Arriving(unseen), unseen.isfinite()
        # What torch's loss scaling tells the fused kernel, too: with 1, it changes nothing.
        run.optimizer.found_inf = (~is_finite).float()
    else:
        norm = run.hardware.clip_gradients(run.parameters, limit)
    run.unjudged = Unjudged(state.step, norm, loss, run.in_hand, totals.lanes, totals.weight)
    if is_finite is None:
        is_good = judge(run)
    # A step of which every example was left out has nothing to teach.
    if is_good and totals.lanes:
        run.saver.before_update(run)
        run.optimizer.step()
        end_step(run, is_finite)
    if run.evaluates_after(state.step + 1, state.examples_seen + totals.examples, totals.examples):
        track_histograms(run)
    # The optimiser's zero_grad does the same, and tells torch's profiler.
    for parameter in run.parameters:
        parameter.grad = None


def judges_late(run: Run) -> bool:
    """Whether a step is judged during the next one: where it saves time, and the optimiser can do without."""
    is_fused = isinstance(run.optimizer, torch.optim.AdamW) and run.optimizer.defaults["fused"]
    return run.hardware.runs_behind and is_fused and not run.settings.grad_norm_spike_factor


def end_step(run: Run, is_finite: torch.Tensor | None) -> None:
    """Let the recipe change its buffers; those of a step whose gradient is not finite stay as they were."""
    statistics = statistics_of_step(run)
    if statistics is None:
        return
    buffers = [] if is_finite is None else list(run.bare_model.buffers())
    before = [buffer.clone() for buffer in buffers]
    run.recipe.end_step(run.bare_model, statistics)
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(cast(torch.Tensor, is_finite), buffer, old))


def judge(run: Run) -> bool:
    """Look at the gradient norm of the last step, unless that is done; whether it is a good step.

    Raises DivergedError or BadStep where it is not and the settings do not skip it. The run then stands before it.
    """
    last, run.unjudged = run.unjudged, None
    if last is None:
        return True
    run.gradient_norm = norm = float(last.norm)
    if math.isfinite(norm):
        run.losses.append(last.loss)
    wrong = find_bad_step(run, norm)
    if wrong is None:
        if last.num_lanes:
            mean = run.state.mean_gradient_norm
            run.state.mean_gradient_norm = norm if mean is None else 0.98 * mean + 0.02 * norm
        if last.num_lanes and not last.weight:
            count_skipped(run, last.step, "nothing is scored in any of its examples: are all labels masked?")
        elif last.num_lanes:
            run.skipped_in_a_row = 0
        return True
    if run.settings.on_bad_step == "skip":
        count_skipped(run, last.step, f"{wrong}; the update is left out.")
        return False
    run.state.step, run.in_hand = last.step, last.lanes
    if run.settings.on_bad_step == "rollback":
        raise BadStep(f"Step {last.step + 1}: {wrong}.")
    raise DivergedError(
        f"Step {last.step + 1}: {wrong} (loss {float(last.loss):.4g} on this process); nothing of that step was kept."
        "\nLower --learning_rate, lengthen --warmup_steps, or go on from the last checkpoint with "
        "--on_bad_step rollback --resume_from_checkpoint auto."
    )


def count_skipped(run: Run, step: int, reason: str) -> None:
    """Print why a step teaches nothing. Raises DivergedError after too many of them in a row."""
    run.skipped_in_a_row += 1
    run.progress.print_line(f"step {step + 1}: {reason}")
    if run.skipped_in_a_row >= run.settings.max_skipped_steps:
        raise DivergedError(
            f"{run.skipped_in_a_row} steps in a row taught nothing (--max_skipped_steps): step {step + 1}: "
            f"{reason}\nCheck the data, lower --learning_rate, or go on from the last checkpoint with "
            "--resume_from_checkpoint auto."
        )


def find_bad_step(run: Run, norm: float) -> str | None:
    """What is wrong with a step whose gradient has this norm; None if nothing is."""
    # fp16's loss scale steps over what is not finite by itself, and looks for a smaller scale.
    if not math.isfinite(norm):
        return None if run.hardware.precision == "fp16" else f"the gradient norm is {norm}"
    mean, factor = run.state.mean_gradient_norm, run.settings.grad_norm_spike_factor
    if factor and mean and run.state.step >= 20 and norm > factor * mean:
        return f"the gradient norm is {norm:.3g}, {norm / mean:.1f} times its running mean"
    return None
