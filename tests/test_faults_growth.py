"""What a data set's changes cost: exactly the rows that are new, and not a byte of features otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from faults import FORMATS, MODEL, SIZE_PX, Shops, lines, make_project
from workshop import Workshop

from featcache.store._verify import verify
from featcache.store.cache import open_cache
from featcache.synthetic.drawing import CLASSES, render_cell, write_image

VIEWS = {"train": 3, "val": 1, "test": 1}


@dataclass
class Project:
    """A project, the warm process that commands run in, and its format."""

    shop: Workshop
    folder: Path
    format: str

    def command(self, *arguments: str) -> tuple[dict[str, Any], list[str]]:
        """What a command printed as JSON, and the rows that the backbone computed."""
        log = self.folder / "computed.log"
        log.unlink(missing_ok=True)
        done = self.shop.run("command", self.folder, *arguments, "--json", log=log)
        assert done.code == 0, done
        return json.loads(done.out), lines(log)

    def extract(self, *more: str) -> tuple[dict[str, Any], list[str]]:
        value, computed = self.command(*MODEL, "--format", self.format, *more)
        assert value["computed"] == len(computed)
        assert value["computed"] + value["reused"] == value["rows"]
        return value, computed

    @property
    def listed(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "dataset.csv", dtype=str, keep_default_na=False)

    @listed.setter
    def listed(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self.folder / "dataset.csv", index=False)

    def rows(self, paths: set[str] | None = None) -> int:
        """Rows of some images, or of all, as [views] gives them."""
        frame = self.listed
        some = frame if paths is None else frame[frame["path"].isin(paths)]
        return int(some["split"].map(VIEWS).sum())


@pytest.fixture(scope="module", params=FORMATS)
def begun(shops: Shops, quick: Path, request: pytest.FixtureRequest) -> Project:
    """300 images and the cache of their rows."""
    folder = quick / f"growth-{request.param}"
    project = Project(shops.both[0], make_project(shops.both[0], folder, "--views", "3", per_class=75), request.param)
    done, computed = project.extract()
    assert len(project.listed) == 300
    assert done["rows"] == done["computed"] == len(set(computed)) == project.rows()
    assert verify(Path(done["path"])).sound
    return project


@pytest.fixture
def project(begun: Project, tmp_path: Path) -> Iterator[Project]:
    copied = begun.folder.with_name(f"{begun.folder.name}-{tmp_path.name}")
    shutil.copytree(begun.folder, copied)
    yield Project(begun.shop, copied, begun.format)
    shutil.rmtree(copied)


def only(project: Project) -> Path:
    (cache,) = project.folder.glob("cache/tiny-*")
    return cache


def untouched(cache: Path) -> dict[str, tuple[int, int, int]]:
    """All that tells whether a file of features, rows or recipe was written again."""
    files = (path for path in cache.rglob("*") if path.is_file())
    return {
        path.relative_to(cache).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        for path in files
        if path.name not in ("manifest.json", "dataset.parquet")
    }


def same_values(one: Path, other: Path) -> int:
    """Rows that two caches share, which must be the same to the bit."""
    caches = [open_cache(path) for path in (one, other)]
    frames = [cache.views[["row_id", "row"]].drop_duplicates("row_id") for cache in caches]
    shared = frames[0].merge(frames[1], on="row_id")
    features = [
        cache.features[shared[column].to_numpy()] for cache, column in zip(caches, ("row_x", "row_y"), strict=True)
    ]
    assert features[0].tobytes() == features[1].tobytes()
    return len(shared)


def test_ten_more_images_cost_their_own_rows(project: Project) -> None:
    first = only(project)
    before = untouched(first)
    for number in range(10):
        label = CLASSES[number % 4]
        write_image(
            project.folder / "images" / label / f"new-{number}.png",
            render_cell(label, 1, index=number, size_px=SIZE_PX),
        )
    old = set(project.listed["path"])
    project.command("init", "images")
    new = set(project.listed["path"]) - old
    assert len(new) == 10
    done, computed = project.extract()
    assert done["computed"] == len(set(computed)) == project.rows(new)
    assert done["copied"] == project.rows(old)
    assert done["copied_from"] == [first.name]
    assert verify(Path(done["path"])).sound
    assert same_values(first, Path(done["path"])) == project.rows(old)
    assert untouched(first) == before
    shutil.rmtree(first)
    grown = Path(done["path"])
    aside = grown.rename(project.folder / grown.name)
    again, _ = project.extract()
    assert again["computed"] == again["rows"]
    assert same_values(aside, grown) == again["rows"]


@pytest.mark.parametrize("split", VIEWS)
def test_an_image_whose_bytes_changed_costs_its_own_rows(project: Project, split: str) -> None:
    first = only(project)
    frame = project.listed
    path = frame[frame["split"] == split]["path"].iloc[1]
    file = project.folder / "images" / path
    pixels = cv2.imread(str(file))
    pixels[0, 0] ^= 1
    cv2.imwrite(str(file), pixels)
    done, computed = project.extract()
    assert done["computed"] == len(computed) == VIEWS[split]
    assert done["copied"] == done["rows"] - VIEWS[split]
    assert same_values(first, Path(done["path"])) == done["copied"]
    assert verify(Path(done["path"])).sound
    assert project.extract()[0]["computed"] == 0


def test_names_and_labels_cost_nothing_and_touch_no_feature(project: Project) -> None:
    cache = only(project)
    before, manifest = untouched(cache), (cache / "manifest.json").read_bytes()
    (project.folder / "images" / CLASSES[0]).rename(project.folder / "images" / "others")
    project.command("init", "images")
    assert project.listed["path"].str.startswith("others/").sum() == 75
    assert project.extract()[0]["computed"] == 0
    assert set(open_cache(cache).dataset["path"]) == set(project.listed["path"])
    frame = project.listed
    frame["label"] = np.roll(frame["label"].to_numpy(), 1)
    frame["group"] = [f"patient {number // 2}" for number in range(len(frame))]
    frame = frame.sort_values(["split", "path"]).assign(group=lambda lines: lines["split"] + lines["group"])
    project.listed = frame
    assert project.extract()[0]["computed"] == 0
    found = open_cache(cache).dataset.set_index("image_id")
    assert dict(found["label"]) == dict(zip(frame["image_id"], frame["label"], strict=True))
    assert untouched(cache) == before
    assert (cache / "manifest.json").read_bytes() != manifest
    assert only(project) == cache
    assert verify(cache).sound


def test_other_splits_cost_the_views_that_are_new(project: Project) -> None:
    first = only(project)
    frame = project.listed
    moved = frame.index[frame["split"] == "val"][:7]
    other = frame.index[frame["split"] == "train"][:4]
    frame.loc[moved, "split"], frame.loc[other, "split"] = "train", "val"
    project.listed = frame
    done, computed = project.extract()
    assert done["computed"] == len(computed) == 7 * 2
    assert done["rows"] == project.rows()
    assert same_values(first, Path(done["path"])) == done["rows"] - 7 * 2


def test_more_views_cost_those_that_are_new_and_fewer_nothing(project: Project) -> None:
    first = only(project)
    before = untouched(first)
    train = int((project.listed["split"] == "train").sum())
    more, computed = project.extract("--views", "5")
    assert more["computed"] == len(computed) == 2 * train
    assert same_values(first, Path(more["path"])) == project.rows()
    fewer, _ = project.extract("--views", "2")
    assert (fewer["computed"], fewer["copied"]) == (0, project.rows() - train)
    assert project.extract()[0]["computed"] == 0
    assert untouched(first) == before
    for cache in project.folder.glob("cache/tiny-*"):
        assert verify(cache).sound


def test_the_same_rows_in_the_other_format_are_copied(project: Project) -> None:
    first = only(project)
    (other,) = set(FORMATS) - {project.format}
    done, _ = project.extract("--format", other)
    assert (done["computed"], done["copied"], done["format"]) == (0, project.rows(), other)
    assert same_values(first, Path(done["path"])) == done["rows"]
