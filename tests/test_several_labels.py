"""Several labels an image: from a CSV to heads, measures, predictions and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as scikit
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

import featcache as fc
from featcache import heads, study
from featcache.core.errors import ArgumentsError, DatasetError, FeatcacheError, HeadError, ProjectError, UsageError
from featcache.core.progress import SILENT
from featcache.core.project import Project
from featcache.datasets.label_lists import encoded, joined, labels_in, likely_separator, rewritten, tidied
from featcache.heads.train import SharedInputs, row_weights, train_head
from featcache.images import png_of
from featcache.measures import JudgedLabels, compare, evaluate

LABELS = ("blue", "green", "red")
N_IMAGES = 72
QUICK: dict[str, Any] = {"epochs": 12, "hidden": (16,), "progress": SILENT}


def picture(number: int, labels: tuple[str, ...]) -> np.ndarray:
    """A grey square, brighter in the channels that it is labelled with, and noise."""
    random = np.random.default_rng(number)
    channels = [90.0 if name in labels else 20.0 for name in ("red", "green", "blue")]
    return (random.uniform(0, 90, (24, 24, 3)) + channels).astype(np.uint8)


def labels_of(number: int) -> tuple[str, ...]:
    random = np.random.default_rng([7, number])
    return tuple(name for name, share in zip(LABELS, (0.25, 0.5, 0.4), strict=True) if random.random() < share)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, list.csv with lists of labels, and columns.csv with 0 and 1."""
    folder = tmp_path_factory.mktemp("several")
    lists, columns = ["image,labels"], ["image,green,red,blue"]
    for number in range(N_IMAGES):
        labels = labels_of(number)
        (folder / f"{number}.png").write_bytes(png_of(picture(number, labels)))
        lists.append(f"{number}.png,{joined(labels, ';')}")
        columns.append(f"{number}.png,{','.join(str(int(name in labels)) for name in ('green', 'red', 'blue'))}")
    (folder / "list.csv").write_text("\n".join(lists))
    (folder / "columns.csv").write_text("\n".join(columns))
    return folder


@pytest.fixture(scope="module")
def project(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    into = tmp_path_factory.mktemp("project")
    return fc.init(images / "list.csv", into, label_separator=";", views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def cache(project: Project) -> Any:
    return fc.extract(project, "pixels", input_size_px=8, progress=SILENT)


@pytest.fixture(scope="module")
def run(cache: Any) -> Any:
    return fc.fit_head(cache, **QUICK)


def listed(folder: Path, *lines: str, first: str = "image,labels") -> Path:
    """A list beside pictures of all that it names."""
    for number, line in enumerate(lines):
        (folder / line.partition(",")[0]).write_bytes(png_of(picture(1000 + number, ())))
    path = folder / "list.csv"
    path.write_text("\n".join([first, *lines]))
    return path


# --- the text of several labels ------------------------------------------------------------------


def test_a_text_holds_labels_none_of_them_or_nothing() -> None:
    assert labels_in(" b ;a;;a", ";") == ("a", "b")
    assert labels_in("b;a", "") == ("b;a",) and labels_in(" a", "") == (" a",) and labels_in("", "") == ()
    assert joined(["b", "a"], ";") == "a;b" and joined([], ";") == ";"
    assert [tidied(text, ";") for text in ("", "  ", ";", " ; ;", "b; a")] == ["", "", ";", ";", "a;b"]
    assert [rewritten(text, "", separator=";") for text in ("b;a", "a", "")] == ["a;b", "a", ""]
    assert [rewritten(text, ";", separator="|") for text in ("a;b", ";", "")] == ["a|b", "|", ""]
    assert [rewritten(text, ";", separator="") for text in ("a;b", ";", "")] == ["a;b", "", ""]
    found = encoded(["a;b", ";", "", "b;x"], ";", classes=("a", "b"))
    assert found.tolist() == [[1, 1], [0, 0], [-1, -1], [0, 1]]
    assert encoded(["b", "a", "x"], "", classes=("a", "b")).tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["a;b"], ";"),
        (["a", "b|c", "b"], "|"),
        (["a, b", "a", "b"], ","),
        (["a+b", "b+c"], "+"),
        (["cell, type 1", "cell. type 2"], ""),
        (["a/b", "c"], ""),
        (["n/a", "CD4+", "&"], ""),
        ([], ""),
    ],
)
def test_labels_that_look_like_lists_are_told_from_names(labels: list[str], separator: str) -> None:
    assert likely_separator(labels) == separator


