"""Cross-validation: the folds of scikit-learn, the heads of one-by-one trainings, and no look at what is judged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold
from test_heads_train import IMAGES, separable
from test_store_contract import make_cache
from watching import Watching

from featcache.core.errors import HeadError, RunError, UsageError
from featcache.heads import fold_training, gram, initializers as random, products
from featcache.heads._cross_validate import cross_validate, points_of
from featcache.heads.classical import KINDS, classical_head
from featcache.heads.config import HeadConfig
from featcache.heads.fold_training import AllRows, Classical, Dense
from featcache.heads.folds import Labelled, judging_source, leaving_groups_out, stratified
from featcache.heads.protocol import TUNED, Protocol
from featcache.heads.stack import softmax
from featcache.heads.train import SharedInputs, train_head
from featcache.prediction.opening import head_of
from featcache.store import images_in
from featcache.store.cache import Cache
from featcache.training import Run

CONFIG = HeadConfig((8,), 0.2, epochs=6)
VIEWS = 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """120 images of 3 classes, two rows each."""
    features = np.repeat(separable(IMAGES, (3, 2, 8)), VIEWS, axis=0)
    features += np.random.default_rng(1).standard_normal(features.shape) * 9
    return make_cache(tmp_path_factory.mktemp("cache"), IMAGES, features.astype("float32"), views=VIEWS)


@pytest.fixture(scope="module")
def inputs(cache: Cache) -> AllRows:
    return AllRows(cache)


def grouped(n: int = 60, n_groups: int = 20, classes: int = 3, seed: int = 0) -> Labelled:
    groups = np.random.default_rng(seed).integers(0, n_groups, n).astype(str)
    return Labelled(np.arange(n) % classes, groups, tuple("abc"[:classes]))


# Folds


def test_the_folds_are_those_of_scikit_learn() -> None:
    images = grouped()
    found = stratified(images, 4, repeats=3, seed=7)
    expected = [
        pair
        for repeat in range(3)
        for pair in StratifiedGroupKFold(4, shuffle=True, random_state=7 + repeat).split(
            images.y, images.y, images.groups
        )
    ]
    assert [fold.repeat for fold in found] == [0] * 4 + [1] * 4 + [2] * 4
    for fold, (train, judged) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.judged, judged)
        assert not set(images.groups[fold.train]) & set(images.groups[fold.judged])
    for fold, (train, judged) in zip(
        leaving_groups_out(images), LeaveOneGroupOut().split(images.y, images.y, images.groups), strict=True
    ):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.judged, judged)


def labelled(y: list[int], groups: list[str]) -> Labelled:
    return Labelled(np.array(y), np.array(groups), ("cell", "rare"))


@pytest.mark.parametrize(
    ("images", "folds", "message"),
    [
        (grouped(), 1, "`folds=1`: expected at least 2"),
        (grouped(60, 20), 21, "`folds=21`: there are only 19 groups"),
        (labelled([0, 0, 0, 0, 1, 1], list("abcdef")), 3, "'rare' has images of 2 groups, which cannot fill 3 folds"),
        (labelled([0, 1, 0, 1, 0, 1], list("aaabcd")), 2, "the group 'a' has 3 of the 6 images"),
    ],
)
def test_folds_that_cannot_be_filled_are_refused(images: Labelled, folds: int, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        stratified(images, folds)


def test_a_class_of_one_group_cannot_be_left_out() -> None:
    with pytest.raises(HeadError, match=r"judges the group 'c'.* no image of the class 'rare' to train on"):
        leaving_groups_out(labelled([0, 0, 0, 1, 1], ["a", "b", "a", "c", "c"]))
    with pytest.raises(HeadError, match="all images are of one group"):
        leaving_groups_out(labelled([0, 1], ["a", "a"]))


def test_a_source_is_a_root_or_a_folder_of_paths() -> None:
    images = labelled([0, 1, 0, 1], list("abcd"))
    paths = ["north/1.png", "north/2.png", "south/old/1.png", "south/old/2.png"]
    for source in ("south", "south/old", "south/"):
        (fold,) = judging_source(images, paths, source=source)
        assert (fold.train.tolist(), fold.judged.tolist()) == ([0, 1], [2, 3])
    with pytest.raises(HeadError, match="no image is of the source 'sout': did you mean south"):
        judging_source(images, paths, source="sout")
    with pytest.raises(HeadError, match="every image is of the source 'all'"):
        judging_source(images, [f"all/{path}" for path in paths], source="all")
    with pytest.raises(HeadError, match="1 groups have images in 'south' and elsewhere"):
        judging_source(labelled([0, 1, 0, 1], list("abbd")), paths, source="south")
    with pytest.raises(HeadError, match="no image of the class 'rare'"):
        judging_source(labelled([0, 0, 0, 1], list("abcd")), paths, source="south")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 1}, "`folds=1`"),
        ({"leave_group_out": True, "test_on": "a"}, "excludes `test_on`"),
        ({"leave_group_out": True, "repeats": 2}, "`repeats=2`: expected 1"),
        ({"judge": "all"}, "`judge='all'`"),
    ],
)
def test_protocols_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        Protocol(**wrong)


def test_what_can_be_tuned() -> None:
    assert points_of(()) == []
    assert points_of(["lr"]) == [{"lr": value} for value in TUNED["lr"]]
    assert len(points_of({"lr": [1.0, 2.0], "epochs": [1, 2, 3]})) == 6
    with pytest.raises(UsageError, match="'lrr' cannot be tuned: did you mean lr"):
        points_of(["lrr"])


# Heads


def features_of(cache: Cache, inputs: AllRows) -> tuple[Any, Any]:
    return cache.features[inputs.rows].reshape(len(inputs.rows), -1), inputs.y


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "nesterov": True, "l2": 0.001, "schedule": "cosine"},
        {"hidden": (8, 4), "dropout": 0.5, "decay": 0.01},
        {"hidden": (), "dropout": 0.0, "scale": "none", "lr": 1e-5},
        {"class_weights": "none", "label_smoothing": 0.1, "activation": "tanh"},
    ],
)
def test_heads_are_those_of_one_by_one_trainings(cache: Cache, changes: dict[str, Any]) -> None:
    inputs, config = AllRows(cache), replace(CONFIG, dtype="float64", **changes)
    for fold in stratified(inputs.labelled, 3, seed=2)[:2]:
        found, _ = Dense(config).judge(inputs, fold, stopped=lambda: False, done=lambda: None)
        splits = dict.fromkeys(inputs.images["image_id"][fold.train], "train")
        splits |= dict.fromkeys(inputs.images["image_id"][fold.judged[::2]], "val")
        images = [replace(image, split=splits.get(image.image_id, "test")) for image in images_in(cache.dataset)]
        alone = cache.relabelled(images, len(images))
        state = train_head(alone, config, solver="gram").state
        assert isinstance(state, gram.State)
        X = cache.features[:].reshape(len(cache.features), -1).astype("float64")
        if config.scale == "centred":
            X -= X[alone.numbers("train")].mean(axis=0)
        scale = SharedInputs(alone).scale(config)
        W0 = random.initial_weights(config, X.shape[1], n_classes=len(cache.classes))[0][0]
        W = X[alone.numbers("train")].T @ state.A / scale + W0 * state.s
        rows = inputs.rows[inputs.judged_rows_of(fold.judged)]
        expected = softmax(state.stack.forward(X[rows] * scale @ W))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_views_are_averaged(cache: Cache, inputs: AllRows) -> None:
    fold = stratified(inputs.labelled, 3)[0]
    judged = [
        Dense(CONFIG).judge(AllRows(cache, by), fold, stopped=lambda: False, done=lambda: None)[0]
        for by in ("plain", "views")
    ]
    assert np.abs(judged[0] - judged[1]).max() > 0.001
    np.testing.assert_allclose(judged[1].sum(axis=1), 1, atol=1e-6)
    values = np.arange(8.0).reshape(4, 2)
    rows = inputs.rows_of(np.array([3, 7]))
    np.testing.assert_array_equal(inputs.averaged(values, rows, images=np.array([3, 7])), [[1, 2], [5, 6]])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mlp"])
def test_classical_heads_are_those_of_features(cache: Cache, inputs: AllRows, kind: str) -> None:
    fold = stratified(inputs.labelled, 3, seed=2)[0]
    found, _ = Classical(kind).judge(inputs, fold, stopped=lambda: False, done=lambda: None)
    X, y = features_of(cache, inputs)
    train = np.isin(inputs.image_of, fold.train)
    judged = inputs.judged_rows_of(fold.judged)
    expected = classical_head(kind).fit(X[train], y[train]).predict_proba(X[judged])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_one_gram_matrix_is_made(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    inner = products.inner
    monkeypatch.setattr(products, "inner", lambda *a, **o: (made.append(1), inner(*a, **o))[1])
    config = replace(CONFIG, dtype="float64")
    cross_validate(cache, tmp_path, head=Dense(config), protocol=Protocol(3, 2))
    cross_validate(cache, tmp_path, head=Dense(replace(config, lr=0.003)), protocol=Protocol(4))
    assert len(made) <= 1


def test_no_choice_sees_its_judge(cache: Cache) -> None:
    """With other labels of the judged images, the same settings are chosen and the same is predicted."""
    head = Dense(replace(CONFIG, patience=2), points_of({"lr": [1e-6, 0.003, 0.03], "l2": [0.0, 0.01]}), 3)
    chosen = []
    for turned in (False, True):
        inputs = AllRows(cache)
        fold = stratified(inputs.labelled, 4)[1]
        if turned:
            of = np.isin(inputs.image_of, fold.judged)
            inputs.y = np.where(of, (inputs.y + 1) % 3, inputs.y)
            inputs.labelled.y[fold.judged] = (inputs.labelled.y[fold.judged] + 1) % 3
        chosen.append(head.judge(inputs, fold, stopped=lambda: False, done=lambda: None))
    (first, told), (second, also) = chosen
    np.testing.assert_array_equal(first, second)
    assert told == also
    assert told["lr"] > 1e-6


def test_settings_that_diverge_are_not_chosen(cache: Cache, inputs: AllRows) -> None:
    fold, calls = stratified(inputs.labelled, 3)[0], []
    head = Dense(replace(CONFIG, hidden=(8, 4)), points_of({"lr": [1e6, 0.003]}), 2)
    _, told = head.judge(inputs, fold, stopped=lambda: False, done=lambda: calls.append(1))
    assert told["lr"] == 0.003
    assert len(calls) == head.trainings == 5
    hopeless = replace(head, points=points_of({"lr": [1e6, 2e6]}))
    with pytest.raises(HeadError, match="every combination of settings diverged"):
        hopeless.judge(inputs, fold, stopped=lambda: False, done=lambda: None)


def test_inner_folds_that_cannot_be_filled_are_refused_as_such(inputs: AllRows) -> None:
    fold = stratified(inputs.labelled, 3)[0]
    for head in (Dense(CONFIG, points_of(["lr"]), 99), Dense(replace(CONFIG, patience=1), (), 99)):
        with pytest.raises(HeadError, match=r"cannot fill 99 folds\. Set `inner_folds=|`inner_folds=99`: there"):
            head.judge(inputs, fold, stopped=lambda: False, done=lambda: None)


def test_the_best_epoch_is_found_on_an_inner_fold(cache: Cache, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=40, lr=0.02, patience=2, restore_best=True)
    done = cross_validate(cache, tmp_path, head=Dense(config), protocol=Protocol(3))
    assert (pd.read_csv(done.run.folder / "folds.csv")["trained_epochs"] < 40).any()


def test_heads_that_gram_space_cannot_train_are_refused(cache: Cache, tmp_path: Path) -> None:
    for wrong, message in (({"optimizer": "adam"}, "optimizer adam"), ({"batch": 500}, "a batch of 500 rows")):
        with pytest.raises(HeadError, match=message):
            cross_validate(cache, tmp_path, head=Dense(replace(CONFIG, **wrong)), protocol=Protocol(3))
    with pytest.raises(HeadError, match="unknown head 'logrec': did you mean logreg"):
        cross_validate(cache, tmp_path, head=Classical("logrec"), protocol=Protocol(3))
    assert list(tmp_path.iterdir()) == []


# The run


def table_of(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "predictions.csv")


def test_every_image_is_judged_once_a_repeat(cache: Cache, tmp_path: Path) -> None:
    done = cross_validate(cache, tmp_path, head=Dense(CONFIG), protocol=Protocol(3, 2))
    found, table = done.run.metrics, table_of(done.run)
    assert (found["folds"], found["repeats"], found["trainings"], found["images"]) == (3, 2, 6, 120)
    assert len(table) == 240
    assert table.groupby("repeat")["image_id"].nunique().tolist() == [120, 120]
    assert (table.groupby(["repeat", "group"])["fold"].nunique() == 1).all()
    assert (table["view"] == 0).all()
    values = found["measures"]
    for measure, function in (
        ("accuracy", lambda y, named: (y == named).mean()),
        ("balanced_accuracy", balanced_accuracy_score),
        ("macro_f1", lambda y, named: f1_score(y, named, average="macro")),
    ):
        each = [function(part["label"], part["predicted"]) for _, part in table.groupby("repeat")]
        assert values[measure]["mean"] == pytest.approx(np.mean(each))
        assert set(values[measure]) == {"mean", "low", "high"}
        assert values[measure]["low"] < values[measure]["mean"] < values[measure]["high"]
    folds = pd.read_csv(done.run.folder / "folds.csv")
    assert folds[["repeat", "fold"]].to_numpy().tolist() == [[r, f] for r in (1, 2) for f in (1, 2, 3)]
    assert (folds["trained_on"] + folds["judged"] == 120).all()
    json.dumps(found, allow_nan=False)
    again = cross_validate(cache, tmp_path, head=Dense(CONFIG), protocol=Protocol(3, 2))
    assert again.reused
    assert again.run.name == done.run.name
    assert done.run._repr_html_().count("<tr") > 5
    other = cross_validate(cache, tmp_path, head=Classical("logreg"), protocol=Protocol(3, 2))
    compared = other.run.compare(done.run).set_index("measure")
    expected = other.run.metrics["measures"]["accuracy"]["mean"] - values["accuracy"]["mean"]
    assert compared.loc["accuracy", "difference"] == pytest.approx(expected)


def test_it_keeps_no_head(cache: Cache, tmp_path: Path) -> None:
    done = cross_validate(cache, tmp_path, head=Dense(CONFIG), protocol=Protocol(3))
    with pytest.raises(RunError, match="a cross-validation keeps no head"):
        head_of(done.run)


def stopping_after(checks: int) -> Any:
    @contextlib.contextmanager
    def stopping() -> Iterator[Any]:
        left = iter([False] * checks)
        yield lambda: next(left, True)

    return stopping


def test_interrupted_it_keeps_what_is_finished_and_goes_on(cache: Cache, tmp_path: Path) -> None:
    head, protocol = Dense(CONFIG), Protocol(4)
    whole = cross_validate(cache, tmp_path / "whole", head=head, protocol=protocol)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(
            cache,
            tmp_path,
            head=head,
            protocol=protocol,
            progress=Watching(stopping_after(2 * (CONFIG.epochs + 1) + 3)),
        )
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == [f"{whole.run.name}.training"]
    steps: list[int] = []
    done = cross_validate(cache, tmp_path, head=head, protocol=protocol, progress=Watching(advance=steps.append))
    assert done.resumed_at == 2
    assert sum(steps) >= 4
    pd.testing.assert_frame_equal(table_of(done.run), table_of(whole.run))
    assert done.run.metrics["measures"] == whole.run.metrics["measures"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [done.run.name, "whole"]


def test_leaving_groups_out_and_tuning(cache: Cache, tmp_path: Path) -> None:
    small = replace(CONFIG, epochs=2)
    done = cross_validate(cache, tmp_path, head=Dense(small), protocol=Protocol(leave_group_out=True))
    assert done.run.metrics["folds"] == done.run.metrics["groups"]
    head = Dense(small, points_of({"lr": [0.001, 0.003]}), 2)
    tuned = cross_validate(cache, tmp_path, head=head, protocol=Protocol(3, inner_folds=2))
    assert tuned.run.metrics["trainings"] == 15
    assert set(pd.read_csv(tuned.run.folder / "folds.csv")["lr"]) <= {0.001, 0.003}


def test_a_matrix_that_does_not_fit_is_refused(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_training, "fits", lambda *_: False)
    with pytest.raises(HeadError, match="the Gram matrix of 240 rows needs"):
        cross_validate(cache, tmp_path, head=Dense(CONFIG), protocol=Protocol(3))
