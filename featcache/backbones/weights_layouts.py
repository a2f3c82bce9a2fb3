"""Which tensor of an HDF5 file belongs to which weight of a network, in every layout that Keras has written.

Three layouts are told apart by what is in the file, not by its name:

    legacy         /<layer>/<weight names>, order in the attributes layer_names and weight_names
    legacy whole   the same below /model_weights
    Keras 3        /layers/<class>[_<k>]/vars/<i>; a .keras file is a zip with this one inside

Every layout may hold the network within another one: a classifier around it, or a top behind its layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py

from featcache.backbones.layer_names import snake_case, stable_names
from featcache.core.errors import WeightsError

Pair = tuple[Any, Any, str]  # weight, dataset, where
Pairs = Iterator[Pair]

# Names that Keras has given to unnamed layers over the years: they say nothing about the layer's place.
_AUTOMATIC = re.compile(
    r"(conv2d|convolution2d|depthwise_conv2d|separable_conv2d|batch_?normalization|layer_normalization|dense"
    r"|normalization|sequential|functional|model)(_\d+)?"
)


@dataclass(frozen=True)
class Leaf:
    """A layer that holds weights itself, of a network or of a file.

    name : of the layer
    tensors : its weights or datasets: those that are trained first, then statistics
    entry : of a file: the name of the entry that it is in
    """

    name: str
    tensors: list[Any]
    entry: str = ""


def leaves_of(layer: Any) -> list[Leaf]:
    """Every layer below a network that holds weights itself, in the network's order, each once."""
    leaves: dict[int, Leaf] = {}
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        if own := own_weights(inner):
            leaves.setdefault(id(own[0]), Leaf(inner.name, own))
        leaves |= {id(leaf.tensors[0]): leaf for leaf in leaves_of(inner) if id(leaf.tensors[0]) not in leaves}
    return list(leaves.values())