# --- init ----------------------------------------------------------------------------------------


def test_a_list_and_columns_of_0_and_1_say_the_same(images: Path, project: Project, tmp_path: Path) -> None:
    other = fc.init(images / "columns.csv", tmp_path, label_columns=("red", "green", "blue"), progress=SILENT)
    assert (tmp_path / "dataset.csv").read_text() == project.dataset_file.read_text()
    assert other.settings.dataset.label_separator == ";"
    assert other.found.dataset.classes == LABELS
    counts = other.found.dataset.counts()
    assert {name: sum(of.values()) for name, of in counts.items()} == {
        name: sum(name in labels_of(number) for number in range(N_IMAGES)) for name in LABELS
    }
    assert all(min(of.values()) >= 1 for of in counts.values())


def test_other_columns_replace_the_labels_of_before(images: Path, tmp_path: Path) -> None:
    fc.init(images / "columns.csv", tmp_path, label_columns=("red", "green"), progress=SILENT)
    splits = {image.path: image.split for image in _listed(tmp_path)}
    found = fc.init(None, tmp_path, label_columns=("blue", "green"), progress=SILENT).found
    assert found.dataset.classes == ("blue", "green")
    assert any("the labels are of other columns than before" in remark for remark in found.remarks)
    same = [image.split == splits[image.path] for image in found.dataset.images]
    assert sum(same) > 0.9 * len(same)  # but for groups that a label needs elsewhere
    again = fc.init(None, tmp_path, progress=SILENT).found
    assert again.dataset.digest == found.dataset.digest and not any("other columns" in one for one in again.remarks)


def _listed(folder: Path) -> Any:
    return fc.check_dataset(folder, compare=False).dataset.images


def test_labels_stay_when_init_reads_again_and_new_images_move_none(images: Path, tmp_path: Path) -> None:
    lines = (images / "list.csv").read_text().splitlines()
    some = images / "some.csv"
    some.write_text("\n".join(lines[:60]))
    before = fc.init(some, tmp_path, label_separator=";", progress=SILENT).found.dataset
    text = (tmp_path / "dataset.csv").read_text()
    edited = next(image for image in before.images if image.label == "green")
    (tmp_path / "dataset.csv").write_text(text.replace(f"{edited.path},green,", f"{edited.path},red; blue,"))
    some.write_text("\n".join(lines))
    found = fc.init(None, tmp_path, progress=SILENT).found
    now = {image.path: image for image in found.dataset.images}
    assert len(now) == N_IMAGES and now[edited.path].label == "blue;red"
    assert all(now[image.path].split == image.split for image in before.images)
    assert any("kept 1 edited label" in remark for remark in found.remarks)


def test_a_separator_that_is_named_later_splits_what_was_one_class(tmp_path: Path) -> None:
    path = listed(tmp_path, *(f"{n}.png,{('b;a', 'a', 'b')[n % 3]}" for n in range(15)))
    found = fc.init(path, tmp_path / "p", progress=SILENT).found
    assert found.dataset.classes == ("a", "b", "b;a")
    said = "the label 'b;a' is taken as one class: `label_separator=';'` takes such lists as several labels an image"
    assert said in found.remarks
    again = fc.init(path, tmp_path / "p", label_separator=";", progress=SILENT).found
    assert again.dataset.classes == ("a", "b")
    assert not [remark for remark in again.remarks if "one class" in remark or "edited" in remark]


