"""Fetch the micro-batches of this process's lanes, step by step, and note what each of them consumed."""

import dataclasses
import json
import multiprocessing.queues
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from runner import registry
from runner.errors import CheckpointError, DataError, LoaderError, UserError
from runner.hardware import seed_everything
from runner.lanes import Lanes, divisors, key
from runner.recipe import Batch, Cursor, Data, Example, Order, Recipe, Stream
from runner.signals import ignore_in_worker, leave_quietly

if TYPE_CHECKING:
    from typing import TypeGuard

    from typing_extensions import TypeIs


@dataclasses.dataclass
class Fetched:
    """What one lane holds in one step."""

    lane: int
    batch: Batch
    consumed: list[int] | list[Cursor]
    """Ids of the examples, or for a stream the cursors that followed them; none where the lane is empty."""
    cursor: Cursor = None
    """Where a stream stands after this micro-batch."""

    @property
    def is_empty(self) -> bool:
        """Whether the lane has no example: at the ragged end of a run, or where all were excluded."""
        return not self.consumed

    def checksum(self, step: int) -> int:
        """63 bits that depend on step, lane and everything consumed, in order."""
        return key(step, "consumed", self.lane, json.dumps(self.consumed))


def is_stream(data: Data) -> "TypeIs[Stream]":
    """Whether training data are read one after another instead of by index."""
    return hasattr(data, "read")


def indexed_split(recipe: Recipe, split: str) -> Sequence[Example]:
    """The examples of a split that is evaluated. Raises DataError where it is a stream: only training may read one."""
    data = recipe.data(split)
    if is_stream(data):
        raise DataError(f"The {split} split is a stream; an evaluation needs examples with len() and [index].")
    return data


class Ordered(Protocol):
    """Data with an index and an order of their own."""

    def order(self, batch_size: int, micro_batch_size: int, seed: int) -> Order:
        """The order for this batch and seed."""
        ...

    def __len__(self) -> int: ...


def order_of(data: Data, batch_size: int, micro_batch_size: int, seed: int) -> Order | None:
    """The order that data with an index define themselves; None: the runner's shuffle."""
    return data.order(batch_size, micro_batch_size, seed) if has_own_order(data) else None


def has_own_order(data: Data) -> "TypeGuard[Ordered]":
    """Whether data define an order themselves."""
    return hasattr(data, "order")


def examples_per_epoch(data: Data, order: Order | None = None) -> int | None:
    """How many examples one epoch has; None for a stream of unknown length."""
    if order is not None:
        return order.examples_per_epoch
    return getattr(data, "examples_per_epoch", None) if is_stream(data) else len(data)


def warnings_of(data: Data, examples: int) -> list[str]:
    """The warnings of the data before a run that consumes this many examples."""
    warnings = getattr(data, "warnings", None)
    return warnings(examples) if warnings else []


def batches(
    recipe: Recipe,
    data: Data,
    lanes: Lanes,
    share: range,
    steps: range,
    cursors: dict[str, Cursor],
    num_workers: int,
    timeout_seconds: float = 0,
) -> Iterator[Fetched]:
    """The micro-batches of the lanes in `share`, lane after lane and step after step.

    Worker processes fetch ahead; only what the caller has taken counts as consumed.
    Raises LoaderError where a worker dies, or gives nothing for `timeout_seconds` (0: no limit).
    """
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_it_is}
    if is_stream(data):
        # Worker k prepares every num_workers-th micro-batch: a lane stays with one worker only where that divides.
        workers = max(size for size in divisors(len(share)) if size <= max(1, num_workers)) if num_workers else 0
        source: MapReader | StreamReader = StreamReader(recipe, data, lanes, share, steps, cursors)
        fetched: Iterable[Fetched] = source
    else:
        workers, source = num_workers, MapReader(recipe, data, lanes)
        options["sampler"] = Places(steps, share)
        fetched = map(source.__getitem__, options["sampler"])
    if workers:
        # In this process alone, torch's loader would only take time.
        poll_seconds = min(POLL_SECONDS, timeout_seconds or POLL_SECONDS)
        options |= {"num_workers": workers, "worker_init_fn": prepare_worker, "timeout": poll_seconds}
        fetched = _fetch(torch.utils.data.DataLoader(source, **options), timeout_seconds)
    try:
        yield from fetched
    except UserError as error:
        error.is_of_one_process = True
        # torch puts the worker's traceback in front of the message.
        own = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        error.args = (own,)
        raise
    except RuntimeError as error:
        if not LOADER_FAILURE.search(str(error)):
            raise
        raise LoaderError(describe_failure(str(error), timeout_seconds)) from None


POLL_SECONDS = 5
"""How often a wait for loader workers looks whether they live."""


def _fetch(loader: "torch.utils.data.DataLoader[Fetched]", timeout_seconds: float) -> Iterator[Fetched]:
    """What a loader yields. Raises RuntimeError where its workers die, or give nothing for `timeout_seconds`.

    torch looks whether the workers live at the end of its own time-out alone, so that one is short and asked again.
    torch's handler of SIGCHLD is taken away: it raises wherever the main process happens to be, which ends in a
    traceback outside of this function, and in nothing at all inside of a callback of Python's.
    """
    on_child = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    iterator = iter(loader)
    if on_child is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, on_child)
    waited = 0.0
    while True:
        start = time.monotonic()
        try:
            fetched = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            waited += time.monotonic() - start
            if "timed out" not in str(error) or 0 < timeout_seconds <= waited:
                raise
            continue
        waited = 0.0
        yield fetched


LOADER_FAILURE = re.compile(r"DataLoader worker \(pid|DataLoader timed out|shared memory|ancdata")
"""What torch says where loader workers, or the memory that they share with this process, fail."""