def own_weights(layer: Any) -> list[Any]:
    """The weights that a layer holds itself, without those of layers within it: trained ones first."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def pairs_of(model: Any, file: h5py.File, *, where: str, whole: bool) -> list[Pair]:
    """Every weight of a network with its tensor of the file, none left over.

    whole : whether the file is one of a whole model, which may go on behind the network

    Raises
    ------
    WeightsError : the file holds another network, none, or several that fit.
    KeyError, ValueError, TypeError, AttributeError, RuntimeError : the file is damaged.
    """
    if "layer_names" in file.attrs or "layer_names0" in file.attrs:
        ways = _legacy_ways(model, file, where, whole)
    elif "model_weights" in file:
        ways = _legacy_ways(model, file["model_weights"], where, True)
    elif "layers" in file:
        ways = _keras3_ways(model, file, where, whole)
    else:
        raise WeightsError(f"{where}: an HDF5 file, but none with a Keras network's weights")
    return _fitting(ways, where)


def _fitting(ways: Iterator[Pairs], where: str) -> list[Pair]:
    """The pairs of the one way to read the file that fits; where none does, the error of the one that came furthest."""
    fits: dict[tuple[str, ...], list[Pair]] = {}
    furthest, error = -1, WeightsError(f"{where}: it holds no weights")
    for way in ways:
        pairs: list[Pair] = []
        try:
            pairs.extend(way)
        except WeightsError as refused:
            if len(pairs) >= furthest:
                furthest, error = len(pairs), refused
        else:
            fits[tuple(dataset.name for _, dataset, _ in pairs)] = pairs
    if not fits:
        raise error
    if len(fits) > 1:
        raise WeightsError(f"{where}: it holds {len(fits)} networks that fit: save the one that is meant by itself")
    return next(iter(fits.values()))


def check_tensor(dataset: Any, shape: tuple[int, ...], *, where: str) -> None:
    """Raise WeightsError unless `dataset` is a tensor of this shape within the file itself; reads no value."""
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise WeightsError(f"{where}: expected a tensor within the file itself")
    if dataset.shape != shape:
        raise WeightsError(f"{where}: not of this network: expected shape {shape}, found {dataset.shape}")


def _member(group: Any, path: str) -> Any:
    """The group or dataset at `path`, every step of it within this file."""
    for step in path.split("/"):
        if isinstance(group.get(step, getlink=True), h5py.ExternalLink):
            raise ValueError(f"{path} is a link to another file")
        group = group[step]
    return group


# --- legacy ---------------------------------------------------------------------------------------


def _legacy_ways(model: Any, group: Any, where: str, whole: bool) -> Iterator[Pairs]:
    """Ways to read a legacy file: a network nested in it, or the file as a whole."""
    leaves = leaves_of(model)
    groups = _legacy_groups(group)
    for inner in groups if whole else ():
        if len(inner) > 1 and len(groups) > 1:
            yield _by_leaf(leaves, inner, where, whole)
    if (tops := _tops_of(model)) and len(tops) < len(leaves):
        entries = [Leaf(inner[0].entry, [tensor for leaf in inner for tensor in leaf.tensors]) for inner in groups]
        yield _by_leaf(tops, entries, where, whole)
    yield _by_leaf(leaves, [leaf for inner in groups for leaf in inner], where, whole)


def _tops_of(model: Any) -> list[Leaf]:
    """Every layer of a network as one, with the weights of the layers within it, in the order of files without names.

    None where one of them holds both trained weights and statistics in several layers: their order in a file depends
    on whether they were trained.
    """
    tops = []
    for layer in model.layers:
        within = [Leaf(layer.name, own)] if (own := own_weights(layer)) else leaves_of(layer)
        if len(within) > 1 and any(inner._non_trainable_variables for inner in layer._flatten_layers()):
            return []
        if within:
            tops.append(Leaf(layer.name, [tensor for leaf in within for tensor in leaf.tensors]))
    return tops


def _legacy_groups(group: Any) -> list[list[Leaf]]:
    """The layers of every entry of a legacy file, in the file's order: one, or those of a nested network."""
    groups = []
    for name in _names(group, "layer_names"):
        inner: dict[str, list[Any]] = {}
        for weight in _names(_member(group, name), "weight_names"):
            inner.setdefault(weight.rpartition("/")[0], []).append(_member(group, f"{name}/{weight}"))
        if len(inner) == 1:
            groups.append([Leaf(name, datasets, name) for datasets in inner.values()])
        elif inner:
            groups.append([Leaf(path.rpartition("/")[2], datasets, name) for path, datasets in inner.items()])
    return groups


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names kept as an attribute; long ones are split into attribute0, attribute1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while (key := f"{attribute}{len(parts)}") in group.attrs:
            parts.append(group.attrs[key])
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part]


def _by_leaf(leaves: list[Leaf], stored: list[Leaf], where: str, whole: bool) -> Pairs:
    """Pairs of layers that stand in the same order, or have the same names."""
    stored = _in_model_order(stored, leaves, where, whole)
    for leaf, other in zip(leaves, stored, strict=False):
        called = leaf.name if leaf.name == other.name else f"{leaf.name} (in the file: {other.name})"
        place = f"{where}: layer {called}"
        if len(other.tensors) != len(leaf.tensors):
            raise WeightsError(
                f"{place}: not of this network: expected {len(leaf.tensors)} tensors, found {len(other.tensors)}"
            )
        for weight, dataset in zip(leaf.tensors, other.tensors, strict=True):
            check_tensor(dataset, tuple(weight.shape), where=place)
            yield weight, dataset, place
    if len(stored) != len(leaves):
        raise WeightsError(
            f"{where}: not of this network: expected {len(leaves)} layers with weights, found {len(stored)}"
            + _top_of(stored[len(leaves) :])
        )


def _top_of(more: list[Leaf]) -> str:
    """What to say of layers behind the network's own: dense ones are a top."""
    if not more or not all(len(leaf.tensors) <= 2 and len(leaf.tensors[0].shape) <= 2 for leaf in more):
        return ""
    names = ", ".join(leaf.name for leaf in more[:3])
    return (
        f"; it seems to hold the network with its top ({names}): take the file without it (Keras' names end in notop), "
        "or save the model with include_top=False"
    )


