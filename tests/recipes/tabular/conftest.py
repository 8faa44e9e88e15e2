"""Each test has a cache of its own: what one has fitted with changed functions, no other may take."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("RELAY_CACHE", str(folder))
    return folder
