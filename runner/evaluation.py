"""Evaluation by rows: one row per example, gathered once, repeats dropped by id, scored once.

It changes nothing in training: every lane seeds its own random numbers, and no order is shared.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from runner.fetching import take
from runner.hardware import Hardware, seed_everything
from runner.lanes import key
from runner.recipe import Batch, Loss
from runner.sharding import whole


def evaluate(
    recipe: Any,
    model: torch.nn.Module,
    dataset: Sequence[Any],
    hardware: Hardware,
    micro_batch_size: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean loss and the recipe's scores over a whole data set; the same on every process. None where it was stopped."""
    found = evaluate_rows(recipe, model, dataset, hardware, micro_batch_size, asked_to_stop)
    return None if found is None else found[0]


def evaluate_rows(
    recipe: Any,
    model: torch.nn.Module,
    dataset: Sequence[Any],
    hardware: Hardware,
    micro_batch_size: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
    shows_progress: bool = False,
) -> tuple[dict[str, float], list[Any]] | None:
    """The scores, on every process, and on the main process what `predict` gave for every example, in order.

    `shows_progress`: a bar, where standard error is a terminal and it takes longer than a second.
    The loss is the sum over all scored things divided by their number, added in the data's order, so that it does
    not depend on the number of processes.
    """
    from tqdm import tqdm

    model.eval()
    starts = list(range(0, len(dataset), micro_batch_size))
    rounds = -(-len(starts) // hardware.num_processes)
    rows: list[tuple[int, Any]] = []
    sums: list[tuple[int, float, float]] = []
    with whole(model), torch.no_grad(), hardware.accelerator.autocast():
        # None: on a terminal only.
        silent = None if shows_progress and hardware.is_main else True
        for turn in tqdm(range(rounds), unit="batch", dynamic_ncols=True, disable=silent, delay=1):
            if asked_to_stop():
                model.train()
                return None
            # A process without work repeats the last batch: all count the same rounds.
            number = min(turn * hardware.num_processes + hardware.process, len(starts) - 1)
            ids = list(range(starts[number], min(starts[number] + micro_batch_size, len(dataset))))
            seed_everything(key(0, "evaluation", number))
            batch = on_device(recipe.collate(take(dataset, ids)), hardware.device)
            loss = Loss.of(recipe.loss(model, batch))
            sums.append((number, float(loss.sum), float(batch.weight)))
            rows += zip(ids, recipe.predict(model, batch), strict=True)
    model.train()
    if hardware.num_processes > 1:
        rows, sums = gather_object(rows), gather_object(sums)
    scores: dict[str, float] = {}
    whole_split: list[Any] = []
    if hardware.is_main:
        once = {number: (total, weight) for number, total, weight in sums}
        ordered = [once[number] for number in sorted(once)]
        scores["loss"] = sum(total for total, _ in ordered) / max(sum(weight for _, weight in ordered), 1e-9)
        by_id = dict(rows)
        whole_split = [by_id[number] for number in sorted(by_id)]
        scores |= {name: float(value) for name, value in recipe.score(whole_split).items()}
    if hardware.num_processes > 1:
        scores = broadcast_object_list([scores], from_process=0)[0]
    return scores, whole_split


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on the device."""
    batch.tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
    return batch


LOWER_IS_BETTER = ("loss", "perplexity", "error", "mae", "mse", "rmse", "per_byte", "per_character", "log_loss")


def is_better(name: str, new: float, best: float | None, greater_is_better: bool | None) -> bool:
    """Whether a score beats the best one so far. A score that is not a number beats nothing."""
    if new != new:
        return False
    if best is None:
        return True
    if greater_is_better is None:
        greater_is_better = not name.split("/")[0].endswith(LOWER_IS_BETTER)
    return new > best if greater_is_better else new < best
