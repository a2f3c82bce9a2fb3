"""Copies a network layer by layer, so that some of its layers can be others in the copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.weights_h5 import settle
from featcache.core.errors import BackboneError

if TYPE_CHECKING:
    import keras

Call = Callable[..., Any]


def same(layer: Any) -> Any:
    """A new layer, or operation that is none, of the same configuration."""
    return type(layer).from_config(layer.get_config())


def copied(
    model: keras.Model, clone: Callable[[Any], Any] = same, *, call: Callable[[Any, Any], Call] | None = None
) -> keras.Model:
    """A copy of a functional network with weights of its own, equal to those of `model`; nested networks included.

    Parameters
    ----------
    model : a Functional network
    clone : from a layer of `model` to the copy's, of the same weights
    call : from (layer of `model`, the copy's) to the function that calls it

    Raises
    ------
    BackboneError : the copy's weights would come in another order, so that files and digests would not fit.
    """
    made: dict[int, tuple[Any, Any]] = {}  # the copy's layer -> (layer of `model`, the copy's)

    def remembered(layer: Any) -> Any:
        new = clone(layer)
        made[id(new)] = (layer, new)
        return new

    def called(new: Any, *args: Any, **kwargs: Any) -> Any:
        old = made[id(new)][0] if id(new) in made else None  # None: a nested network, which is copied by itself
        return (call(old, new) if call and old is not None else new)(*args, **kwargs)

    copy: keras.Model = import_keras().models.clone_model(
        model, clone_function=remembered, call_function=called, recursive=True
    )
    originals = {
        id(weight): value
        for old, new in made.values()
        for value, weight in zip(getattr(old, "weights", ()), getattr(new, "weights", ()), strict=True)
    }
    for value, weight in zip(model.weights, copy.weights, strict=True):
        if originals[id(weight)] is not value:
            raise BackboneError(
                f"{model.name}: with other layers its weights come in another order, and no file of weights fits: "
                "take another network"
            )
        weight.assign(value)
    settle(copy)
    return copy
