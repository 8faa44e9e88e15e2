"""Evaluation by rows: one row per example, gathered once, repeats dropped by id, scored once.

It changes nothing in training: every lane seeds its own random numbers, and no order is shared.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object

from runner.compiling import as_written
from runner.errors import warn
from runner.fetching import take
from runner.hardware import Hardware, seed_everything
from runner.lanes import has_length, key, lengths_of
from runner.parts.counting import counted
from runner.parts.sending import sent
from runner.recipe import Batch, Example, Loss, Recipe, Row
from runner.sharding import in_turns, parts_of, whole


class StopEvaluation(Exception):
    """This process was asked to stop while the model computed."""


def evaluate(
    recipe: Recipe,
    model: torch.nn.Module,
    dataset: Sequence[Example],
    hardware: Hardware,
    micro_batch_size: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float] | None:
    """Mean loss and the recipe's scores over a data set; the same on every process. None where it was stopped."""
    found = evaluate_rows(recipe, model, dataset, hardware, micro_batch_size, asked_to_stop, advance=advance)
    return None if found is None else found[0]


def evaluate_rows(
    recipe: Recipe,
    model: torch.nn.Module,
    dataset: Sequence[Example],
    hardware: Hardware,
    micro_batch_size: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
    shows_progress: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, float], list[Row]] | None:
    """The scores, on every process, and on the main process what `predict` returned for every example, in order.

    `asked_to_stop` says whether this process got a signal; one process is enough to stop all of them, and the result
    is None then. `shows_progress`: a bar or a line on standard error, where it takes longer than a second.
    `advance` is called with the number of batches that are done, and of all.
    The loss is the sum over all scored things divided by their number, added batch after batch, so that it does not
    depend on the number of processes. It is NaN where nothing is scored.
    """
    model.eval()
    batches = batches_of(dataset, micro_batch_size)
    rounds = -(-len(batches) // hardware.num_processes)
    rows: list[tuple[int, Row]] = []
    sums: list[tuple[int, float, float]] = []
    is_stopped = False
    takes_turns = recipe.evaluates_in_shards and bool(parts_of(model))

    def meet(is_busy: bool) -> bool:
        busy, asked = hardware.sum([is_busy, asked_to_stop()])
        if asked:
            raise StopEvaluation
        return busy > 0

    gathering = in_turns(model, meet) if takes_turns else whole(model)
    with gathering as others, torch.no_grad(), hardware.autocast(), recipe.while_evaluating(model), as_written(model):
        is_shown = shows_progress and hardware.is_main
        for turn in counted(range(rounds), rounds, "evaluation", "batches", is_shown):
            advance(turn, rounds)
            is_stopped = hardware.any(is_stopped or asked_to_stop())
            if is_stopped:
                break
            # A process without work repeats the last batch: all count the same rounds.
            number = min(turn * hardware.num_processes + hardware.process, len(batches) - 1)
            ids = batches[number]
            seed_everything(key(0, "evaluation", number))
            batch = on_device(recipe.collate(take(dataset, ids)), hardware.device)
            try:
                # A process that takes turns stops where all of them meet.
                with contextlib.nullcontext() if takes_turns else stoppable(model, asked_to_stop):
                    loss = Loss.of(recipe.loss(model, batch))
                    batch.outputs, batch.places = loss.outputs, ids
                    sums.append((number, float(loss.sum), float(batch.weight)))
                    rows += zip(ids, recipe.predict(model, batch), strict=True)
                    if others is not None:
                        others()
            except StopEvaluation:
                is_stopped = True
    model.train()
    if hardware.any(is_stopped):
        return None
    if hardware.num_processes > 1:
        rows, sums = gather_object(rows), gather_object(sums)
    scores: dict[str, float] = {}
    rows_in_order: list[Row] = []
    if hardware.is_main:
        once = {number: (total, weight) for number, total, weight in sums}
        ordered = [once[number] for number in sorted(once)]
        weight = sum(weight for _, weight in ordered)
        scores["loss"] = sum(total for total, _ in ordered) / weight if weight else math.nan
        by_id = dict(rows)
        rows_in_order = [by_id[number] for number in sorted(by_id)]
        scores |= numbers_of(recipe.score(rows_in_order))
    return hardware.from_main(scores), rows_in_order


def batches_of(dataset: Sequence[Example], size: int) -> list[list[int]]:
    """The numbers of the examples of each batch; the longest first, where the data say how long each is.

    Texts of one length need no padding, and the batch that needs the most memory comes first.
    """
    numbers = list(range(len(dataset)))
    if has_length(dataset):
        length = lengths_of(dataset)
        numbers.sort(key=lambda number: -length(number))
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


@contextmanager
def stoppable(model: torch.nn.Module, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Raise StopEvaluation at the next call of the model or of one of its parts once this process was asked to stop.

    Generation calls the model for each token. So a signal ends a long answer, whatever the recipe's own loop is. Only
    the model, its parts and theirs ask: a question at every layer would take 3 % of an evaluation.
    """

    def check(module: torch.nn.Module, arguments: object) -> None:
        if asked_to_stop():
            raise StopEvaluation

    parts = [model, *model.children(), *(each for part in model.children() for each in part.children())]
    hooks = [part.register_forward_pre_hook(check) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def numbers_of(scores: Mapping[str, object]) -> dict[str, float]:
    """The scores that are numbers, as floats. None is NaN; a line on stderr names what is not a number."""
    numbers = {}
    for name, value in scores.items():
        try:
            numbers[name] = math.nan if value is None else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            note_no_number(name, type(value).__name__)
    return numbers


@functools.cache
def note_no_number(name: str, kind: str) -> None:
    """Print once that a metric is left out."""
    warn(f"the metric {name} is a {kind}, not a number: it is left out.")


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on the device; `Batch.on_host` still has them as they were."""
    batch.host = batch.host or batch.tensors
    batch.tensors = {name: sent(tensor, device) for name, tensor in batch.tensors.items()}
    return batch


LOWER_IS_BETTER = ("loss", "perplexity", "error", "mae", "mse", "rmse", "per_byte", "per_character", "log_loss")


def is_better(name: str, new: float, best: float | None, greater_is_better: bool | None, least: float = 0.0) -> bool:
    """Whether a score is better than the best one so far, by more than `least`. NaN and infinity are never better."""
    if not math.isfinite(new):
        return False
    if best is None:
        return True
    if greater_is_better is None:
        greater_is_better = not name.split("/")[0].endswith(LOWER_IS_BETTER)
    return new > best + least if greater_is_better else new < best - least
