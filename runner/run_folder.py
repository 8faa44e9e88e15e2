"""The folder of a run: chosen, checked, locked for one run, and its files opened."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.checkpoints.pointers import remove_drafts
from runner.config import Config, write_yaml
from runner.errors import ConfigError
from runner.log import Ledger, Metrics
from runner.parts.fingerprints import data_hash

if TYPE_CHECKING:
    from runner.hardware import Hardware
    from runner.run import Run


@contextlib.contextmanager
def lock_run_folder(output_dir: Path, hardware: Hardware, patience: float = 20) -> Iterator[None]:
    """The run's folder, for this run alone: two would write over each other's checkpoints.

    The system lets go of it when the process ends, however that happens. Raises ConfigError where another run still
    has the folder after `patience` seconds: one that was just stopped may be writing its last checkpoint.
    """
    from filelock import FileLock, Timeout

    lock, wrong = FileLock(output_dir / ".lock"), None
    if hardware.is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            if is_locked(output_dir / ".lock"):
                print(f"waiting up to {patience:.0f} s for another run to leave {output_dir}", flush=True)
            lock.acquire(timeout=patience)
            remove_drafts(output_dir)
        except Timeout:
            wrong = (
                f"Another run is training into {output_dir}: wait for its end, stop it, or type another --output_dir."
            )
        except (OSError, NotImplementedError):
            # Some network folders have no locks.
            pass
    wrong = hardware.from_main(wrong)
    if wrong:
        raise ConfigError(wrong)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process has locked a file. Raises OSError where the folder has no locks.

    FileLock takes every error for a lock of somebody else.
    """
    try:
        import fcntl
    except ImportError:
        # Windows.
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def choose_output_dir(config: Config, hardware: Hardware) -> str:
    """The run's folder, the same on every process."""
    return hardware.from_main(config.run.output_dir or choose_output_name(config))


def choose_output_name(config: Config, prefix: str = "") -> str:
    """A new folder below `runs`, named after the recipe and the time."""
    name = Path(config.recipe_name).stem if config.recipe_name.endswith(".py") else config.recipe_name
    return f"runs/{prefix}{name}-{time.strftime('%Y%m%d-%H%M%S')}"


ASSETS_MARK = ".assets"
"""An empty file in the run's folder: `assets/` is this program's, and may be emptied."""


def empty_assets(output_dir: Path) -> None:
    """Empty the run's folder `assets/`, so that nothing that an earlier start fitted is used again.

    A folder of that name that no run made is renamed.
    """
    assets, mark = output_dir / "assets", output_dir / ASSETS_MARK
    is_ours = mark.exists() or (output_dir / "ledger.jsonl").exists()
    if assets.is_symlink() or assets.is_file():
        assets.unlink()
    elif assets.is_dir() and is_ours:
        shutil.rmtree(assets)
    elif assets.is_dir() and any(assets.iterdir()):
        other = next(path for n in range(1, 1000) if not (path := output_dir / f"assets-before-{n}").exists())
        assets.rename(other)
        print(f"warning: {assets} is not of a run of Relay: it is called {other.name} now.", flush=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    mark.touch()


def follow_moved_run(config: Config) -> Config:
    """The config for a run that goes on from its own config.yaml: its folder is where the file lies now.

    The file may lie in the folder of the run, or in a checkpoint or in `final/` below it.
    """
    file = config.file
    if file is None or file.name != "config.yaml" or not config.run.resume_from_checkpoint:
        return config
    folder = file.parent
    if folder.name == "final" or folder.name.startswith("checkpoint-"):
        folder = folder.parent
    is_run = (folder / "ledger.jsonl").exists() or any(folder.glob("checkpoint-*"))
    recorded = config.run.output_dir
    if "output_dir" in config.flags or not is_run or (recorded and Path(recorded).resolve() == folder.resolve()):
        return config
    if os.environ.get("RANK", "0") == "0":
        print(f"going on in {folder}, where {file} lies; the run was started in {recorded}", flush=True)
    return config.with_run(output_dir=str(folder))


def open_files(run: Run, config: Config) -> None:
    """Write the settings, and open metrics and ledger; for the main process."""
    output_dir = Path(run.settings.output_dir or "")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_yaml(config, output_dir / "config.yaml")
    open_metrics(run)


def open_metrics(run: Run) -> None:
    """Open metrics and ledger on the main process where the state is, without what came after it."""
    if not run.hardware.is_main:
        return
    output_dir, state, lanes = Path(run.settings.output_dir or ""), run.state, run.lanes
    run.metrics = Metrics(output_dir / "metrics.jsonl", state.step)
    start = {
        "seed": lanes.seed,
        "num_examples": lanes.num_examples,
        "batch_size": lanes.batch_size,
        "micro_batch_size": lanes.micro_batch_size,
        "total_examples": lanes.total_examples,
        "excluded": state.excluded,
        "group_by_length": run.settings.group_by_length,
        "processes": run.hardware.num_processes,
        "hardware": run.hardware.describe().partition(" (")[0],
        "machine": platform.node(),
        "data": data_hash(state.data),
    }
    if run.set_aside is not None:
        start["set_aside"], run.set_aside = run.set_aside, None
    if state.data_changes:
        start["data_changes"] = state.data_changes
    run.ledger = Ledger(output_dir / "ledger.jsonl", state.step, start)


def check_output(config: Config) -> None:
    """Raises ConfigError where the run would write over another one."""
    output_dir = config.run.output_dir
    if config.run.upload_to is not None:
        from runner.urls import check_url

        check_url(config.run.upload_to)
    if output_dir is None or config.run.resume_from_checkpoint or config.run.dry_run:
        return
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir {path} is a file: type --output_dir with a folder.")
    if path.is_dir() and any(path.glob("checkpoint-*")):
        raise ConfigError(
            f"{path} already holds checkpoints.\nType --resume_from_checkpoint auto to go on with that run, "
            "or --output_dir with another folder."
        )
