"""Settings of records: meaning, type, default and bounds of a field, said once.

A record's check, the options of the command line and the documentation are all made from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_BOUNDS = ("ge", "gt", "le", "lt")
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """One field of a record.

    Attributes
    ----------
    name : its name, which is that of the argument in Python
    kind : its type
    default : its default value
    help : a sentence for whoever sets it
    ge, gt, le, lt : bounds of a number, or of each number of a tuple; None where there is none
    """

    name: str
    kind: Any
    default: Any
    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Its type, taken apart where it is a union."""
        return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in _parts(self.kind))

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that it takes, where it takes only some."""
        return tuple(name for kind in self.kinds if get_origin(kind) is Literal for name in get_args(kind))

    @property
    def expected(self) -> str:
        """The values that it takes, in words: "a number with 0 <= x < 1"."""
        return " or ".join(map(self._in_words, sorted(self.kinds, key=_is_choice)))

    def takes(self, value: object) -> bool:
        """Whether it takes a value."""
        return any(self._takes(kind, value) for kind in self.kinds)

    def _takes(self, kind: Any, value: object) -> bool:
        if get_origin(kind) is tuple:
            return isinstance(value, tuple) and all(self._takes(get_args(kind)[0], each) for each in value)
        if get_origin(kind) is Literal:
            return isinstance(value, str) and value in get_args(kind)
        if kind in (int, float):
            is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
            return is_number and self._is_within(value)
        if kind is bool:
            return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
        return isinstance(value, kind)

    def _is_within(self, number: Any) -> bool:
        return bool(
            abs(number) < math.inf  # not NaN either
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )

    def _in_words(self, kind: Any) -> str:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if get_origin(kind) in (tuple, Sequence):
            return f"a {'tuple' if get_origin(kind) is tuple else 'list'}, each {self._in_words(get_args(kind)[0])}"
        if get_origin(kind) is dict:
            return "a table"
        if get_origin(kind) is Literal:
            return " or ".join(get_args(kind))
        if kind not in (int, float):
            return "None" if kind is NoneType else _WORDS.get(kind, "a value")
        most = f" <= {self.le:g}" if self.le is not None else f" < {self.lt:g}" if self.lt is not None else ""
        if most:
            least = f"{self.ge:g} <= " if self.ge is not None else f"{self.gt:g} < " if self.gt is not None else ""
            return f"{_WORDS[kind]} with {least}x{most}"
        least = (
            f" of at least {self.ge:g}" if self.ge is not None else f" above {self.gt:g}" if self.gt is not None else ""
        )
        return _WORDS[kind] + least


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word of click and argparse
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A field of a dataclass that is a `Setting`."""
    return field(default=default, metadata={"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt})


@cache
def settings_of(record: Any) -> Mapping[str, Setting]:
    """The settings of a dataclass or pydantic model by name: its fields that have a help text."""
    if is_dataclass(record):
        kinds = get_type_hints(record)
        return {
            item.name: Setting(item.name, kinds[item.name], item.default, **item.metadata)
            for item in fields(record)
            if "help" in item.metadata and item.default is not MISSING
        }
    return {
        name: Setting(name, info.annotation, info.default, info.description, **_bounds(_metadata(info)))
        for name, info in record.model_fields.items()
        if info.description
    }


def problems_of(record: Any) -> list[str]:
    """What is wrong with each setting of a dataclass' instance: "`dropout=1.5`: expected a number with 0 <= x < 1"."""
    return [
        f"`{name}={getattr(record, name)!r:.80}`: expected {setting.expected}"
        for name, setting in settings_of(record.__class__).items()
        if not setting.takes(getattr(record, name))
    ]


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types of a union; any other type by itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _metadata(info: Any) -> list[Any]:
    """What pydantic knows of a field, or of a number that it may be."""
    of_parts = [
        part for kind in _parts(info.annotation) if get_origin(kind) is Annotated for part in get_args(kind)[1:]
    ]
    return [*info.metadata, *(each for part in of_parts for each in getattr(part, "metadata", [part]))]


def _bounds(metadata: list[Any]) -> dict[str, float]:
    return {name: getattr(each, name) for each in metadata for name in _BOUNDS if hasattr(each, name)}