def test_no_label_and_none_of_the_labels_are_two_things(tmp_path: Path) -> None:
    path = listed(tmp_path, *(f"{n}.png,{('a;b', 'a', 'b', ';', '')[n % 5]}" for n in range(25)))
    found = fc.init(path, tmp_path / "p", label_separator=";", progress=SILENT).found
    texts = pd.Series([image.label for image in found.dataset.images])
    assert texts.value_counts().to_dict() == {"a;b": 5, "a": 5, "b": 5, ";": 5, "": 5}
    assert "5 images have none of the labels: they are trained on as such" in found.remarks
    assert any(remark.startswith("5 images have no label: they are cached, and left out") for remark in found.remarks)
    assert all(bool(image.split) == bool(image.label) for image in found.dataset.images)
    columns = listed(
        tmp_path, *(f"{n}.png,{('1,1', '1.0,0', '0,TRUE', '0,0', ',')[n % 5]}" for n in range(25)), first="path,a,b"
    )
    same = fc.init(columns, tmp_path / "q", label_columns=("a", "b"), progress=SILENT).found
    assert (tmp_path / "q" / "dataset.csv").read_text() == (tmp_path / "p" / "dataset.csv").read_text()
    assert same.dataset.digest == found.dataset.digest


def test_a_label_of_few_images_goes_and_its_images_stay(tmp_path: Path) -> None:
    rare = {0: "a;rare", 1: "rare"}
    path = listed(tmp_path, *(f"{n}.png,{rare.get(n, ('a', 'b', 'a;b')[n % 3])}" for n in range(20)))
    found = fc.init(path, tmp_path / "p", label_separator=";", progress=SILENT).found
    now = {image.path: image.label for image in found.dataset.images}
    assert len(now) == 20 and now["0.png"] == "a" and now["1.png"] == ";"
    assert any(remark.startswith("class 'rare' is left out: it has 2 images") for remark in found.remarks)
    without = fc.init(path, tmp_path / "q", label_separator=";", without=("rare",), progress=SILENT).found
    assert {image.path: image.label for image in without.dataset.images} == now
    with pytest.raises(DatasetError, match="no image has the label nothing to leave out"):
        fc.init(path, tmp_path / "r", label_separator=";", without=("nothing",), progress=SILENT)


def test_groups_of_several_labels_are_never_torn(tmp_path: Path) -> None:
    lines = [f"{n}.png,{('a;b', 'b', 'c', 'a;c', ';')[n % 5]},g{n // 3}" for n in range(60)]
    path = listed(tmp_path, *lines, first="image,labels,patient")
    dataset = fc.init(path, tmp_path / "p", label_separator=";", progress=SILENT).found.dataset
    by_group = pd.DataFrame([(image.group, image.split) for image in dataset.images]).groupby(0)[1].nunique()
    assert by_group.max() == 1 and len(by_group) == 20


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["0.png,1,2"], "line 2: b is '2': expected 0 or 1"),
        (["0.png,1,"], "line 2: b is '': expected 0 or 1"),
        (["0.png,yes,0"], "line 2: a is 'yes': expected 0 or 1"),
    ],
)
def test_columns_of_anything_else_are_refused(tmp_path: Path, lines: list[str], error: str) -> None:
    path = listed(tmp_path, *lines, first="path,a,b")
    with pytest.raises(DatasetError, match=error):
        fc.init(path, tmp_path / "p", label_columns=("a", "b"), progress=SILENT)
    assert not (tmp_path / "p").exists()


def test_what_makes_no_sense_with_several_labels_is_refused(images: Path, tmp_path: Path) -> None:
    into = tmp_path / "p"

    def init(source: Path | None = images / "list.csv", **options: Any) -> None:
        fc.init(source, into, progress=SILENT, **options)

    with pytest.raises(ArgumentsError, match="`label_column` and `label_columns` exclude each other"):
        init(label_columns=("red",), label_column="labels")
    with pytest.raises(ArgumentsError, match="`split_counts` are images of each class"):
        init(label_separator=";", split_counts=(9, 3, 3))
    with pytest.raises(ArgumentsError, match="the column 'a;b' has ';' in it"):
        init(label_columns=("a;b", "c"))
    for wrong in ("x", " ", ";;", "'"):
        with pytest.raises(ProjectError, match="label_separator"):
            init(label_separator=wrong)
    with pytest.raises(DatasetError, match="there is no column 'nothing' \\(`label_columns`\\)"):
        init(images / "columns.csv", label_columns=("nothing", "red"))
    with pytest.raises(DatasetError, match="an image of generated cells has one label"):
        init(None, label_separator=";")
    with pytest.raises(DatasetError, match="the images have no label but 'red': at least two classes"):
        init(images / "columns.csv", label_columns=("red",))
    for name in ("a", "b"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "folders" / name / f"{number}.png").write_bytes(png_of(picture(number + ord(name), ())))
    with pytest.raises(DatasetError, match="are for a list of images, and this holds class folders"):
        init(tmp_path / "folders", label_separator=";")
    assert not (into / "dataset.csv").exists()
    with pytest.raises(DatasetError, match="expected a column label") as refused:
        init(images / "columns.csv")
    assert "`label_columns=('A', 'B')`" in str(refused.value)
    init(label_separator=";", views={"train_rows": 100})
    with pytest.raises(DatasetError, match="`train_rows` are spread over classes"):
        fc.extract(fc.open_project(into), "pixels", input_size_px=8, progress=SILENT)


