"""Going back to an older checkpoint, or on from that of another run, without losing or mixing in the other branch."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from runner.checkpoints.folders import list_checkpoints
from runner.checkpoints.manifest import find_damage
from runner.checkpoints.pointers import BEST, LATEST, draft_beside, flush, remove, step_of, write_pointer
from runner.checkpoints.state import State

HISTORY = ("metrics.jsonl", "ledger.jsonl")


def take_over(
    found: Path, output_dir: Path, state: State, is_auto: bool, say: Callable[[str], None]
) -> tuple[Path, str | None]:
    """Make `found` the newest checkpoint of the run's folder: returns its place there, and the folder of the others.

    Checkpoints of later steps are those of another branch. An explicit request to go on from `found` moves them, and
    `final/`, into a folder `set-aside-<number>`, with a copy of metrics and ledger. So `auto` continues the new branch.
    A checkpoint of another run is copied, with its best one and its metrics and ledger.
    """
    is_own = found.parent.resolve() == output_dir.resolve()
    place = output_dir / f"checkpoint-{state.step}"
    if is_own:
        others = [path for path in list_checkpoints(output_dir) if step_of(path) > state.step and not is_auto]
        if step_of(found) < 0 and os.path.lexists(place):
            # `found` is a whole copy of this damaged one.
            others.append(place)
    else:
        others = list_checkpoints(output_dir)
    aside = set_aside(others, output_dir, say) if others else None
    if is_own and step_of(found) < 0:
        found.rename(place)
    if not is_own:
        _copy_from(found, output_dir, state)
        say(f"copied {found} to {place}: the run goes on there")
    write_pointer(output_dir / LATEST, place)
    best = output_dir / f"checkpoint-{state.best_step}"
    if best.is_dir():
        write_pointer(output_dir / BEST, best)
    elif others and os.path.lexists(output_dir / BEST):
        remove(output_dir / BEST)
    return place, aside


def set_aside(checkpoints: list[Path], output_dir: Path, say: Callable[[str], None]) -> str:
    """Move checkpoints of another branch, and `final/`, into a folder of their own; returns its name."""
    target = next(path for n in range(1, 10_000) if not (path := output_dir / f"set-aside-{n}").exists())
    target.mkdir(parents=True)
    for name in HISTORY:
        if (output_dir / name).is_file():
            shutil.copy2(output_dir / name, target / name)
    # The newest first: after a kill in between, the rest is still that of one branch.
    for path in [output_dir / "final", *reversed(checkpoints)]:
        if os.path.lexists(path):
            path.rename(target / path.name)
    names = ", ".join(path.name for path in checkpoints)
    say(f"set aside, as they are of another branch: {names}. They are in {target}; remove it if you do not need it.")
    flush(output_dir)
    return target.name


def _copy_from(found: Path, output_dir: Path, state: State) -> None:
    """Copy a checkpoint of another run, its best one, and its metrics and ledger."""
    best = found.parent / f"checkpoint-{state.best_step}"
    for folder, step in ((best, state.best_step), (found, state.step)):
        if step is not None and (folder == found or (folder.is_dir() and find_damage(folder) is None)):
            _link_or_copy(folder, output_dir / f"checkpoint-{step}")
    for name in HISTORY:
        remove(output_dir / name)
        if (found.parent / name).is_file():
            shutil.copyfile(found.parent / name, output_dir / name)


def _link_or_copy(folder: Path, target: Path) -> None:
    """Copy a checkpoint, at once or not at all; without using disk space where the file system can."""
    if target.exists():
        return
    with draft_beside(target) as draft:
        shutil.copytree(folder, draft, copy_function=_link_or_copy_file)
        os.replace(draft, target)


def _link_or_copy_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
