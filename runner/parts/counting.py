"""How far a command is that takes a while: a bar on a terminal, one line at its end in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
QUIET_SECONDS = 1.0
"""What takes no longer shows nothing."""


def counted(items: Iterable[Item], total: int, title: str, unit: str, is_shown: bool = True) -> Iterator[Item]:
    """The items one by one. `unit` is what an item is called in the plural; the title stands in front of the count.

    Everything goes to standard error: the results on standard output stay what they are.
    """
    from tqdm import tqdm

    started, done = time.monotonic(), 0
    # None: on a terminal only.
    silent = None if is_shown else True
    try:
        for item in tqdm(
            items, title, total, unit=f" {unit}", dynamic_ncols=True, disable=silent, delay=QUIET_SECONDS
        ):  # fmt: skip
            yield item
            done += 1
    finally:
        seconds = time.monotonic() - started
        if is_shown and seconds > QUIET_SECONDS and not sys.stderr.isatty():
            of = "" if done == total else f" of {total:,}"
            print(f"{title}: {done:,}{of} {unit} in {seconds:.0f} s", file=sys.stderr, flush=True)
