"""Which examples a lane holds in a step, and the keys of its random numbers: functions of (seed, step, lane)."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from runner.errors import ConfigError
from runner.settings import RunSettings

ROUNDS = 6


def key(seed: int, *parts: int | str) -> int:
    """A 63-bit number that depends on every part; the same on every machine and Python version."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _mix(values: np.ndarray, round_key: int) -> np.ndarray:
    """The splitmix64 finaliser of `values` under a key; uint64 arithmetic wraps around."""
    mixed = (values + np.uint64(round_key)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _round_keys(permutation_key: int) -> list[int]:
    return [key(permutation_key, "feistel", number) for number in range(ROUNDS)]


def permute(positions: np.ndarray, size: int, permutation_key: int) -> np.ndarray:
    """Images of `positions` (each in [0, size)) under a keyed permutation of [0, size), without building it.

    A Feistel network over the next even number of bits, walked until the image falls inside: a bijection,
    O(1) per position in time and memory, and not tied to any library's shuffle.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle-walking.
    """
    half_bits = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = _round_keys(permutation_key)
    images = np.asarray(positions, dtype=np.uint64).copy()
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        walked = images[outside]
        left, right = walked >> shift, walked & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right, round_key) & mask)
        images[outside] = (left << shift) | right
        outside = images >= np.uint64(size)
    return images.astype(np.int64)


BLOCK = 1024
"""Places of the order that are computed at once: one by one, most of the time would go to numpy's calls."""


