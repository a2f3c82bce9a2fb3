"""What version 0.1 wrote is read, verified, extended, pulled and reported; its caches and runs keep their names.

Files and the commands that made them: tests/data/v0.1/README.md.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Run, contents

from featcache.heads import Head
from featcache.store import open_cache

DATA = Path(__file__).parent / "data" / "v0.1"
PIXELS, MOBILENET, LITE0 = "pixels-d5d86ab8", "mobilenetv2-0a2e015e", "efficientnet-lite0-8ebd5fd2-hdf5"
UNFINISHED = "pixels-476930df"
GRAM, ADAM, LOGREG = "head-mobilenetv2-6ab20b80", "head-pixels-ae7232e1", "logreg-mobilenetv2-6899c3d2"
INTERRUPTED = "head-pixels-08a5f41a"

EXTRACT = {
    PIXELS: "--model pixels --input-size 16",
    MOBILENET: "--model mobilenetv2 --weights random --input-size 32 --pooling avg",
    LITE0: "--model efficientnet-lite0 --input-size 32 --pooling avg --format hdf5 --dtype float16",
}
FIT = {
    GRAM: f"--cache {MOBILENET} --hidden 4 --epochs 4 --momentum 0.9 --scale norm --l2 0 --lr 0.001 --solver gram",
    ADAM: f"--cache {PIXELS} --hidden 4 --epochs 3 --optimizer adam --scale norm --l2 0 --lr 0.001",
    LOGREG: f"--cache {MOBILENET} --head logreg",
}
FEATURES = {
    PIXELS: "7c2c8af15e371f80f45f77acd4093b06240681ea497fe0a8c4a5096ec0d6b1f7",
    MOBILENET: "2296fe97d0c7dabc1d6d07e923f869f9c9d00b5266baf24af68f4cdbcae90343",
    LITE0: "d60c9e2d3828dbc383d96e03f4dc1815e497e35c5a56d4a8f9d325df74bebf61",
}
"""SHA-256 of each cache's features as version 0.1 read them."""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old project, without what it was allowed to forget; no keys or remotes of the user's."""
    monkeypatch.setenv("FEATCACHE_CONFIG", str(tmp_path / "config"))
    return shutil.copytree(DATA / "project", tmp_path / "project")


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "remote", tmp_path / "remote")


@pytest.mark.parametrize("name", FEATURES)
def test_a_cache_is_read_as_the_old_version_read_it(name: str) -> None:
    cache = open_cache(DATA / "project" / "cache" / name)
    assert hashlib.sha256(np.asarray(cache.features).tobytes()).hexdigest() == FEATURES[name]
    assert cache.classes == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert cache.rows.groupby("split").size().to_dict() == {"test": 4, "train": 24, "val": 4}
    assert cache.rows["view"].max() == 1


def test_caches_are_sound_and_computed_again_are_the_same(run: Run, old: Path) -> None:
    for found in run("verify", *FEATURES, "--recompute", "3", "--json", cwd=old).value:
        assert found["sound"], found
        assert found["recomputed"]["deviating"] == []


@pytest.mark.parametrize("name", EXTRACT)
def test_extract_finds_the_old_cache_and_computes_nothing(run: Run, old: Path, name: str) -> None:
    before = contents(old / "cache" / name)
    done = run("extract", *EXTRACT[name].split(), "--json", cwd=old).value
    assert (done["cache"], done["rows"], done["computed"]) == (name, 32, 0)
    assert contents(old / "cache" / name) == before


@pytest.mark.parametrize("name", EXTRACT)
def test_extract_with_more_views_copies_the_old_rows(run: Run, old: Path, name: str) -> None:
    done = run("extract", *EXTRACT[name].split(), "--views", "3", "--json", cwd=old).value
    assert (done["rows"], done["computed"], done["copied"]) == (44, 12, 32)
    more, fewer = open_cache(done["path"]), open_cache(old / "cache" / name)
    keys = ["image_id", "view"]
    places = more.rows.reset_index().merge(fewer.rows[keys], on=keys, how="right")["row"].to_numpy()
    np.testing.assert_array_equal(more.features[places], np.asarray(fewer.features))


def test_extract_goes_on_with_an_unfinished_cache(run: Run, old: Path) -> None:
    shard = (old / "cache" / UNFINISHED / "features.zarr/c/0/0/0/0").read_bytes()
    extract = ("extract", "--model", "pixels", "--input-size", "8", "--views", "24", "--seed", "1", "--json")
    done = run(*extract, cwd=old).value
    assert (done["cache"], done["rows"], done["computed"]) == (UNFINISHED, 296, 40)
    assert (old / "cache" / UNFINISHED / "features.zarr/c/0/0/0/0").read_bytes() == shard
    assert run("verify", UNFINISHED, "--recompute", "296", "--json", cwd=old).value["recomputed"]["deviating"] == []


@pytest.mark.parametrize("name", FIT)
def test_fit_head_finds_the_very_run(run: Run, old: Path, name: str) -> None:
    before = contents(old / "results")
    done = run("fit-head", *FIT[name].split(), "--json", cwd=old).value
    assert (done["run"], done["reused"]) == (name, True)
    assert contents(old / "results") == before


@pytest.mark.parametrize(("name", "epochs"), [(GRAM, 4), (ADAM, 3)])
def test_fit_head_adds_epochs_to_an_old_run(run: Run, old: Path, name: str, epochs: int) -> None:
    done = run("fit-head", *FIT[name].split(), "--more-epochs", "2", "--json", cwd=old).value
    assert (done["epochs"], done["resumed_at"], done["resumed_from"]) == (epochs + 2, epochs, name)
    history = pd.read_csv(Path(done["path"]) / "history.csv")
    first = pd.read_csv(old / "results" / name / "history.csv")
    pd.testing.assert_frame_equal(history[:epochs], first)


def test_fit_head_goes_on_with_an_interrupted_training(run: Run, old: Path) -> None:
    before = "--scale norm --l2 0 --lr 0.001"
    fit = f"fit-head --cache {PIXELS} --hidden 4 --epochs 12 --seed 3 {before} --solver gram --json".split()
    done = run(*fit, cwd=old).value
    assert (done["run"], done["resumed_at"]) == (INTERRUPTED, 5)
    resumed = Head.load(Path(done["path"]))
    assert run(*fit, "--again", cwd=old).value["resumed_at"] == 0
    for one, other in zip(resumed.layers, Head.load(Path(done["path"])).layers, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("run_name", "cache_name"), [(GRAM, MOBILENET), (ADAM, PIXELS)])
def test_an_old_head_predicts_what_it_did(run_name: str, cache_name: str) -> None:
    folder = DATA / "project" / "results" / run_name
    written = pd.read_csv(folder / "predictions.csv")
    found = Head.load(folder).probabilities(open_cache(DATA / "project" / "cache" / cache_name))
    np.testing.assert_allclose(found, written.filter(like="p_").to_numpy(), atol=2e-6)


def test_an_old_classical_head_has_no_model_until_it_is_trained_again(run: Run, old: Path) -> None:
    for source in (f"cache/{MOBILENET}", "cells"):
        ended = run("predict", LOGREG, source, cwd=old)
        assert (ended.code, "keeps no model" in ended.err, "fit-head --head KIND --again" in ended.err) == (
            1,
            True,
            True,
        )
    assert run("fit-head", *FIT[LOGREG].split(), "--again", cwd=old).code == 0
    written = pd.read_csv(DATA / "project" / "results" / LOGREG / "predictions.csv")
    assert run("predict", LOGREG, f"cache/{MOBILENET}", "--csv", "found.csv", cwd=old).code == 0
    frame = pd.read_csv(old / "found.csv")
    np.testing.assert_allclose(frame.filter(like="p_"), written.filter(like="p_"), atol=1e-3)


def test_report_has_every_old_run(run: Run, old: Path) -> None:
    assert run("report", cwd=old).code == 0
    report = (old / "results" / "report.md").read_text(encoding="utf-8")
    assert all(name in report for name in (GRAM, ADAM, LOGREG))
    assert all(name in (old / "results" / "report.html").read_text(encoding="utf-8") for name in (GRAM, ADAM, LOGREG))


def test_what_was_pushed_is_pulled_signatures_checked(run: Run, old: Path, remote: Path, tmp_path: Path) -> None:
    assert run("key", "trust", "anna", str(DATA / "anna.pub"), cwd=tmp_path).code == 0
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, kind in ((LITE0, "cache"), (PIXELS, "cache"), (ADAM, "results")):
        ran = run("pull", f"{remote}/{name}", "--to", str(theirs), "--require-signed", "--json", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert contents(old / kind / name).items() <= contents(theirs / name).items()
    part = run("pull", f"{remote}/{PIXELS}", "--split", "test", "--to", str(theirs), "--json", cwd=tmp_path).value
    whole = open_cache(theirs / PIXELS)
    np.testing.assert_array_equal(open_cache(part["path"]).features[:], whole.features[whole.numbers("test")])


def test_a_pack_is_listed_read_and_pulled(run: Run, tmp_path: Path) -> None:
    pack = shutil.copy(DATA / "caches.zip", tmp_path)
    assert [entry["name"] for entry in run("ls", "--remote", str(pack), "--json", cwd=tmp_path).value] == [LITE0]
    assert run("pull", f"{pack}/{LITE0}", "--to", str(tmp_path / "here"), cwd=tmp_path).code == 0
    assert hashlib.sha256(open_cache(tmp_path / "here" / LITE0).features[:].tobytes()).hexdigest() == FEATURES[LITE0]


def test_an_old_remote_is_verified_and_pushed_to(run: Run, old: Path, remote: Path) -> None:
    assert run("verify", "--remote", str(remote), cwd=old).code == 0
    before = contents(remote)
    assert run("push", PIXELS, ADAM, "--remote", str(remote), cwd=old).code == 0
    assert contents(remote) == before, "the same caches and runs: nothing was sent"
    assert run("push", MOBILENET, GRAM, "--remote", str(remote), cwd=old).code == 0
    assert {entry["name"] for entry in run("ls", "--remote", str(remote), "--json", cwd=old).value} == {
        *(PIXELS, LITE0, MOBILENET),
        *(ADAM, GRAM),
    }
    assert before.items() <= contents(remote).items()


def test_an_old_cache_feeds_an_extraction_from_an_old_remote(run: Run, old: Path, remote: Path) -> None:
    shutil.rmtree(old / "cache")
    assert run("remote", "add", "lab", remote.as_uri(), cwd=old).code == 0
    done = run("extract", *EXTRACT[PIXELS].split(), "--json", cwd=old).value
    assert (done["cache"], done["computed"], done["pulled_from"]) == (PIXELS, 0, PIXELS)


def test_init_keeps_the_splits_of_an_old_project(run: Run, old: Path) -> None:
    before = (old / "dataset.csv").read_text(encoding="utf-8")
    assert run("init", "cells", cwd=old).code == 0
    assert (old / "dataset.csv").read_text(encoding="utf-8") == before
    assert run("extract", *EXTRACT[PIXELS].split(), "--json", cwd=old).value["cache"] == PIXELS