def _in_model_order(stored: list[Leaf], leaves: list[Leaf], where: str, whole: bool) -> list[Leaf]:
    """The file's layers in the order of the network's, without a top behind them.

    By position, as Keras does, because unnamed layers are numbered anew in every process. Layers
    with names of their own must stand where the network has them, or be sorted by name.
    """
    first = stored[: len(leaves)] if whole else stored
    if len(first) != len(leaves):
        return stored  # another network: the caller finds the first layer that differs
    in_file, in_model = [leaf.name for leaf in first], [leaf.name for leaf in leaves]
    known = {name for name in in_model if not _AUTOMATIC.fullmatch(name)}
    if all(a == b for a, b in zip(in_file, in_model, strict=True) if a in known):
        return first
    by_name = dict(zip(_renumbered([leaf.name for leaf in stored]), stored, strict=True))
    wanted = _renumbered(in_model)
    if set(wanted) <= set(by_name) and (whole or len(by_name) == len(leaves)):
        return [by_name[name] for name in wanted]
    position = next(i for i, name in enumerate(in_file) if name in known and name != in_model[i])
    raise WeightsError(
        f"{where}: not of this network: where layer {in_model[position]} is expected, "
        f"the file has layer {in_file[position]}"
    )


def _renumbered(names: list[str]) -> list[str]:
    """Names of layers, those that Keras gave numbered anew: they differ from process to process."""
    automatic = (match[1] if (match := _AUTOMATIC.fullmatch(name)) else "" for name in names)
    return stable_names(zip(automatic, names, strict=True))


# --- Keras 3 --------------------------------------------------------------------------------------


def _keras3_ways(model: Any, file: h5py.File, where: str, whole: bool) -> Iterator[Pairs]:
    """Ways to read a Keras 3 file: as a whole, or a network nested in it; the one of most layers last."""
    root = _member(file, "layers")
    for group in sorted((root, *_networks(root)), key=len):
        yield _by_place(model, group, where, whole)


def _networks(root: Any) -> Iterator[Any]:
    """The groups of layers of every network nested below a group of layers."""
    for name in root:
        if "layers" in _member(root, name):
            inner = _member(root, f"{name}/layers")
            yield inner
            yield from _networks(inner)


def _by_place(model: Any, root: Any, where: str, whole: bool) -> Pairs:
    """Pairs of a network's weights and those of a group of layers, under the names that Keras 3 gives them."""
    used: set[str] = set()
    yield from _place_layers(model.layers, root, where, used)
    for name in root:
        extra = name not in used and _holds_tensors(root[name])
        if extra and not whole:
            raise WeightsError(f"{where}: not of this network: the file has a layer {name} more")


def _holds_tensors(group: Any) -> bool:
    """Whether there is a tensor in a layer's group or below it."""
    if not isinstance(group, h5py.Group):
        return True
    return any(_holds_tensors(group[name]) for name in group)


def _place_layers(layers: Any, group: Any, where: str, used: set[str]) -> Pairs:
    """Pair the layers of one level: each is under its class and its number among those of its class."""
    counts: dict[str, int] = {}
    for layer in layers:
        name = snake_case(type(layer).__name__)
        number = counts[name] = counts.get(name, -1) + 1
        name = f"{name}_{number}" if number else name
        used.add(name)
        if not layer.weights:
            continue
        if name not in group:
            raise WeightsError(f"{where}: layer {layer.name}: not of this network: the file has no {name}")
        yield from _place(layer, _member(group, name), f"{where}: layer {layer.name}", where)


def _place(layer: Any, group: Any, place: str, where: str) -> Pairs:
    """Pair one layer's own weights and those of the layers within it."""
    own = own_weights(layer)
    found = _member(group, "vars") if "vars" in group else {}
    if len(found) != len(own):
        raise WeightsError(f"{place}: not of this network: expected {len(own)} tensors, found {len(found)}")
    for number, weight in enumerate(own):
        dataset = _member(found, str(number))
        check_tensor(dataset, tuple(weight.shape), where=place)
        yield weight, dataset, place
    if hasattr(layer, "layers"):
        if layer.weights:
            yield from _place_layers(layer.layers, _member(group, "layers"), where, set())
        return
    for attribute, inner in sorted(vars(layer).items()):
        if hasattr(inner, "_trainable_variables") and getattr(inner, "weights", None):
            name = attribute if attribute in group else attribute.lstrip("_")
            yield from _place(inner, _member(group, name), place, where)
