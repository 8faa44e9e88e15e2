"""The settings of a dataclass one by one: name, type, default and help text."""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.parts.setting_types import CommaList, Position, marks_of


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the settings: its flag, and where it is in the dataclasses."""

    flag: str
    """Name with dots, as in `--data.dir`."""
    attributes: tuple[str, ...]
    """The way from the outer dataclass to the field."""
    hint: object
    """The annotated type."""
    owner: type
    """The dataclass that has the field."""

    def get(self, owner: object) -> object:
        """The value in `owner`."""
        for attribute in self.attributes:
            owner = getattr(owner, attribute)
        return owner

    @functools.cached_property
    def kinds(self) -> tuple[object, ...]:
        """The types that a value may have, without None: of `int | None` only int, of a Literal its words."""
        return tuple(_kinds(self.hint))

    @property
    def may_be_unset(self) -> bool:
        """Whether None is a value."""
        return types.NoneType in _parts(self.hint)

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false, or perhaps unset."""
        return self.kinds == (bool,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be, where it is one of several."""
        return tuple(kind for kind in self.kinds if isinstance(kind, str))

    @property
    def is_text(self) -> bool:
        """Whether any text is a value."""
        return str in self.kinds or Path in self.kinds

    @property
    def is_sequence(self) -> bool:
        """Whether it takes several values, as a tuple."""
        return any(typing.get_origin(kind) in (tuple, list) for kind in self.kinds)

    @property
    def is_comma_list(self) -> bool:
        """Whether it is a text of several names with commas between them."""
        return any(isinstance(mark, CommaList) for mark in marks_of(self.hint))

    @property
    def position(self) -> Position | None:
        """Where it may be typed without its flag: what the usage line calls it."""
        return next((mark for mark in marks_of(self.hint) if isinstance(mark, Position)), None)

    @property
    def help(self) -> str:
        """The docstring under the field, on one line."""
        return help_texts(self.owner).get(self.attributes[-1], "")

    @property
    def wanted(self) -> str:
        """What a value must be, for use after "type"."""
        if self.is_switch:
            return "true or false"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return "a whole number" if self.kinds == (int,) else "a number" if float in self.kinds else "a value"


def _parts(hint: object) -> Iterator[object]:
    """The members of a union, without annotations."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        yield from _parts(typing.get_args(hint)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part)
    else:
        yield hint


def _kinds(hint: object) -> Iterator[object]:
    for part in _parts(hint):
        if typing.get_origin(part) is typing.Literal:
            yield from (word for word in typing.get_args(part) if word is not None)
        elif part is not types.NoneType:
            yield part


def group_name(field: str) -> str:
    """The name users see of a nested field: `data_settings` is the group `data` (the verb `data` has the name)."""
    return field.removesuffix("_settings")


def settings_of(owner: type, prefix: str = "", way: tuple[str, ...] = ()) -> list[Setting]:
    """Every setting of a (nested) dataclass, but for the fields that it hides with `tyro.conf.Suppress`."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found = []
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if not field.init or "Suppress" in repr(hint):
            continue
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found += settings_of(hint, f"{prefix}{group_name(field.name)}.", (*way, field.name))
        else:
            found.append(Setting(prefix + field.name, (*way, field.name), hint, owner))
    return found


def defaults_of(owner: type, prefix: str = "") -> dict[str, object]:
    """The default of every setting that has one, by its flag."""
    defaults: dict[str, object] = {}
    hints = typing.get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(owner):
        group = hints[field.name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(group) and dataclasses.is_dataclass(default) and not isinstance(default, type):
            leaves = settings_of(type(default), f"{prefix}{group_name(field.name)}.")
            defaults |= {leaf.flag: leaf.get(default) for leaf in leaves}
        elif default is not dataclasses.MISSING:
            defaults[prefix + field.name] = default
    return defaults


def flatten(nested: Mapping[str, typing.Any], prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    """(name with dots, value) for every leaf of nested mappings."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@functools.cache
def help_texts(owner: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and its bases, each on one line."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError, SyntaxError):
            # A class that was made at run time has no source.
            continue
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found
