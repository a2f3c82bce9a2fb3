"""A cache is read by an implementation of Zarr in another language: zarrita, through Node.

npm install --prefix tests/zarrita
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.test_store_contract import dataset, fake_features, make_cache, small_shards

HERE = Path(__file__).with_name("zarrita")
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (HERE / "node_modules" / "zarrita").is_dir(),
        reason="zarrita is not installed: npm install --prefix tests/zarrita",
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("row_shape", [(2, 3, 8), (20,)], ids=["map", "pooled"])
def test_zarrita_reads_what_featcache_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_shape: tuple[int, ...], dtype: str
) -> None:
    small_shards(monkeypatch)
    cache = make_cache(tmp_path, dataset(40), fake_features(40, row_shape, dtype=dtype), dtype=dtype)
    out = tmp_path / "values.bin"
    arguments = [str(NODE), "read.mjs", str(cache.folder / "features.zarr"), str(out)]
    done = subprocess.run(arguments, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"shape": [40, *row_shape], "dtype": dtype}
    found = np.fromfile(out, "<f4").reshape(40, *row_shape)
    np.testing.assert_array_equal(found, cache.features[:].astype(np.float32))
