"""The checkpoint reader, on good files and on hostile ones written by hand."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from featcache.backbones.imagenet import local_file
from featcache.backbones.registry import get
from featcache.backbones.torch_checkpoint import read_checkpoint
from featcache.core.errors import WeightsError

# --- a writer, instruction by instruction ---------------------------------------------------------


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sequence(*items):
    return b"(" + b"".join(items) + b"t"


def pickled(body):
    return b"\x80\x02" + body + b"."


def storage(key="a", count=6, kind="FloatStorage", view=b"N", tag="storage"):
    return sequence(text(tag), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), integer(count), view) + b"Q"


ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def tensor(store, offset=0, shape=(2, 3), stride=(3, 1)):
    arguments = sequence(
        store,
        integer(offset),
        sequence(*map(integer, shape)),
        sequence(*map(integer, stride)),
        b"\x89",
        ORDERED_DICT,
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state(*items):
    return ORDERED_DICT + b"(" + b"".join(items) + b"u"


VALUES = np.arange(6, dtype="<f4")
MAGIC = pickled(integer(0x1950A86A20F9469CFC6C))
PROTOCOL = integer(1001)
MACHINE = pickled(b"}" + text("little_endian") + b"\x88s")


def checkpoint(body=None, keys=("a",), storages=None, magic=MAGIC, machine=MACHINE, version=PROTOCOL):
    body = state(text("w") + tensor(storage())) if body is None else body
    keys = pickled(b"](" + b"".join(map(text, keys)) + b"e")
    storages = struct.pack("<q", 6) + VALUES.tobytes() if storages is None else storages
    return magic + pickled(version) + machine + pickled(body) + keys + storages


def read(tmp_path, data):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    return read_checkpoint(path)


# --- good files -----------------------------------------------------------------------------------


def test_a_tensor_comes_back(tmp_path):
    tensors = read(tmp_path, checkpoint())
    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"], VALUES.reshape(2, 3))
    assert tensors["w"].dtype == np.float32
    assert tensors["w"].flags.writeable


def test_strides_offsets_scalars_and_shared_storages(tmp_path):
    body = state(
        text("transposed") + tensor(storage(), shape=(3, 2), stride=(1, 3)),
        text("tail") + tensor(storage(), offset=4, shape=(2,), stride=(1,)),
        text("scalar") + tensor(storage(), offset=5, shape=(), stride=()),
        text("empty") + tensor(storage(), offset=6, shape=(0,), stride=(1,)),
        text("count") + tensor(storage("b", 1, "LongStorage"), shape=(), stride=()),
    )
    data = checkpoint(body, keys=("b", "a"), storages=struct.pack("<qqq", 1, 7, 6) + VALUES.tobytes() + b"")
    tensors = read(tmp_path, data + bytes(0))
    np.testing.assert_array_equal(tensors["transposed"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(tensors["tail"], [4, 5])
    assert tensors["scalar"] == 5
    assert tensors["empty"].shape == (0,)
    assert tensors["count"] == 7
    assert tensors["count"].dtype == np.int64


class _Plain(pickle.Unpickler):
    """An independent reader: pickle's own, trusted here because the file is a known package's."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if name == "_rebuild_tensor_v2":
            return lambda store, offset, shape, stride, *_: (store, offset, shape, stride)
        return name

    def persistent_load(self, pid):
        return pid[1:3]


def test_the_real_file_reads_as_pickle_would_read_it():
    path = local_file(get("efficientnet-lite0"))
    tensors = read_checkpoint(path)
    assert len(tensors) == 296
    with path.open("rb") as file:
        _, _, _, records, keys = (_Plain(file).load() for _ in range(5))
        kinds = {key: kind for (kind, key), *_ in records.values()}
        storages = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            dtype = {"FloatStorage": "<f4", "LongStorage": "<i8"}[kinds[key]]
            storages[key] = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    assert list(records) == list(tensors)
    for name, ((_, key), offset, shape, stride) in records.items():
        places = sum(
            (np.arange(n) * step).reshape(-1, *[1] * i)
            for i, (n, step) in zip(range(len(shape) - 1, -1, -1), zip(shape, stride, strict=True), strict=True)
        )
        np.testing.assert_array_equal(tensors[name], storages[key][offset + places])


