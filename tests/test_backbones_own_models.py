"""Models from files and builders: what is made of them, and everything that is refused before Keras sees it."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from networks import randomize

from featcache.backbones.doors import layers_to_cut
from featcache.backbones.import_keras import import_keras
from featcache.backbones.model_file import architecture_name, read_config
from featcache.backbones.network import Network, load_network
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError, FeatcacheError, WeightsError


def classifier(classes: int = 3) -> Any:
    """A small network with a nested base, as people train them."""
    layers, inputs = import_keras().layers, import_keras().Input((16, 16, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    base = import_keras().Model(inputs, layers.Conv2D(6, 3, name="last")(x), name="base")
    top = [layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    model = import_keras().Sequential([import_keras().Input((16, 16, 3)), base, *top])
    randomize(model)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return classifier()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "cells.keras"
    model.save(path)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keras calls its .h5 files and Lambda layers old or unsafe, which is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(path: Path | str, **asked: Any) -> Network:
    return load_network(NetworkSpec(str(path), **{"preprocessing": "rescale", **asked}))


def output(network: Network, x: Any) -> Any:
    return np.asarray(network.model(x, training=False))


def images(side: int = 16) -> Any:
    return np.random.default_rng(0).random((2, side, side, 3), np.float32)


# --- what is made of them -------------------------------------------------------------------------


def test_a_file_gives_the_last_feature_map(model: Any, saved: Path) -> None:
    found = load(saved)
    (cut,) = found.cuts
    np.testing.assert_array_equal(output(found, images()), np.asarray(model.layers[0](images())))
    assert (cut.space.layer, cut.feature_shape, str(cut.weights), cut.space.input_size_px) == (
        "base",
        (12, 12, 6),
        "cells.keras",
        16,
    )
    assert cut.space.backbone.startswith("sequential-")


def test_layers_of_a_nested_network_are_reached_by_path(model: Any, saved: Path) -> None:
    names = ["base/conv2d", "base/batch_normalization", "base/last", "base", "global_average_pooling2d", "dense"]
    assert [layer.name for layer in layers_to_cut(NetworkSpec(str(saved)))] == names
    found = load(saved, layers=("base/conv2d", "dense"), pooling="max")
    conv, dense = (np.asarray(value) for value in found.model(images(), training=False))
    expected = np.asarray(model.layers[0].layers[1](images()))
    np.testing.assert_array_equal(conv, expected.max(axis=(1, 2)))
    np.testing.assert_array_equal(dense, np.asarray(model(images(), training=False)))


def test_the_same_network_has_the_same_name_everywhere(saved: Path, tmp_path: Path) -> None:
    """Renamed, saved again by a process that counted further, frozen, compiled: the same. Changed: another."""
    shutil.copy(saved, tmp_path / "renamed.keras")
    again = classifier()
    again.layers[0].trainable = False
    again.compile("adam", "mse")
    again.save(tmp_path / "again.keras")
    first, renamed, later = (
        load(path).cuts[0].space for path in (saved, tmp_path / "renamed.keras", tmp_path / "again.keras")
    )
    assert first.backbone == renamed.backbone == later.backbone
    assert first.weights_digest == later.weights_digest
    classifier(4).save(tmp_path / "other.keras")
    assert load(tmp_path / "other.keras").cuts[0].space.backbone != first.backbone


def test_a_whole_h5_file(model: Any, saved: Path, tmp_path: Path) -> None:
    with _quiet():
        model.save(tmp_path / "cells.h5")
    found = load(tmp_path / "cells.h5")
    np.testing.assert_array_equal(output(found, images()), output(load(saved), images()))
    assert found.cuts[0].space.weights_digest == load(saved).cuts[0].space.weights_digest


def test_weights_of_another_file_and_random_ones(model: Any, saved: Path, tmp_path: Path) -> None:
    other = classifier()
    other.set_weights([value + 1 for value in other.get_weights()])
    other.save_weights(tmp_path / "other.weights.h5")
    found = load(saved, weights=str(tmp_path / "other.weights.h5"))
    np.testing.assert_array_equal(output(found, images()), np.asarray(other.layers[0](images())))
    assert str(found.cuts[0].weights) == "other.weights.h5"
    one, again, two = (load(saved, weights="random", weights_seed=seed).cuts[0] for seed in (1, 1, 2))
    assert one == again != two
    assert (str(one.weights), one.space.backbone) == ("random-1", found.cuts[0].space.backbone)
    classifier(4).save_weights(tmp_path / "four.weights.h5")
    with pytest.raises(
        WeightsError, match=r"layer dense\w*: not of this network: expected shape \(6, 3\), found \(6, 4\)"
    ):
        load(saved, weights=str(tmp_path / "four.weights.h5"))


def test_preprocessing_is_asked_for_unless_the_first_layers_do_it(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"Set `preprocessing` .*caffe: RGB -> BGR.*none: x"):
        load(saved, preprocessing=None)
    keras = import_keras()
    inside = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.ReLU()]
    )
    inside.save(tmp_path / "inside.keras")
    with pytest.raises(BackboneError, match="it takes images of any size"):
        load(tmp_path / "inside.keras", preprocessing=None)
    found = load(tmp_path / "inside.keras", preprocessing="model", input_size_px=9)
    assert (found.cuts[0].space.preprocessing, found.cuts[0].space.layer) == ("none", "re_lu")
    assert found.cuts[0].feature_shape == (7, 7, 4)
    with pytest.raises(BackboneError, match="cannot be built for 2 px"):
        load(tmp_path / "inside.keras", input_size_px=2)
    with pytest.raises(BackboneError, match="input size 17 px: the model was made for 16 px"):
        load(saved, input_size_px=17)


def test_float32_is_float32_even_for_a_model_trained_in_less(tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    low = keras.Model(inputs, keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16")(inputs))
    low.save(tmp_path / "low.keras")
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    plain.set_weights(low.get_weights())
    features = output(load(tmp_path / "low.keras"), images(8))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.asarray(plain(images(8))))


BUILDERS = """
import keras

