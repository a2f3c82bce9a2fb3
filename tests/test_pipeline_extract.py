"""extract: the right values under the right names; what is there is not computed again, what is stale is."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import EXTRACT, Made, Run, contents

import featcache
from featcache.synthetic.drawing import CLASSES


def lines(project: Path) -> pd.DataFrame:
    return pd.read_csv(project / "dataset.csv", dtype=str)


def edit(project: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(project / "dataset.csv", index=False)


def extract(run: Run, project: Path, *more: str) -> dict[str, Any]:
    value = run(*EXTRACT, *more, "--json", cwd=project).value
    assert isinstance(value, dict)
    return value


def plain_pixels(path: Path, size_px: int) -> np.ndarray:
    """View 0 by a path of its own: OpenCV's decoder, averaged over areas."""
    return cv2.resize(
        cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), (size_px, size_px), interpolation=cv2.INTER_AREA
    )


def plain_rows(cache: featcache.Cache, project: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features of view 0 and the pixels they must be of."""
    rows = cache.rows[cache.rows["view"] == 0]
    size_px = cache.recipe.space.input_size_px
    pixels = np.stack([plain_pixels(project / "leukocytes" / path, size_px) for path in rows["path"]])
    return cache.features[rows["row"].to_numpy()], pixels


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-4 of the largest feature, everywhere."""
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


# Values


def test_features_are_what_keras_predicts_with_weights_from_a_file(project: Path, run: Run) -> None:
    """MobileNetV2 built and fed by Keras alone; its weights reach featcache through a .weights.h5 file."""
    import keras

    keras.utils.set_random_seed(7)
    model = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(64, 64, 3))
    rng = np.random.default_rng(7)
    for weight in model.weights:  # with Keras' own statistics of 0 and 1, features vanish and mix-ups hide
        if len(weight.shape) == 1:
            positive = weight.name in ("gamma", "moving_variance")
            weight.assign(rng.uniform(0.8, 2, weight.shape) if positive else rng.normal(0, 0.1, weight.shape))
    model.save_weights(project / "own.weights.h5")
    args = ("extract", "--model", "mobilenetv2", "--weights", "own.weights.h5", "--input-size", "64", "--views", "1")
    done = run(*args, "--json", cwd=project).value
    assert (done["computed"], done["weights"]) == (24, "own.weights.h5")
    found, pixels = plain_rows(featcache.open_cache(done["path"]), project)
    expected = model.predict(keras.applications.mobilenet_v2.preprocess_input(pixels.astype(np.float32)), verbose=0)
    close(found, expected)


def test_features_of_real_imagenet_weights(project: Path, run: Run) -> None:
    from featcache.backbones.registry import get
    from featcache.backbones.weights import load

    args = ("extract", "--model", "efficientnet-lite0", "--input-size", "64", "--views", "1")
    done = run(*args, "--json", cwd=project).value
    assert (done["computed"], done["weights"]) == (24, "imagenet")
    found, pixels = plain_rows(featcache.open_cache(done["path"]), project)
    model = load(get("efficientnet-lite0"), "imagenet", seed=0, input_size_px=64)
    close(found, model.predict((pixels.astype(np.float32) - 127) / 128, verbose=0))


def test_views_differ_and_only_view_0_is_plain(made: Made) -> None:
    cache = featcache.open_cache(made.cache)
    rows = cache.rows
    features = cache.features[:].reshape(len(rows), -1)
    assert len(np.unique(features, axis=0)) == len(rows)
    assert Counter(rows["view"]) == {0: 24, 1: 16, 2: 16, 3: 16}
    assert set(rows[rows["view"] > 0]["split"]) == {"train"}


# What is there is not computed again


def test_new_labels_are_taken_over_without_computing(project: Path, run: Run, made: Made) -> None:
    frame = lines(project)
    train = frame.index[frame["split"] == "train"]
    a, b = train[0], train[-1]
    frame.loc[[a, b], "label"] = frame.loc[[b, a], "label"].to_numpy()
    edit(project, frame)
    before = contents(project / "cache")
    fitted = run("fit-head", "--epochs", "1", cwd=project)
    assert "2 images of mobilenetv2-" in fitted.err
    assert contents(project / "cache").items() >= before.items()
    (folder,) = (project / "results").glob("head-*")
    assert json.loads((folder / "config.json").read_text())["relabelled_images"] == 2
    predicted = pd.read_csv(folder / "predictions.csv").set_index("path")["label"]
    assert set(predicted[frame.loc[a, "path"]]) == {frame.loc[a, "label"]}
    done = run(*EXTRACT, cwd=project)
    assert "nothing to compute; its labels and splits are updated" in done.out
    cache = featcache.open_cache(project / "cache" / made.cache.name)
    labels = cache.dataset.set_index("path")["label"]
    assert labels[frame.loc[a, "path"]] == frame.loc[a, "label"]
    after = contents(project / "cache")
    assert {name for name in after if after[name] != before.get(name)} == {
        f"{made.cache.name}/manifest.json",
        f"{made.cache.name}/dataset.parquet",
    } | {name for name in after if name not in before}
    assert extract(run, project)["computed"] == 0
    assert "this run exists already" in run("fit-head", "--epochs", "1", cwd=project).out