@functools.lru_cache(maxsize=16)
def _block(num_examples: int, seed: int, number: int) -> list[int]:
    """The examples at the places from number x BLOCK on, over the ends of epochs."""
    positions = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64)
    epochs, places = np.divmod(positions, num_examples)
    ids: list[int] = []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        ids += permute(places[epochs == epoch], num_examples, key(seed, "epoch", epoch)).tolist()
    return ids


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The examples of every (step, lane), for map-style data.

    Example number p of a run is place p % num_examples of the permutation of epoch p // num_examples, so each
    epoch visits every example once, and batches run on over the end of an epoch.
    """

    num_examples: int
    """Examples in the training split."""
    batch_size: int
    """Examples per step over all hardware."""
    micro_batch_size: int
    """Examples per lane."""
    seed: int
    total_examples: int | None = None
    """Where the run ends, in examples; the last step is then ragged. None: batches are always full."""
    excluded: frozenset[Any] = frozenset()
    """Ids that are left out wherever they would come (of a stream: the JSON of [lane, cursor])."""
    order: Any = None
    """Another order than the shuffle: a `runner.recipe.Order` of the recipe's."""

    @property
    def num_lanes(self) -> int:
        """Micro-batches per step."""
        return self.batch_size // self.micro_batch_size

    def indices(self, step: int, lane: int) -> list[int]:
        """Example ids of one lane in one step (counted from 0); fewer, or none, at the end of the run."""
        ids = self._shuffled(step, lane) if self.order is None else self.order.indices(step, lane)
        return [index for index in ids if index not in self.excluded] if self.excluded else ids

    def everything(self, step: int) -> list[int]:
        """Example ids of a whole step."""
        return [index for lane in range(self.num_lanes) for index in self.indices(step, lane)]

    def _shuffled(self, step: int, lane: int) -> list[int]:
        first = step * self.batch_size + lane * self.micro_batch_size
        last = first + self.micro_batch_size
        if self.total_examples is not None:
            last = min(last, self.total_examples)
        ids: list[int] = []
        for number in range(first // BLOCK, -(-last // BLOCK)):
            start = number * BLOCK
            ids += _block(self.num_examples, self.seed, number)[max(first - start, 0) : max(last - start, 0)]
        return ids

    def stand_in(self) -> int:
        """An example that is not excluded, for an empty lane to compute on."""
        return next(index for index in range(self.num_examples) if index not in self.excluded)

    def share(self, process: int, num_processes: int) -> range:
        """The lanes that one of `num_processes` processes runs: a block, so that tree sums are local first."""
        check_world(self.num_lanes, num_processes)
        per_process = self.num_lanes // num_processes
        return range(process * per_process, (process + 1) * per_process)


class ByLength:
    """An order that sorts the examples of each step of `lanes` by length before it cuts them into lanes.

    A step has the same examples, so its gradient is the same sum; only the padding is less. Next to a lane of short
    examples stands one of long ones, so that processes with several lanes have as much to do.
    """

    def __init__(self, lanes: Lanes, length: Callable[[int], int]) -> None:
        self.lanes, self.length = lanes, length
        self.step, self.parts = -1, [[]]

    @property
    def examples_per_epoch(self) -> int:
        """As before the sorting."""
        return self.lanes.num_examples if self.lanes.order is None else self.lanes.order.examples_per_epoch

    def indices(self, step: int, lane: int) -> list[int]:
        """The examples of one lane of one step."""
        if step != self.step:
            ids = sorted(self.lanes.everything(step), key=self.length)
            size, num_lanes = self.lanes.micro_batch_size, self.lanes.num_lanes
            parts = [ids[lane * size : (lane + 1) * size] for lane in range(num_lanes)]
            in_pairs = [part for pair in zip(parts, reversed(parts), strict=True) for part in pair]
            self.step, self.parts = step, in_pairs[:num_lanes]
        return self.parts[lane]


def by_length(lanes: Lanes, data: Any) -> Lanes:
    """Lanes whose examples are sorted by the lengths that the data give. Raises ConfigError where they give none."""
    if not has_length(data):
        raise ConfigError(
            "group_by_length sorts examples by length, and these training data give none, because nothing of them is "
            "padded, or their order is their own: leave it out."
        )
    order = ByLength(dataclasses.replace(lanes, excluded=frozenset()), lengths_of(data))
    return dataclasses.replace(lanes, order=order)


def has_length(data: Any) -> bool:
    """Whether data say how long each example is."""
    return callable(getattr(data, "length_of", None)) or hasattr(getattr(data, "dataset", None), "length_of")


def lengths_of(data: Any) -> Callable[[int], int]:
    """The length of an example by its number; of a part of some data too, which is a `torch.utils.data.Subset`."""
    if hasattr(data, "length_of"):
        return data.length_of
    return lambda index: data.dataset.length_of(data.indices[index])


def resolve_batch(settings: RunSettings, explicit: frozenset[str], num_processes: int) -> tuple[int, int]:
    """(batch_size, micro_batch_size) of a run that starts on so many processes.

    What the user named (`explicit`) wins over what a preset says of the same thing: gradient_accumulation_steps over a
    preset's batch_size, and a batch_size below the preset's micro_batch_size over that.
    Raises ConfigError where batch_size and gradient_accumulation_steps contradict each other.
    """
    batch_size, micro_batch_size = settings.batch_size, settings.micro_batch_size
    accumulation = settings.gradient_accumulation_steps
    names = ("batch_size", "gradient_accumulation_steps")
    by_accumulation = accumulation and ("batch_size" not in explicit or names[1] in explicit)
    if accumulation and by_accumulation and (names[1] in explicit or batch_size is None):
        derived = micro_batch_size * accumulation * num_processes
        if "batch_size" in explicit and batch_size not in (None, derived):
            raise ConfigError(
                f"batch_size {batch_size} is not micro_batch_size {micro_batch_size} x gradient_accumulation_steps "
                f"{accumulation} x {num_processes} processes: give only one of them."
            )
        return derived, micro_batch_size
    batch_size = batch_size or 32
    if batch_size < micro_batch_size and "micro_batch_size" not in explicit:
        micro_batch_size = batch_size
    return batch_size, micro_batch_size


def run_length(settings: RunSettings, per_epoch: int | None, batch_size: int) -> tuple[int | None, int | None]:
    """(examples, steps) of a run: max_steps, else num_train_epochs passes over `per_epoch` examples.

    The examples are None where steps are counted, and both where the length of an epoch is not known.
    """
    if settings.max_steps is not None:
        return None, settings.max_steps
    if per_epoch is None:
        return None, None
    total = math.ceil((settings.num_train_epochs or 3.0) * per_epoch)
    return total, math.ceil(total / batch_size)


def check_batch(batch_size: int, micro_batch_size: int) -> None:
    """Raises ConfigError unless the batch can be cut into whole micro-batches."""
    if batch_size % micro_batch_size:
        fitting = divisors(batch_size)
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro_batch_size}: "
            f"type --micro_batch_size with one of {', '.join(map(str, fitting))}."
        )


def check_world(num_lanes: int, num_processes: int) -> None:
    """Raises ConfigError unless every process gets the same number of lanes."""
    if num_lanes % num_processes:
        raise ConfigError(
            f"{num_processes} processes cannot share {num_lanes} lanes (batch_size / micro_batch_size) evenly.\n"
            f"Start with one of {', '.join(map(str, divisors(num_lanes)))} processes, "
            f"or choose a batch_size that is a multiple of micro_batch_size x {num_processes}."
        )


def divisors(number: int) -> list[int]:
    """All whole numbers that divide `number`, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
