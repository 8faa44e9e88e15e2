"""`relay checkpoints RUN`: list the checkpoints of a run, and say whether each is whole."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

from runner.config import parse_into
from runner.errors import CheckpointError
from runner.parts.setting_types import Position


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointsSettings:
    """Settings of the list."""

    run: Annotated[str, Position("RUN", "runs/NAME", "the folder of a run")]
    """Folder of a run, such as runs/NAME; it may stand alone, without the flag."""


def main(arguments: list[str]) -> int:
    """Print a line per checkpoint; returns 1 where one is damaged."""
    settings = parse_into(CheckpointsSettings, arguments, "relay checkpoints", __doc__)
    from runner.checkpoints.folders import list_checkpoints
    from runner.checkpoints.manifest import find_damage
    from runner.checkpoints.pointers import resolve_pointer
    from runner.log import read_lines

    folder = Path(settings.run)
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder}: give the folder of a run.")
    pointers = {
        name: resolve_pointer(folder / f"checkpoint-{name}").name
        for name in ("latest", "best")
        if (folder / f"checkpoint-{name}").exists()
    }
    damaged = 0
    for path in found:
        wrong = find_damage(path)
        damaged += wrong is not None
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        marks = " ".join(name for name, target in pointers.items() if target == path.name)
        print(f"{path.name:20} {written}  {size / 1e6:10,.1f} MB  {wrong or 'whole'}  {marks}".rstrip())
    for aside in sorted(folder.glob("set-aside-*")):
        print(f"{aside.name}: of another branch, {', '.join(path.name for path in list_checkpoints(aside))}")
    changes = [line["start"].get("data_changes", []) for line in read_lines(folder / "ledger.jsonl") if "start" in line]
    for step, what in changes[-1] if changes else []:
        print(f"the data changed at step {step}: {what}")
    print(f"{len(found) - damaged} of {len(found)} are whole; --resume_from_checkpoint auto takes the newest of them.")
    return 1 if damaged else 0
