"""Training on caches: the solver, what cannot be trained, the files of a head, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store_contract import LABELS, dataset, fake_features, image, make_cache

from featcache.backbones.import_keras import import_keras
from featcache.core.errors import HeadError
from featcache.datasets.manifest import Dataset
from featcache.heads import initializers as random
from featcache.heads.config import PRESETS, HeadConfig, asked_epochs, changed_by, from_preset
from featcache.heads.head import Head
from featcache.heads.train import choose_solver, plan_head, row_weights, train_head
from featcache.store.cache import Cache

IMAGES = dataset(120)
CONFIG = HeadConfig((8,), 0.0, epochs=10)


def separable(images: Dataset, row_shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Features in which every class has a direction of its own."""
    features = fake_features(len(images.images), row_shape, seed)
    for row, line in zip(features, images.images, strict=True):
        row.reshape(-1)[images.classes.index(line.label) :: 8] += 8
    return features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("cache"), IMAGES, separable(IMAGES, (3, 2, 8)))


# Choosing a solver


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    def gives(gib: float) -> None:
        monkeypatch.setattr("featcache.core.machine.available_bytes", lambda: int(gib * 2**30))

    gives(16)
    return gives


def test_wide_features_go_to_gram_space_and_many_rows_to_blocks(memory: Any) -> None:
    wide = choose_solver(4394, 440, n_inputs=25_088, n_classes=4, config=HeadConfig(epochs=5000))
    assert wide.solver == "gram"
    assert "times fewer operations than block" in wide.why
    assert int(wide.why.split()[0]) >= 10
    long = choose_solver(40_000, 1000, n_inputs=64, n_classes=4, config=HeadConfig(batch=256))
    assert long.solver == "block"
    assert "times fewer operations than gram" in long.why


def test_what_does_not_fit_gives_way_to_what_does(memory: Any) -> None:
    memory(1)
    crowded = choose_solver(
        20_000, 100, n_inputs=2048, n_classes=4, config=HeadConfig(epochs=1)
    )  # K: 1.5 GiB, X: 0.15 GiB
    assert crowded.solver == "block"
    wide = choose_solver(4394, 440, n_inputs=100_352, n_classes=4, config=HeadConfig(batch=4394))  # X: 1.8 GiB
    assert wide.solver == "gram"
    memory(0.5)
    for asked, solver, gib in (("gram", "gram", 0.9), ("primal", "primal", 0.8), ("auto", "block", 0.9)):
        with pytest.raises(HeadError, match=f"the {solver} solver needs {gib} GiB .* 0.4 GiB are free"):
            choose_solver(20_000, 100, n_inputs=200_000, n_classes=4, config=HeadConfig(), asked=asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["gram", "primal"])
def test_what_is_asked_for_decides(memory: Any, asked: Any, cache: Cache) -> None:
    assert choose_solver(4394, 440, n_inputs=25_088, n_classes=4, config=HeadConfig(), asked=asked).solver == asked
    assert plan_head(cache, CONFIG, solver=asked).why == "asked for"


# Training


