"""Which engine is chosen, how many rows at a time, and what happens where memory ends."""

from __future__ import annotations

import json
import sys

import networks
import numpy as np
import pytest

from featcache.backbones.engines import choose
from featcache.backbones.engines.batches import is_out_of_memory
from featcache.backbones.engines.calibrate import BatchSize, calibrate, key_of, recall, remember, row_bytes
from featcache.backbones.engines.choose import ChosenEngine, open_engine
from featcache.backbones.engines.openvino_engine import computes_in
from featcache.core.errors import BackboneError, MissingPackageError
from featcache.core.extras import is_installed

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def mobilenet():
    return networks.network("mobilenetv2")


class Small:
    """An engine that has memory for a few rows at a time; a feature is a row's first value."""

    name, calls_at_once = "small", 1
    feature_shapes = ((1,),)

    def __init__(self, batch_rows, room, error=None):
        self.batch_rows, self._room, self._error = batch_rows, room, error or MemoryError("no room")

    def resized(self, batch_rows):
        return Small(batch_rows, self._room, self._error)

    def features(self, pixels):
        if self.batch_rows > self._room:
            raise self._error
        return [pixels[:, 0, 0, :1].astype(np.float32)]


@needs_openvino
def test_auto_is_openvino_and_is_the_same_next_time(mobilenet, tmp_path):
    memory = tmp_path / "cache" / "engines.json"
    first = open_engine(mobilenet, memory=memory)
    assert first.name == "openvino"
    assert "openvino" in first.why
    assert "quickest" in first.why
    assert first.images_per_s > 0
    again = open_engine(mobilenet, memory=memory)
    assert (again.batch_rows, again.images_per_s) == (first.batch_rows, first.images_per_s)
    assert "as found before" in again.why
    pixels = networks.pixels(5, "mobilenetv2")
    np.testing.assert_array_equal(again.features(pixels)[0], first.features(pixels)[0])


def test_auto_without_openvino(mobilenet, monkeypatch):
    monkeypatch.setattr(choose, "is_installed", lambda package: False)
    engine = open_engine(mobilenet, batch_rows=2)
    assert engine.name.startswith("keras-")
    assert "pip install 'featcache[openvino]'" in engine.why
    assert engine.batch_rows == 2
    assert engine.images_per_s is None


def test_openvino_that_is_not_installed(mobilenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"not installed: pip install 'featcache\[openvino\]'"):
        open_engine(mobilenet, "openvino")


def test_auto_in_a_precision_that_the_processor_lacks_is_keras(monkeypatch):
    monkeypatch.setattr(choose, "computes_in", lambda precision: precision == "float32")
    engine = open_engine(networks.network("mobilenetv2", precision="bfloat16"), batch_rows=2)
    assert engine.name.startswith("keras-")
    assert engine.features(networks.pixels(1, "mobilenetv2"))[0].dtype == np.float32
    if is_installed("openvino"):
        assert "this processor does not compute in bfloat16" in engine.why
    assert engine.bfloat16_gain() is None


@needs_openvino
def test_auto_in_a_precision_that_the_processor_has_is_openvino():
    if not computes_in("bfloat16"):
        pytest.skip("this processor does not compute in bfloat16")
    engine = open_engine(networks.network("mobilenetv2", precision="bfloat16"), batch_rows=2)
    assert engine.name == "openvino"
    assert engine.bfloat16_gain() is None  # it has it


@needs_openvino
def test_what_bfloat16_would_gain(mobilenet, monkeypatch):
    engine = open_engine(mobilenet, "openvino", batch_rows=2)
    gain = engine.bfloat16_gain()
    assert gain > 0 if computes_in("bfloat16") else gain is None
    monkeypatch.setattr(choose, "computes_in", lambda precision: precision == "float32")
    assert engine.bfloat16_gain() is None


@pytest.mark.parametrize(
    ("engine", "installed", "has_it", "accelerator", "expected"),
    [
        ("auto", True, True, False, "bfloat16"),
        ("auto", True, False, False, "float32"),
        ("auto", False, True, False, "float32"),
        ("keras", True, True, False, "float32"),
        ("keras", True, False, True, "bfloat16"),
        ("openvino", True, False, True, "float32"),
    ],
)
def test_the_quick_precision(monkeypatch, engine, installed, has_it, accelerator, expected):
    monkeypatch.setattr(choose, "is_installed", lambda package: installed)
    monkeypatch.setattr(choose, "computes_in", lambda precision: has_it)
    monkeypatch.setattr(choose, "has_accelerator", lambda: accelerator)
    assert choose.quick_precision(engine) == expected


@needs_openvino
def test_auto_takes_keras_where_openvino_computes_otherwise(mobilenet, monkeypatch):
    """A conversion that lost the preprocessing."""
    monkeypatch.setattr(
        "featcache.backbones.engines.openvino_engine._with_preprocessing",
        lambda graph, names, mode, real=choose.OpenvinoEngine.__init__.__globals__["_with_preprocessing"]: real(
            graph, names, "none"
        ),
    )
    engine = open_engine(mobilenet, batch_rows=2)
    assert engine.name.startswith("keras-")
    assert "the engine openvino and Keras disagree at layer out_relu" in engine.why
    with pytest.raises(BackboneError, match="and Keras disagree at layer"):
        open_engine(mobilenet, "openvino", batch_rows=2)


