"""HDF5 as a store: the contract before and behind the end, others reading what it wrote, and files that are traps."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_store_contract import FeatureStoreContract, all_bytes, fake_features, is_caught, others, written

from featcache.core.errors import CacheError
from featcache.store.contract import FeatureStore
from featcache.store.hdf5_store import Hdf5Store
from featcache.store.layout import Layout

LAYOUT = Layout(70, (2, 3, 4), "float32", 16, 32)
FEATURES = fake_features(70, LAYOUT.row_shape)


def chunk_places(file: Path, rows: range) -> np.ndarray:
    """Where the bytes of the chunks that begin with these rows lie in a file."""
    with h5py.File(file) as opened:
        array = opened["features"]
        found = [array.id.get_chunk_info_by_coord((row, *(0 for _ in array.shape[1:]))) for row in rows]
    return np.concatenate([np.arange(info.byte_offset, info.byte_offset + info.size) for info in found])


class TestHdf5Parts(FeatureStoreContract):
    """As long as shards are missing, each is a file of its own."""

    def make(self, parent: Path, layout: Layout) -> Hdf5Store:
        return Hdf5Store(parent, layout)

    def shard_bytes(self, store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
        file = store.folder / "features.h5.parts" / f"{shard:06d}.h5"
        start, stop = store.layout.span(shard)
        return file, chunk_places(file, range(0, stop - start, store.layout.rows_per_chunk))

    def test_an_array_of_another_description_is_refused(
        self, tmp_path: Path, layout: Layout, features: np.ndarray
    ) -> None:
        """A part tells its own shape only: one that fits is the same rows, another is no shard."""
        self.written(tmp_path, layout, features)
        for other in others(layout):
            store = self.make(tmp_path, other)
            store.create()
            for shard in range(other.n_shards):
                start, stop = other.span(shard)
                if store.stored(shard) is not None:
                    np.testing.assert_array_equal(store.read(start, stop), features[start:stop])
                else:
                    with pytest.raises(CacheError, match="cannot be read"):
                        store.read(start, stop)
            found = [store.stored(shard) is not None for shard in range(other.n_shards)]
            assert not any(found) or (other.row_shape, other.dtype, other.rows_per_chunk) == (
                layout.row_shape, layout.dtype, layout.rows_per_chunk
            )  # fmt: skip


class TestHdf5Finished(FeatureStoreContract):
    """In the end there is one file."""

    def make(self, parent: Path, layout: Layout) -> Hdf5Store:
        return Hdf5Store(parent, layout)

    def others(self, layout: Layout) -> tuple[Layout, ...]:
        """The file knows no shards."""
        return tuple(other for other in others(layout) if other.rows_per_shard == layout.rows_per_shard)

    def written(self, parent: Path, layout: Layout, features: np.ndarray, order: Sequence[int] = ()) -> FeatureStore:
        store = super().written(parent, layout, features, order)
        store.finish()
        return store

    def shard_bytes(self, store: FeatureStore, shard: int) -> tuple[Path, np.ndarray]:
        file = store.folder / "features.h5"
        return file, chunk_places(file, range(*store.layout.span(shard), store.layout.rows_per_chunk))


@pytest.fixture
def store(tmp_path: Path) -> Hdf5Store:
    """A finished array."""
    store = Hdf5Store(tmp_path, LAYOUT)
    written(store, FEATURES).finish()
    return store


# Other programs


@pytest.mark.parametrize("n_rows", [70, 64, 3])
def test_h5py_alone_reads_the_file(tmp_path: Path, n_rows: int) -> None:
    layout = Layout(n_rows, LAYOUT.row_shape, "float16", 16, 32)
    features = fake_features(n_rows, layout.row_shape, dtype="float16")
    written(Hdf5Store(tmp_path, layout), features).finish()
    program = """
import sys
import h5py, numpy
with h5py.File("features.h5") as file:
    assert list(file) == ["features"]
    array = file["features"]
    assert (array.compression, array.shuffle, array.chunks) == ("gzip", False, (16, 2, 3, 4))
    numpy.save("found.npy", array[:])
