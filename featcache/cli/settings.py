"""Options made from the settings of records: name, type, default and help are the record's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click

from featcache.cli.command import Decorator, combined, option
from featcache.core.settings import Setting, settings_of


class Parts(click.ParamType[Any]):
    """Several values in one text, as in 256,64 or 70/15/15.

    Parameters
    ----------
    kind : type of each value
    like : an example, for the message
    made : makes of the values what is wanted; raises ValueError where it cannot
    """

    name = "parts"

    def __init__(self, kind: Any, like: str, *, separator: str = ",", made: Callable[[list[Any]], Any] = tuple) -> None:
        self.kind, self.like, self.separator, self.made = click.types.convert_type(kind), like, separator, made

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What a text stands for."""
        try:
            return self.made([self.kind.convert(part.strip(), param, ctx) for part in value.split(self.separator)])
        except click.BadParameter as error:
            self.fail(f"{value!r}: expected numbers like {self.like} ({error.message.rstrip('.')})", param, ctx)
        except ValueError:
            self.fail(f"{value!r}: expected numbers like {self.like}", param, ctx)


def _three(numbers: list[Any]) -> tuple[Any, ...]:
    if len(numbers) != 3 or not min(numbers) > 0:
        raise ValueError
    return tuple(numbers)


class NamedFolder(click.ParamType[Any]):
    """NAME=FOLDER, as a pair."""

    name = "named folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What a text stands for."""
        name, equals, folder = value.partition("=")
        if not (name and equals and folder):
            self.fail(f"{value!r}: expected NAME=FOLDER", param, ctx)
        return name, folder


FLAGS = {
    "batch_rows": "--batch",
    "classes": "--class",
    "clip_norm": "--clip",
    "images": "--image",
    "input_size_px": "--input-size",
    "layers": "--layer",
    "n_images": "--images",
    "preprocessing": "--preprocess",
    "roots": "--root",
    "rotation_deg": "--rotation",
    "splits": "--split",
    "test": "--test-views",
    "train": "--views",
    "val": "--val-views",
    "warmup_epochs": "--warmup",
    "white": "--range",
}
"""Flags that are not the setting's name with hyphens."""

_TYPES: dict[str, click.ParamType[Any]] = {
    "box_columns": Parts(str, "left,top,right,bottom"),
    "hidden": Parts(int, "256 or 256,64", made=lambda units: () if units == [0] else tuple(units)),
    "label_columns": Parts(str, "granules,vacuoles"),
    "l2": Parts(float, "0.001 or 0.001,0", made=lambda factors: factors[0] if len(factors) == 1 else tuple(factors)),
    "mean": Parts(float, "0.485,0.456,0.406"),
    "pseudonyms": click.Path(path_type=Path, dir_okay=False),
    "roots": NamedFolder(),
    "reuse_from": click.Path(path_type=Path, file_okay=False, exists=True),
    "split": Parts(float, "70/15/15", separator="/", made=_three),
    "split_counts": Parts(int, "100/10/10", separator="/", made=_three),
    "std": Parts(float, "0.229,0.224,0.225"),
}
"""How values are written that are no single number or name."""

_METAVARS = {
    "box_columns": "A,B,C,D",
    "classes": "LABEL",
    "group_pattern": "REGEX",
    "label_from": "PATTERN",
    "group_from": "PATTERN",
    "masks": "FOLDER",
    "mean": "R,G,B",
    "padding": "COLOUR|edge",
    "std": "R,G,B",
    "head": "RUN",
    "hidden": "N[,N]",
    "images": "ID|PATH",
    "l2": "X[,X]",
    "label_columns": "A,B[,C]",
    "label_separator": "CHARACTER",
    "layers": "NAME",
    "pseudonyms": "FILE",
    "roots": "NAME=FOLDER",
    "segment": "none|stain|colour|given|FILE",
    "segment_weights": "PATH",
    "split": "TRAIN/VAL/TEST",
    "split_counts": "TRAIN/VAL/TEST",
    "weights": "imagenet|random|PATH",
    "without": "LABEL",
}
_LARGEST = 99_999
"""Larger bounds are not worth a word in the help; the record checks them."""


