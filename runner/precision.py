"""The number format of a training on a CPU, by measurement: fp32 or bf16, whichever computes its model faster.

A CPU that multiplies in bf16 is not faster with it for every model: tensors are converted before each product, and the
products of a small model are short.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from runner.fetching import batches
from runner.hardware import Hardware, seed_everything
from runner.lanes import Lanes, key
from runner.recipe import Batch, Data, Loss, Recipe
from runner.settings import RunSettings

LIMIT_SECONDS = 1.0
"""How long the formats are measured, but for one lane in each."""
LEAST_TURNS = 3
"""The first turn has what happens once."""
FASTER = 0.9
"""bf16 is chosen where it takes less than this share of the time of fp32, which is more exact."""


def measured_precision(
    hardware: Hardware, settings: RunSettings, recipe: Recipe, model: nn.Module, data: Data, lanes: Lanes
) -> Hardware:
    """The hardware with the faster format, for a new run with `mixed_precision auto` on a CPU that has bf16.

    The main process measures, and the others take its choice. It is not measured where the weights depend on it:
    frozen ones are held in bf16, and sharded ones are not here yet.
    """
    is_open = settings.mixed_precision == "auto" and hardware.device.type == "cpu" and hardware.precision == "bf16"
    if not is_open or hardware.is_sharded or not all(each.requires_grad for each in model.parameters()):
        return hardware

    def measure() -> dict[str, float]:
        lane = next(batches(recipe, data, lanes, range(1), range(1), {}, 0))
        try:
            return seconds_of_formats(recipe, model, lane.batch, key(settings.seed, "precision"))
        except RuntimeError:
            # Too little memory for a lane: the training itself says so, or splits it.
            return {}

    seconds = hardware.on_main(measure)
    if not seconds:
        return hardware
    is_faster, reason = compared(seconds["no"], seconds["bf16"])
    return dataclasses.replace(hardware, reason=reason) if is_faster else hardware.in_fp32(reason)


def compared(full: float, half: float) -> tuple[bool, str]:
    """Whether bf16 is to be chosen, and the reason, from the seconds that a lane takes in fp32 and in bf16."""
    return (
        half < FASTER * full,
        f"measured: a lane takes {in_words(full)} of CPU time in fp32, {in_words(half)} in bf16",
    )


def in_words(seconds: float) -> str:
    """A time of three digits."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def seconds_of_formats(recipe: Recipe, model: nn.Module, batch: Batch, seed: int) -> dict[str, float]:
    """The shortest time of forward and backward of a micro-batch in fp32 and in bf16, by the names of the precisions.

    It is the time of the CPU: what else this machine does counts little. Random generators, buffers and gradients are
    afterwards as before.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            actions = {
                "no": lambda: compute_lane(recipe, model, batch, seed, in_bf16=False),
                "bf16": lambda: compute_lane(recipe, model, batch, seed, in_bf16=True),
            }
            return shortest_in_turns(actions)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def compute_lane(recipe: Recipe, model: nn.Module, batch: Batch, seed: int, in_bf16: bool) -> None:
    """Forward and backward of a micro-batch, as a step computes them."""
    part = copy.copy(batch)
    part.tensors = dict(batch.tensors)
    seed_everything(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        if recipe.needs_step_statistics:
            with torch.no_grad():
                part.step_statistics = Loss.of(recipe.loss(model, part)).statistics
        loss = Loss.of(recipe.loss(model, part))
        whole = loss.sum / (batch.weight or 1.0)
        for extra in (loss.auxiliary, loss.step_auxiliary):
            whole = whole if extra is None else whole + extra
        whole.backward()


def shortest_in_turns(
    actions: Mapping[str, Callable[[], object]],
    limit_seconds: float = LIMIT_SECONDS,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """The shortest time of each action, in seconds of `clock`: by default the time of the CPU, without what other
    programs take of it.

    The actions take turns until the limit is over, and three times at least where that takes less than ten limits.
    """
    begun, turn = clock(), 0
    shortest = dict.fromkeys(actions, math.inf)
    while turn == 0 or clock() - begun < (limit_seconds if turn >= LEAST_TURNS else 10 * limit_seconds):
        turn += 1
        for name, action in actions.items():
            started = clock()
            action()
            shortest[name] = min(shortest[name], clock() - started)
    return shortest
