"""Extraction where Keras runs on another backend than TensorFlow, which is then not loaded."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import networks
import numpy as np
import pytest

from featcache.backbones.engines.agreement import deviation
from featcache.backbones.engines.choose import open_engine

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed"))
    for name in ("jax", "torch")
]
PRECISIONS = {"float32": 1.0, "float16": 500.0, "bfloat16": 4000.0}
"""Each precision, and how many tolerances of float32 its features may be off at most."""

EXTRACT = """
    import os, sys, warnings
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the backends themselves
    import numpy as np
    from featcache.backbones.engines.choose import open_engine
    import networks
    out, name = sys.argv[1:]
    pixels = networks.pixels(3, name)
    found = {}
    for precision in ("float32", "float16", "bfloat16"):
        engine = open_engine(networks.network(name, precision=precision), batch_rows=2)
        assert engine.name == "keras-" + os.environ["KERAS_BACKEND"], engine.why
        (found[precision],) = engine.features(pixels)
        assert found[precision].dtype == np.float32
        others = np.concatenate([pixels[:1] ^ 255, pixels[1:]])
        np.testing.assert_array_equal(engine.features(others)[0][1:], found[precision][1:])
    assert "tensorflow" not in sys.modules
    np.savez(out, **found)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_extraction_without_tensorflow(backend, tmp_path):
    name, file = "mobilenetv2", tmp_path / "features.npz"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXTRACT), file, name],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (expected,) = open_engine(networks.network(name), "keras", batch_rows=2).features(networks.pixels(3, name))
    with np.load(file) as found:
        for precision, allowed in PRECISIONS.items():
            assert deviation(found[precision], expected) < allowed
            assert precision == "float32" or (found[precision] != expected).any()