def test_an_image_in_another_split_needs_an_extraction_where_that_has_other_views(project: Path, run: Run) -> None:
    frame = lines(project)
    first = frame.index[(frame["split"] == "train") & (frame["label"] == frame.loc[0, "label"])][0]
    frame.loc[first, "split"] = "val"
    edit(project, frame)
    message = run("fit-head", "--epochs", "1", cwd=project).error
    assert "into another split, which has other numbers of views" in message
    assert f"({frame.loc[first, 'path']} is in val now)" in message
    once = extract(run, project, "--views", "1")["cache"]
    frame.loc[first, "split"] = "train"
    edit(project, frame)
    assert "1 images of " in run("fit-head", "--cache", once, "--epochs", "1", cwd=project).err


def test_an_image_that_is_no_longer_listed_is_said_to_be_used(project: Path, run: Run) -> None:
    edit(project, lines(project).drop(index=0))
    said = run("fit-head", "--epochs", "1", cwd=project).err
    assert "1 of the 24 images of mobilenetv2-" in said
    assert "are not in dataset.csv" in said


def test_new_splits_are_taken_over_without_computing(project: Path, run: Run, made: Made) -> None:
    first = extract(run, project, "--views", "1")
    assert first["cache"] != made.cache.name
    assert (first["rows"], first["computed"], first["reused"], first["copied"]) == (24, 0, 24, 24)
    assert first["copied_from"] == [made.cache.name]
    frame = lines(project)
    split = frame["split"].replace({"val": "test", "test": "val"})
    edit(project, frame.assign(split=split))
    again = extract(run, project, "--views", "1")
    assert (again["cache"], again["computed"], again["copied"]) == (first["cache"], 0, 0)
    copy = featcache.open_cache(again["path"]).dataset.set_index("path")["split"]
    assert dict(copy) == dict(zip(frame["path"], split, strict=True))


def test_a_new_group_needs_no_extraction(project: Path, run: Run) -> None:
    frame = lines(project)
    frame.loc[0, "group"] = "patient 7"
    edit(project, frame)
    done = run("fit-head", "--epochs", "1", cwd=project)
    assert "1 images of " in done.err
    assert extract(run, project)["computed"] == 0
    assert run("fit-head", "--epochs", "1", cwd=project).code == 0
    edit(project, frame.assign(group=""))  # a list written by hand may say nothing of groups
    assert run("fit-head", "--epochs", "1", cwd=project).code == 0


def test_a_renamed_file_is_not_computed_again(project: Path, run: Run) -> None:
    frame = lines(project)
    old, new = frame.loc[3, "path"], "elsewhere/new name.png"
    (project / "leukocytes" / "elsewhere").mkdir()
    (project / "leukocytes" / old).rename(project / "leukocytes" / new)
    edit(project, frame.assign(path=frame["path"].replace({old: new})))
    done = extract(run, project)
    assert (done["computed"], done["copied"], done["reused"], done["skipped"]) == (0, 0, 72, 0)
    paths = set(featcache.open_cache(done["path"]).rows["path"])
    assert new in paths
    assert old not in paths


