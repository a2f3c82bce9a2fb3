"""Names of layers that mean the same in every process.

Keras numbers layers without a name of their own across the whole process: the last layer of NASNet is
activation_187 in one process and activation_375 in the next that built NASNet before. Here such layers are
numbered anew within their network, in the order in which they were made: the names are those that Keras
itself gives to the first network of a process. Names that a person gave stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_OLDER_PREFIXES = {"InputLayer": ("input",), "Functional": ("model",), "Model": ("model", "functional")}
"""What Keras has called unnamed layers of a class in other versions."""


def snake_case(name: str) -> str:
    """A class name as Keras makes layer names and places in files of it: SeparableConv2D -> separable_conv2d."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def stable_names(layers: Iterable[tuple[str, str]]) -> list[str]:
    """The stable name of each layer of one network.

    Parameters
    ----------
    layers : (class name, Keras' name) of every layer of one level, in the network's order

    Returns
    -------
    list of str, as long as `layers`, each name once
    """
    layers = list(layers)
    automatic: dict[str, list[tuple[int, int]]] = {}  # prefix -> (Keras' number, place in `layers`)
    names = [name for _, name in layers]
    for place, (class_name, name) in enumerate(layers):
        if (number := _automatic_number(class_name, name)) is not None:
            automatic.setdefault(snake_case(class_name), []).append((number, place))
    numbered = {place for places in automatic.values() for _, place in places}
    taken = {name for place, name in enumerate(names) if place not in numbered}
    for prefix, places in automatic.items():
        number = 0
        for _, place in sorted(places):
            while (name := f"{prefix}_{number}" if number else prefix) in taken:
                number += 1
            names[place] = name
            number += 1
    return names


def _automatic_number(class_name: str, name: str) -> int | None:
    """The number that Keras gave to an unnamed layer, 0 for none; None where the name is a person's."""
    for prefix in (snake_case(class_name), *_OLDER_PREFIXES.get(class_name, ())):
        if name == prefix:
            return 0
        head, _, number = name.rpartition("_")
        if head and head == prefix and number.isascii() and number.isdigit():
            return int(number)
    return None