# --- hostile files --------------------------------------------------------------------------------

HUGE = 2**62
NEST = b")" + b"q\0h\0\x86" * 50 + b"\x85" * 5_000  # 2**50 tuples in fifty, and then very deep
HOSTILE = {
    "empty": b"",
    "no checkpoint": b"not a checkpoint at all",
    "zip": b"PK\x03\x04" + bytes(100),
    "wrong magic": checkpoint(magic=pickled(integer(7))),
    "big-endian": checkpoint(machine=pickled(b"}" + text("little_endian") + b"\x89s")),
    "os.system": checkpoint(b"cos\nsystem\n(" + text("echo owned") + b"tR"),
    "os.system before the magic": pickled(b"cos\nsystem\n(" + text("echo owned") + b"tR"),
    "builtins.eval": checkpoint(b"cbuiltins\neval\n(" + text("1") + b"tR"),
    "stack global": checkpoint(text("os") + text("system") + b"\x93" + text("x") + b"\x85R"),
    "inst": checkpoint(b"(" + text("x") + b"ios\nsystem\n"),
    "global in place of a storage type": checkpoint(
        state(text("w") + tensor(sequence(text("storage"), text("x"), text("a"), text("cpu"), integer(6), b"N") + b"Q"))
    ),
    "OrderedDict with content": checkpoint(b"ccollections\nOrderedDict\n(]tR"),
    "calling a storage type": checkpoint(b"ctorch\nFloatStorage\n)R"),
    "a dict for a state dict's value": checkpoint(state(text("w") + b"}")),
    "a list for a state dict": checkpoint(b"]"),
    "no state dict but a number": checkpoint(integer(1)),
    "a name that is a number": checkpoint(state(integer(1) + tensor(storage()))),
    "a name twice": checkpoint(state(text("w") + tensor(storage()), text("w") + tensor(storage()))),
    "a name that is no unicode": checkpoint(state(b"X\x02\0\0\0\xff\xfe" + tensor(storage()))),
    "huge storage": checkpoint(state(text("w") + tensor(storage(count=HUGE)))),
    "huge storage, fitting length": checkpoint(
        state(text("w") + tensor(storage(count=2**39))), storages=struct.pack("<q", 2**39)
    ),
    "negative storage": checkpoint(state(text("w") + tensor(storage(count=-6)))),
    "storage tagged otherwise": checkpoint(state(text("w") + tensor(storage(tag="module")))),
    "storage view": checkpoint(state(text("w") + tensor(storage(view=b")")))),
    "unknown storage type": checkpoint(state(text("w") + tensor(storage(kind="ComplexFloatStorage")))),
    "length negative": checkpoint(storages=struct.pack("<q", -1) + VALUES.tobytes()),
    "length too large": checkpoint(storages=struct.pack("<q", HUGE) + VALUES.tobytes()),
    "length other than declared": checkpoint(storages=struct.pack("<q", 5) + VALUES.tobytes()),
    "bytes left over": checkpoint() + b"x",
    "negative shape": checkpoint(state(text("w") + tensor(storage(), shape=(-2, -3)))),
    "huge shape": checkpoint(state(text("w") + tensor(storage(), shape=(2**39, 2**39), stride=(0, 0)))),
    "huge shape on stride 0": checkpoint(state(text("w") + tensor(storage(), shape=(2**33,), stride=(0,)))),
    "huge integer": checkpoint(state(text("w") + tensor(storage(), shape=(2**100,), stride=(1,)))),
    "true for a size": checkpoint(
        state(text("w") + tensor(storage()).replace(sequence(integer(2), integer(3)), sequence(b"\x88", integer(3))))
    ),
    "one element too far": checkpoint(state(text("w") + tensor(storage(), offset=1))),
    "negative offset": checkpoint(state(text("w") + tensor(storage(), offset=-1))),
    "negative stride": checkpoint(state(text("w") + tensor(storage(), stride=(-3, 1)))),
    "stride beyond the end": checkpoint(state(text("w") + tensor(storage(), stride=(4, 1)))),
    "stride missing": checkpoint(state(text("w") + tensor(storage(), stride=(1,)))),
    "too many dimensions": checkpoint(state(text("w") + tensor(storage(), shape=(1,) * 70, stride=(1,) * 70))),
    "tensor without a storage": checkpoint(state(text("w") + tensor(b"N"))),
    "many tensors of one storage": checkpoint(
        state(*(text(f"w{i}") + tensor(storage(count=1000), shape=(1000,), stride=(1,)) for i in range(200))),
        storages=struct.pack("<q", 1000) + bytes(4000),
    ),
    "another version": checkpoint(version=integer(1002)),
    "a nest for a version": checkpoint(version=NEST),
    "a nest for a length": checkpoint(
        state(text("w") + tensor(storage()).replace(integer(6) + b"N", NEST + b"N")),
    ),
    "a nest for an offset": checkpoint(state(text("w") + tensor(storage()).replace(b"QK\0", b"Q" + NEST))),
    "a nest for a magic number": checkpoint(magic=pickled(NEST)),
    "a nest for a machine": checkpoint(machine=pickled(b"}" + text("little_endian") + NEST + b"s")),
    "a nest for a tensor": checkpoint(state(text("w") + NEST)),
    "a nest for a state": checkpoint(NEST),
    "key missing": checkpoint(keys=()),
    "key unknown": checkpoint(keys=("a", "b")),
    "key twice": checkpoint(keys=("a", "a"), storages=(struct.pack("<q", 6) + VALUES.tobytes()) * 2),
    "storage declared in two ways": checkpoint(
        state(text("v") + tensor(storage(count=7)), text("w") + tensor(storage()))
    ),
    "memo index never set": checkpoint(b"j" + struct.pack("<I", 2**32 - 1)),
    "huge memo index": checkpoint(b"}r" + struct.pack("<I", 2**32 - 1)),
    "text longer than the file": checkpoint(b"X" + struct.pack("<I", 2**32 - 1) + b"x"),
    "byte array longer than the file": checkpoint(b"\x96" + struct.pack("<Q", 2**60) + b"x"),
    "nothing on the stack": checkpoint(b"s"),
    "reduce of nothing": checkpoint(b"R"),
    "put of nothing": checkpoint(b"q\0"),
    "mark left": checkpoint(b"(("),
    "items without a mark": checkpoint(b"}" + text("a") + b"u"),
    "odd items": checkpoint(b"}(" + text("a") + b"u"),
    "append to text": checkpoint(text("a") + b"(Ne"),
    "build on text": checkpoint(text("a") + b"Nb"),
    "two values": checkpoint(b"NN"),
    "dictionary within itself": checkpoint(b"}q\0" + text("a") + b"h\0s"),
    "nested a hundred thousand deep": checkpoint(b")" + b"\x85" * 100_000),
    "doubled fifty times, as a key": checkpoint(b"})" + b"q\0h\0\x86" * 50 + b"Ns"),
    "endless instructions": checkpoint(b"N" * 200_001),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_a_weights_error(name, tmp_path, capfd):
    path = tmp_path / "x.pth"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=r"x\.pth"):
            read_checkpoint(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(HOSTILE[name]) + 2**20
    assert "owned" not in capfd.readouterr().out


def test_every_truncation_ends_in_a_weights_error(tmp_path):
    whole = checkpoint()
    for length in range(len(whole)):
        with pytest.raises(WeightsError):
            read(tmp_path, whole[:length])


def test_damaged_bytes_end_in_a_weights_error_or_in_tensors(tmp_path):
    """Any three bytes changed: an error or arrays no larger than the file, never anything else."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(checkpoint(), np.uint8)
    refused = 0
    for _ in range(1000):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        try:
            tensors = read(tmp_path, damaged.tobytes())
        except WeightsError:
            refused += 1
        else:
            assert sum(value.nbytes for value in tensors.values()) <= len(whole)
    assert refused > 500


@pytest.mark.parametrize("keep", [0, 10, 30, 100, 5_000, 42_480, 45_000, 47_180, 1_000_000, -1])
def test_the_real_file_cut_off(keep, tmp_path):
    data = local_file(get("efficientnet-lite0")).read_bytes()
    with pytest.raises(WeightsError, match="not a readable PyTorch checkpoint"):
        read(tmp_path, data[:keep])


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(tmp_path)