@pytest.mark.parametrize("hidden", [(), (32,), (32, 16)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_separable_set_is_learnt_to_the_last_row(cache: Cache, hidden: tuple[int, ...], dtype: Any) -> None:
    trained = train_head(cache, HeadConfig(hidden, 0.0, epochs=60, dtype=dtype), solver="gram")
    assert trained.history[-1].accuracy == trained.history[-1].val_accuracy == 1.0
    for split in ("train", "val", "test"):
        found = trained.head.probabilities(cache, cache.numbers(split)).argmax(axis=1)
        np.testing.assert_array_equal(found, cache.labels(split))
    assert all(array.dtype == np.float32 for pair in trained.head.layers for array in pair)


@pytest.mark.parametrize("hidden", [(), (8, 4)])
def test_both_solvers_give_one_head(cache: Cache, hidden: tuple[int, ...]) -> None:
    config = HeadConfig(hidden, 0.0, epochs=10, decay=0.01)
    heads = [train_head(cache, config, solver=solver) for solver in ("gram", "primal")]  # type: ignore[arg-type]
    gram, primal = ([(e.loss, e.accuracy, e.val_loss, e.val_accuracy) for e in h.history] for h in heads)
    np.testing.assert_allclose(gram, primal, rtol=1e-4, atol=1e-7)
    for (W, b), (W_primal, b_primal) in zip(heads[0].head.layers, heads[1].head.layers, strict=True):
        np.testing.assert_allclose(W, W_primal, atol=1e-4)
        np.testing.assert_allclose(b, b_primal, atol=1e-4)
    assert heads[0].head.scale == heads[1].head.scale


def test_the_measures_of_the_last_epoch_are_those_of_the_head(cache: Cache) -> None:
    trained = train_head(cache, replace(CONFIG, dropout=0.5), solver="gram")
    y = cache.labels("val")
    p = trained.head.probabilities(cache, cache.numbers("val"))
    assert trained.history[-1].val_loss == pytest.approx(-np.log(p[range(len(y)), y]).mean(), rel=1e-4)
    assert trained.history[-1].val_accuracy == (p.argmax(axis=1) == y).mean()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("scale", ["centred", "norm"])
def test_the_size_of_scaled_features_matters_not(cache: Cache, tmp_path: Path, scale: Any) -> None:
    X = np.asarray(cache.features)
    config = replace(CONFIG, scale=scale)
    trained = train_head(cache, config, solver="gram")
    train = cache.numbers("train")
    rows = X[train].reshape(len(train), -1).astype("float64")
    norms = ((rows - rows.mean(axis=0) * (scale == "centred")) ** 2).sum(axis=1).mean()
    assert norms * trained.head.scale**2 == pytest.approx(random.SCALED_SQUARED_NORM, rel=1e-6)
    other = train_head(make_cache(tmp_path, IMAGES, X * np.float32(7)), config, solver="gram")
    assert other.head.scale == pytest.approx(trained.head.scale / 7, rel=1e-6)
    courses = [[(e.loss, e.val_loss) for e in t.history] for t in (trained, other)]
    np.testing.assert_allclose(courses[0], courses[1], rtol=1e-4)
    none = train_head(cache, replace(CONFIG, scale="none"), solver="gram")
    assert none.head.scale == 1.0


def test_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    y = np.random.default_rng(0).choice([0, 2, 3], 100, p=[0.7, 0.2, 0.1])  # no row of class 1
    found = row_weights(y, HeadConfig())
    np.testing.assert_allclose(found, compute_sample_weight("balanced", y), rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(row_weights(y, HeadConfig(class_weights="none")), np.ones(100))


@pytest.mark.parametrize("scale", ["centred", "norm", "none"])
def test_a_learning_rate_far_too_high_is_an_error_with_advice(cache: Cache, scale: Any) -> None:
    for hidden in ((8,), (8, 4)):  # a softmax layer alone is a perceptron, and separates these at any rate
        config = HeadConfig(hidden, 0.5, lr=1e6, scale=scale)
        with pytest.raises(HeadError, match=r"the loss is .* in epoch \d+: .* at learning rate 1e\+06. Try `lr=1"):
            train_head(cache, config, solver="gram")


# What cannot be trained


def cache_of(parent: Path, lines: list[tuple[str, str]], features: np.ndarray | None = None) -> Cache:
    images = Dataset(tuple(image(n, label, split) for n, (label, split) in enumerate(lines)), Path())
    return make_cache(parent, images, fake_features(len(lines), (6,)) if features is None else features)


def test_a_split_without_images_is_an_error(tmp_path: Path) -> None:
    whole = [(label, split) for split in ("train", "val", "test") for label in "ab"] * 4
    for split in ("train", "val", "test"):
        cache = cache_of(tmp_path / split, [line for line in whole if line[1] != split])
        with pytest.raises(HeadError, match=f"the split '{split}' has no images.*resplit=True"):
            train_head(cache, replace(CONFIG, batch=1))


def test_one_class_is_an_error(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, [("a", split) for split in ("train", "val", "test")])
    with pytest.raises(HeadError, match="only the class 'a'"):
        train_head(cache, replace(CONFIG, batch=1))


def test_a_batch_of_more_rows_than_there_are_is_an_error(cache: Cache) -> None:
    n_train = len(cache.numbers("train"))
    with pytest.raises(HeadError, match=rf"a batch of {n_train + 1} rows is more than the {n_train} .*Set `batch`"):
        train_head(cache, replace(CONFIG, batch=n_train + 1))
    assert len(train_head(cache, replace(CONFIG, batch=n_train, epochs=2), solver="gram").history) == 2


def test_features_that_are_all_zero_are_an_error(tmp_path: Path) -> None:
    lines = [(label, split) for split in ("train", "val", "test") for label in "ab"] * 4
    cache = cache_of(tmp_path, lines, np.zeros((24, 6), "float32"))
    with pytest.raises(HeadError, match="all training rows have the same features"):
        train_head(cache, replace(CONFIG, batch=4))
    with pytest.raises(HeadError, match="zero"):
        train_head(cache, replace(CONFIG, batch=4, scale="norm"))


def test_features_that_are_all_the_same_are_an_error(tmp_path: Path) -> None:
    lines = [(label, split) for split in ("train", "val", "test") for label in "ab"] * 4
    cache = cache_of(tmp_path, lines, np.full((24, 6), 0.1, "float32"))
    with pytest.raises(HeadError, match="all training rows have the same features"):
        train_head(cache, replace(CONFIG, batch=4))


@pytest.mark.parametrize("solver", ["gram", "primal"])
def test_a_mean_that_is_added_to_all_features_changes_nothing(cache: Cache, tmp_path: Path, solver: Any) -> None:
    X = np.asarray(cache.features)
    config = replace(CONFIG, dtype="float64", dropout=0.0)
    moved = make_cache(tmp_path, IMAGES, X + 2 * X.std(axis=0))
    found = [train_head(one, config, solver=solver) for one in (cache, moved)]
    np.testing.assert_allclose(*([e.val_loss for e in one.history] for one in found), rtol=1e-4)
    one, other = (trained.head.probabilities(c) for trained, c in zip(found, (cache, moved), strict=True))
    np.testing.assert_allclose(one, other, atol=1e-4)
    last = found[0].history[-1]
    val = cache.numbers("val")
    loss = -np.log(one[val, cache.labels("val")]).mean()
    assert loss == pytest.approx(last.val_loss, rel=1e-4)  # the head, on features as they are


def test_a_number_of_epochs_that_is_asked_for_is_trained_in_full() -> None:
    usual = from_preset("default")
    assert usual.patience > 0 and usual.restore_best
    asked = from_preset("default", epochs=5000)
    assert (asked.epochs, asked.patience, asked.restore_best) == (5000, 0, False)
    assert from_preset("default", epochs=None, lr=0.1) == replace(usual, lr=0.1)
    said = from_preset("default", epochs=5000, patience=7)
    assert (said.epochs, said.patience, said.restore_best) == (5000, 7, True)
    kept = from_preset("default", epochs=5000, restore_best=False)
    assert (kept.patience, kept.restore_best) == (usual.patience, False)
    assert from_preset("default", momentum=0.9).lr == pytest.approx(usual.lr / 10)
    assert from_preset("default", momentum=0.9, lr=0.5).lr == 0.5
    adam = from_preset("default", optimizer="adam")
    assert (adam.lr, adam.l2) == (HeadConfig().lr, 0.0)
    assert from_preset("study", optimizer="adam").lr == from_preset("study", momentum=0.9).lr == 1e-5
    assert asked_epochs([{"lr": 1}, {"epochs": 30}]) == {"epochs": 30}
    assert asked_epochs([{"lr": 1}]) == {} == changed_by("default")
    assert (from_preset("study").patience, from_preset("study").restore_best) == (0, False)


def test_scales_of_earlier_versions_keep_their_names() -> None:
    assert HeadConfig(scale="norm").to_dict()["scale"] == "auto"
    for scale in ("centred", "norm", "none"):
        config = HeadConfig(scale=scale)  # type: ignore[arg-type]
        assert HeadConfig.from_dict(config.to_dict()) == config


def test_presets() -> None:
    study = from_preset("study", epochs=7, lr=None)
    assert study == replace(PRESETS["study"], epochs=7)
    assert (study.lr, study.decay, study.batch, study.scale, study.hidden, study.dropout) == (
        1e-5, 0.001, 16, "none", (256,), 0.5
    )  # fmt: skip
    assert study.lr_at(1000, 10) == pytest.approx(0.5e-5)
    with pytest.raises(HeadError, match="study"):
        from_preset("studdy")


# The files of a head


@pytest.mark.parametrize("row_shape", [(3, 2, 8), (48,)], ids=str)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)], ids=str)
def test_keras_and_numpy_load_the_head_and_predict_the_same(
    tmp_path: Path, row_shape: tuple[int, ...], hidden: tuple[int, ...]
) -> None:
    cache = make_cache(tmp_path, IMAGES, separable(IMAGES, row_shape))
    trained = train_head(cache, HeadConfig(hidden, 0.5, lr=0.01, epochs=3, scale="none"), solver="gram").head
    head = replace(trained, scale=0.37)  # logits are then of a size at which float32 is good for 1e-6
    head.save(tmp_path)
    assert [path.name for path in tmp_path.glob("*head*")] == ["head.npz"]  # its weights lie there once
    head.write_keras(tmp_path / "head.keras")
    expected = head.probabilities(cache)
    X = np.asarray(cache.features)

    model = import_keras().saving.load_model(tmp_path / "head.keras", safe_mode=True)
    assert model.input_shape == (None, *row_shape)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, atol=1e-6)
    assert [layer.rate for layer in model.layers if "dropout" in layer.name] == [0.5] * len(hidden)

    with np.load(tmp_path / "head.npz", allow_pickle=False) as arrays:
        assert tuple(arrays["classes"]) == cache.classes == LABELS
        a = X.reshape(len(X), -1) * np.float32(arrays["scale"])
        for layer in range(len(hidden) + 1):
            a = (np.maximum(a, 0) if layer else a) @ arrays[f"W{layer}"] + arrays[f"b{layer}"]
    p = np.exp(a - a.max(axis=1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(axis=1, keepdims=True), expected, atol=1e-6)


def test_the_same_head_has_the_same_files(cache: Cache, tmp_path: Path) -> None:
    head = train_head(cache, CONFIG, solver="gram").head
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        head.save(folder)
    with np.load(tmp_path / "one" / "head.npz") as one, np.load(tmp_path / "other" / "head.npz") as other:
        assert set(one) == set(other)
        described = {"scale", "classes", "activation", "output", "space", "row_shape"}
        assert set(one) == {"W0", "b0", "W1", "b1"} | described
    assert (tmp_path / "one/head.npz").read_bytes() == (tmp_path / "other/head.npz").read_bytes()


def test_a_head_that_cannot_be_written_leaves_nothing(cache: Cache, tmp_path: Path) -> None:
    head = Head((48,), 1.0, [(np.zeros((48, 2)), np.zeros(2))], 0.0, ("a", "b"))
    with pytest.raises(OSError, match="No such file"):
        head.save(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_probabilities_of_any_rows_in_any_order(cache: Cache) -> None:
    head = train_head(cache, replace(CONFIG, epochs=2), solver="gram").head
    everything = head.probabilities(cache)
    some = np.array([5, 119, 5, 0])
    np.testing.assert_allclose(head.probabilities(cache, some), everything[some], rtol=1e-5)
    assert head.probabilities(cache, some[:0]).shape == (0, 4)
