"""Backbones: which networks there are."""

from __future__ import annotations

from typing import Any

from featcache import backbones
from featcache.core.errors import ArgumentsError


def models(
    name: str | None = None,
    *,
    layers: bool = False,
    offline: bool = False,
    input_size_px: int | None = None,
    unsafe: bool = False,
) -> Any:
    """The backbones: name, input size, shape of features, parameters, operations, preprocessing.

    Parameters
    ----------
    name : one of them; with `layers` anything else that `extract` takes, too
    layers : list the layers of `name` that features can be taken from, instead
    offline : only those whose ImageNet weights are on this machine
    input_size_px, unsafe : as of `extract`, with `layers`

    Returns
    -------
    list of Backbone; with `layers`, of layers: `name`, `output_shape`

    Raises
    ------
    BackboneError : there is no such backbone, or it cannot be built

    Examples
    --------
    >>> import featcache as fc
    >>> "vgg16" in [row.name for row in fc.models()]
    True
    """
    if layers:
        if name is None:
            raise ArgumentsError("`layers` needs the NAME of a network")
        spec = backbones.NetworkSpec(name, input_size_px=input_size_px, unsafe=unsafe)
        return [layer for layer in backbones.layers_to_cut(spec) if not layer.problem]
    if input_size_px is not None or unsafe:
        raise ArgumentsError("`input_size_px` and `unsafe` need `layers`")
    rows = [backbones.registry.get(name)] if name else list(backbones.registry.BACKBONES.values())
    return [row for row in rows if not offline or backbones.available(row) in ("installed", "cached")]
