"""Which examples a lane holds when several sources are mixed: a function of (seed, step, lane).

The places of a run are cut into windows, and each window holds each source's share exactly: weights 0.4, 0.3, 0.2, 0.1
make windows of ten, with four, three, two and one example. Which place goes to which source is shuffled in each window;
a source's own examples come in a shuffle of its own, anew for each pass over it. A source that has been passed over
`max_epochs` times makes way: its share goes to the others, in proportion. Where all have, all begin again with the
first weights. Source of the default cap: Muennighoff et al. 2023 (repeated data are worth little after some 16 epochs),
arXiv 2305.16264.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

LARGEST_WINDOW = 10_000
"""Weights that need more places to be exact are rounded to this many."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with one mixture."""

    first_place: int
    counts: tuple[int, ...]
    """Places of each source in one window."""
    before: tuple[int, ...]
    """Examples of each source that came before this phase."""
    num_windows: int | None
    """None: it never ends."""

    @property
    def window(self) -> int:
        """Places in a window."""
        return sum(self.counts)


@dataclasses.dataclass(frozen=True)
class MixedOrder:
    """An order of the examples of several sources. Their numbers run through one source after another."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Examples of each source."""
    weights: tuple[float, ...]
    """Share of each source, in proportion."""
    batch_size: int
    micro_batch_size: int
    seed: int
    max_epochs: float = 16.0
    """Passes over a source after which its share goes to the others; 0: never."""

    @property
    def examples_per_epoch(self) -> int:
        """What one epoch counts: as many examples as all sources have together."""
        return sum(self.sizes)

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The stretches of the run, in order."""
        return tuple(_phases(self.sizes, self.weights, self.max_epochs))

    def indices(self, step: int, lane: int) -> list[int]:
        """The examples of one lane of one step."""
        first = step * self.batch_size + lane * self.micro_batch_size
        return [self._example(position) for position in range(first, first + self.micro_batch_size)]

    def seen(self, examples: int) -> dict[str, int]:
        """How many of the first `examples` examples are from each source."""
        return dict(zip(self.names, self._seen(examples), strict=True))

    def warnings(self, examples: int) -> list[str]:
        """Warnings for a run of `examples` examples."""
        notes = []
        for phase, following in zip(self.phases, self.phases[1:], strict=False):
            pairs = zip(self.names, phase.counts, following.counts, strict=True)
            gone = [name for name, now, then in pairs if now and not then]
            if gone and following.first_place < examples:
                notes.append(
                    f"{' and '.join(gone)} will have been seen {self.max_epochs:g} times (data.max_source_epochs) "
                    f"after {following.first_place:,} of {examples:,} examples; the others get the share from there on."
                )
        repeated = [
            f"{name} {given / size:.1f} times"
            for name, size, given in zip(self.names, self.sizes, self._seen(examples), strict=True)
            if self.max_epochs and given > self.max_epochs * size
        ]
        if repeated:
            notes.append(
                f"{examples:,} examples repeat {', '.join(repeated)}, and data.max_source_epochs is "
                f"{self.max_epochs:g}: lower --max_steps, or add sources."
            )
        return notes

    def _seen(self, places: int) -> list[int]:
        phase = self._phase(places)
        window, rest = divmod(places - phase.first_place, phase.window)
        within = np.bincount(self._sources(phase, window)[:rest], minlength=len(self.sizes))
        return [
            before + window * count + int(more)
            for before, count, more in zip(phase.before, phase.counts, within, strict=True)
        ]

    def _phase(self, place: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if phase.first_place <= place)

    def _example(self, place: int) -> int:
        phase = self._phase(place)
        window, within = divmod(place - phase.first_place, phase.window)
        sources = self._sources(phase, window)
        source = int(sources[within])
        rank = int(np.count_nonzero(sources[:within] == source))
        number = phase.before[source] + window * phase.counts[source] + rank
        epoch, place_in_epoch = divmod(number, self.sizes[source])
        shuffled = _permutation(self.sizes[source], (self.seed, 1, source, epoch))
        return sum(self.sizes[:source]) + int(shuffled[place_in_epoch])

    def _sources(self, phase: Phase, window: int) -> np.ndarray:
        """The source of each place of a window."""
        return _shuffled_window(phase.counts, (self.seed, 2, phase.first_place, window))


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The places of each source in the smallest window that holds the weights exactly, as decimal numbers."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    parts = [weight / total for weight in exact]
    window = math.lcm(*(part.denominator for part in parts))
    if window <= LARGEST_WINDOW:
        return tuple(int(part * window) for part in parts)
    # Largest remainders.
    counts = [int(part * LARGEST_WINDOW) for part in parts]
    rest = sorted(range(len(parts)), key=lambda number: counts[number] - parts[number] * LARGEST_WINDOW)
    for number in rest[: LARGEST_WINDOW - sum(counts)]:
        counts[number] += 1
    return tuple(counts)


def _phases(sizes: Sequence[int], weights: Sequence[float], max_epochs: float) -> Iterator[Phase]:
    first, before = 0, [0] * len(sizes)
    most = [math.floor(max_epochs * size) for size in sizes]
    left = [float(weight) for weight in weights]
    while max_epochs and any(left):
        counts = shares(left)
        windows = min((most[i] - before[i]) // count for i, count in enumerate(counts) if count)
        if windows > 0:
            yield Phase(first, counts, tuple(before), windows)
            first += windows * sum(counts)
            before = [number + windows * count for number, count in zip(before, counts, strict=True)]
        # A source that cannot fill another window makes way.
        left = [
            0.0 if count and most[i] - before[i] < count else weight
            for i, (count, weight) in enumerate(zip(counts, left, strict=True))
        ]
    yield Phase(first, shares(weights), tuple(before), None)


def interleaved(sizes: Sequence[int]) -> list[int]:
    """The numbers of the examples of several sources, so that any first part has each source in proportion."""
    offset, places = 0, []
    for size in sizes:
        places += [((number + 0.5) / size, offset + number) for number in range(size)]
        offset += size
    return [index for _, index in sorted(places)]


@functools.lru_cache(maxsize=64)
def _permutation(size: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


@functools.lru_cache(maxsize=256)
def _shuffled_window(counts: tuple[int, ...], key: tuple[int, ...]) -> np.ndarray:
    sources = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(key).shuffle(sources)
    return sources
