"""Pointers such as `checkpoint-latest`: links, or small files where the file system has no links.

Copying a run can turn a pointer into something else: a full copy of the folder, an empty file, a link to nothing, or
nothing at all. Reading and writing pointers work with all of these.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

DRAFT = ".draft-"
"""What the name of everything begins with that is not whole yet."""
FOLDER = re.compile(r"checkpoint-(\d+)")
LATEST, BEST = "checkpoint-latest", "checkpoint-best"


@contextlib.contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write before it is renamed to `target`. Where that fails, nothing of it is left.

    On a full disk the draft would take the space that is missing.
    """
    draft = target.with_name(f"{DRAFT}{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield draft
    except BaseException:
        remove(draft)
        raise


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, but not what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_drafts(output_dir: Path) -> None:
    """Remove what is half-written; call it only where nobody writes into the folder."""
    for draft in output_dir.glob(f"{DRAFT}*"):
        remove(draft)


def write_pointer(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder` beside it, at once: a symbolic link, or a file with its name."""
    with draft_beside(link) as draft:
        try:
            draft.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            draft.write_text(folder.name, encoding="utf-8")
        remove_copied_folder(link)
        os.replace(draft, link)
    flush(link.parent)


def remove_copied_folder(link: Path) -> None:
    """Remove the full folder that a copy of the run made of a pointer.

    A copy of a checkpoint that is nowhere else gets its own name back.
    """
    if link.is_symlink() or not link.is_dir():
        return
    step = step_of_state(link)
    original = link.with_name(f"checkpoint-{step}")
    if step >= 0 and not os.path.lexists(original):
        link.rename(original)
        return
    # Renamed first: a folder that is half removed must not be taken for a checkpoint.
    doomed = link.with_name(f"{DRAFT}{link.name}-{uuid.uuid4().hex[:8]}")
    link.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def resolve_pointer(link: Path) -> Path:
    """The folder that a pointer leads to; `link` itself where it is no pointer.

    A broken `checkpoint-latest` leads to the newest complete checkpoint beside it, and a broken `checkpoint-best` to
    the one that the newest calls the best.
    """
    name = _written_name(link)
    if name is not None and FOLDER.fullmatch(name) and (link.parent / name).is_dir():
        # The name alone counts: the path in a link of a copied run may lead to the original.
        return link.parent / name
    if link.name in (LATEST, BEST) and not (link.is_dir() and not link.is_symlink() and any(link.iterdir())):
        return _instead_of(link) or link
    return link.resolve() if link.is_symlink() else link


def _written_name(link: Path) -> str | None:
    """The name that a link or a small file holds."""
    try:
        if link.is_symlink():
            return Path(os.readlink(link)).name
        # A pipe is no file, and reading it would wait for ever.
        if link.is_file() and link.stat().st_size < 1000:
            return Path(link.read_text(encoding="utf-8").strip()).name
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _instead_of(link: Path) -> Path | None:
    """The checkpoint that a broken pointer means."""
    if not link.parent.is_dir():
        return None
    complete = [path for path in link.parent.iterdir() if FOLDER.fullmatch(path.name)]
    complete = sorted((path for path in complete if (path / "manifest.json").is_file()), key=step_of)
    if not complete:
        return None
    if link.name == LATEST:
        return complete[-1]
    best = link.with_name(f"checkpoint-{_state(complete[-1]).get('best_step')}")
    return best if best in complete else None


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name; -1 where it has none."""
    match = FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else -1


def step_of_state(folder: Path) -> int:
    """The step in a checkpoint's state.json; -1 where it has none."""
    step = _state(folder).get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else -1


def _state(folder: Path) -> dict[str, object]:
    path = folder / "state.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
