"""Try every attack many times, print the table, and end with status 1 where a promise was broken.

python -m tests.torture --draws 20 --write docs/resume-anywhere.md
"""

import argparse
import ctypes
import dataclasses
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.torture.arena import Arena, Hang, LostSave, Reference, orphans
from tests.torture.cases import CASES, Case, no_compiler

MARKS = ("<!-- torture -->", "<!-- /torture -->")
"""The table stands between these lines of the page."""


@dataclasses.dataclass
class Tally:
    """What came of all tries of one attack."""

    case: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    hangs: int = 0
    orphans: int = 0
    skipped: str = ""
    wrong: list[str] = dataclasses.field(default_factory=list)

    def row(self) -> str:
        """A line of the table."""
        if self.skipped:
            return f"| {self.case} | not tried: {self.skipped} | | | | |"
        numbers = (self.tried, self.survived, self.lost, self.hangs, self.orphans)
        return f"| {self.case} | {' | '.join(map(str, numbers))} |"


def attack(case: Case, tries: int, seed: int, reference: Reference) -> Tally:
    """Try one attack several times. The same seed gives the same tries."""
    tally = Tally(case.name, skipped=case.needs())
    for number in range(0 if tally.skipped else tries):
        arena = Arena(reference, random.Random(f"{seed} {case.name} {number}"), f"{case.attack.__name__}-{number}")
        before = {each.pid for each in psutil.Process().children(recursive=True)}
        tally.tried += 1
        wrong = ""
        try:
            case.attack(arena)
        except Exception as error:
            wrong = f"try {number}: {type(error).__name__}: {error}"
            tally.lost += isinstance(error, LostSave)
            tally.hangs += isinstance(error, Hang)
        # The first training starts the server that forks the others.
        left = orphans(before | servers())
        tally.orphans += left
        if left and not wrong:
            wrong = f"try {number}: {left} processes were left behind"
        tally.survived += not wrong
        if wrong:
            tally.wrong.append(wrong)
            print(f"    {wrong}", flush=True)
        shutil.rmtree(arena.folder, ignore_errors=True)
    return tally


def servers() -> set[int]:
    """The processes of multiprocessing's own."""
    from multiprocessing import forkserver, resource_tracker

    return {
        pid
        for pid in (
            getattr(forkserver._forkserver, "_forkserver_pid", None),  # type: ignore[attr-defined]
            getattr(resource_tracker._resource_tracker, "_pid", None),  # type: ignore[attr-defined]
        )
        if pid is not None
    }


def preload_faults(folder: Path) -> None:
    """Compile faults.c, and let every process that is started from now on load it. It does nothing until asked to."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(library)


def table(tallies: list[Tally], command: str) -> str:
    """The table as Markdown, with its date and command."""
    head = ["| attack | tried | survived | saves lost | hangs | orphans |", "| --- | --- | --- | --- | --- | --- |"]
    today = datetime.date.today().isoformat()
    return "\n".join([*head, *(tally.row() for tally in tallies), "", f"{today}, `{command}`."])


def write_into(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=0, help="tries of each attack; 0: the few of CI")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    parser.add_argument("--case", default="", help="only attacks whose function's name contains this")
    parser.add_argument("--write", type=Path, help="the page into which the table is written")
    parser.add_argument("--json", type=Path, help="the file into which the results are written")
    options = parser.parse_args(arguments)
    # Under nohup the trainings would rightly ignore it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if sys.platform == "linux":
        # Whoever loses its parent becomes a child of this process, which counts it.
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1)
    folder = Path(tempfile.mkdtemp(prefix="relay-torture-"))
    tallies = []
    try:
        if not no_compiler():
            preload_faults(folder)
        reference = Reference(folder)
        for case in CASES:
            if options.case not in case.attack.__name__:
                continue
            tries = max(1, round(options.draws * case.share)) if options.draws else case.quick
            started = time.monotonic()
            tally = attack(case, tries, options.seed, reference)
            tallies.append(tally)
            print(f"{tally.row()} {time.monotonic() - started:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(tally) for tally in tallies]), encoding="utf-8")
    if options.write:
        write_into(options.write, table(tallies, f"make torture DRAWS={options.draws} SEED={options.seed}"))
    return 1 if any(tally.wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
