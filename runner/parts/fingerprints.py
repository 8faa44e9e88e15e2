"""Fingerprints of data: whether files hold what they held before, wherever they lie now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

WHOLE_BYTES = 64 << 20
"""A file up to this size is hashed completely."""
BLOCK_BYTES, BLOCKS = 64 << 10, 64
"""Of a larger file, so many evenly spread blocks are hashed, its first and its last block among them."""
MOST_FILES = 1000
"""Of more files, only one fingerprint over all of them is recorded."""

Fingerprint = list[list[str]]
"""[name, digest] of each file, in the order in which the files are read."""


def fingerprint(files: Iterable[str | Path]) -> Fingerprint:
    """The content of files, and of the files below folders; a missing file has the digest "missing".

    The names are relative to the folder that all files share; nothing depends on paths and times.
    """
    places = [place for file in files for place in _expanded(file)]
    local = [os.path.abspath(place) for place in places if "://" not in place]
    shared = os.path.commonpath([os.path.dirname(place) for place in local]) if local else ""
    digests: dict[str, str] = {}
    for place in places:
        if place not in digests:
            digests[place] = digest_of_url(place) if "://" in place else digest(Path(place))
    names = [place if "://" in place else Path(os.path.relpath(place, shared)).as_posix() for place in places]
    entries = [[name, digests[place]] for name, place in zip(names, places, strict=True)]
    return entries if len(entries) <= MOST_FILES else [[f"{len(entries)} files", _hash_of(repr(entries).encode())]]


def changes(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> list[str]:
    """What differs between two fingerprints, a few words for each file; empty where the content is the same."""
    if [digest for _, digest in before] == [digest for _, digest in now]:
        return []
    old, new = {name: digest for name, digest in before}, {name: digest for name, digest in now}
    found = [f"{name} has changed" for name in old if name in new and old[name] != new[name]]
    moved = set(new.values())
    found += [f"{name} is missing" for name in old if name not in new and old[name] not in moved]
    found += [f"{name} is new" for name in new if name not in old and new[name] not in old.values()]
    return found or ["the files have another order"]


def data_hash(data: Mapping[str, Fingerprint]) -> str | None:
    """One hash over the content of all splits; None where nothing is recorded."""
    digests = {split: [digest for _, digest in entries] for split, entries in sorted(data.items())}
    return _hash_of(repr(digests).encode()) if any(digests.values()) else None


def digest(path: Path) -> str:
    """Size and hash of one file."""
    import xxhash

    # A pipe or a device would wait for ever.
    if not path.is_file():
        return "missing"
    try:
        size = path.stat().st_size
        content = xxhash.xxh3_128()
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                while block := file.read(1 << 22):
                    content.update(block)
            else:
                for number in range(BLOCKS):
                    file.seek(number * (size - BLOCK_BYTES) // (BLOCKS - 1))
                    content.update(file.read(BLOCK_BYTES))
    except OSError:
        return "missing"
    return f"{size}-{content.hexdigest()}"


def digest_of_url(url: str) -> str:
    """What a server says of a file: its size and, where there is one, the hash that it keeps.

    A name that no file system knows, such as an id of `datasets`, stands for itself.
    """
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
        about = system.info(path)
    except Exception:  # Each driver has exceptions of its own; reading the data reports the trouble.
        return url
    if url.startswith("file://"):
        return digest(Path(path))
    known = {name.lower(): value for name, value in about.items()}
    marks = [str(known[name]) for name in ("etag", "md5hash", "content_md5", "checksum") if known.get(name)]
    return "-".join([str(known.get("size")), *marks])


def _expanded(file: str | Path) -> Iterator[str]:
    place = os.fspath(file)
    if "://" not in place and os.path.isdir(place):
        yield from (str(path) for path in sorted(Path(place).rglob("*")) if path.is_file())
    else:
        yield place


def _hash_of(content: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)
