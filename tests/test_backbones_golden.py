"""Every registered backbone against the path that Keras documents (file, pixels, preprocessing, features), on engines.

Names are parameters of the module, so that all tests of a network run one after the other: it is built once.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from networks import LARGE, base, keras_features, network, pixels

from featcache.backbones import registry, weights
from featcache.backbones.cuts import layers_of
from featcache.backbones.engines.agreement import deviation
from featcache.backbones.engines.keras_engine import KerasEngine
from featcache.backbones.engines.openvino_engine import OpenvinoEngine
from featcache.backbones.import_keras import import_keras
from featcache.backbones.preprocess import preprocess
from featcache.backbones.weights import drawing_zeros
from featcache.core.extras import is_installed
from featcache.images.decode import decode
from featcache.images.squares import cut_and_resize
from tests.test_backbones_weights import write_legacy

Array = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Two pictures of each size that the networks start at."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    found: dict[int, list[Path]] = {}
    for side in {row.min_size_px for row in registry.BACKBONES.values()}:
        found[side] = [folder / f"{side}-{number}.png" for number in range(2)]
        for path in found[side]:
            cv2.imwrite(str(path), rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return found


def keras_own(paths: list[Path], row: registry.Backbone) -> Array:
    """Pictures as Keras' documentation has them prepared; for backbones that are not Keras', by their formula."""
    utils = import_keras().utils
    side = row.min_size_px
    arrays = [utils.img_to_array(utils.load_img(path, target_size=(side, side))) for path in paths]
    x: Array = np.stack(arrays).astype(np.float32)
    if row.preprocess_input is None:
        return {"lite0": (x - 127) / 128, "tf": x / np.float32(127.5) - 1}[row.preprocessing]
    module, _, attribute = row.preprocess_input.partition(":")
    prepared: Array = getattr(import_module(module), attribute)(x)
    return prepared


def ours(paths: list[Path], row: registry.Backbone, mode: str) -> Array:
    pixels = [cut_and_resize(decode(path.read_bytes()), None, size_px=row.min_size_px) for path in paths]
    return preprocess(np.stack(pixels), mode)


DEEPER = re.compile(
    r"vgg19|densenet(169|201)|resnet(101|152)(v2)?|resnet110-sd|nasnetlarge|convnext-(small|base|x?large)"
    r"|efficientnet-b[1-7]|efficientnetv2-(b[1-3]|m|l)"
)
"""Those that have a smaller sibling with the same layers; test_backbones_registry.py builds each of them, too."""


@pytest.mark.parametrize("row", registry.BACKBONES.values(), ids=lambda row: row.name)
def test_pixels_are_prepared_as_keras_documents_it(row: registry.Backbone, pictures: dict[int, list[Path]]) -> None:
    paths = pictures[row.min_size_px]
    np.testing.assert_array_equal(ours(paths, row, row.preprocessing), keras_own(paths, row))


@pytest.mark.parametrize("name", [name for name in registry.BACKBONES if not DEEPER.fullmatch(name)], scope="module")
def test_features_are_those_of_keras_documented_path(name: str, pictures: dict[int, list[Path]]) -> None:
    row = registry.get(name)
    paths = pictures[row.min_size_px]
    wrong = "torch" if row.preprocessing == "tf" else "tf"
    found = network(name)
    x = ours(paths, row, row.preprocessing)
    assert found.model.inputs[0] is base(name).inputs[0]
    assert found.model.outputs[0] is base(name).outputs[0]  # so it computes what the base does
    features = np.asarray(found.model(np.concatenate([x, ours(paths[:1], row, wrong)]), training=False))
    assert features.shape[1:] == found.cuts[0].feature_shape
    assert np.isfinite(features).all()
    size = np.abs(features).mean()
    assert np.abs(features[0] - features[1]).mean() > 1e-4 * size  # of another picture
    assert np.abs(features[0] - features[2]).mean() > 1e-4 * size  # of another preprocessing
    assert found.cuts[0].space.layer == row.layer == layers_of(base(name))[-1].name


ALONE = ("fractalnet",)
"""Those that are large and have no smaller sibling with the same layers; the others' conversion takes minutes."""
CONVERTED = [
    row.name
    for row in registry.BACKBONES.values()
    if row.name in ALONE
    or (row.parameters < LARGE and row.name != "efficientnetv2-s" and not DEEPER.fullmatch(row.name))
]


@pytest.mark.skipif(not is_installed("openvino"), reason="OpenVINO is not installed")
@pytest.mark.parametrize("name", CONVERTED, scope="module")
def test_openvino_computes_what_keras_does(name: str) -> None:
    found, x = network(name), pixels(2, name)
    for new, old in zip(OpenvinoEngine(found).features(x), keras_features(found, x), strict=True):
        assert old.std(axis=0).max() > 0
        assert deviation(new, old) < 1


FAMILIES = ("vgg16", "xception", "densenet121", "mobilenetv3-small", "efficientnet-b0", "efficientnet-lite0")


@pytest.mark.parametrize("name", FAMILIES, scope="module")
def test_the_keras_engine_computes_what_keras_does(name: str) -> None:
    found, x = network(name), pixels(3, name)
    for new, old in zip(KerasEngine(found, 2).features(x), keras_features(found, x), strict=True):
        assert deviation(new, old) < 1


PUBLISHED = ("vgg16", "mobilenetv3-small", "efficientnet-b0", "convnext-tiny")


@pytest.mark.parametrize("name", PUBLISHED, scope="module")
@pytest.mark.filterwarnings("ignore:`input_shape` is undefined or non-square")
def test_a_published_file_gives_what_keras_makes_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: dict[int, list[Path]]
) -> None:
    """Keras' builder asked for ImageNet weights, its download replaced by a file of our making in the same layout."""
    row = registry.get(name)
    file = tmp_path / row.weights_file
    write_legacy(file, base(name))
    asked: list[Any] = []

    def get_file(fname: str, origin: str, file_hash: str | None = None, **_: Any) -> str:
        asked.append((fname, origin, file_hash))
        return str(file)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    side = row.min_size_px
    builder = getattr(import_keras().applications, row.builder.partition(":")[2])
    with drawing_zeros():
        documented = builder(weights="imagenet", include_top=False, input_shape=(side, side, 3))
    assert asked == [(row.weights_file, row.weights_url, row.weights_hash)]
    x = ours(pictures[side], row, row.preprocessing)
    loaded = weights.load(row, file, input_size_px=side)
    assert weights.weights_digest(loaded) == weights.weights_digest(base(name))
    expected = np.asarray(documented(x, training=False))
    np.testing.assert_array_equal(np.asarray(loaded(x, training=False)), expected)
    np.testing.assert_array_equal(np.asarray(network(name).model(x, training=False)), expected)