def like_applications(weights="imagenet", include_top=True, input_shape=None):
    assert weights is None and not include_top
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs), name="Mine")

def ready():
    model = like_applications(None, False, (10, 10, 3))
    model.set_weights([0 * value + 1 for value in model.get_weights()])
    return model

def subclassed():
    class Net(keras.Model):
        def call(self, x):
            return x
    return Net()

value = 5
"""


def test_builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_builders.py").write_text(BUILDERS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=r"mine-\w{8}: there are no ImageNet weights for it"):
        load("my_builders:like_applications")
    (cut,) = load("my_builders:like_applications", weights="random", input_size_px=12).cuts
    assert (cut.space.backbone[:5], cut.space.layer, cut.feature_shape, str(cut.weights)) == (
        "mine-",
        "conv2d",
        (10, 10, 4),
        "random-0",
    )
    (cut,) = load("my_builders:ready").cuts
    assert (cut.space.input_size_px, str(cut.weights)) == (10, "ready")
    with pytest.raises(BackboneError, match="my_builders:none: there is no such function"):
        load("my_builders:none")
    with pytest.raises(BackboneError, match="no_such_module:f: there is no such function"):
        load("no_such_module:f")
    with pytest.raises(BackboneError, match="expected a Functional or Sequential Keras model, got Net"):
        load("my_builders:subclassed")
    with pytest.raises(BackboneError, match="my_builders:value: expected a function, got int"):
        load("my_builders:value")


# --- what is refused ------------------------------------------------------------------------------


def changed(saved: Path, target: Path, change: Any) -> Path:
    """A copy of a .keras file with another configuration."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(name, data)
    return target


def last(**fields: Any) -> Any:
    return lambda config: config["config"]["layers"][-1].update(fields)


