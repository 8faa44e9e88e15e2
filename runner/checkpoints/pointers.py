"""Pointers such as `checkpoint-latest`: links, or small files where the file system has no links."""

import os
import uuid
from pathlib import Path

DRAFT = ".draft-"
"""What the name of everything begins with that is not whole yet."""


def write_pointer(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder`, at once: a symbolic link, or a file with the name where there are none."""
    draft = link.with_name(f"{DRAFT}{link.name}-{uuid.uuid4().hex[:8]}")
    try:
        draft.symlink_to(folder.name, target_is_directory=True)
    except OSError:
        draft.write_text(folder.name, encoding="utf-8")
    os.replace(draft, link)
    flush(link.parent)


def resolve_pointer(link: Path) -> Path:
    """The folder that a pointer leads to; `link` itself where it is no pointer."""
    if link.is_file():
        return link.parent / link.read_text(encoding="utf-8").strip()
    return link.resolve() if link.is_symlink() else link


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
