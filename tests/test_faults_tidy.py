"""rm, gc and key new killed before each of their steps: nothing whole is lost, and the next command ends it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from faults import Shops
from test_store_contract import dataset, fake_features, make_cache, small_shards
from workshop import Workshop

from featcache.sharing import keys
from featcache.store._verify import verify
from featcache.store.cache import open_cache
from featcache.store.catalog import list_caches

X = fake_features(70, (3, 4, 5))


@pytest.fixture
def project(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three caches: one whose rows another one has, and one of its own."""
    small_shards(monkeypatch, 16)
    folder = quick / f"tidied-{tmp_path.name}"
    make_cache(folder / "cache", dataset(35), X[::2], 1)
    make_cache(folder / "cache", dataset(35), X, 2)
    make_cache(folder / "cache", dataset(35), X, 2, seed=1)
    (folder / "featcache.toml").write_text("")
    return folder


def age(folder: Path) -> None:
    """As if all this were two hours ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)


@pytest.mark.parametrize("command", ["gc", "rm"])
def test_killed_before_each_step(shops: Shops, project: Path, command: str) -> None:
    covered = min(list_caches(project / "cache"), key=lambda one: _rows_and_seed(one.folder)).folder.name
    others = {one.folder.name for one in list_caches(project / "cache")} - {covered}
    arguments = ("gc", "--yes") if command == "gc" else ("rm", covered, "--yes")
    log, traced = project.with_name(f"{project.name}.steps"), project.with_name(f"{project.name}-traced")
    shutil.copytree(project, traced)
    done = shops.both[0].run("command", traced, *arguments, fault=("traced", log))
    assert done.code == 0, done
    assert {one.folder.name for one in list_caches(traced / "cache")} == others
    n_steps = len(log.read_text().splitlines())
    assert n_steps > 5

    def trial(shop: Workshop, step: int) -> None:
        mine = shutil.copytree(project, project.with_name(f"{project.name}-{step}"))
        killed = shop.run("command", mine, *arguments, fault=("killed", step))
        assert killed.code == -signal.SIGKILL, killed
        age(mine)
        between = shop.run("command", mine, "gc", "--yes")  # which finds what was left, and must take no more
        assert between.code == 0, between
        left = {one.folder.name for one in list_caches(mine / "cache")}
        assert others <= left
        assert all(verify(mine / "cache" / name).sound for name in left)
        if covered in left:
            assert shop.run("command", mine, *arguments).code == 0
        assert {path.name for path in (mine / "cache").iterdir()} - {".tidying"} == others
        shutil.rmtree(mine)

    shops.each(trial, range(0, n_steps, max(1, n_steps // 6)))


def _rows_and_seed(folder: Path) -> tuple[int, bool]:
    cache = open_cache(folder)
    return cache.manifest.rows, cache.recipe.augmentation.seed != 0


def test_a_new_key_killed_before_each_step(shops: Shops, quick: Path, tmp_path: Path) -> None:
    folder = quick / f"keys-{tmp_path.name}"
    folder.mkdir()

    def trial(shop: Workshop, step: int) -> int:
        config = folder / str(step)
        keys.new_key("mine", config / "keys")
        killed = shop.run("command", folder, "key", "new", "other", config=config, fault=("killed", step))
        looked = shop.run("command", folder, "key", "ls", config=config)
        assert (looked.code, "mine" in looked.out, "left out" in looked.out) == (0, True, False), looked
        if killed.code == 0:
            return step
        again = shop.run("command", folder, "key", "new", "other", config=config)
        assert again.code == 0, again
        assert [key.name for key in keys.own_keys(config / "keys")] == ["mine", "other"]
        assert keys.open_key("other", config / "keys")[0] in keys.own_keys(config / "keys")
        return 0

    assert any(shops.each(trial, range(1, 16, 3)))
