"""Where data that can be made again are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$RELAY_CACHE, else ~/.cache/relay."""
    return Path(os.environ.get("RELAY_CACHE") or Path.home() / ".cache" / "relay")
