"""The state of a head's training on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.core.npz import write_npz
from featcache.heads import block, gram, primal
from featcache.heads.stack import Stack
from featcache.training import checkpoint

State = gram.State | block.State | primal.State
AnyState = TypeVar("AnyState", gram.State, block.State, primal.State)

_FORMAT = 1


def save(path: Path, state: State, *, best: State | None, identity: str) -> None:
    """Write a state, and the best one so far.

    identity : of everything that decides the course of the training
    """
    arrays = {"identity": np.array(identity), "format": np.array(_FORMAT), **_arrays("", state)}
    if best is not None:
        arrays |= _arrays("best.", best)
    write_npz(path, arrays)


def load(path: Path, identity: str, *, like: AnyState) -> tuple[AnyState, AnyState | None] | None:
    """The state in `path`, and the best one so far, if it is of that training and whole; else None.

    like : a state of that training, for the shapes and dtypes of its arrays and for its settings
    """

    def made(arrays: Any) -> tuple[AnyState, AnyState | None] | None:
        if str(arrays["identity"]) != identity or int(arrays["format"]) != _FORMAT:
            return None
        best = _state(arrays, "best.", like) if "best.history" in arrays else None
        return _state(arrays, "", like), best

    return checkpoint.read(path, made)


def _arrays(prefix: str, state: State) -> dict[str, NDArray[Any]]:
    if isinstance(state, primal.State):
        parts = _of_primal(state)
    else:
        parts = _of_gram(state) if isinstance(state, gram.State) else _of_block(state)
    parts["history"] = checkpoint.array_of(state.history)
    return {prefix + name: array for name, array in parts.items()}


def _of_gram(state: gram.State) -> dict[str, NDArray[Any]]:
    return {"A": state.A, "V": state.V, "su": np.array([state.s, state.u]), **_of_stack(state.stack)}


def _of_block(state: block.State) -> dict[str, NDArray[Any]]:
    under_way = np.array([state.rows, state.loss, state.right, state.seconds], np.float64)
    return {"W": state.W, "V": state.V, "under_way": under_way, **_of_stack(state.stack)}


def _of_stack(stack: Stack) -> dict[str, NDArray[Any]]:
    parts = {f"stack{i}": array for i, array in enumerate(stack.arrays())}
    return parts | {f"velocity{i}": array for i, array in enumerate(stack.velocities)}


def _of_primal(state: primal.State) -> dict[str, NDArray[Any]]:
    parts = {f"{kind}{i}": array for i, pair in enumerate(state.layers) for kind, array in zip("Wb", pair, strict=True)}
    return parts | {f"other{i}": array for i, array in enumerate(state.others)}


def _state(arrays: Any, prefix: str, like: AnyState) -> AnyState:
    expected = _arrays("", like)
    found = {name: arrays[prefix + name] for name in expected}
    lines = found.pop("history")
    for name, array in found.items():
        if (array.shape, array.dtype) != (expected[name].shape, expected[name].dtype):
            raise ValueError(f"{name} is of another head")
    history = checkpoint.history_of(lines)
    if isinstance(like, primal.State):
        layers = [(found[f"W{i}"], found[f"b{i}"]) for i in range(len(like.layers))]
        return primal.State(layers, [found[f"other{i}"] for i in range(len(like.others))], history)
    bias, *rest = (found[f"stack{i}"] for i in range(len(like.stack.arrays())))
    velocities = [found[f"velocity{i}"] for i in range(len(like.stack.velocities))]
    stack = Stack(bias, list(zip(rest[0::2], rest[1::2], strict=True)), like.stack.config, velocities)
    if isinstance(like, block.State):
        rows, loss, right, seconds = found["under_way"].tolist()
        return block.State(found["W"], found["V"], stack, history, int(rows), loss, int(right), seconds)
    s, u = map(float, found["su"])
    return gram.State(found["A"], found["V"], stack, s, u, history)
