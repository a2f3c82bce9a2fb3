"""featcache.toml: what is written is what is read, and a wrong line is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from featcache.core.errors import ProjectError
from featcache.core.project import (
    PROJECT_FILE,
    AugmentationSection,
    DatasetSection,
    FoldersSection,
    Project,
    Settings,
    ViewsSection,
    changed,
    find_project,
    read_settings,
    write_project,
)
from featcache.core.recipe import FILL_MODES, Augmentation


def is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
whole_settings = st.builds(
    Settings,
    dataset=st.builds(
        DatasetSection,
        source=texts,
        images=texts,
        split=st.tuples(*[st.floats(1e-6, 1e6)] * 3),
        split_counts=st.none() | st.tuples(*[st.integers(1, 10**6)] * 3),
        split_seed=st.integers(0, 2**40),
        group_pattern=texts.filter(is_pattern) | st.sampled_from([r"(\d+)-\d+\.png$", r"[\"'\\]+", "(?i)ä|ß"]),
        without=st.lists(texts, max_size=3).map(tuple),
        voc_object=texts,
        margin=st.floats(0, 5),
    ),
    views=st.builds(ViewsSection, train=st.integers(1, 99), test_rows=st.none() | st.integers(1, 10**9)),
    augmentation=st.builds(
        AugmentationSection,
        seed=st.integers(0, 2**63 - 1),
        rotation_deg=st.floats(0, 180),
        horizontal_flip=st.booleans(),
        fill_modes=st.lists(st.sampled_from(FILL_MODES), min_size=1, max_size=4).map(tuple),
    ),
    folders=st.just(FoldersSection(cache='c"ä\\', results="r\t'")),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(whole_settings)
def test_what_is_written_is_read(tmp_path: Path, whole: Settings) -> None:
    write_project(tmp_path, whole)
    assert read_settings(tmp_path / PROJECT_FILE) == whole


def test_defaults_are_the_recipe_s_own() -> None:
    assert AugmentationSection().record() == Augmentation()


def test_every_section_is_explained(tmp_path: Path) -> None:
    write_project(tmp_path, Settings())
    lines = (tmp_path / PROJECT_FILE).read_text("utf-8").splitlines()
    sections = [line for line in lines if line.startswith("[")]
    assert [line.split("]")[0] + "]" for line in sections] == [
        "[dataset]",
        "[views]",
        "[augmentation]",
        "[storage]",
        "[folders]",
    ]
    assert all(" # " in line for line in sections)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[views]\ntrain = 0\n", ["views.train", "found 0"]),
        ("[views]\ntrain = 4.5\n", ["views.train", "found 4.5"]),
        ("[views]\ntrian = 4\n", ["views.trian"]),
        ("[view]\ntrain = 4\n", ["view:"]),
        ("[views]\ntrain_rows = -3\nval = 0\n", ["views.train_rows", "views.val"]),
        ("[augmentation]\nrotation_deg = 181\n", ["augmentation.rotation_deg", "found 181"]),
        ("[augmentation]\nshift = nan\n", ["augmentation.shift"]),
        ("[augmentation]\nfill_modes = ['mirror']\n", ["augmentation.fill_modes.0", "found 'mirror'"]),
        ("[augmentation]\nfill_modes = []\n", ["augmentation.fill_modes"]),
        ("[augmentation]\nseed = -1\n", ["augmentation.seed"]),
        ("[augmentation]\nfill_value = 256\n", ["augmentation.fill_value"]),
        ("[dataset]\nsplit = [70, 30]\n", ["dataset.split"]),
        ("[dataset]\nsplit = [70, 30, 0]\n", ["dataset.split.2", "found 0"]),
        ("[dataset]\nsplit = [inf, 1, 1]\n", ["dataset.split.0"]),
        ("[dataset]\nsplit = [1, nan, 1]\n", ["dataset.split.1"]),
        ("[dataset]\nsplit_counts = [100, 10.5, 10]\n", ["dataset.split_counts.1"]),
        ("[dataset]\ngroup_pattern = '(['\n", ["dataset.group_pattern", "not a regular expression"]),
        ("[dataset]\nsource = 3\n", ["dataset.source", "found 3"]),
        ("dataset = 3\n", ["dataset", "found 3"]),
        ("[folders]\ncache = 'x'\nresults = 'x'\n", ["folders.cache and folders.results must be two folders"]),
        ("[views\n", ["not readable as TOML", "line 1"]),
        ("a = 1\na = 2\n", ["not readable as TOML"]),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, named: list[str]) -> None:
    (tmp_path / PROJECT_FILE).write_text(text, "utf-8")
    with pytest.raises(ProjectError) as caught:
        read_settings(tmp_path / PROJECT_FILE)
    assert str(tmp_path / PROJECT_FILE) in str(caught.value)
    assert all(part in str(caught.value) for part in named), caught.value


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / PROJECT_FILE
    path.write_bytes("\ufeff[dataset]\r\nvoc_object = 'ä'\r\n".encode())
    assert read_settings(path).dataset.voc_object == "ä"
    path.write_bytes("[dataset]\nvoc_object = 'ä'\n".encode("latin-1"))
    with pytest.raises(ProjectError, match="not readable as TOML"):
        read_settings(path)
    path.unlink()
    with pytest.raises(ProjectError, match="cannot be read"):
        read_settings(path)


def test_find_project_looks_upward(tmp_path: Path) -> None:
    inner = tmp_path / "project" / "images" / "eosinophil"
    inner.mkdir(parents=True)
    with pytest.raises(ProjectError, match=r"no featcache\.toml in .*featcache\.init"):
        find_project(inner)
    write_project(tmp_path, Settings(views=ViewsSection(train=7)))
    write_project(tmp_path / "project", Settings(views=ViewsSection(train=9)))
    assert find_project(inner).settings.views.train == 9
    assert find_project(inner).folder == (tmp_path / "project").resolve()
    assert find_project(tmp_path).settings.views.train == 7


def test_paths_follow_from_the_folder(tmp_path: Path) -> None:
    settings = Settings(dataset=DatasetSection(images="../pictures"), folders=FoldersSection(cache="c", results="r"))
    project = Project(tmp_path / "p", settings)
    assert project.dataset_file == tmp_path / "p" / "dataset.csv"
    assert project.images_folder == tmp_path / "p" / "../pictures"
    assert project.cache_folder == tmp_path / "p" / "c"
    assert project.results_folder == tmp_path / "p" / "r"


def test_changed_checks_what_it_changes() -> None:
    section = ViewsSection()
    assert changed(section, {"train": 9, "val_rows": 440}) == ViewsSection(train=9, val_rows=440)
    assert section.train == 4
    wrong: dict[str, Any]
    for wrong in ({"train": 0}, {"trian": 1}, {"val_rows": "many"}):
        with pytest.raises(ProjectError, match=next(iter(wrong))):
            changed(section, wrong)


def test_views_and_totals_of_a_split() -> None:
    section = ViewsSection(train=3, val_rows=5)
    assert [section.views_per_image(split) for split in ("train", "val", "test")] == [3, 1, 1]
    assert [section.total_rows(split) for split in ("train", "val", "test")] == [None, 5, None]
