"""Where Relay is installed: from a checkout or from a package, with which extras and launch configurations."""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from runner.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `runner`, `recipes` and `accelerate_configs`: a checkout, or `site-packages`."""

DISTRIBUTION = "relay-train"
"""The name on the package index. `relay` and `relay-runner` there are not this program."""


def environment_with_relay() -> dict[str, str]:
    """The environment for a process that finds this Relay wherever the command is typed."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path}


def is_checkout() -> bool:
    """Whether Relay runs from a checkout of the repository."""
    return (ROOT / "pyproject.toml").is_file()


def pip_line(extra: str) -> str:
    """What to type to install an extra of pyproject.toml, such as `s3`, for use in messages."""
    if not is_checkout():
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    return f"pip install -e '.[{extra}]'{'' if Path.cwd() == ROOT else f' in the folder {ROOT}'}"


DISTRIBUTIONS = {"sklearn": "scikit-learn", "skbio": "scikit-bio", "biom": "biom-format"}
"""Packages that are installed under another name than they are imported by."""


def is_installed(name: str) -> bool:
    """Whether a package is there; it is not imported, as some take seconds."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def require(modules: Iterable[str], purpose: str, extra: str) -> None:
    """Raise ConfigError with the line that installs what is missing, before anything takes time."""
    for module in modules:
        if not is_installed(module):
            name = DISTRIBUTIONS.get(module, module)
            raise ConfigError(f"{purpose} needs the package {name}, which is not installed: {pip_line(extra)}")


def launch_config_names() -> list[str]:
    """The names of the files in `accelerate_configs/`, without their ending."""
    return sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))


def find_launch_config(name: str) -> Path:
    """The file of `accelerate launch` that `name` means: a path, or the name of one that Relay brings.

    Raises ConfigError where there is none.
    """
    brought = ROOT / "accelerate_configs" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    for path in (Path(name), brought):
        if path.is_file():
            return path
    raise ConfigError(
        f"There is no launch configuration {name}: type a file, or one of {', '.join(launch_config_names())}."
    )


def shown_launch_config(name: str) -> str:
    """The path of a configuration that Relay brings, as somebody in this folder types it."""
    path = find_launch_config(name)
    return path.relative_to(ROOT).as_posix() if Path.cwd() == ROOT and path.is_relative_to(ROOT) else str(path)


def launch_line(name: str) -> str:
    """The beginning of the command that trains with a configuration that Relay brings, for use in messages."""
    program = "runner/train.py" if Path.cwd() == ROOT else "-m runner.train"
    return f"accelerate launch --config_file {shown_launch_config(name)} {program}"