def test_unknown_engine_and_batch_size(mobilenet):
    with pytest.raises(BackboneError, match="no engine 'openvin': did you mean openvino"):
        open_engine(mobilenet, "openvin")
    with pytest.raises(BackboneError, match="expected at least 1, got 0"):
        open_engine(mobilenet, "keras", batch_rows=0)


# --- batch sizes ----------------------------------------------------------------------------------


def test_calibration_of_a_real_engine(mobilenet):
    found = calibrate(choose.KerasEngine(mobilenet), mobilenet, candidates=(2, 4))
    assert found.batch_rows in (2, 4)
    assert found.images_per_s > 0


def test_calibration_stops_where_memory_does(mobilenet, monkeypatch):
    assert calibrate(Small(1, room=4), mobilenet, candidates=(8, 16)) == BatchSize(8)
    assert calibrate(Small(1, room=4), mobilenet, candidates=(1, 8)).batch_rows == 1
    monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: 10 * row_bytes(mobilenet))
    assert calibrate(Small(1, room=4, error=ValueError("was tried")), mobilenet, candidates=(4, 8)).batch_rows == 4


def test_errors_of_calibration_are_not_hidden(mobilenet):
    with pytest.raises(ValueError, match="broken"):
        calibrate(Small(1, room=0, error=ValueError("broken")), mobilenet, candidates=(1,))


def test_what_is_remembered(mobilenet, tmp_path):
    memory = tmp_path / "deep" / "engines.json"
    key, other = key_of(mobilenet, "openvino"), key_of(mobilenet, "keras-tensorflow")
    assert key != other
    assert key_of(networks.network("mobilenetv2", pooling="avg"), "openvino") != key
    assert recall(memory, key) is None
    assert recall(None, key) is None
    remember(memory, key, size=BatchSize(4, 10.5))
    remember(memory, other, size=BatchSize(8, 2.0))
    remember(memory, "untried", size=BatchSize(8))
    remember(None, key, size=BatchSize(8, 2.0))
    assert (recall(memory, key), recall(memory, other)) == (BatchSize(4, 10.5), BatchSize(8, 2.0))
    assert recall(memory, "untried") is None
    remember(tmp_path / "deep" / "engines.json" / "below a file", key, size=BatchSize(4, 1.0))


@pytest.mark.parametrize("value", ["", "[]", "null", "\x00", '{"k": 3}', '{"k": {"batch_rows": 0, "images_per_s": 1}}'])
@pytest.mark.parametrize("more", [None, '{"k": {"batch_rows": 1e999, "images_per_s": 1}}'])
def test_a_memory_that_says_nonsense_is_none(tmp_path, value, more):
    memory = tmp_path / "engines.json"
    memory.write_text(more or value)
    assert recall(memory, "k") is None
    remember(memory, "k", size=BatchSize(4, 1.0))
    assert recall(memory, "k") == BatchSize(4, 1.0)
    assert json.loads(memory.read_text())["k"] == {"batch_rows": 4, "images_per_s": 1.0}


# --- memory that ends -----------------------------------------------------------------------------


def test_half_the_rows_where_memory_ends():
    said, fewer = [], []
    engine = ChosenEngine(Small(32, room=9), on_event=said.append, on_fewer=fewer.append)
    pixels = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    np.testing.assert_array_equal(engine.features(pixels)[0][:, 0], pixels[:, 0, 0, 0])
    assert engine.batch_rows == 8
    assert fewer == [16, 8]
    assert said == [
        "too little memory for 32 rows at a time: going on with 16",
        "too little memory for 16 rows at a time: going on with 8",
    ]


def test_no_memory_even_for_one_row():
    with pytest.raises(BackboneError, match="small: too little memory even for one row"):
        ChosenEngine(Small(4, room=0)).features(np.zeros((1, 2, 2, 3), np.uint8))


def test_other_errors_pass():
    with pytest.raises(ValueError, match="broken"):
        ChosenEngine(Small(4, room=0, error=ValueError("broken"))).features(np.zeros((1, 2, 2, 3), np.uint8))


def test_what_is_remembered_after_memory_ended(mobilenet, tmp_path, monkeypatch):
    memory = tmp_path / "engines.json"
    remember(memory, key_of(mobilenet, "small"), size=BatchSize(8, 3.0))
    monkeypatch.setattr(choose, "_opened", lambda *asked: (Small(1, room=4), ""))
    open_engine(mobilenet, memory=memory).features(np.zeros((1, 2, 2, 3), np.uint8))
    assert recall(memory, key_of(mobilenet, "small")) == BatchSize(4, 3.0)
    open_engine(mobilenet, memory=memory, batch_rows=16).features(np.zeros((1, 2, 2, 3), np.uint8))
    assert recall(memory, key_of(mobilenet, "small")) == BatchSize(4, 3.0)


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (ResourceExhaustedError("OOM when allocating tensor"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), True),
        (RuntimeError("Exception from src/plugins/intel_cpu: std::bad_alloc"), True),
        (RuntimeError("[cpu] failed to allocate host memory"), True),
        (RuntimeError("could not create a primitive"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_no_memory_looks_like(error, is_memory):
    assert is_out_of_memory(error) is is_memory
