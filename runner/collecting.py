"""Python's collector of reference cycles: seldom while a program starts, as usual from the first step on.

Imports make half a million objects that stay. By itself Python looks through them again and again meanwhile, which
took 0.6 of the 4.2 CPU seconds of a start.
"""

import gc

SELDOM = 400_000
"""New objects between two collections while a program starts; Python's own number is 700 to 2,000."""

_usual: list[tuple[int, int, int]] = []


def collect_seldom() -> None:
    """Let the collector look for cycles after many new objects only, until `collect_as_usual`."""
    if not _usual and gc.isenabled():
        _usual.append(gc.get_threshold())
        gc.set_threshold(SELDOM, *_usual[0][1:])


def collect_as_usual() -> None:
    """Undo `collect_seldom`, if it was called. What there is by then counts as old, so that no collection is due."""
    if _usual:
        gc.freeze()
        gc.unfreeze()
        gc.set_threshold(*_usual.pop())