def test_labels_are_corrected_by_name(images: Path, tmp_path: Path) -> None:
    project = fc.init(images / "list.csv", tmp_path, label_separator=";", progress=SILENT)
    path = project.found.dataset.images[0].path
    done = fc.relabel(project, {path: " red;  blue"})
    assert [now for _, now in done.changed] == ["blue;red"]
    assert [now for _, now in fc.relabel(project, {path: ";"}).changed] == [";"]
    with pytest.raises(UsageError, match="'rde' is no class so far: did you mean red"):
        fc.relabel(project, {path: "blue;rde"})
    with pytest.raises(DatasetError, match=r"no label was changed, since then .*the split 'val' has no images of dark"):
        fc.relabel(project, {path: "blue;dark"}, new_class=True)


# --- caches --------------------------------------------------------------------------------------


def test_labels_decide_no_feature(images: Path, project: Project, cache: Any, tmp_path: Path) -> None:
    columns = fc.init(images / "columns.csv", tmp_path, label_columns=("red", "blue"), views={"train": 2})
    other = fc.extract(columns, "pixels", input_size_px=8, progress=SILENT)
    assert other.recipe.digest == cache.recipe.digest
    assert cache.classes == LABELS and other.classes == ("blue", "red")
    assert cache.manifest.dataset_digest != other.manifest.dataset_digest
    y = cache.labels("train")
    rows = cache.rows.iloc[cache.numbers("train")]
    assert y.shape == (len(rows), 3) and set(np.unique(y)) == {0, 1}
    texts = [joined(np.array(LABELS)[row == 1].tolist(), ";") for row in y]
    assert texts == rows["label"].tolist()
    assert cache.to_sklearn("test")[1].tolist() == cache.labels("test").tolist()
    X, found = next(iter(cache.batches("val", 4)))
    assert found.shape == (4, 3) and len(X) == 4
    for one_hot in (False, True):
        parts = [part.numpy() for _, part in cache.to_tf("val", 4, shuffle=False, one_hot=one_hot)]
        assert np.concatenate(parts).tolist() == cache.labels("val").tolist()


def test_a_cache_says_by_itself_what_stands_between_labels(cache: Any, tmp_path: Path) -> None:
    opened = fc.open_cache(fc.convert(cache, format="hdf5", to=tmp_path, progress=SILENT).folder)
    assert opened.label_separator == ";" and opened.classes == LABELS
    assert opened.manifest.dataset_digest == cache.manifest.dataset_digest
    fc.push(cache, str(tmp_path / "lab"), progress=SILENT)
    part = fc.pull(cache.name, remote=str(tmp_path / "lab"), to=tmp_path / "part", classes=["red"], progress=SILENT)
    assert part.rows["label"].map(lambda text: "red" in labels_in(text, ";")).all()
    assert part.label_separator == ";" and set(part.classes) == set(LABELS)
    fc.push(cache, str(tmp_path / "private"), private=True, progress=SILENT)
    private = fc.pull(cache.name, remote=str(tmp_path / "private"), to=tmp_path / "there", progress=SILENT)
    assert private.label_separator == ";" and private.classes == LABELS


