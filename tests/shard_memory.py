"""Trainings and exports in processes of their own, which note the peak of their private memory."""

import ctypes
import json
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from runner import trials

peaks: dict[str, int] = {}
phase = "other"


def train(arguments: Sequence[str], processes: int, folder: Path) -> list[dict[str, int]]:
    """Train in shards; the peak bytes of each process in each phase."""
    log = folder / "log"
    log.touch()
    context = trials._server()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(trials.free_port()), "WORLD_SIZE": str(processes)}
    shared |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true"}
    ranks = []
    for rank in range(processes):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(context.Process(target=_work, args=(list(arguments), own, log, rank)))
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
        assert each.exitcode == 0, log.read_text(encoding="utf-8")
    return [json.loads((folder / f"peaks.{rank}").read_text(encoding="utf-8")) for rank in range(processes)]


def export(folder: Path, output: Path) -> int:
    """Export in a new process; the peak bytes of that process."""
    sender, receiver = trials._server().Pipe()
    exporting = trials._server().Process(target=_export, args=([str(folder), "--output", str(output)], sender))
    exporting.start()
    exporting.join()
    assert exporting.exitcode == 0
    return receiver.recv()


def _export(words: list[str], sender: Connection) -> None:
    from runner.commands import export

    # glibc gives back at once what it maps, and keeps what it cuts from its heap: map each block above 64 kB.
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    threading.Thread(target=_watch, daemon=True).start()
    export.main(words)
    sender.send(peaks["other"])


def _work(arguments: list[str], variables: dict[str, str], log: Path, rank: int) -> None:
    from runner import loop, session
    from runner import train as program
    from runner.checkpoints.saver import Saver

    _within(session, "build_run", "start")
    _within(loop, "accumulate", "train")
    _within(loop, "update", "train")
    _within(loop, "evaluate_and_track_best", "evaluate")
    _within(Saver, "save", "save")
    _within(session, "_finish", "end")
    threading.Thread(target=_watch, daemon=True).start()
    original = program.main

    def main(flags: list[str]) -> int:
        status = original(flags)
        (log.parent / f"peaks.{rank}").write_text(json.dumps(peaks), encoding="utf-8")
        return status

    program.main = main
    trials._work(arguments, variables, str(log), rank, None)


def private_bytes() -> int:
    """This process's memory, without pages of files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def _watch() -> None:
    while True:
        peaks[phase] = max(peaks.get(phase, 0), private_bytes())
        time.sleep(0.002)


def _within(place: object, name: str, called: str) -> None:
    """Let a function of a module or class be a phase."""
    function: Callable[..., object] = getattr(place, name)

    def timed(*arguments: object, **options: object) -> object:
        global phase
        before, phase = phase, called
        try:
            return function(*arguments, **options)
        finally:
            phase = before

    setattr(place, name, timed)
