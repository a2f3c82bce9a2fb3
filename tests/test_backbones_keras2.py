"""Files of Keras 2: the way out is named; and files that lead out of themselves are refused before Keras opens them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featcache.backbones import registry, weights
from featcache.backbones.import_keras import import_keras
from featcache.backbones.model_file import read_config
from featcache.backbones.own_models import open_own
from featcache.core.errors import BackboneError, WeightsError

SIDE = 32
WAY_OUT = "`model='mobilenetv2', weights=FILE`"


def zipped(path: Path, config: dict[str, Any], weights_file: bytes = b"") -> Path:
    """A .keras file with a configuration of one's own."""
    inner = io.BytesIO()
    h5py.File(inner, "w").close()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights_file or inner.getvalue())
    return path


@pytest.mark.parametrize(
    "module", ["tf_keras.src.engine.functional", "keras.src.engine.functional", "keras.engine.training"]
)
@pytest.mark.parametrize("unsafe", [False, True])
def test_a_keras_file_of_keras_2_is_refused_with_the_way_out(tmp_path: Path, module: str, unsafe: bool) -> None:
    config = {"module": module, "class_name": "Functional", "config": {"name": "mobilenetv2", "layers": []}}
    with pytest.raises(BackboneError, match="saved by Keras 2") as caught:
        read_config(zipped(tmp_path / "net.keras", config), unsafe)
    assert WAY_OUT in str(caught.value)
    assert "any code" not in str(caught.value)


def test_a_whole_h5_of_keras_2_that_keras_3_cannot_load_names_the_way_out(tmp_path: Path) -> None:
    """As tutorials' files are: DepthwiseConv2D with an argument that is gone."""
    path = tmp_path / "flat.h5"
    layer = {"class_name": "DepthwiseConv2D", "config": {"name": "d", "kernel_size": [3, 3], "groups": 1}}
    start = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, SIDE, SIDE, 3], "name": "i"}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"name": "s", "layers": [start, layer]}}
        )
        file.create_group("model_weights").attrs["layer_names"] = []
    with pytest.raises(BackboneError, match=r"saved by Keras 2\.15\.0") as caught:
        open_own(str(path), None)
    assert WAY_OUT in str(caught.value)


def test_a_weights_file_with_its_top_is_said_to_be_one(tmp_path: Path) -> None:
    """A legacy file, layer by layer, as Keras 2's save_weights wrote it."""
    whole = import_keras().applications.MobileNetV2(
        weights=None, include_top=True, input_shape=(SIDE, SIDE, 3), classes=3
    )
    path = tmp_path / "withtop.h5"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.15.0"
        file.attrs["layer_names"] = [layer.name.encode() for layer in whole.layers]
        for layer in whole.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{number}:0" for number in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=np.asarray(weight))
    with pytest.raises(WeightsError, match=r"with its top \(predictions\): take the file without it"):
        weights.load(registry.get("mobilenetv2"), path, input_size_px=SIDE)


# HDF5 that leads out of the file


def led_out(how: str, secret: Path) -> bytes:
    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        group = file.create_group("layers/dense/vars")
        if how == "link":
            group["0"] = h5py.ExternalLink(str(secret), "/x")
        elif how == "group link":
            file["layers/other"] = h5py.ExternalLink(str(secret), "/")
        elif how == "storage":
            group.create_dataset("0", (4,), "f4", external=[(str(secret), 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
            group.create_virtual_dataset("0", layout)
    return inner.getvalue()


@pytest.mark.parametrize("how", ["link", "group link", "storage", "virtual"])
@pytest.mark.parametrize("unsafe", [False, True])
def test_a_model_whose_weights_lie_in_other_files_is_refused_before_keras_sees_it(
    tmp_path: Path, how: str, unsafe: bool
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    keras = import_keras()
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Conv2D(2, 3)])
    config = json.loads(model.to_json())
    path = zipped(tmp_path / "net.keras", config, led_out(how, secret))
    with pytest.raises(BackboneError, match="another file"):
        open_own(str(path), None, unsafe=unsafe)
    whole = tmp_path / "net.h5"
    whole.write_bytes(led_out(how, secret))
    with h5py.File(whole, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(BackboneError, match="another file"):
        open_own(str(whole), None, unsafe=unsafe)