def test_labels_of_another_kind_are_taken_over(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    lines = [f"{images / f'{n}.png'},{('a;b', 'a', 'b')[n % 3]}" for n in range(30)]
    path.write_text("\n".join(["image,labels", *lines]))
    project = fc.init(path, tmp_path / "p", views={"train": 1}, progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    assert (cache.label_separator, cache.classes) == ("", ("a", "a;b", "b"))
    one = fc.fit_head(project, **QUICK)
    project = fc.init(path, tmp_path / "p", label_separator=";", progress=SILENT)
    several = fc.fit_head(project, **QUICK)  # without another extract
    assert one.name != several.name
    assert one.config["classes"] == ["a", "a;b", "b"] and several.config["classes"] == ["a", "b"]
    again = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    assert again.name == cache.name and again.label_separator == ";"
    assert fc.fit_head(again, **QUICK).fitted.reused


# --- heads ---------------------------------------------------------------------------------------


def test_a_run_on_several_labels_agrees_with_scikit_learn(run: Any, cache: Any) -> None:
    assert run.config["label_separator"] == ";" and run.config["head"]["output"] == "sigmoid"
    assert "calibration" not in run.metrics and not (run.folder / "confusion.png").exists()
    frame = pd.read_csv(run.folder / "predictions.csv", keep_default_na=False)
    test = frame[frame["split"] == "test"]
    p = test[[f"p_{label}" for label in LABELS]].to_numpy()
    y = encoded(test["label"].tolist(), ";", classes=LABELS)
    named = encoded(test["predicted"].tolist(), ";", classes=LABELS)
    assert np.array_equal(named, p > 0.5)
    found = run.metrics["test"]
    assert found["accuracy"] == pytest.approx(scikit.accuracy_score(y, named))
    assert found["hamming_loss"] == pytest.approx(scikit.hamming_loss(y, named))
    assert found["accuracy"] > found["majority"]
    last = run.history.iloc[-1]
    assert last["val_accuracy"] == pytest.approx(run.metrics["val"]["accuracy"])  # one name for one thing
    assert last["val_loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-4)


def test_both_solvers_are_a_plain_loop_and_one_graph(cache: Any) -> None:
    """Binary cross-entropy on the plain features, in NumPy: weights of each label, and an L2 penalty."""
    config = heads.from_preset(
        "default", output="sigmoid", hidden=(), epochs=3, batch=8, lr=1e-6, scale="none", dtype="float64", l2=0.01
    )
    X, y = (part.astype(np.float64) for part in cache.arrays("train"))
    X, n = X.reshape(len(X), -1), len(X)
    from featcache.heads import initializers

    ((W, b),) = ((W.copy(), b.copy()) for W, b in initializers.initial_weights(config, X.shape[1], n_classes=3))
    weights = np.stack([np.where(column == 1, n / (2 * column.sum()), n / (2 * (n - column.sum()))) for column in y.T])
    np.testing.assert_allclose(row_weights(y.astype(int), config), weights.T)
    for epoch in range(config.epochs):
        order = initializers.order(config.seed, epoch, n)
        for start in range(0, n, config.batch):
            rows = order[start : start + config.batch]
            delta = (1 / (1 + np.exp(-(X[rows] @ W + b))) - y[rows]) / 3 * weights.T[rows] / len(rows)
            gradient = X[rows].T @ delta + 2 * config.l2_of(0) * W
            W, b = W - config.lr * gradient, b - config.lr * delta.sum(axis=0)
    material = SharedInputs(cache, SILENT)
    for solver in ("gram", "primal"):
        trained = train_head(cache, config, solver=solver, material=material)  # type: ignore[arg-type]
        assert trained.head.has_several_labels
        np.testing.assert_allclose(trained.head.layers[0][0], W, rtol=2e-4, atol=1e-7)
        np.testing.assert_allclose(trained.head.layers[0][1], b, rtol=1e-4, atol=1e-9)


def test_logistic_regression_is_one_versus_rest(cache: Any) -> None:
    run = fc.fit_head(cache, head="logreg", progress=SILENT)
    X, y, _ = cache.to_sklearn("train")
    mean = X.mean(axis=0, dtype=np.float64)
    scale = np.sqrt(((X - mean) ** 2).sum(axis=1).mean())
    model = OneVsRestClassifier(LogisticRegression(C=10.0, tol=1e-8, max_iter=5000, class_weight="balanced"))
    model.fit((X - mean) / scale, y)
    everything = cache.to_sklearn()[0]
    expected = model.predict_proba((everything - mean) / scale)
    np.testing.assert_allclose(heads.load_head(run.folder).probabilities(cache), expected, atol=5e-3)
    mlp = fc.fit_head(cache, head="mlp", progress=SILENT)
    assert mlp.metrics["train"]["hamming_loss"] < 0.2
    for kind in ("linear-svm", "rbf-svm", "knn"):
        with pytest.raises(HeadError, match=f"`head='{kind}'` gives a row one class"):
            fc.fit_head(cache, head=kind, progress=SILENT)


def test_a_softmax_is_refused_and_a_training_goes_on(cache: Any, run: Any) -> None:
    with pytest.raises(HeadError, match="`output='softmax'` gives an image one class"):
        fc.fit_head(cache, output="softmax", **QUICK)
    longer = fc.fit_head(cache, more_epochs=2, hidden=(16,), progress=SILENT)
    assert longer.metrics["epochs"] == 14 and longer.fitted.resumed_from == run.name
    assert fc.fit_head(cache, **QUICK).fitted.reused


def test_a_sweep_and_its_winner(cache: Any) -> None:
    run = fc.sweep(cache, {"lr": [0.0001, 0.003]}, **QUICK)
    assert run.config["head"]["output"] == "sigmoid" and run.metrics["test"]["hamming_loss"] < 0.4
    assert len(run.fitted.table) == 2
    several = fc.fit_head(cache, seeds=2, **QUICK)
    assert set(heads.spread(several)["measure"]) == {"accuracy", "hamming_loss", "loss"}


@pytest.mark.parametrize("head", ["dense", "logreg"])
def test_folds_judge_every_image_by_heads_without_its_group(cache: Any, head: str) -> None:
    tune: Any = {"lr": [1e-6, 0.003]} if head == "dense" else ()
    run = fc.cross_validate(cache, folds=3, repeats=2, inner_folds=2, head=head, tune=tune, **QUICK)
    frame = pd.read_csv(run.folder / "predictions.csv", keep_default_na=False)
    assert len(frame) == 2 * N_IMAGES and frame.groupby(["repeat", "image_id"]).size().max() == 1
    found = []
    for _, part in frame.groupby("repeat"):
        y = encoded(part["label"].tolist(), ";", classes=LABELS)
        named = part[[f"p_{label}" for label in LABELS]].to_numpy() > 0.5
        found.append((scikit.accuracy_score(y, named), scikit.hamming_loss(y, named)))
    means = [run.metrics["measures"][name]["mean"] for name in ("accuracy", "hamming_loss")]
    assert means == pytest.approx(np.mean(found, axis=0))
    assert means[0] > run.metrics["majority"] and len(run.metrics["per_class"]["red"]["confusion"]) == 2
    if head == "dense":  # inner folds saw which rate learns
        assert set(pd.read_csv(run.folder / "folds.csv")["lr"]) == {0.003}
        with pytest.raises(HeadError, match="`output='softmax'` gives an image one class"):
            fc.cross_validate(cache, output="softmax", folds=3, **QUICK)


def test_a_fold_without_a_label_is_refused(tmp_path: Path) -> None:
    lines = [f"{n}.png,{('a;b', 'a', 'b')[n % 3]}{';rare' * (n < 3)}" for n in range(30)]
    project = fc.init(listed(tmp_path, *lines), tmp_path / "p", label_separator=";", progress=SILENT)
    cache = fc.extract(project, "pixels", input_size_px=8, progress=SILENT)
    with pytest.raises(HeadError, match="the class 'rare' has images of 3 groups, which cannot fill 5 folds"):
        fc.cross_validate(cache, folds=5, **QUICK)


def test_what_takes_one_label_an_image_says_so(project: Project, cache: Any, run: Any, tmp_path: Path) -> None:
    one_label = "takes one label an image, and an image of this data set may have several"
    for dry_run in (False, True):
        with pytest.raises(UsageError, match=f"training of whole networks {one_label}"):
            fc.fit_scratch(project, "mobilenetv2", dry_run=dry_run, progress=SILENT)
    from featcache.study.averaging import average

    with pytest.raises(UsageError, match=f"an ensemble {one_label}"):
        average(tmp_path, [run, run], name="both")
    recipe = tmp_path / "study.toml"
    recipe.write_text(f'[dataset]\nsource = "{cache.folder}"\nlabel_separator = ";"\n[networks.pixels]\n[heads.h]\n')
    with pytest.raises(FeatcacheError, match=f"a study {one_label}"):
        study.run_study(recipe, into=tmp_path / "study", progress=SILENT)


# --- measures ------------------------------------------------------------------------------------


def test_measures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    y = (random.random((120, 4)) < [0.5, 0.2, 0.7, 0.1]).astype(np.int64)
    p = np.clip(0.6 * random.random(y.shape) + 0.4 * y * random.random(y.shape), 0.001, 0.999)
    found = evaluate(JudgedLabels(p, y, groups=random.integers(0, 30, 120)), ("a", "b", "c", "d"))
    named = (p > 0.5).astype(int)
    expected = {
        "accuracy": scikit.accuracy_score(y, named),
        "hamming_loss": scikit.hamming_loss(y, named),
        "micro_f1": scikit.f1_score(y, named, average="micro"),
        "macro_f1": scikit.f1_score(y, named, average="macro"),
        "roc_auc": scikit.roc_auc_score(y, p, average="macro"),
        "average_precision": scikit.average_precision_score(y, p, average="macro"),
        "loss": np.mean([scikit.log_loss(y[:, label], p[:, label]) for label in range(4)]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert found["majority"] == pytest.approx(pd.Series(list(map(tuple, y))).value_counts().max() / 120)
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] <= high, name
    counts = scikit.multilabel_confusion_matrix(y, named)
    for number, label in enumerate("abcd"):
        of = found["per_class"][label]
        assert of["confusion"] == counts[number].tolist()
        assert of["rows"] == y[:, number].sum()
        precision, recall, f1, _ = scikit.precision_recall_fscore_support(y[:, number], named[:, number])
        assert [of["precision"], of["recall"], of["f1"]] == pytest.approx([precision[1], recall[1], f1[1]])
        assert of["specificity"] == pytest.approx(recall[0])
        assert of["roc_auc"] == pytest.approx(scikit.roc_auc_score(y[:, number], p[:, number]))
        assert all(low <= of[name] <= high for name, (low, high) in of["intervals"].items())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rows_that_surely_have_no_label_are_judged(cache: Any, run: Any, tmp_path: Path) -> None:
    """Their probabilities are 0 in predictions.csv, where those of one class have a sum of 1."""
    copy = fc.fit_head(cache, to=tmp_path, **QUICK)
    frame = pd.read_csv(copy.folder / "predictions.csv", keep_default_na=False)
    frame.loc[frame["label"] == ";", [f"p_{label}" for label in LABELS]] = 0.0
    frame.to_csv(copy.folder / "predictions.csv", index=False)
    assert "the rest of the run is shown" not in fc.report(tmp_path, progress=SILENT).markdown.read_text()
    assert np.isfinite(copy.compare(run)["difference"]).all()


def test_a_weight_of_a_group_is_as_many_of_its_rows() -> None:
    random = np.random.default_rng(4)
    y, p = (random.random((40, 3)) < 0.4).astype(np.int64), random.random((40, 3))
    groups, weights = np.repeat(np.arange(8), 5), np.array([0, 1, 2, 3, 1, 0, 2, 1])
    weighted = JudgedLabels(p, y, groups=groups).values(weights[None].astype(float))
    many = np.repeat(np.arange(40), weights[groups])
    plain = JudgedLabels(p[many], y[many], groups=np.arange(len(many))).values()
    for name in plain.overall:
        tolerance = 1e-2 if name in ("roc_auc", "average_precision") else 1e-9
        assert weighted.overall[name] == pytest.approx(plain.overall[name], rel=tolerance), name


def test_labels_that_nobody_has_are_told_as_unknown() -> None:
    y = np.array([[1, 0], [1, 0], [0, 0]])
    found = evaluate(JudgedLabels(np.full((3, 2), 0.25), y, groups=np.arange(3)), ("a", "never"))
    assert found["per_class"]["never"]["recall"] is None and found["macro_f1"] is None
    assert found["per_class"]["a"]["precision"] is None and found["per_class"]["a"]["recall"] == 0
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_two_runs_are_compared_on_the_same_groups(cache: Any, run: Any) -> None:
    other = fc.fit_head(cache, seed=1, **QUICK)
    found = run.compare(other).set_index("measure")
    assert list(found.index) == list(JudgedLabels.overall)
    difference = run.metrics["test"]["hamming_loss"] - other.metrics["test"]["hamming_loss"]
    assert found["difference"]["hamming_loss"] == pytest.approx(difference)
    same = JudgedLabels(np.full((4, 2), 0.7), np.eye(4, 2, dtype=int), groups=np.arange(4))
    assert compare(same, same)["accuracy"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


# --- predictions ---------------------------------------------------------------------------------


def test_predictions_name_all_labels_above_one_half(project: Project, run: Any, images: Path) -> None:
    found = fc.predict(run, [images / f"{number}.png" for number in range(12)], progress=SILENT)
    frame = pd.read_csv(run.folder / "predictions.csv", keep_default_na=False)
    plain = frame[frame["view"] == 0].set_index("path")
    for path, labels, p in zip(found.paths, found.label_sets, found.probabilities, strict=True):
        line = plain.loc[Path(path).name]
        assert joined(labels, ";") == line["predicted"]
        np.testing.assert_allclose(p, line[[f"p_{label}" for label in LABELS]].astype(float), atol=1e-5)
    assert any(len(labels) > 1 for labels in found.label_sets) and found.confidence is None
    assert list(found.to_frame().columns) == ["path", "labels", "p_blue", "p_green", "p_red", "unlike"]
    assert found.to_frame()["labels"].tolist() == [" | ".join(labels) for labels in found.label_sets]
    row = found.to_dict()["rows"][0]
    assert set(row) == {"path", "labels", "probabilities", "unlike"} and row["labels"] == list(found.label_sets[0])
    black = fc.predict(run, np.zeros((1, 24, 24, 3), np.uint8), progress=SILENT)
    assert black.unlike is not None and black.unlike.all() and black.calibrated is None
    with pytest.raises(UsageError, match="`confidence` finds classes of which one is right"):
        fc.predict(run, images / "0.png", confidence=0.9, progress=SILENT)


def test_a_run_is_one_keras_model_of_sigmoids(run: Any, cache: Any, images: Path, tmp_path: Path) -> None:
    from featcache.deployment.graph import graph_of

    number = int(cache.numbers("test")[0])
    pixels = np.asarray(cache.features[number : number + 1], np.uint8)
    expected = heads.load_head(run.folder).probabilities(cache, np.array([number]))
    np.testing.assert_allclose(graph_of(run)(pixels), expected, atol=1e-5)
    assert expected.sum() != pytest.approx(1)
    keras = fc.export(run, format="head", out=tmp_path / "head.keras", progress=SILENT)
    assert keras.path.is_file()


def test_a_run_of_old_has_no_word_of_several_labels(tmp_path: Path) -> None:
    made = fc.extract(fc.init(None, tmp_path, per_class=6, progress=SILENT), "pixels", input_size_px=8, progress=SILENT)
    run = fc.fit_head(made, epochs=1, hidden=(4,), progress=SILENT)
    assert "label_separator" not in run.config and made.label_separator == ""
    assert "label_separator" not in made.manifest.provenance
    assert not fc.predict(run, made, progress=SILENT).several_labels


# --- the report ----------------------------------------------------------------------------------


def test_the_report_shows_labels_and_not_a_matrix_of_one_of_many(project: Project, run: Any) -> None:
    written = fc.report(project, progress=SILENT)
    text = written.markdown.read_text()
    for words in (
        "which of 3 labels (blue, green and red) does an image have? It may have several, or none",
        "all labels right, and no other, for",
        "Hamming loss",
        "has it, missed",
        "exact match",
        "Images with any number of 3 labels",
        "none of the labels",
    ):
        assert words in text, words
    assert "Confusion matrix" not in text and "majority-class baseline:" not in text
    assert "too much" in text or "missed" in text
    measures = pd.read_csv(written.csv)
    of_run = measures[(measures["run"] == run.name) & (measures["split"] == "test") & measures["class"].isna()]
    values = of_run.set_index("measure")["value"].to_dict()
    for name in ("accuracy", "hamming_loss", "micro_f1", "macro_f1", "loss"):
        assert values[name] == pytest.approx(run.metrics["test"][name])
    (listed_run,) = [one for one in fc.runs(project) if one.name == run.name]
    assert listed_run.measure("accuracy") == run.metrics["test"]["accuracy"] and not listed_run.problem