def options(
    record: type,
    *names: str,
    presets: Mapping[str, Any] | None = None,
    default_text: str | None = None,
    several: bool = False,
    flags: Mapping[str, str] = FLAGS,
    **attributes: Any,
) -> Decorator[Any]:
    """Options that fill fields of a record. What is not given is None: the record has the defaults.

    Parameters
    ----------
    record : dataclass or model
    names : those of its settings
    presets : records whose values the options replace; the first one is the default
    default_text : what the help says of the default, instead of its value
    several : whether each option takes several values, to be tried one after the other
    flags : those that are not the setting's name with hyphens
    attributes : of every option, such as `group`; they take the place of those that are made
    """

    def made(setting: Setting) -> Decorator[Any]:
        default = _default(setting, presets) if default_text is None else default_text
        own = _list_of_values(setting) if several else _attributes(setting)
        flag = flags.get(setting.name, f"--{setting.name.replace('_', '-')}")
        return option(flag, setting.name, **{"default_text": default, **own, **attributes})

    settings = settings_of(record)
    return combined(*(made(settings[name]) for name in names))


def given(values: Mapping[str, Any], record: type) -> dict[str, Any]:
    """Those of a record's settings that were given as options."""
    return {name: values[name] for name in settings_of(record) if values.get(name) is not None}


def _attributes(setting: Setting) -> dict[str, Any]:
    """What click is told of an option."""
    if setting.kind is bool:
        return {"help": setting.help, "is_flag": True, "default": None}
    if setting.kind in (int, float):
        return {"help": setting.help, "type": _type(setting.kind, setting)}
    kind = next(kind for kind in setting.kinds if kind is not NoneType)
    type_ = _TYPES.get(setting.name)
    is_repeated = get_origin(kind) in (Sequence, tuple, dict) and not isinstance(type_, Parts)
    together = dict if get_origin(kind) is dict else tuple
    if is_repeated:
        kind = get_args(kind)[0]
    own = {"help": setting.help, "metavar": _METAVARS.get(setting.name), "type": type_ or _type(kind, setting)}
    if is_repeated:
        own |= {
            "help": f"{setting.help} Repeatable.",
            "multiple": True,
            "callback": lambda _, __, values: together(values) or None,
        }
    return own


def _type(kind: Any, setting: Setting) -> Any:
    """The type that takes what a setting of one value takes."""
    if get_origin(kind) is Literal:
        return click.Choice([name for name in setting.choices or get_args(kind) if name])
    if kind not in (int, float):
        return kind
    least = setting.gt if setting.ge is None else setting.ge
    most = setting.lt if setting.le is None else setting.le
    if least is None and most is None:
        return kind
    if most is not None and most > _LARGEST:
        most = None
    range_: Any = click.IntRange if kind is int else click.FloatRange
    return range_(least, most, min_open=setting.gt is not None, max_open=setting.lt is not None and most is not None)


def _list_of_values(setting: Setting) -> dict[str, Any]:
    """As `_attributes`, for an option that takes several values; "+" joins the numbers of one."""
    own = _attributes(setting)
    return {
        **own,
        "type": Parts(_Joined(own["type"]), "0.001,0.003", made=list),
        "metavar": "X[,X]",
        "help": f"Values to try. {setting.help}",
    }


class _Joined(click.ParamType[Any]):
    """A value whose numbers are joined by "+", since commas stand between values."""

    name = "value"

    def __init__(self, kind: Any) -> None:
        self.kind = click.types.convert_type(kind)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What a text stands for."""
        return self.kind.convert(value.replace("+", ","), param, ctx)


def _default(setting: Setting, presets: Mapping[str, Any] | None) -> str:
    """0.001; study: 1e-05"""
    if not presets:
        return _in_words(setting, setting.default)
    values = {name: _in_words(setting, getattr(preset, setting.name)) for name, preset in presets.items()}
    first, *others = values
    changed = [f"{name}: {values[name] or 'none'}" for name in others if values[name] != values[first]]
    return "; ".join([values[first] or "none", *changed] if values[first] or changed else [])


def _in_words(setting: Setting, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, tuple):
        separator = getattr(_TYPES.get(setting.name), "separator", ",")
        return str(separator).join(_in_words(setting, each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
