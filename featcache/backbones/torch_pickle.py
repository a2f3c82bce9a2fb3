"""Reads the pickles within a PyTorch checkpoint without `pickle`: plain data comes out, no code runs.

Of pickle's instructions only those are known that state dicts use. Names of classes and functions
are compared with a short list and never looked up; the two functions that a state dict calls become
records here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MAX_INSTRUCTIONS = 200_000  # of one pickle; EfficientNet-Lite0 needs 11 thousand
_MAX_DIMENSIONS = 8

_DTYPES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "|i1",
    "torch ByteStorage": "|u1",
    "torch BoolStorage": "|b1",
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"


class BadCheckpointError(ValueError):
    """What is wrong with the file; becomes a WeightsError that also names it."""


@dataclass(frozen=True)
class Storage:
    """A run of `count` values of NumPy type `dtype`, found in the file under `key`."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements; every element lies within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that a pickle refers to. It is never looked up."""

    name: str


def take(stream: io.BytesIO, count: int, *, what: str) -> bytes:
    """Exactly `count` bytes; reading past the end of the stream allocates nothing."""
    data = stream.read(count)
    if len(data) != count:
        raise BadCheckpointError(f"{what}: the file ends after {len(data)} of {count} bytes")
    return data


def unpickle(stream: io.BytesIO) -> object:
    """The value of the pickle that starts here; afterwards the stream stands behind it.

    Raises
    ------
    BadCheckpointError or another ValueError, TypeError, LookupError : no pickle of a state dict.
    """
    machine = _Machine()
    for name, argument in _instructions(stream):
        machine.run(name, argument)
    if len(machine.stack) != 1:
        raise BadCheckpointError("a pickle that does not end with one value")
    return machine.stack[0]


# --- instructions ---------------------------------------------------------------------------------

_PLAIN = {  # instructions without an argument
    b"(": "MARK",
    b"N": "NONE",
    b"\x88": "NEWTRUE",
    b"\x89": "NEWFALSE",
    b"}": "EMPTY_DICT",
    b"]": "EMPTY_LIST",
    b")": "EMPTY_TUPLE",
    b"t": "TUPLE",
    b"\x85": "TUPLE1",
    b"\x86": "TUPLE2",
    b"\x87": "TUPLE3",
    b"e": "APPENDS",
    b"s": "SETITEM",
    b"u": "SETITEMS",
    b"R": "REDUCE",
    b"Q": "BINPERSID",
    b"b": "BUILD",
}
_NUMBERED = {  # instructions with a little-endian integer: name, bytes, signed
    b"\x80": ("PROTO", 1, False),
    b"K": ("LITERAL", 1, False),
    b"M": ("LITERAL", 2, False),
    b"J": ("LITERAL", 4, True),
    b"q": ("PUT", 1, False),
    b"r": ("PUT", 4, False),
    b"h": ("GET", 1, False),
    b"j": ("GET", 4, False),
}


def _instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """(name, argument) of every instruction up to the pickle's end."""
    for _ in range(_MAX_INSTRUCTIONS):
        code = take(stream, 1, what="a pickle")
        if code == b".":
            return
        if code in _PLAIN:
            yield _PLAIN[code], None
        elif code in _NUMBERED:
            name, size, signed = _NUMBERED[code]
            yield name, int.from_bytes(take(stream, size, what="a number"), "little", signed=signed)
        elif code == b"\x8a":  # an integer of up to 255 bytes
            size = take(stream, 1, what="a number")[0]
            yield "LITERAL", int.from_bytes(take(stream, size, what="a number"), "little", signed=True)
        elif code == b"X":
            size = int.from_bytes(take(stream, 4, what="a text"), "little")
            yield "LITERAL", take(stream, size, what="a text").decode()
        elif code == b"c":
            yield "GLOBAL", " ".join(_line(stream) for _ in range(2))
        else:
            raise BadCheckpointError(f"the pickle instruction {code!r}, which no state dict needs")
    raise BadCheckpointError(f"a pickle of more than {_MAX_INSTRUCTIONS} instructions")


def _line(stream: io.BytesIO) -> str:
    line = stream.readline(200)
    if not line.endswith(b"\n"):
        raise BadCheckpointError("a name that does not end")
    return line[:-1].decode()


# --- the machine ----------------------------------------------------------------------------------

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """A pickle stack machine that can build plain data, storages and tensors, and nothing else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "PROTO":
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "LITERAL":
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "PUT":
            self.memo[argument] = stack[-1]
        elif name == "GET":
            stack.append(self.memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._popped_to_mark()))
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif name == "APPENDS":
            items = self._popped_to_mark()
            self._top(list).extend(items)
        elif name == "SETITEM":
            self._set_items(self._popped(2))
        elif name == "SETITEMS":
            self._set_items(self._popped_to_mark())
        elif name == "GLOBAL":
            if argument not in (_ORDERED_DICT, _REBUILD_TENSOR, *_DTYPES):
                raise BadCheckpointError(f"it asks for {argument!r:.80}, which no state dict needs")
            stack.append(_Global(argument))
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            stack.append(_call(function, arguments))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        else:  # BUILD
            stack.pop()  # PyTorch hangs version notes on the state dict; nothing here needs them
            self._top(dict)

    def _popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise BadCheckpointError("a pickle that takes more than it has")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _popped_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise BadCheckpointError(f"a pickle that takes a {type(self.stack[-1]).__name__} for a {kind.__name__}")
        return self.stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Text only: hashing a hostile nest of tuples can take for ever.
            if type(key) is not str:
                raise BadCheckpointError(f"a key that is a {type(key).__name__}, not text")
            if key in target:
                raise BadCheckpointError(f"the key {key!r:.80} comes twice")
            target[key] = value


def _call(function: object, arguments: Any) -> object:
    """What the two functions that a state dict calls would return; nothing is called."""
    if function == _Global(_ORDERED_DICT) and arguments == ():
        return {}
    if function == _Global(_REBUILD_TENSOR) and type(arguments) is tuple:
        return _rebuild_tensor(*arguments[:4])
    raise BadCheckpointError("a call that no state dict needs")


def _storage(identity: Any) -> Storage:
    """("storage", type, key, location, count, view) as a record."""
    kind, storage_type, key, _, count, view = identity
    if kind != "storage" or type(storage_type) is not _Global or type(key) is not str or view is not None:
        raise BadCheckpointError("a storage that is not declared as one")
    if not _is_size(count):
        raise BadCheckpointError("a storage of an impossible length")
    return Storage(key, _DTYPES[storage_type.name], count)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    """A tensor record, every element of which lies within its storage."""
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise BadCheckpointError("a tensor without storage, shape or stride")
    if len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, (offset, *shape, *stride))):
        raise BadCheckpointError("a tensor of an impossible shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    # The count holds off strides of 0, with which a small storage could claim any shape.
    if offset > storage.count or count > storage.count or (count and last >= storage.count):
        raise BadCheckpointError(f"a tensor of shape {shape} that leaves its storage of {storage.count} values")
    return Tensor(storage, offset, shape, stride)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40
