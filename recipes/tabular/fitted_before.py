"""The linear parts of tables, kept between runs: to fit them can take longer than all else before the first step.

A run takes what another one has fitted to the same rows, with the same settings, code and libraries, byte by byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from runner.parts.cache import cache_folder, made_once
from runner.parts.fingerprints import digest

DIGESTS = "digests.json"
LIBRARIES = ("numpy", "scipy", "scikit-learn")


def fitted(folder: Path, inputs: Iterable[object], fit: Callable[[Path], None]) -> None:
    """Fill a folder with the files that `fit` writes, or with those that it wrote for the same inputs before."""

    def fit_and_note(target: Path) -> None:
        fit(target)
        found = {path.name: digest(path) for path in sorted(target.iterdir())}
        (target / DIGESTS).write_text(json.dumps(found), encoding="utf-8")

    place = cache_folder() / "tabular" / key_of(inputs)
    if place.is_dir() and not _is_whole(place):
        shutil.rmtree(place, ignore_errors=True)
    made = made_once(place, fit_and_note)
    if made is None or not _is_whole(made):
        # Nothing can be kept here.
        fit(folder)
        return
    for path in made.iterdir():
        if path.name != DIGESTS:
            shutil.copyfile(path, folder / path.name)


def _is_whole(place: Path) -> bool:
    """Whether the files are those that were written."""
    try:
        wanted = json.loads((place / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(wanted) and all(digest(place / name) == content for name, content in wanted.items())


def key_of(inputs: Iterable[object]) -> str:
    """A hash of the inputs, of the code of this recipe, and of the versions of the libraries that fit."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    _add(found, [importlib.metadata.version(name) for name in LIBRARIES])
    for each in inputs:
        _add(found, each)
    return found.hexdigest()


def _add(found: hashlib.blake2b, value: object) -> None:
    """Add an array, a dataclass of arrays and of what JSON holds, or what JSON holds."""
    import numpy as np

    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _add(found, getattr(value, field.name))
    else:
        found.update(json.dumps(value).encode() + b"\n")
