"""Extraction on every backend that Keras runs on, each in a process of its own, without TensorFlow where it is not it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from featcache.backbones.engines.agreement import deviation
from featcache.backbones.engines.choose import open_engine
from featcache.backbones.network import NetworkSpec, load_network

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed"))
    for name in ("jax", "torch")
]
ROW = ("mobilenetv2", "random", 64)
PRECISIONS = {"float32": 1.0, "float16": 100.0, "bfloat16": 1000.0}
"""Each precision, and how many tolerances of float32 its features may be off at most."""

EXTRACT = """
    import os, sys, warnings
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the backends themselves
    import numpy as np
    from featcache.backbones.engines.choose import open_engine
    from featcache.backbones.network import NetworkSpec, load_network
    out, *spec = sys.argv[1:]
    pixels = np.load(out)
    found = {}
    for precision in ("float32", "float16", "bfloat16"):
        name, weights, size = spec
        network = load_network(NetworkSpec(name, weights, input_size_px=int(size), precision=precision))
        engine = open_engine(network, batch_rows=2)
        assert engine.name == "keras-" + os.environ["KERAS_BACKEND"], engine.why
        (found[precision],) = engine.features(pixels)
        assert found[precision].dtype == np.float32
        others = np.concatenate([pixels[:1] ^ 255, pixels[1:]])
        np.testing.assert_array_equal(engine.features(others)[0][1:], found[precision][1:])
    assert "tensorflow" not in sys.modules
    np.savez(out + ".npz", **found)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_extraction_without_tensorflow(backend, tmp_path):
    name, weights, size_px = ROW
    pixels = np.random.default_rng(2).integers(0, 256, (3, size_px, size_px, 3), dtype=np.uint8)
    file = tmp_path / "pixels.npy"
    np.save(file, pixels)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXTRACT), file, name, weights, str(size_px)],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    network = load_network(NetworkSpec(name, weights, input_size_px=size_px))
    (expected,) = open_engine(network, "keras", batch_rows=2).features(pixels)
    with np.load(f"{file}.npz") as found:
        assert deviation(found["float32"], expected) < 1
        for precision, allowed in PRECISIONS.items():
            assert deviation(found[precision], expected) < allowed
            assert precision == "float32" or (found[precision] != expected).any()
