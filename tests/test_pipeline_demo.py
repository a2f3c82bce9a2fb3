"""demo: the whole job in one command, and again over what an earlier one left."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run, contents

from featcache import demo_project as demo_module
from featcache.datasets.options import InitOptions
from featcache.extraction._extract import ExtractOptions, extract as real_extract


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with few cells and small inputs; the rest is as it is."""

    def extract(project, networks, progress):  # type: ignore[no-untyped-def]
        return real_extract(
            project,
            [replace(network, input_size_px=32) for network in networks],
            options=ExtractOptions(views={"train": 2}),
            progress=progress,
        )

    monkeypatch.setattr(demo_module, "extract", extract)
    monkeypatch.setattr(demo_module, "InitOptions", functools.partial(InitOptions, per_class=5))
    monkeypatch.setattr(demo_module, "_SPLIT", {"split_counts": (3, 1, 1)})


@pytest.mark.usefixtures("small")
def test_demo_twice_and_after_interruptions(run: Run, tmp_path: Path) -> None:
    ran = run("demo", "--epochs", "3", "--json", cwd=tmp_path)
    value = ran.value
    assert set(value) == {"cache", "run", "report", "test"}
    assert value["cache"].startswith("efficientnet-lite0-")
    assert {"loss", "accuracy", "per_class"} <= set(value["test"])
    assert Path(value["report"]) == tmp_path / "demo" / "results" / "report.html"
    assert value["run"] in Path(value["report"]).read_text()

    project = tmp_path / "demo"
    before = contents(project)
    again = run("demo", "--epochs", "3", cwd=tmp_path)
    assert again.code == 0
    assert "0 rows computed, 32 cached" in again.out
    assert "recall on test, %" in again.out
    assert again.out.rstrip().endswith(f"report: {value['report']}")
    changed = {name for name, data in contents(project).items() if data != before.get(name)}
    assert all(name.startswith("results/report") for name in changed)

    (project / "dataset.csv").unlink()  # killed between the two files of init
    assert run("demo", "--epochs", "3", "--json", cwd=tmp_path).value["cache"] == value["cache"]
    (project / "dataset.csv").unlink()  # killed before the first of them
    (project / "featcache.toml").unlink()
    assert run("demo", "--epochs", "3", "--json", cwd=tmp_path).value["run"] == value["run"]
    assert contents(project).keys() == before.keys()


def test_demo_takes_no_other_project_for_its_own(run: Run, project: Path) -> None:
    (project / "leukocytes").rename(project / "mine")
    (project / "dataset.csv").unlink()
    (project / "featcache.toml").unlink()
    assert run("init", "mine", cwd=project).code == 0
    before = contents(project)
    assert "holds a project of other images. Name a new folder" in run("demo", ".", cwd=project).error
    assert contents(project) == before
    shutil.rmtree(project / "cache")
    (project / "file").touch()
    assert run("demo", "file", cwd=project).code == 2


def test_the_demos_split_is_that_of_init(tmp_path: Path, run: Run) -> None:
    """50/15/15 a class, whichever of the two made the project."""
    assert sum(demo_module._SPLIT["split_counts"]) == InitOptions().per_class
    value = run("init", "--per-class", str(InitOptions().per_class // 5), "--json", cwd=tmp_path).value
    counts = value["classes"]["monocyte"]
    assert json.dumps(counts) == json.dumps({"train": 10, "val": 3, "test": 3})
    assert [5 * n for n in counts.values()] == list(demo_module._SPLIT["split_counts"])
