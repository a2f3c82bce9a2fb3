"""Trainings on other backends of Keras, in processes of their own: the same course, on one device or on two."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scratching import opened

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from featcache.backbones.import_keras import spread_over
spread_over(int(sys.argv[2]))
from scratching import opened, weights
folder = Path(sys.argv[1])
with opened(folder, n=37, accumulate=2, optimizer="adamw", momentum=0.0, rate_decay=0.5, clip_norm=1.0) as training:
    training.train()
    losses = [[entry.loss, entry.val_loss] for entry in training.history]
    arrays = {f"w{number}": array for number, array in enumerate(weights(training))}
    np.savez(folder / "result.npz", losses=np.array(losses), **arrays)
    assert "tensorflow" not in sys.modules
"""


def trained(folder: Path, backend: str, devices: int = 1) -> dict[str, np.ndarray]:
    """The losses and weights of a training in another process."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    command = [sys.executable, "-c", PROGRAM, str(folder), str(devices)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "result.npz") as result:
        return dict(result)


@pytest.fixture(scope="module")
def losses_here(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    change = {"optimizer": "adamw", "momentum": 0.0, "rate_decay": 0.5, "clip_norm": 1.0}
    with opened(tmp_path_factory.mktemp("here"), n=37, accumulate=2, **change) as training:
        training.train()
        return [[entry.loss, entry.val_loss] for entry in training.history]


@pytest.mark.parametrize(("backend", "devices"), [("jax", 2), ("torch", 1)])
def test_every_backend_takes_the_same_course(
    tmp_path: Path, backend: str, devices: int, losses_here: list[list[float]]
) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    found = trained(tmp_path, backend, devices)
    np.testing.assert_allclose(found["losses"], losses_here, rtol=2e-3)
