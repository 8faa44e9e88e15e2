"""What the processes agree on before a step: sums over all of them; of short steps, several at once."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from runner import memory
from runner.fetching import Fetched, batches
from runner.run import Run

AHEAD_SECONDS = 0.1
"""How long the steps may take on which processes agree at once."""
AHEAD_STEPS = 32
"""How many these may be."""
AHEAD_ELEMENTS = 1 << 22
"""How many numbers the micro-batches of one process in these steps may hold; 32 MB as 64-bit integers."""


class Share(NamedTuple):
    """What one process's micro-batches of a step hold; floats, because all numbers travel in one tensor."""

    weight: float
    lanes: float
    """Those that hold examples."""
    examples: float
    tokens: float
    checksum_high: float
    checksum_low: float
    """The checksum in halves, because a float holds 53 bits exactly."""
    largest: float
    """The elements of the largest micro-batch."""
    elements: float
    """Those of all micro-batches."""


@dataclasses.dataclass(frozen=True)
class Totals:
    """What one step holds, over all processes."""

    weight: float
    """What the loss is divided by."""
    lanes: int
    """Lanes that hold examples: what the auxiliary losses are averaged over."""
    examples: int
    tokens: int
    checksum: int
    """63 bits per lane, summed: what the step consumed."""
    largest_lane: int
    """The elements of the largest micro-batch."""
    stop: str | None
    """The signal that asked for the end."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that can begin."""

    lanes: list[Fetched]
    """The micro-batches of this process."""
    totals: Totals
    waited: float
    """Seconds for which this process waited for its micro-batches."""


def fetch_lanes(run: Run) -> Iterator[Fetched]:
    """The micro-batches of this process's lanes, from the state's step on."""
    steps = range(run.state.step, run.max_steps)
    settings, state = run.settings, run.state
    workers, limit = settings.num_workers, settings.loader_timeout
    return batches(run.recipe, run.train_data, run.lanes, run.share, steps, state.cursors, workers, limit)


def agreed_steps(run: Run) -> Iterator[Step]:
    """The steps from the state's on, which the caller counts as done.

    To agree takes several processes about a millisecond. Where steps are not much longer, each process fetches the
    micro-batches of several steps, and the processes agree on them all at once.
    """
    fetched = fetch_lanes(run)
    num_ahead, step_seconds = 1, math.inf
    first = run.state.step
    while first < run.max_steps:
        started = time.monotonic()
        ahead = [[next(fetched) for _ in run.share] for _ in range(min(num_ahead, run.max_steps - first))]
        waited = time.monotonic() - started
        totals, num_ahead = agree(run, ahead, step_seconds)
        waited_for_each, shortest = waited / len(ahead), math.inf
        is_asked: Callable[[], bool] | None = None
        for each in totals:
            started = time.monotonic()
            if is_asked is not None and is_asked():
                each = dataclasses.replace(each, stop=reason(run))
            # A signal after the processes have agreed: they ask each other at each step, and hear the answer at the
            # next one, so that none of them waits. The last of these steps needs it not: they agree after it.
            is_asked = run.hardware.any_later(run.signals.number > 0) if len(ahead) > 1 and not each.stop else None
            # What is done with is not kept.
            yield Step(ahead.pop(0), each, waited)
            # Without evaluations and saves, which not every step has.
            waited, shortest = 0.0, min(shortest, time.monotonic() - started)
        first, step_seconds = first + len(totals), shortest + waited_for_each


def agree(run: Run, ahead: Sequence[list[Fetched]], step_seconds: float) -> tuple[list[Totals], int]:
    """The totals of the next steps, and how many steps the processes agree on the next time.

    `ahead` has this process's micro-batches of each step, and `step_seconds` is what a step took it, with the fetching.
    """
    head = [float(run.signals.number > 0), step_seconds]
    own = [*head, *(number for each, lanes in enumerate(ahead, run.state.step) for number in share_of(lanes, each))]
    everyone = run.hardware.gathered(own)
    asked, seconds = max(each[0] for each in everyone), max(each[1] for each in everyone)
    agreed: list[Totals] = []
    elements = 1
    for place in range(len(head), len(own), len(Share._fields)):
        shares = [Share(*numbers[place : place + len(Share._fields)]) for numbers in everyone]
        elements = max(elements, *(int(share.elements) for share in shares))
        totals = total_of(shares)
        agreed.append(dataclasses.replace(totals, stop=reason(run)) if asked and not agreed else totals)
    # Alone, a process agrees with itself at once.
    num_ahead = 1
    if len(everyone) > 1 and seconds:
        num_ahead = max(1, min(AHEAD_STEPS, int(AHEAD_SECONDS / seconds), AHEAD_ELEMENTS // elements))
    return agreed, num_ahead


def share_of(lanes: Sequence[Fetched], step: int) -> Share:
    """The numbers of this process's micro-batches of one step."""
    checksum = sum(lane.checksum(step) for lane in lanes)
    sizes = [memory.size(lane.batch) for lane in lanes]
    return Share(
        weight=sum(lane.batch.weight for lane in lanes),
        lanes=sum(not lane.is_empty for lane in lanes),
        examples=sum(len(lane.consumed) for lane in lanes),
        tokens=sum(lane.batch.tokens for lane in lanes),
        checksum_high=checksum >> 32,
        checksum_low=checksum & 0xFFFFFFFF,
        largest=max(sizes),
        elements=sum(sizes),
    )


def total_of(shares: Sequence[Share]) -> Totals:
    """What a step holds, from the shares of all processes."""
    high, low = int(sum(each.checksum_high for each in shares)), int(sum(each.checksum_low for each in shares))
    return Totals(
        weight=math.fsum(each.weight for each in shares),
        lanes=int(sum(each.lanes for each in shares)),
        examples=int(sum(each.examples for each in shares)),
        tokens=int(sum(each.tokens for each in shares)),
        checksum=((high << 32) + low) % 2**64,
        largest_lane=int(max(each.largest for each in shares)),
        stop=None,
    )


def reason(run: Run) -> str:
    """What asked for the end, in words."""
    return run.signals.reason if run.signals.number else "a signal to another process"
