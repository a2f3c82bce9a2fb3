"""explain and diff: what they say is what extract then does, and nothing is written for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import contents
from test_pipeline_verify import ROWS, SIZE_PX, Small, begun, parted, prepared
from test_store_contract import dataset, fake_features, make_cache

from featcache.core.errors import UsageError
from featcache.extraction._explain import Explanation, diff, explain
from featcache.store.cache import open_cache
from featcache.synthetic.drawing import write_cells


@pytest.fixture
def small(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    prepared(monkeypatch)
    folder = quick / f"small-{tmp_path.parent.name}-{tmp_path.name}"
    shutil.copytree(begun(quick), folder)
    yield Small(folder)
    shutil.rmtree(folder)


def explained(small: Small, **asked: Any) -> list[Explanation]:
    network, options = parted(asked)
    return explain(small.project, [network], options=options)


def told(small: Small, **options: Any) -> Explanation:
    """What explain says; extract with the same options must then do that."""
    before = contents(small.folder)
    (found,) = explained(small, **options)
    assert contents(small.folder) == before
    small.computed()
    done = small.extract(**options)
    assert done.cache == found.name
    assert (done.rows, done.computed, done.copied) == (found.rows, found.compute, found.copy)
    assert small.computed() == found.compute
    assert tuple(done.sources) == found.sources
    assert open_cache(done.path).manifest.digest == found.digest
    assert explained(small, **options)[0].state == "hit"
    return found


def counts(found: Explanation) -> tuple[str, int, int, int]:
    return found.state, found.rows, found.compute, found.copy


def test_nothing_there_then_all(small: Small) -> None:
    found = told(small)
    assert counts(found) == ("miss", ROWS, ROWS, 0)
    assert (found.images, found.neighbours) == (24, ())
    again = told(small)
    assert counts(again) == ("hit", ROWS, 0, 0)
    assert found.fields == again.fields
    assert {"space.backbone", "space.weights_digest", "space.dtype", "augmentation.seed"} < set(found.fields)


OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "more views": ({"views": {"train": 5}}, (88, 32, 56)),
    "fewer views": ({"views": {"train": 1}}, (24, 0, 24)),
    "views of another split": ({"views": {"val": 2}}, (60, 4, 56)),
    "rows in total": ({"views": {"train_rows": 10}}, (18, 0, 18)),
    "another seed": ({"augmentation": {"seed": 9}}, (56, 32, 24)),
    "another range": ({"augmentation": {"shift": 0.3}}, (56, 32, 24)),
    "another format": ({"storage": {"format": "hdf5"}}, (56, 0, 56)),
    "another dtype": ({"storage": {"dtype": "float16"}}, (56, 56, 0)),
    "another pooling": ({"pooling": "avg"}, (56, 56, 0)),
    "other weights": ({"weights": "random"}, (56, 56, 0)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_other_options(small: Small, name: str) -> None:
    first = small.cache()
    options, expected = OPTIONS[name]
    found = told(small, **options)
    assert counts(found) == ("miss", *expected)
    (neighbour,) = found.neighbours
    assert (neighbour.name, neighbour.finished) == (first.name, True)
    fields = {field.field: (field.ours, field.theirs) for field in neighbour.fields}
    if name == "another seed":
        assert fields == {"augmentation.seed": (9, 0)}
    if name == "another dtype":
        assert fields == {"space.dtype": ("float16", "float32")}
    if name in ("more views", "fewer views", "another format"):
        assert fields == {}
    lacking = {"more views": (32, 0), "fewer views": (0, 32)}.get(name)
    if lacking:
        assert (neighbour.missing, neighbour.extra) == lacking
    back = told(small)
    assert counts(back) == ("hit", ROWS, 0, 0)


def added(small: Small) -> None:
    write_cells(small.folder / "more", 1, seed=5, size_px=SIZE_PX)
    frame = small.lines()
    for number, path in enumerate(sorted((small.folder / "more").rglob("*.png"))):
        name = f"{path.parent.name}/new-{number}.png"
        shutil.move(path, small.folder / "images" / name)
        line = {"path": name, "label": path.parent.name, "split": "train", "group": f"new {number}"}
        frame = pd.concat([frame, pd.DataFrame([line])], ignore_index=True)
    small.edit(frame)


def relabelled(small: Small) -> None:
    frame = small.lines()
    train = frame.index[frame["split"] == "train"]
    frame.loc[train[[0, -1]], "label"] = frame.loc[train[[-1, 0]], "label"].to_numpy()
    small.edit(frame)


def renamed(small: Small) -> None:
    frame = small.lines()
    (small.folder / "images" / frame.loc[0, "path"]).rename(small.folder / "images" / "new name.png")
    frame.loc[0, "path"] = "new name.png"
    small.edit(frame)


def removed(small: Small) -> None:
    frame = small.lines()
    train = frame.index[frame["split"] == "train"]
    small.edit(frame.drop(index=train[:2]))


def resorted(small: Small) -> None:
    small.edit(small.lines().iloc[::-1])


IMAGES: dict[str, tuple[Callable[[Small], None], tuple[str, int, int, int]]] = {
    "added": (added, ("miss", ROWS + 12, 12, ROWS)),
    "relabelled": (relabelled, ("hit", ROWS, 0, 0)),
    "renamed": (renamed, ("hit", ROWS, 0, 0)),
    "removed": (removed, ("miss", ROWS - 6, 0, ROWS - 6)),
    "sorted otherwise": (resorted, ("hit", ROWS, 0, 0)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_other_images(small: Small, name: str) -> None:
    small.cache()
    change, expected = IMAGES[name]
    change(small)
    if name == "added":  # the list gets the ids of the new images when it is first looked at
        small.edit(lines_with_ids(small))
    assert counts(told(small)) == expected


def lines_with_ids(small: Small) -> pd.DataFrame:
    from featcache.datasets.current import current_dataset

    ids = {image.path: image.image_id for image in current_dataset(small.project)[0].images}
    frame = small.lines()
    return frame.assign(image_id=frame["path"].map(ids))


def edit_image(small: Small) -> None:
    path = small.folder / "images" / small.lines().loc[0, "path"]
    path.write_bytes(path.read_bytes() + b"\0")


def test_an_edited_image(small: Small) -> None:
    small.cache()
    edit_image(small)
    explained(small)  # see the next test
    assert counts(told(small)) == ("miss", ROWS, 3, ROWS - 3)


def test_an_edited_image_is_explained_without_writing(small: Small) -> None:
    small.cache()
    edit_image(small)
    before = contents(small.folder)
    explained(small)
    assert contents(small.folder) == before


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_an_unfinished_cache(small: Small, format_: str) -> None:
    folder = small.cache(format_).folder
    (folder / "manifest.json").unlink()
    ledger = folder / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:2]))
    assert counts(told(small, storage={"format": format_})) == ("unfinished", ROWS, ROWS - 32, 0)


def test_an_unfinished_cache_whose_rows_others_hold_too(small: Small) -> None:
    """What is there counts as there, and not as to be copied; whichever of them comes first by name."""
    first = small.cache()
    other = small.cache("hdf5")
    for folder in (first.folder, other.folder):
        whole = contents(folder)
        (folder / "manifest.json").unlink()
        ledger = folder / "ledger.jsonl"
        ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[1:3]))
        format_ = "hdf5" if folder == other.folder else "zarr"
        found = told(small, storage={"format": format_})
        assert counts(found) == ("unfinished", ROWS, 0, ROWS - 32)
        assert {name for name in whole if contents(folder)[name] != whole[name]} <= {"manifest.json"}


def test_neighbours_are_those_of_the_backbone_nearest_first(small: Small) -> None:
    near = small.extract(views={"train": 2}).cache
    far = small.extract(pooling="avg", augmentation={"seed": 3}).cache
    make_cache(small.folder / "cache", dataset(12), fake_features(12, (5,)), seed=8)  # of other images, also "tiny"
    (small.folder / "cache" / far / "manifest.json").unlink()
    (found,) = explained(small)
    assert [neighbour.name for neighbour in found.neighbours][:1] == [near]
    assert {n.name: n.finished for n in found.neighbours}[far] is False
    assert len(found.neighbours) == 3
    (small.folder / "cache" / near / "rows.parquet").write_bytes(b"x")
    assert near not in [neighbour.name for neighbour in explained(small)[0].neighbours]


# diff


def test_a_cache_and_itself_in_another_format(small: Small) -> None:
    a, b = small.cache(), small.cache("hdf5")
    found = diff(a, b, values=True)
    assert [(f.field, f.ours, f.theirs) for f in found.storage] == [("format", "zarr", "hdf5")]
    assert (found.fields, found.common, found.only_a, found.only_b) == ((), ROWS, 0, 0)
    assert (found.differing, found.largest) == (0, 0.0)
    assert set(found.relabelled.values()) == {0}
    assert diff(a, b).differing is None


def test_values_are_compared_row_by_row_wherever_they_stand(small: Small) -> None:
    a = small.cache()
    small.edit(small.lines().iloc[::-1])
    b = small.cache("hdf5", views={"train": 4})
    found = diff(a, b, values=True)
    assert (found.common, found.only_a, found.only_b) == (ROWS, 0, 16)
    assert (found.differing, found.largest) == (0, 0.0)
    c = small.cache("zarr", "float16")
    found = diff(a, c, values=True)
    expected = np.abs(c.features[:].astype(float) - 0)
    assert [f.field for f in found.fields] == ["space.dtype"]
    assert found.common == ROWS
    assert found.differing is not None
    assert 0 < found.differing <= ROWS
    assert found.largest is not None
    assert 0 < found.largest <= np.spacing(np.float16(expected.max()))


def test_what_differs_is_counted(tmp_path: Path) -> None:
    images = dataset(30)
    X = fake_features(30, (2, 3))
    a = make_cache(tmp_path / "a", images, X)
    Y = X.copy()
    Y[[3, 4]] += 1
    Y[5] = np.nan
    other = replace(images, images=tuple(replace(i, label="x", group=f"{i.group}!") for i in images.images))
    from featcache.extraction.rows import rows_of
    from featcache.store.writer import CacheWriter

    rows = rows_of(other.images, [1] * 30, recipe=a.recipe)
    with CacheWriter(tmp_path / "b", a.recipe, rows=rows, row_shape=(2, 3), allow_nonfinite=True) as writer:
        writer.write(0, Y)
        writer.finish(other, {})
    found = diff(a, open_cache(writer.folder), values=True)
    assert (found.differing, found.largest) == (3, np.inf)
    assert found.relabelled == {"label": 30, "split": 0, "group": 30, "path": 0}


def test_rows_of_other_shapes_have_no_values_to_compare(small: Small) -> None:
    a, b = small.cache(), small.cache(pooling="avg")
    assert diff(a, b).common == ROWS
    with pytest.raises(UsageError, match=r"rows of \(4, 4, 3\) and of \(3,\) cannot be compared"):
        diff(a, b, values=True)