assert not [name for name in sys.modules if name.startswith("featcache")]
"""
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), features, strict=True)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump (hdf5-tools) is not installed")
def test_h5dump_reads_the_file(store: Hdf5Store) -> None:
    args = ("h5dump", "-d", "features", "-y", "-w", "0", "-m", "%.9g", store.path)
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    numbers = done.stdout.partition("DATA {")[2].partition("}")[0].replace(",", " ").split()
    np.testing.assert_array_equal(np.array(numbers, "float32").reshape(FEATURES.shape), FEATURES)
    shown = subprocess.run(["h5dump", "-pH", store.path], capture_output=True, text=True, check=True).stdout
    assert "COMPRESSION DEFLATE" in shown
    assert "H5T_IEEE_F32LE" in shown


# From parts to one file


def test_the_file_is_the_same_whatever_the_order_and_the_interruptions(store: Hdf5Store, tmp_path: Path) -> None:
    expected = store.path.read_bytes()
    for number, order in enumerate(itertools.permutations(range(LAYOUT.n_shards))):
        other = tmp_path / str(number)
        for shard in order:  # each by a store of its own
            again = Hdf5Store(other, LAYOUT)
            again.create()
            start, stop = LAYOUT.span(shard)
            again.write_shard(shard, FEATURES[start:stop])
        Hdf5Store(other, LAYOUT).finish()
        assert all_bytes(other) == {"features.h5": expected}


def test_finishing_while_a_shard_is_missing_fails_and_keeps_the_parts(tmp_path: Path) -> None:
    store = Hdf5Store(tmp_path, LAYOUT)
    written(store, FEATURES, [0, 2])
    before = all_bytes(tmp_path)
    with pytest.raises(CacheError):
        store.finish()
    assert all_bytes(tmp_path) == before
    store.write_shard(1, FEATURES[32:64])
    store.finish()
    np.testing.assert_array_equal(store.read(0, 70), FEATURES)


@pytest.mark.parametrize("left", [[0, 1, 2], [0, 2], [1], []])
def test_a_crash_between_the_last_rename_and_the_removal_of_parts_is_mended(
    store: Hdf5Store, tmp_path: Path, left: list[int]
) -> None:
    whole = store.path.read_bytes()
    parts = Hdf5Store(tmp_path / "parts", LAYOUT)
    written(parts, FEATURES)
    for shard in set(range(3)) - set(left):
        (parts.folder / "features.h5.parts" / f"{shard:06d}.h5").unlink()
    shutil.move(parts.folder / "features.h5.parts", store.folder)
    shutil.rmtree(parts.folder)
    again = Hdf5Store(store.folder, LAYOUT)
    again.create()
    np.testing.assert_array_equal(again.read(0, 70), FEATURES)
    assert all(again.stored(shard) for shard in range(3))
    again.finish()
    assert all_bytes(store.folder) == {"features.h5": whole}


def test_a_part_mends_its_shard_in_a_finished_file_and_nothing_else(store: Hdf5Store) -> None:
    whole = store.path.read_bytes()
    sound = [store.stored(shard) for shard in range(3)]
    damaged = bytearray(whole)
    damaged[chunk_places(store.path, range(32, 64, 16))[100]] ^= 8
    store.path.write_bytes(damaged)
    again = Hdf5Store(store.folder, LAYOUT)
    again.create()
    assert [again.stored(shard) == sound[shard] for shard in range(3)] == [True, False, True]
    with pytest.raises(CacheError, match="cannot be read"):
        again.read(0, 70)
    assert again.write_shard(1, FEATURES[32:64]) == sound[1]
    assert [again.stored(shard) for shard in range(3)] == sound
    np.testing.assert_array_equal(again.read(0, 70), FEATURES)  # the part, not what it mends
    again.finish()
    assert all_bytes(store.folder) == {"features.h5": whole}


# Damage and traps


def test_a_flipped_bit_anywhere_in_the_file_never_gives_other_numbers(store: Hdf5Store) -> None:
    whole, generator, caught = store.path.read_bytes(), np.random.default_rng(0), 0
    for place in generator.integers(0, 8 * len(whole), 300):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        caught += is_caught(Hdf5Store(store.folder, LAYOUT), store.path, bytes(flipped), FEATURES)
    assert caught > 100


Make = Callable[[h5py.File], object]
OPTIONS = {"chunks": (16, 2, 3, 4), "compression": "gzip"}


def external_link(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("sound.h5", "/features")


def soft_link(file: h5py.File) -> None:
    file["other"] = FEATURES
    file["features"] = h5py.SoftLink("/other")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(FEATURES.shape, "float32")
    layout[:] = h5py.VirtualSource("sound.h5", "features", FEATURES.shape)
    file.create_virtual_dataset("features", layout)


def external_storage(file: h5py.File) -> None:
    external = [("raw.bin", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("features", FEATURES.shape, "float32", external=external)


TRAPS: dict[str, Make] = {
    "external link": external_link,
    "soft link": soft_link,
    "virtual": virtual,
    "external storage": external_storage,
    "nothing": lambda file: None,
    "a group": lambda file: file.create_group("features"),
    "a type": lambda file: file.__setitem__("features", np.dtype("float32")),
    "a scalar": lambda file: file.__setitem__("features", 7.0),
    "empty": lambda file: file.__setitem__("features", h5py.Empty("float32")),
    "no chunks": lambda file: file.create_dataset("features", data=FEATURES),
    "no filter": lambda file: file.create_dataset("features", data=FEATURES, chunks=OPTIONS["chunks"]),
    "lzf": lambda file: file.create_dataset("features", data=FEATURES, chunks=OPTIONS["chunks"], compression="lzf"),
    "shuffle too": lambda file: file.create_dataset("features", data=FEATURES, shuffle=True, **OPTIONS),
    "checksum too": lambda file: file.create_dataset("features", data=FEATURES, fletcher32=True, **OPTIONS),
    "rounded too": lambda file: file.create_dataset("features", data=FEATURES, scaleoffset=2, **OPTIONS),
    "other chunks": lambda file: file.create_dataset(
        "features", data=FEATURES, chunks=(8, 2, 3, 4), compression="gzip"
    ),
    "big-endian": lambda file: file.create_dataset("features", data=FEATURES.astype(">f4"), **OPTIONS),
    "integers": lambda file: file.create_dataset("features", data=FEATURES.view("int32"), **OPTIONS),
    "float64": lambda file: file.create_dataset("features", data=FEATURES.astype("float64"), **OPTIONS),
    "a row less": lambda file: file.create_dataset("features", data=FEATURES[:-1], **OPTIONS),
    "another shape": lambda file: file.create_dataset(
        "features", data=FEATURES.reshape(70, 4, 3, 2), **OPTIONS | {"chunks": (16, 4, 3, 2)}
    ),
    "no data": lambda file: file.create_dataset("features", FEATURES.shape, "float32", **OPTIONS),
    "half of the data": lambda file: file.create_dataset("features", FEATURES.shape, "float32", **OPTIONS).__setitem__(
        slice(32), FEATURES[:32]
    ),
}


@pytest.mark.parametrize("make", TRAPS.values(), ids=TRAPS.keys())
def test_a_file_that_says_anything_else_is_refused(store: Hdf5Store, make: Make) -> None:
    """Even where h5py would give the same numbers, or zeros."""
    store.path.rename(store.folder / "sound.h5")
    FEATURES.tofile(store.folder / "raw.bin")
    with h5py.File(store.path, "w") as file:
        make(file)
    trap = Hdf5Store(store.folder, LAYOUT)
    with pytest.raises(CacheError, match="cannot be read"):
        trap.read(0, 70)
    assert trap.stored(2) is None
    if make not in (TRAPS["no data"], TRAPS["half of the data"]):
        with pytest.raises(CacheError, match=r"has no array|expected"):
            trap.create()


def with_chunk(file: h5py.File, chunk: bytes, skipped: int = 0) -> None:
    """A sound array but for its first chunk."""
    array = file.create_dataset("features", data=FEATURES, **OPTIONS)
    array.id.write_direct_chunk((0, 0, 0, 0), chunk, skipped)


BOMB = zlib.compress(bytes(256 << 20))
CHUNKS = {
    "bomb": (BOMB, 0),
    "bomb that begins well": (zlib.compress(FEATURES[:16].tobytes() + bytes(64 << 20)), 0),
    "a byte more": (zlib.compress(FEATURES[:16].tobytes() + b"\0"), 0),
    "a byte less": (zlib.compress(FEATURES[:16].tobytes()[:-1]), 0),
    "no end": (zlib.compress(FEATURES[:16].tobytes())[:-4], 0),
    "nothing": (b"\0", 0),
    "not deflated": (FEATURES[:16].tobytes(), 1),
    "not deflated, said to be": (FEATURES[:16].tobytes(), 0),
}


@pytest.mark.parametrize(("chunk", "skipped"), CHUNKS.values(), ids=CHUNKS.keys())
def test_a_chunk_of_another_size_is_refused_without_using_memory(store: Hdf5Store, chunk: bytes, skipped: int) -> None:
    store.path.unlink()
    with h5py.File(store.path, "w") as file:
        with_chunk(file, chunk, skipped)
    bomb = Hdf5Store(store.folder, LAYOUT)
    tracemalloc.start()
    try:
        with pytest.raises(CacheError, match=r"row 0 does not inflate|row 0 is not deflated|while decompressing"):
            bomb.read(0, 16)
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 2 * len(chunk)
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(bomb.read(16, 70), FEATURES[16:])


@pytest.mark.parametrize("text", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_file_that_is_no_hdf5_is_mended_only_where_that_is_asked(store: Hdf5Store, text: bytes) -> None:
    store.path.write_bytes(text)
    again = Hdf5Store(store.folder, LAYOUT)
    with pytest.raises(CacheError, match="not an HDF5 file"):
        again.create()
    assert store.path.read_bytes() == text
    again.create(mend=True)
    assert [again.stored(shard) for shard in range(3)] == [None, None, None]
    written(again, FEATURES).finish()
    np.testing.assert_array_equal(again.read(0, 70), FEATURES)
