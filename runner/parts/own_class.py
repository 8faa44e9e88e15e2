"""Give a module of another library methods of ours, without building it anew."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from torch import nn

Part = TypeVar("Part")


def put_in_front(own: type[Part], module: nn.Module) -> Part:
    """Make the module one of our class too, which comes before its own: what it holds stays, and ours decides."""
    module.__class__ = _in_front(own, type(module))
    return cast(Part, module)


@functools.cache
def _in_front(own: type, theirs: type) -> type:
    # Others look for the name, as PEFT does where it adds a second adapter.
    return type(theirs.__name__, (own, theirs), {})
