"""Images in several places: a list whose files lie in separate folders, each with a name that stays when it moves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from conftest import Run, contents

import featcache as fc
from featcache.core.errors import DatasetError, FeatcacheError, ProjectError
from featcache.core.progress import SILENT
from featcache.datasets.candidates import Source
from featcache.datasets.lists import _named
from featcache.synthetic.drawing import write_cells

PIXELS: dict[str, Any] = {"input_size_px": 16, "progress": SILENT}


@pytest.fixture
def hospitals(tmp_path: Path) -> dict[str, Path]:
    """Two folders of images with equal names, other bytes; far from each other."""
    folders = {"north": tmp_path / "a" / "north", "south": tmp_path / "b" / "deep" / "south"}
    for number, folder in enumerate(folders.values()):
        write_cells(folder, 4, seed=number, size_px=32)
    return folders


@pytest.fixture
def apart(hospitals: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """The same, with nothing but the whole disk in common."""
    others = [top for top in map(Path, ("/var/tmp", "/dev/shm", "/tmp")) if top.parts[1] != hospitals["north"].parts[1]]  # noqa: S108
    top = next((top for top in others if os.access(top, os.W_OK)), None)
    if top is None:
        pytest.skip("no other folder at the top of the disk can be written")
    with TemporaryDirectory(dir=top) as folder:
        south = Path(shutil.move(hospitals["south"], folder))
        yield {"north": hospitals["north"], "south": south}


def listed(folders: dict[str, Path], into: Path, *, named: bool = False) -> Path:
    """A list of all images: those of the north for training and validation, those of the south for the test."""
    rows = []
    for name, folder in folders.items():
        for file in sorted(folder.rglob("*.png")):
            split = "test" if name == "south" else "val" if file.stem.endswith("1") else "train"
            path = f"{name}/{file.relative_to(folder).as_posix()}" if named else str(file)
            rows.append((path, file.parent.name, split))
    into.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(into / "list.csv", index=False)
    return into / "list.csv"


def init(folders: dict[str, Path], into: Path, *, named: bool = False, **options: Any) -> fc.Project:
    roots = {name: str(folder) for name, folder in folders.items()}
    return fc.init(listed(folders, into, named=named), into, roots=roots, progress=SILENT, **options)


def paths_of(project: fc.Project) -> list[str]:
    return list(pd.read_csv(project.dataset_file)["path"])


@pytest.mark.parametrize("named", [False, True])
def test_two_hospitals_are_one_data_set(hospitals: dict[str, Path], tmp_path: Path, named: bool) -> None:
    project = init(hospitals, tmp_path / "project", named=named)
    frame = pd.read_csv(project.dataset_file)
    assert len(frame) == 32
    assert set(frame["path"][frame["split"] == "test"].str.partition("/")[0]) == {"south"}
    assert set(frame["path"][frame["split"] != "test"].str.partition("/")[0]) == {"north"}
    assert (frame["path"].str.partition("/")[2].value_counts() == 2).all(), "equal names in both"
    assert f'north = "{hospitals["north"]}"' in (project.folder / "featcache.toml").read_text()
    cache = fc.extract(project, "pixels", **PIXELS)
    run = fc.fit_head(cache, epochs=2, progress=SILENT)
    found = run.predict(project, progress=SILENT)
    assert sorted(found.paths) == sorted(frame["path"])
    assert not found.left_out
    assert fc.verify(cache, recompute=4, progress=SILENT).recomputed.deviating == ()
    fc.datasets.preview(project)


def test_names_and_digests_do_not_tell_where_the_folders_lie(hospitals: dict[str, Path], tmp_path: Path) -> None:
    project = init(hospitals, tmp_path / "project")
    cache, digest = fc.extract(project, "pixels", **PIXELS), project.found.dataset.digest
    (tmp_path / "elsewhere").mkdir()
    theirs = {name: shutil.copytree(folder, tmp_path / "elsewhere" / name[::-1]) for name, folder in hospitals.items()}
    other = init(theirs, tmp_path / "other")
    assert other.found.dataset.digest == digest
    assert paths_of(other) == paths_of(project)
    assert fc.extract(other, "pixels", **PIXELS).name == cache.name


def test_a_folder_that_moved_is_one_edit_away(hospitals: dict[str, Path], tmp_path: Path) -> None:
    project = init(hospitals, tmp_path / "project", named=True)
    cache, before = fc.extract(project, "pixels", **PIXELS), paths_of(project)
    moved = hospitals["south"].rename(tmp_path / "new-disk")
    for call in (
        lambda: fc.extract(project, "pixels", **PIXELS),
        lambda: fc.init(into=project.folder, progress=SILENT),
        lambda: fc.datasets.preview(project),
        lambda: fc.fit_head(cache, epochs=2, progress=SILENT).predict(project, progress=SILENT),
    ):
        with pytest.raises(ProjectError, match=r"the root 'south' of the images, .*: there is no such folder") as error:
            call()
        assert "[dataset.roots] in featcache.toml" in str(error.value.hint)
    file = project.folder / "featcache.toml"
    file.write_text(file.read_text().replace(str(hospitals["south"]), "../new-disk"))
    project = fc.open_project(project.folder)
    again = fc.extract(project, "pixels", **PIXELS)
    assert (again.name, again.extracted.computed) == (cache.name, 0)
    assert paths_of(fc.init(into=project.folder, progress=SILENT)) == before
    assert '"../new-disk"' in file.read_text()
    assert moved.is_dir()


def test_a_head_is_trained_without_the_images(hospitals: dict[str, Path], tmp_path: Path) -> None:
    cache = fc.extract(init(hospitals, tmp_path / "project"), "pixels", **PIXELS)
    shutil.rmtree(hospitals["south"])
    assert fc.fit_head(cache, epochs=2, progress=SILENT).metrics["epochs"] == 2


def test_folders_that_share_only_the_disk_get_names_of_their_own(apart: dict[str, Path], tmp_path: Path) -> None:
    project = fc.init(listed(apart, tmp_path / "project"), tmp_path / "project", progress=SILENT)
    assert {path.partition("/")[0] for path in paths_of(project)} == {"north", "south"}
    assert project.settings.dataset.roots == {name: str(folder) for name, folder in apart.items()}
    assert any("the images lie in several places: north in " in remark for remark in project.found.remarks)
    assert len(paths_of(fc.init(into=project.folder, progress=SILENT))) == 32
    assert fc.extract(project, "pixels", **PIXELS).rows["image_id"].nunique() == 32


def test_names_of_roots_differ_and_can_begin_a_path() -> None:
    folders = [Path("/a/images"), Path("/b/images"), Path("/c/Größe 1, neu"), Path("/"), Path("/d/.x")]
    assert list(_named(folders, taken={"x"})) == ["images", "images-2", "Größe-1-neu", "images-3", "x-2"]


def test_a_name_in_several_roots_is_left_out_as_unclear(hospitals: dict[str, Path], tmp_path: Path) -> None:
    only = hospitals["south"] / "monocyte" / "only.png"
    write_cells(tmp_path / "more", 1, seed=9, size_px=32)
    shutil.copy(tmp_path / "more" / "monocyte" / "monocyte-0001.png", only)
    file = listed(hospitals, tmp_path / "project")
    file.write_text(file.read_text() + "monocyte/only.png,monocyte,test\nmonocyte/monocyte-0001.png,monocyte,test\n")
    roots = {name: str(folder) for name, folder in hospitals.items()}
    project = fc.init(file, tmp_path / "project", roots=roots, progress=SILENT)
    assert "south/monocyte/only.png" in paths_of(project)
    reasons = {item.path: item.reason for item in project.found.left_out}
    assert reasons["monocyte/monocyte-0001.png"].startswith("it may be any of several files: ")


def test_images_beside_the_list_stay_where_they_are(hospitals: dict[str, Path], tmp_path: Path) -> None:
    here = {"north": shutil.copytree(hospitals["north"], tmp_path / "project" / "mine"), "south": hospitals["south"]}
    file = listed(here, tmp_path / "project")
    project = fc.init(file, tmp_path / "project", roots={"far": str(here["south"])}, progress=SILENT)
    assert {path.partition("/")[0] for path in paths_of(project)} == {"mine", "far"}
    with pytest.raises(DatasetError, match=r"the folder mine has the name of a root, .*Give the root another name"):
        fc.init(file, tmp_path / "second", roots={"mine": str(here["south"])}, progress=SILENT)


def test_edits_stay_where_an_older_project_gets_roots(hospitals: dict[str, Path], tmp_path: Path) -> None:
    file = listed(hospitals, tmp_path / "project")
    project = fc.init(file, tmp_path / "project", progress=SILENT)
    before = contents(project.folder)
    assert project.settings.dataset.roots == {}
    assert "roots" not in (project.folder / "featcache.toml").read_text()
    assert set(paths_of(project)) == {
        file.relative_to(tmp_path).as_posix() for folder in hospitals.values() for file in folder.rglob("*.png")
    }
    fc.init(into=project.folder, progress=SILENT)
    assert contents(project.folder) == before, "as before roots were known"
    frame = pd.read_csv(project.dataset_file)
    frame.loc[3, ["label", "split"]] = ["monocyte", "val"]
    frame.to_csv(project.dataset_file, index=False)
    image_id = frame.loc[3, "image_id"]
    roots = {name: str(folder) for name, folder in hospitals.items()}
    again = pd.read_csv(fc.init(into=project.folder, roots=roots, progress=SILENT).dataset_file).set_index("image_id")
    assert tuple(again.loc[image_id, ["label", "split"]]) == ("monocyte", "val")
    assert set(again["path"].str.partition("/")[0]) == {"north", "south"}
    assert again["split"].to_dict() == frame.set_index("image_id")["split"].to_dict()


def test_roots_that_cannot_be_used_are_refused(hospitals: dict[str, Path], tmp_path: Path) -> None:
    file = listed(hospitals, tmp_path / "project")
    cases: list[tuple[Any, type[FeatcacheError], str]] = [
        ({"north": str(tmp_path / "nowhere")}, ProjectError, "the root 'north' of the images, .*nowhere"),
        ({"a/b": str(tmp_path)}, ProjectError, "roots"),
        ({"..": str(tmp_path)}, ProjectError, "roots"),
        ({"north": 3}, ProjectError, "roots"),
        ("north", ProjectError, "roots"),
    ]
    for roots, kind, message in cases:
        with pytest.raises(kind, match=message):
            fc.init(file, tmp_path / "project", roots=roots, progress=SILENT)
    with pytest.raises(DatasetError, match="`roots` are for a list of images, and this holds class folders"):
        fc.init(hospitals["north"], tmp_path / "project", roots={"x": str(tmp_path)}, progress=SILENT)
    assert not (tmp_path / "project" / "featcache.toml").exists()


def test_the_command(hospitals: dict[str, Path], tmp_path: Path, run: Run) -> None:
    file = listed(hospitals, tmp_path / "project", named=True)
    roots = [
        word for name, folder in hospitals.items() for word in ("--root", f"{name}={folder.relative_to(tmp_path)}")
    ]
    ended = run("init", str(file), "--into", "project", *roots, cwd=tmp_path)
    assert ended.code == 0, ended.err
    project = fc.open_project(tmp_path / "project")
    assert project.settings.dataset.roots == {"north": "../a/north", "south": "../b/deep/south"}
    assert len(paths_of(project)) == 32
    ended = run("init", str(file), "--root", "north", cwd=tmp_path)
    assert (ended.code, "'north': expected NAME=FOLDER" in ended.err) == (2, True)


def test_a_source_finds_its_files(tmp_path: Path) -> None:
    source = Source("csv", tmp_path, "", roots={"north": Path("/mnt/north")})
    assert source.images / "north/a/1.png" == Path("/mnt/north/a/1.png")
    assert source.images / "north" == tmp_path / "north"
    assert source.images / "northern/1.png" == tmp_path / "northern/1.png"
