"""The collector of reference cycles is seldom at work while a program starts, and as before from the first step on."""

import gc

from runner.collecting import SELDOM, collect_as_usual, collect_seldom


def test_the_collector_is_seldom_at_work_until_the_first_step() -> None:
    usual = gc.get_threshold()
    collect_as_usual()
    assert gc.get_threshold() == usual, "nothing was to be undone"
    collect_seldom()
    collect_seldom()
    assert gc.get_threshold() == (SELDOM, *usual[1:])
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(info))
    try:
        kept = [[] for _ in range(3 * usual[0])]
        collect_as_usual()
        # What was made meanwhile is old by now: no collection is due.
        few = [[] for _ in range(usual[0] // 2)]
        assert not collections
    finally:
        gc.callbacks.pop()
    assert gc.get_threshold() == usual and gc.get_freeze_count() == 0 and kept and few


def test_a_program_without_the_collector_keeps_it_off() -> None:
    usual = gc.get_threshold()
    gc.disable()
    try:
        collect_seldom()
        assert gc.get_threshold() == usual and not gc.isenabled()
    finally:
        gc.enable()
