"""What can be known to fail before a training reads its data: packages, trackers, metrics, folders, buckets."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import importlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.checkpoints.disk import reason_of
from runner.config import Config
from runner.errors import ConfigError
from runner.parts.installation import DISTRIBUTIONS, is_installed, pip_line
from runner.recipe import Recipe

TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
"""The packages that each value of `report_to` needs; one of them is enough."""
TRACKER_EXTRAS = {"tensorboard": "tensorboard", "trackio": "trackio"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    wrong: str | None
    """What is wrong, and what to type; None where nothing is."""


def check_settings(config: Config) -> Config:
    """Raise ConfigError for what these settings cannot end well with, whatever the data are.

    Returns the settings, with a `metric_for_best_model` as the recipe calls it.
    """
    raise_first(checks_of_settings(config))
    return config.with_run(metric_for_best_model=metric_name(config.recipe, config.run.metric_for_best_model))


def checks_of_settings(config: Config) -> list[Check]:
    """Packages, tracker and metric: the same on every process, and without the network."""
    wrong_metric = None
    try:
        metric_name(config.recipe, config.run.metric_for_best_model)
    except ConfigError as error:
        wrong_metric = str(error)
    checks = [Check("packages", wrong_packages(config.recipe_name, config.recipe.packages()))]
    if config.run.report_to != "none":
        checks.append(Check(f"tracker {config.run.report_to}", wrong_tracker(config.run.report_to)))
    return [*checks, Check("metric_for_best_model", wrong_metric)]


def checks_of_places(config: Config) -> list[Check]:
    """Where the run writes: its folder, and the bucket. For the main process: it writes small files."""
    folder = Path(config.run.output_dir or "runs")
    checks = [Check(f"output_dir {folder}", wrong_folder(folder, config.run.dry_run))]
    if config.run.upload_to is not None and not config.run.dry_run:
        checks.append(Check(f"upload_to {config.run.upload_to}", wrong_bucket(config.run.upload_to)))
    return checks


def raise_first(checks: Sequence[Check]) -> None:
    """Raise ConfigError with what is wrong, in at most three lines."""
    lines = [line for check in checks if check.wrong is not None for line in check.wrong.splitlines()]
    if len(lines) > 3:
        lines = [*lines[:2], "Type relay doctor RECIPE with the same flags for all that is wrong."]
    if lines:
        raise ConfigError("\n".join(lines))


def wrong_packages(recipe_name: str, packages: Mapping[str, str | None]) -> str | None:
    """What the recipe's settings need and is not installed."""
    missing = [name for name in packages if not is_installed(name)]
    if not missing:
        return None
    shown = ", ".join(DISTRIBUTIONS.get(name, name) for name in missing)
    extras = {extra for name in missing if (extra := packages[name]) is not None}
    lines = [pip_line(extra) for extra in sorted(extras)]
    plain = [DISTRIBUTIONS.get(name, name) for name in missing if packages[name] is None]
    lines += [f"pip install {' '.join(plain)}"] if plain else []
    return f"{recipe_name} needs {shown} for these settings: not installed. Type {' and '.join(lines)}."


def wrong_tracker(name: str) -> str | None:
    """Why the experiment tracker cannot be used."""
    # Imported for real, as the training will: a package can be there and broken. But trackio takes its folder from the
    # environment when it is imported, and the run's folder is not chosen yet.
    can_import = imports_elsewhere if name == "trackio" else imports
    if any(is_installed(package) and can_import(package) for package in TRACKER_PACKAGES[name]):
        return None
    line = pip_line(TRACKER_EXTRAS[name]) if name in TRACKER_EXTRAS else f"pip install {name}"
    return f"--report_to {name} needs the package {name}, which is not installed: type {line}, or --report_to none."


def imports(name: str) -> bool:
    """Whether a package can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def imports_elsewhere(name: str) -> bool:
    """Whether another process can import a package."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(words, env=environment, capture_output=True).returncode == 0


def metric_name(recipe: Recipe, requested: str | None) -> str | None:
    """The recipe's own name of a metric, without the `eval_` that transformers puts in front.

    Raises ConfigError where the recipe has none of that name.
    """
    known = recipe.metrics()
    if requested is None:
        return None
    stripped = requested.removeprefix("eval_")
    names = ["loss", *(known or ())]
    for name in (requested, stripped):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
            return name
    if known is None:
        return requested
    raise ConfigError(
        f"metric_for_best_model is {requested!r}, which these settings do not measure: type one of "
        f"{', '.join(name for name in names if '*' not in name)}."
    )


def wrong_folder(folder: Path, is_dry: bool) -> str | None:
    """Why a run cannot write into a folder. Makes the folder, unless nothing is to be written."""
    try:
        if is_dry:
            there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if there.is_dir() and os.access(there, os.W_OK):
                return None
            raise NotADirectoryError(20, "Not a directory") if not there.is_dir() else PermissionError(13, "Denied")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"relay")
    except OSError as error:
        reason = reason_of(folder, error.errno or errno.EIO)
        return f"output_dir {folder} cannot be written: {reason}. Type --output_dir with another folder."
    return None


def wrong_bucket(url: str) -> str | None:
    """Why nothing can be copied to a URL. Writes a small file there, and removes it."""
    from runner.checkpoints.bucket import Remote

    try:
        remote = Remote.open(url)
    except ConfigError as error:
        return str(error)
    name = f".relay-preflight-{uuid.uuid4().hex[:8]}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(b"relay")
            remote.put(file, name)
        remote.files.rm_file(name)
    except Exception as error:
        summary = " ".join(str(error).split())[:200]
        return (
            f"upload_to {url} cannot be written: {type(error).__name__}: {summary}\n"
            "Check that the bucket is there, the network, and the provider's credentials; or leave --upload_to out."
        )
    return None
