"""The files of a run for programs: `metrics.jsonl` and `ledger.jsonl`; and the speed that is logged."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.checkpoints.disk import writing


class Metrics:
    """The file `metrics.jsonl`: one JSON object per event, each (step, split) once, also after a crash."""

    def __init__(self, path: Path, from_step: int) -> None:
        """Open for appending, and remove what a crashed run wrote after `from_step`, where this run continues."""
        self.path = path
        if path.exists():
            replace_lines(path, [line for line in read_lines(path) if line["step"] <= from_step])

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append one event. Numbers that are not finite are written as null, so that every line stays JSON."""
        event = {"step": step, "split": split, **{name: _number(value) for name, value in values.items()}}
        append_line(self.path, event)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Ledger:
    """The file `ledger.jsonl`: what each step consumed, as a checksum of 64 bits, over all restarts of a run.

    A line `{"start": ...}` has what the order depends on from there on. The lines after it hold the checksums of
    consecutive steps, 16 hexadecimal digits each. `relay verify ledger` computes the order again and compares.
    """

    def __init__(self, path: Path, from_step: int, start: Mapping[str, Any]) -> None:
        """Open for appending, and remove what a crashed run wrote after `from_step`, where this run continues."""
        self.path = path
        self.first_step = from_step
        self.checksums: list[str] = []
        kept = []
        for line in read_lines(path):
            if "start" in line and line["start"]["step"] < from_step:
                kept.append(line)
            elif "steps" in line and line["first_step"] < from_step:
                digits = line["steps"][: 16 * (from_step - line["first_step"])]
                kept.append({"first_step": line["first_step"], "steps": digits})
        replace_lines(path, [*kept, {"start": {"step": from_step, **start}}])

    def add(self, step: int, checksum: int) -> None:
        """Note what step number `step`, counted from 0, consumed."""
        if not self.checksums:
            self.first_step = step
        self.checksums.append(f"{checksum:016x}")

    def flush(self) -> None:
        """Write what was noted; called before a checkpoint that counts these steps as done."""
        if self.checksums:
            append_line(self.path, {"first_step": self.first_step, "steps": "".join(self.checksums)})
            self.checksums = []


def append_line(path: Path, line: Mapping[str, object]) -> None:
    """Add a line to a file of JSON lines. Raises DiskError where the disk does not take it."""
    with writing(path.name, path.parent), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. An incomplete line of a killed process is skipped."""
    # A pipe is no file, and would wait for ever.
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def replace_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines in one operation."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(draft, path)


class Speed:
    """Speed of training alone, without evaluation and saving, and the share of it that went into waiting for data."""

    def __init__(self) -> None:
        self.examples = 0
        self.tokens = 0
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self.steps = 0

    def add(self, examples: int, tokens: int, seconds: float, waiting_seconds: float) -> None:
        """Count one step, and the part of its time in which the loop waited for its data."""
        self.examples += examples
        self.tokens += tokens
        self.seconds += seconds
        self.waiting_seconds += waiting_seconds
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The rates since the last call, and the share of the time in which the loop waited (`data_wait`)."""
        seconds = max(self.seconds, 1e-9)
        rates = {"examples_per_second": self.examples / seconds, "seconds_per_step": seconds / max(self.steps, 1)}
        if self.tokens:
            rates["tokens_per_second"] = self.tokens / seconds
        rates["data_wait"] = self.waiting_seconds / seconds
        self.__init__()
        return rates