SYSTEM = {"module": "os", "class_name": "system", "config": "echo owned", "registered_name": "function"}
FOREIGN: dict[str, tuple[Any, str]] = {
    "a class of another module": (
        last(module="subprocess", class_name="Popen"),
        "subprocess.Popen is not part of Keras",
    ),
    "a registered class": (last(registered_name="Mine>Dense"), "'Mine>Dense' is not part of Keras"),
    "a function of another module": (last(activation=SYSTEM), "os.system is not part of Keras"),
    "a builtin": (last(module="builtins", class_name="eval"), "builtins.eval is not part of Keras"),
    "a helper of Keras": (last(module="keras.utils", class_name="get_file"), "keras.utils.get_file is not"),
    "a function of Keras": (last(module="keras.saving", class_name="function"), "keras.saving.function is not"),
    "a lambda": (last(activation={"class_name": "__lambda__", "config": {}}), "'__lambda__' is no class of Keras"),
    "a saved model": (last(class_name="TFSMLayer"), "TFSMLayer runs code"),
    "a class with dots": (last(class_name="layers.Lambda"), "layers.Lambda is not part of Keras"),
    "no class": (last(class_name=None), "it has no class but None"),
    "a module that only begins like Keras": (last(module="keras_evil"), "keras_evil.Dense is not part of Keras"),
    "a layer of ours from elsewhere": (
        last(module="os", class_name="DropPathJoin", registered_name="featcache>DropPathJoin"),
        "os.DropPathJoin is not part of Keras",
    ),
    "another class of our name": (
        last(module="featcache.backbones.zoo.drop_path", class_name="Other", registered_name="featcache>DropPathJoin"),
        "featcache.backbones.zoo.drop_path.Other is not part of Keras",
    ),
    "a class that Keras never had": (last(module=None, class_name="Foo"), "'Foo' is no class of Keras"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_with_foreign_parts_is_refused_with_the_layers_name(
    name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = FOREIGN[name]
    path = changed(saved, tmp_path / "foreign.keras", change)
    monkeypatch.setattr(import_keras().saving, "load_model", lambda *_, **__: pytest.fail("Keras was asked"))
    with pytest.raises(BackboneError, match=r"foreign\.keras: layer 'dense\w*': .*set `unsafe=True`") as caught:
        load(path)
    assert message in str(caught.value)
    assert "owned" not in capfd.readouterr().out


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_is_loaded_only_where_code_may_run(suffix: str, tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(4, 3)(inputs)
    path = tmp_path / f"doubled{suffix}"
    with _quiet():
        keras.Model(inputs, keras.layers.Lambda(lambda x: 2 * x, name="doubler")(conv)).save(path)
    with pytest.raises(BackboneError, match="layer 'doubler': Lambda runs code that is not Keras' own"):
        load(path)
    conv, doubled = (load(path, unsafe=True, layers=(name,)) for name in ("conv2d", "doubler"))
    np.testing.assert_array_equal(output(doubled, images(8)), 2 * output(conv, images(8)))


@pytest.mark.parametrize("member", ["../evil.py", "/etc/evil", "assets/x", "evil.py"])
def test_members_that_a_model_does_not_have(member: str, saved: Path, tmp_path: Path) -> None:
    path = shutil.copy(saved, tmp_path / "more.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "print('owned')")
    with pytest.raises(BackboneError, match=r"more\.keras: expected metadata\.json, .*found '"):
        load(path)


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_members_that_unpack_to_more_than_they_can_hold(member: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            with new.open(name, "w") as file:
                if name == member:
                    for _ in range(80):
                        file.write(bytes(2**20))
                else:
                    file.write(old.read(name))
    with pytest.raises(BackboneError, match=rf"bomb\.keras: {member} would unpack to 83886080 bytes"):
        load(path)


def test_files_that_are_no_model(saved: Path, model: Any, tmp_path: Path) -> None:
    data = saved.read_bytes()
    for number, content in enumerate((b"", b"no model", b"PK\x05\x06" + bytes(18), data[: len(data) // 2], data[:-1])):
        path = tmp_path / f"broken{number}.keras"
        path.write_bytes(content)
        with pytest.raises(FeatcacheError, match=rf"broken{number}\.keras: "):
            load(path)
    with pytest.raises(BackboneError, match="there is no such model file"):
        load(tmp_path / "gone.keras")
    model.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(BackboneError, match="holds no whole model"):
        load(tmp_path / "x.weights.h5")
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.attrs["model_config"] = '{"class_name":"Functional","config":{"a":' + "[" * 20_000 + "]" * 20_000 + "}}"
    with pytest.raises(BackboneError, match=r"deep\.h5: not a readable Keras model"):
        load(tmp_path / "deep.h5")
    path = changed(saved, tmp_path / "odd.keras", last(config={"name": "dense", "units": "many"}))
    with pytest.raises(BackboneError, match=r"odd\.keras: Keras cannot load it: "):
        load(path)


def test_bytes_changed_anywhere_end_in_an_error_or_in_a_network(saved: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = np.fromfile(saved, np.uint8)
    path = tmp_path / "damaged.keras"
    refused = 0
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 20)] = rng.integers(0, 256, 20)
        damaged.tofile(path)
        try:
            architecture_name(read_config(path))
        except BackboneError as error:
            refused += 1
            assert "damaged.keras" in str(error)
    assert refused > 5