def test_an_edited_image_alone_is_computed_again(project: Path, run: Run, made: Made, tmp_path: Path) -> None:
    frame = lines(project)
    path = project / "leukocytes" / frame.loc[5, "path"]
    pixels = cv2.imread(path)
    pixels[:5] = 0
    cv2.imwrite(path, pixels)
    done = extract(run, project)
    assert done["cache"] != made.cache.name
    views = 4 if frame.loc[5, "split"] == "train" else 1
    assert (done["rows"], done["computed"], done["copied"], done["reused"]) == (72, views, 72 - views, 72 - views)
    assert done["copied_from"] == [made.cache.name]
    now = lines(project)
    assert list(now.index[now["image_id"] != frame["image_id"]]) == [5]
    found, plain = plain_rows(featcache.open_cache(done["path"]), project)
    assert len(found) == len(plain) == 24
    old, new = (featcache.open_cache(project / "cache" / name) for name in (made.cache.name, done["cache"]))
    both = new.views.merge(old.views, on=["image_id", "view"])
    assert len(both) == 72 - views
    np.testing.assert_array_equal(new.features[both["row_x"].to_numpy()], old.features[both["row_y"].to_numpy()])
    alone = extract(run, shutil.copytree(project, tmp_path / "alone", ignore=shutil.ignore_patterns("mobilenetv2-*")))
    assert (alone["cache"], alone["computed"], alone["copied"]) == (done["cache"], 72, 0)
    expected = featcache.open_cache(alone["path"]).features[:]
    np.testing.assert_allclose(new.features[:], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    assert extract(run, project)["computed"] == 0
    fitted = run("fit-head", "--epochs", "1", "--json", cwd=project)
    assert fitted.value["cache"] == done["cache"]
    assert f"using {done['cache']}, the newest of 2 caches" in fitted.err
    assert made.cache.name in fitted.err


def test_the_same_images_elsewhere_have_the_same_cache_name(
    project: Path, run: Run, made: Made, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number, line in lines(project).iterrows():
        place = other / "pictures" / str(line["label"]) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "leukocytes" / line["path"], place)
    assert run("init", "pictures", "--split-counts", "4/1/1", cwd=other).code == 0
    frame = lines(project).set_index("image_id")["split"]
    edit(other, lines(other).assign(split=lines(other)["image_id"].map(frame)))
    shutil.copytree(project / "cache", other / "cache", dirs_exist_ok=True)
    done = extract(run, other)
    assert (done["cache"], done["computed"]) == (made.cache.name, 0)


# Views and rows


def test_views_on_the_command_line(project: Path, run: Run) -> None:
    settings = (project / "featcache.toml").read_bytes()
    value = extract(run, project, "--views", "2", "--val-views", "3", "--test-views", "1")
    rows = featcache.open_cache(value["path"]).rows
    assert Counter(rows["split"]) == {"train": 32, "val": 12, "test": 4}
    assert (project / "featcache.toml").read_bytes() == settings


@pytest.mark.parametrize("wanted", [(33, 5, 9), (4, 4, 4)])
def test_rows_in_total_are_exact(project: Path, run: Run, wanted: tuple[int, int, int]) -> None:
    options = [
        text
        for split, rows in zip(("train", "val", "test"), wanted, strict=True)
        for text in (f"--{split}-rows", str(rows))
    ]
    value = extract(run, project, *options)
    rows = featcache.open_cache(value["path"]).rows
    assert tuple(Counter(rows["split"])[split] for split in ("train", "val", "test")) == wanted
    classes = Counter(rows[rows["split"] == "train"]["label"])
    assert max(classes.values()) - min(classes.values()) <= 1
    assert extract(run, project, *options)["computed"] == 0


def test_views_given_beat_a_total_in_the_settings(project: Path, run: Run, made: Made) -> None:
    settings = project / "featcache.toml"
    settings.write_text(settings.read_text().replace("[views]", "[views]\ntrain_rows = 10\n#"))
    done = extract(run, project, "--views", "4")
    assert (done["cache"], done["computed"]) == (made.cache.name, 0)
    refused = run(*EXTRACT, "--views", "4", "--train-rows", "9", cwd=project)
    assert refused.code == 2
    assert "--views and --train-rows exclude each other" in refused.error


# Images that cannot be used


def test_an_image_broken_after_init_is_left_out_and_counted(project: Path, run: Run, made: Made) -> None:
    frame = lines(project)
    path = frame.loc[2, "path"]
    file = project / "leukocytes" / path
    file.write_bytes(file.read_bytes()[:300])
    before = contents(project)
    refused = run(*EXTRACT, "--strict", cwd=project)
    assert refused.code == 1
    assert "1 images cannot be used (--strict): " + path in refused.error
    assert contents(project) == before
    ran = run(*EXTRACT, "--json", cwd=project)
    done = ran.value
    assert done["skipped"] == 1
    assert [item["path"] for item in done["left_out"]] == [path]
    assert path in ran.err
    assert (done["rows"], done["cache"] != made.cache.name) == (68, True)
    assert (done["computed"], done["copied"]) == (0, 68)
    assert (project / "dataset.csv").read_bytes() == before["dataset.csv"]
    assert run("dataset", "check", "--json", cwd=project).value["left_out"] == done["left_out"]


def test_images_that_leave_a_split_without_a_class_are_named(project: Path, run: Run) -> None:
    frame = lines(project)
    (path,) = frame["path"][(frame["split"] == "test") & (frame["label"] == "monocyte")]
    (project / "leukocytes" / path).unlink()
    refused = run("dataset", "check", cwd=project)
    assert refused.code == 1
    noted = run(*EXTRACT, cwd=project)
    assert noted.code == 0
    assert "no head can be trained on these images yet" in noted.err
    for ran in (refused, noted):
        assert "the split 'test' has no images of monocyte" in ran.err
        assert path in ran.err + ran.out


# Damage


def damaged(project: Path, run: Run, made: Made, name: str, data: bytes | None) -> dict[str, Any]:
    """Damage a file of the cache, extract, and compare with the cache as it was."""
    cache = project / "cache" / made.cache.name
    before = contents(cache)
    if data is None:
        (cache / name).unlink()
    else:
        (cache / name).write_bytes(data)
    assert made.cache.name in run("fit-head", "--epochs", "1", cwd=project).error
    done = run(*EXTRACT, cwd=project)
    assert done.code == 0, done.err
    assert "was damaged" in done.out
    after = contents(cache)
    assert set(after) == set(before)
    assert {part for part in after if after[part] != before[part]} <= {"manifest.json", "ledger.jsonl"}
    assert extract(run, project)["computed"] == 0
    return json.loads(after["manifest.json"])["provenance"]


@pytest.mark.parametrize(
    ("name", "data", "computed"),
    [
        ("manifest.json", b"{", 0),
        ("manifest.json", b"", 0),
        ("recipe.json", None, 0),
        ("recipe.json", b"{}", 0),
        ("rows.parquet", b"PAR1", 72),
        ("dataset.parquet", None, 0),
        ("ledger.jsonl", None, 72),
        ("features.zarr/c/0/0/0/0", b"too short", 72),
        ("features.zarr/c/0/0/0/0", None, 72),
        ("features.zarr/zarr.json", None, 0),
    ],
)
def test_extract_mends_a_damaged_cache(
    project: Path, run: Run, made: Made, name: str, data: bytes | None, computed: int
) -> None:
    assert damaged(project, run, made, name, data)["rows_computed"] == computed


def test_extract_leaves_the_cache_of_a_newer_featcache_alone(project: Path, run: Run, made: Made) -> None:
    manifest = project / "cache" / made.cache.name / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    before = contents(project)
    assert "format 9 is newer than this featcache" in run(*EXTRACT, cwd=project).error
    assert contents(project) == before


def test_the_memory_of_backbones_may_be_lost_or_broken(project: Path, run: Run) -> None:
    memory = project / "cache" / ".backbones.json"
    for text in ("", "[1]", json.dumps({key: [3] for key in json.loads(memory.read_text())})):
        memory.write_text(text)
        assert extract(run, project)["computed"] == 0


def test_generated_classes_are_those_of_the_project(made: Made) -> None:
    assert featcache.open_cache(made.cache).classes == tuple(sorted(CLASSES))


# Precision


def test_features_in_bfloat16_can_be_verified_and_are_kept_as_float16(project: Path, run: Run) -> None:
    exact, low = extract(run, project), extract(run, project, "--precision", "bfloat16", "--dtype", "float32")
    assert exact["cache"] != low["cache"]
    cache = featcache.open_cache(low["path"])
    assert cache.recipe.space.precision == "bfloat16"
    assert cache.manifest.tolerance.norm == 0.35
    found, expected = cache.features[:].astype(float), featcache.open_cache(exact["path"]).features[:].astype(float)
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1
    checked = run("verify", low["cache"], "--recompute", "4", "--json", cwd=project).value
    assert checked["recomputed"]["largest_deviation"] < 0.01  # by the same engine
    assert (exact["dtype"], low["dtype"]) == ("float32", "float32")
    assert extract(run, project, "--precision", "bfloat16")["dtype"] == "float16"


def test_auto_precision_is_recorded_as_what_it_is(project: Path, run: Run) -> None:
    done = extract(run, project, "--precision", "auto", "--engine", "keras")
    assert done["cache"] == extract(run, project)["cache"]  # float32: there is no accelerator
