"""The tables of docs/benchmarks.md: benchmarks record them, `python -m tests.benchmarks` writes them into the page."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

RECORDS = "RELAY_BENCHMARKS"
"""The environment variable that names the file to which tables are appended, as lines of JSON."""
PACKAGES = ("torch", "transformers", "accelerate", "lightning", "scikit-bio")
"""Their versions stand above a table."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a benchmark."""

    benchmark: str
    """Its name between the marks of the page, such as "loop" for bench_loop.py."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    rounds: str
    """How often each row was measured, such as "median of 5 interleaved rounds"."""
    load: float = dataclasses.field(default_factory=lambda: os.getloadavg()[0])
    """The machine's load at the end of the benchmark."""

    def markdown(self) -> str:
        """The table as it stands on the page."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def record(benchmark: str, columns: Sequence[str], rows: Iterable[Sequence[str]], rounds: str) -> None:
    """Print a table, and keep it for the page where one is to be written."""
    table = Table(benchmark, columns, list(rows), rounds)
    print(f"\n{table.rounds}, load {table.load:.1f}\n{table.markdown()}", flush=True)
    if path := os.environ.get(RECORDS):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(table)) + "\n")


def recorded(path: Path) -> list[Table]:
    """The tables that a benchmark appended to a file."""
    return [Table(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def block(tables: Sequence[Table], command: str) -> str:
    """What stands between the marks: when, where and how it was measured, then the tables."""
    loads = [table.load for table in tables]
    words = "; ".join(dict.fromkeys(table.rounds for table in tables))
    head = (
        f"Measured {datetime.date.today()} on {os.cpu_count()} {platform.machine()} cores of {platform.system()}, "
        f"{os.environ.get('OMP_NUM_THREADS', 'all')} thread(s), load {min(loads):.1f} to {max(loads):.1f}, "
        f"Python {platform.python_version()}, {versions()}; {words}:"
    )
    return "\n\n".join([head, f"```bash\n{command}\n```", *(table.markdown() for table in tables)])


def versions() -> str:
    """The packages that are compared, with their versions."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def marked(page: Path) -> set[str]:
    """The benchmarks whose tables stand on the page."""
    return set(re.findall(r"<!-- bench:(\w+) -->", page.read_text(encoding="utf-8")))


def write_into(page: Path, benchmark: str, text: str) -> None:
    """Replace what stands between the marks of a benchmark; the rest of the page stays as it is."""
    first, last = f"<!-- bench:{benchmark} -->", "<!-- /bench -->"
    before, mark, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not mark or not end:
        sys.exit(f"{page} has no lines {first} and {last}: add them where the table is to stand.")
    page.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")