def describe_failure(said: str, timeout_seconds: float) -> str:
    """What happened to the loader workers, and what to type."""
    if "timed out" in said:
        what = f"No micro-batch came from the loader workers within {timeout_seconds:.0f} s (--loader_timeout)."
    else:
        what = f"A loader worker failed: {' '.join(said.split())[:160]}"
    shared = Path("/dev/shm")
    free = f" (/dev/shm has {shutil.disk_usage(shared).free / 1e6:,.0f} MB free)" if shared.is_dir() else ""
    return (
        f"{what}\nType --num_workers 0, or give the container more shared memory{free}: docker run --shm-size 8g. Then "
        "--resume_from_checkpoint auto."
    )


def prepare_worker(worker: int) -> None:
    """Let a loader worker leave the signals to its main process, and die where it cannot hand over a micro-batch.

    Otherwise it would print a traceback in a thread, and the main process would wait for ever.
    """
    ignore_in_worker()
    leave_quietly()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[method-assign]


def _give_up(error: Exception, item: object) -> None:
    os.write(2, f"loader worker: {' '.join(str(error).split())[:200]}\n".encode())
    os._exit(1)


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched


@dataclasses.dataclass(frozen=True)
class Places:
    """The (step, lane) pairs of one process, in order."""

    steps: range
    lanes: range

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, lane) for step in self.steps for lane in self.lanes)


class Reader:
    """The part that worker processes receive. Where they start a new Python, as on macOS, a recipe that is a file has
    to be found again before anything of it can be unpickled."""

    recipe: Recipe

    def __reduce__(self) -> tuple[Any, ...]:
        module = sys.modules[type(self.recipe).__module__]
        file = module.__file__ if module.__name__.startswith(registry.FILE_PREFIX) else None
        # Unpickled in this order: the recipe's file is found before the recipe.
        return _revived, (type(self), FoundAgain(file), self.__dict__)


class FoundAgain:
    """Loads the file of a recipe, if it is one, before the recipe is unpickled."""

    def __init__(self, file: str | None) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (registry.find, (self.file,)) if self.file else (str, ())


def _revived(kind: type[Reader], recipe: object, content: dict[str, Any]) -> Reader:
    reader = object.__new__(kind)
    reader.__dict__.update(content)
    return reader


@dataclasses.dataclass
class MapReader(Reader, torch.utils.data.Dataset):
    """Makes the micro-batch of a (step, lane) from data with an index; lives in the worker processes."""

    recipe: Recipe
    data: Sequence[Example]
    lanes: Lanes

    def __getitem__(self, place: tuple[int, int]) -> Fetched:
        """The micro-batch of a lane. An empty lane gets a substitute example with weight 0."""
        step, lane = place
        seed_everything(key(self.lanes.seed, "data", step, lane))
        ids = self.lanes.indices(step, lane)
        batch = self.recipe.collate(take(self.data, ids or [self.lanes.stand_in()]))
        if not ids:
            batch.weight = batch.tokens = 0
        return Fetched(lane, batch, ids)


class StreamReader(Reader, torch.utils.data.IterableDataset):
    """Reads the lanes of one process, each from its own cursor; lives in the worker processes."""

    def __init__(
        self, recipe: Recipe, data: Stream, lanes: Lanes, share: range, steps: range, cursors: dict[str, Cursor]
    ) -> None:
        self.recipe, self.data, self.lanes = recipe, data, lanes
        self.share, self.steps, self.cursors = share, steps, dict(cursors)

    def __iter__(self) -> Iterator[Fetched]:
        worker = torch.utils.data.get_worker_info()
        mine = self.share if worker is None else self.share[worker.id :: worker.num_workers]
        readers = {lane: self._read(lane) for lane in mine}
        for step in self.steps:
            for lane in mine:
                seed_everything(key(self.lanes.seed, "data", step, lane))
                yield self._next(lane, readers[lane])

    def _read(self, lane: int) -> Iterator[tuple[Example, Cursor]]:
        """The examples of a lane; the first one shows whether the stream can read from the checkpoint's cursor."""
        cursor = self.cursors.get(str(lane))
        try:
            reader = iter(self.data.read(lane, self.lanes.num_lanes, self.lanes.seed, cursor))
            first = next(reader, None)
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            if cursor is None:
                raise
            raise CheckpointError(
                f"The stream cannot be read from the checkpoint's cursor of lane {lane}, {json.dumps(cursor)[:60]}: "
                f"{error}.\nType --resume_from_checkpoint with an older checkpoint: relay checkpoints lists them."
            ) from error
        if first is not None:
            yield first
            yield from reader

    def _next(self, lane: int, reader: Iterator[tuple[Example, Cursor]]) -> Fetched:
        examples, consumed, cursor = [], [], None
        while len(examples) < self.lanes.micro_batch_size:
            following = next(reader, None)
            if following is None:
                raise DataError(
                    f"Lane {lane} of {self.lanes.num_lanes} has nothing to read: the stream has fewer parts than lanes."
                    "\nLower --batch_size, or raise --micro_batch_size."
                )
            example, cursor = following
            # As JSON would give it back: what is excluded is compared after a restart too.
            cursor = json.loads(json.dumps(cursor))
            # What is left out of a stream is passed over; the examples after it move up.
            if json.dumps([lane, cursor]) not in self.lanes.excluded:
                examples.append(example)
                consumed.append(cursor)
        return Fetched(lane, self.recipe.collate(examples), consumed, cursor)


def take(dataset: Sequence[Example], ids: list[int]) -> list[Example]:
    """Examples by index; in one call if the data set has `__getitems__`."""
    take_all = getattr(dataset, "__getitems__", None)
    if take_all is not None:
        return take_all(ids)
    return [dataset[index] for index in ids]
