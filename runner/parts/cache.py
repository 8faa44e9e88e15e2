"""Where data that can be made again are kept between runs."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """$RELAY_CACHE, else ~/.cache/relay."""
    return Path(os.environ.get("RELAY_CACHE") or Path.home() / ".cache" / "relay")


def made_once(place: Path, make: Callable[[Path], None]) -> Path | None:
    """A folder that `make` fills where no run has done so before. It is there whole or not at all.

    None, and nothing is made, where the cache cannot be written.
    """
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    except OSError:
        return None
    try:
        make(unfinished)
        # Another process may have been faster, with the same.
        with contextlib.suppress(OSError):
            unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place if place.is_dir() else None
