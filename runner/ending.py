"""How the processes of a run end together, and which one is lost: they ask the store that their group was made with."""

import contextlib
import dataclasses
import datetime
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

import torch

from runner.errors import LostProcess
from runner.settings import RunSettings

LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|tcpstore|socket|work(er)? .*abort",
    re.IGNORECASE,
)
"""What torch's process groups say where another process is gone or silent."""
ANSWER_SECONDS = 3.0
"""How long the processes that waited in vain have to say so to each other."""
LEAVING_SECONDS = 10.0
"""How long the main process, which may hold the store, waits for the others at its end."""
STATUS = "relay-status"
"""The store's name for the exit status of the run, once a process has told the user why it ends."""


def follow_the_end() -> None:
    """From now on this process ends once another one alone meets an error and has told the user, with its status.

    Call `close_group` before the program ends.
    """
    global _follower
    # The main process learns it from a closed connection: it may be writing a checkpoint, which is to be completed.
    if torch.distributed.is_initialized() and _rank() > 0:
        _follower = Follower()
        _follower.start()


class Follower(threading.Thread):
    """Waits for the end that another process announces, and ends this process with its status.

    A process in a collective operation learns only from a closed connection that another one ends. torch closes
    connections when the process is gone, and with the main process the store is gone as well.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="follow the end")
        # A client of its own: one that waits blocks whoever else uses it.
        self.store: torch.distributed.Store = _store().clone()  # type: ignore[attr-defined]
        self.key = _key_of_end(_rank())

    def run(self) -> None:
        """Wait, without a limit."""
        with contextlib.suppress(torch.distributed.DistNetworkError):
            # It is an error where the store is gone: then the collective operations notice it as well.
            while True:
                with contextlib.suppress(torch.distributed.DistStoreError):
                    self.store.wait([self.key], datetime.timedelta(days=1))
                    break
            status = self.store.get(self.key)
            if status:
                self.store.set(_key_of_leaving(_rank()), "1")
                os._exit(int(status))

    def stop(self) -> None:
        """Let the thread end: Python aborts where it waits in torch while the process is torn down."""
        try:
            _store().set(self.key, "")
        finally:
            self.join()


_follower: Follower | None = None


def announce_end(status: int) -> None:
    """Let the other processes end with this status, after an error that this process alone knows and has printed."""

    def announce() -> None:
        store, world = _store(), torch.distributed.get_world_size()
        store.set(STATUS, str(status))
        for rank in range(world):
            if rank != _rank():
                store.set(_key_of_end(rank), str(status))

    _leave(announce)


def leave_together(status: int) -> None:
    """Leave the group at an end that every process knows: the main process last.

    It may hold the store, and what it sent about an error may not have arrived.
    """
    _leave(lambda: _store().set(STATUS, str(status)))


def _leave(tell: Callable[[], None]) -> None:
    if not torch.distributed.is_initialized():
        return

    def leave() -> None:
        tell()
        _stop_following()
        _store().set(_key_of_leaving(_rank()), "1")
        if _rank() == 0:
            _wait_until_all_leave()

    _within_limit(leave, LEAVING_SECONDS)


def close_group() -> None:
    """Leave the process group; a process that exits without it can abort the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _within_limit(_stop_following, ANSWER_SECONDS)
        torch.distributed.destroy_process_group()


def _stop_following() -> None:
    global _follower
    follower, _follower = _follower, None
    if follower is not None:
        follower.stop()


def _wait_until_all_leave() -> None:
    """Wait, for some seconds at most, until all processes have marked that they leave."""
    deadline = time.monotonic() + LEAVING_SECONDS
    missing = set(range(torch.distributed.get_world_size()))
    while missing and time.monotonic() < deadline:
        missing = {rank for rank in missing if not _store().check([_key_of_leaving(rank)])}
        time.sleep(0.01)


@contextlib.contextmanager
def naming_lost_processes(settings: RunSettings) -> Iterator[None]:
    """Raise LostProcess, with the rank, in place of what the process group says where another process is lost."""
    try:
        yield
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not LOST.search(str(error)):
            raise
        raise describe_lost(settings.ddp_timeout, str(error)) from error


def describe_lost(limit_seconds: float, said: str) -> LostProcess:
    """Which processes do not answer, and what to look at.

    Without a message on all but the first process that noticed, and where another process has told the user why the
    run ends: then with the status of that end.
    """
    rank, answers = _rank(), ask_all()
    if answers.status is not None:
        lost = LostProcess("")
        lost.exit_status = answers.status
        return lost
    if answers.silent is None:
        who = "the main process (rank 0) is gone, or the network is cut"
    elif not answers.silent:
        who = "the connection was lost"
    else:
        if rank != min(set(range(int(os.environ["WORLD_SIZE"]))) - set(answers.silent)):
            return LostProcess("")
        who = f"rank {', '.join(map(str, answers.silent))} does not answer"
    if re.search("timed? ?out", said, re.IGNORECASE):
        who += f"; the limit is {limit_seconds:.0f} s (--ddp_timeout)"
    return LostProcess(
        f"Waited for the other processes: {who}.\nA process died or stalled, or the network is cut: see its "
        "own message. With several networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right one.\n"
        "Go on from the last checkpoint with --resume_from_checkpoint auto."
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a process that waited in vain has heard from the others."""

    silent: list[int] | None
    """The ranks that do not say, within some seconds, that they wait as well; None where nobody can be asked."""
    status: int | None
    """The exit status of the run, where another process has told the user why it ends."""


def ask_all() -> Answers:
    """Ask the other processes whether they wait as well: each that waited in vain leaves a mark in the store."""
    marks: set[int] = set()
    statuses: list[int] = []
    rank, world = _rank(), int(os.environ.get("WORLD_SIZE", "1"))

    def ask() -> None:
        store = _store()
        store.set(f"relay-waited-{rank}", "1")
        marks.add(rank)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline and len(marks) < world and not statuses:
            if store.check([STATUS]):
                statuses.append(int(store.get(STATUS)))
            marks.update(each for each in range(world) if store.check([f"relay-waited-{each}"]))
            time.sleep(0.1)
        if statuses:
            store.set(_key_of_leaving(rank), "1")
            if rank == 0:
                # The store may end with this process.
                _wait_until_all_leave()

    _within_limit(ask, ANSWER_SECONDS + (LEAVING_SECONDS if rank == 0 else 0))
    silent = sorted(set(range(world)) - marks) if rank in marks else None
    return Answers(silent, statuses[0] if statuses else None)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _store() -> torch.distributed.Store:
    return torch.distributed.distributed_c10d._get_default_store()


def _key_of_end(rank: int) -> str:
    """The store's name for the status that a process is to end with; empty where it need not follow any more."""
    return f"relay-end-{rank}"


def _key_of_leaving(rank: int) -> str:
    return f"relay-leaves-{rank}"


def _within_limit(action: Callable[[], None], seconds: float) -> None:
    """Ask the store: behind a cut network it does not answer, and it has no time limit of its own."""
    thread = threading.Thread(target=_suppressed, args=(action,), daemon=True)
    thread.start()
    thread.join(seconds + 2)


def _suppressed(function: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        function()
