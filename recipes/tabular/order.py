"""Which rows a lane holds: rows of one table, and the micro-batches of all tables in one shuffle."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TableOrder:
    """An order of examples that is a function of (step, lane) alone.

    An epoch takes up to `most_rows` fresh rows of each table: a large table goes on in the next epoch where it stopped.
    """

    sizes: tuple[int, ...]
    """Training rows of each table; the examples are counted through, table after table."""
    batch_size: int
    micro_batch_size: int
    seed: int
    most_rows: int = 2048

    @property
    def rows_per_epoch(self) -> list[int]:
        """Of each table."""
        return [min(size, self.most_rows) for size in self.sizes]

    @property
    def examples_per_epoch(self) -> int:
        """What one epoch counts."""
        return sum(self.rows_per_epoch)

    def indices(self, step: int, lane: int) -> list[int]:
        """The examples of one lane of one step."""
        chunks = self._chunks()
        number = step * (self.batch_size // self.micro_batch_size) + lane
        epoch, place = divmod(number, len(chunks))
        table, first = chunks[self._shuffled(epoch)[place]]
        last = min(first + self.micro_batch_size, self.rows_per_epoch[table])
        start = epoch * self.rows_per_epoch[table]
        offset = sum(self.sizes[:table])
        return [offset + self._row(table, start + position) for position in range(first, last)]

    def _chunks(self) -> list[tuple[int, int]]:
        """(table, first position) of every micro-batch of an epoch."""
        return _chunks(tuple(self.rows_per_epoch), self.micro_batch_size)

    def _shuffled(self, epoch: int) -> Sequence[int]:
        return _permutation(len(self._chunks()), (self.seed, 1, epoch))

    def _row(self, table: int, position: int) -> int:
        turn, place = divmod(position, self.sizes[table])
        return int(_permutation(self.sizes[table], (self.seed, 2, table, turn))[place])


@functools.lru_cache(maxsize=8)
def _chunks(rows: tuple[int, ...], micro_batch_size: int) -> list[tuple[int, int]]:
    return [(table, first) for table, count in enumerate(rows) for first in range(0, count, micro_batch_size)]


@functools.lru_cache(maxsize=256)
def _permutation(size: int, key: tuple[int, ...]) -> Sequence[int]:
    return np.random.default_rng(key).permutation(size)  # type: ignore[return-value]
