"""Relabelling killed before each of its steps: readers see the old labels or the new ones, and the next one ends it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from faults import Shops, contents, relabelled
from test_store_contract import dataset, fake_features, make_cache, small_shards
from workshop import Workshop

from featcache.store._verify import verify
from featcache.store.cache import open_cache
from featcache.store.manifest import Manifest
from featcache.store.tables import images_in


@pytest.fixture
def cache(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_shards(monkeypatch, 16)
    return make_cache(quick / f"labelled-{tmp_path.name}", dataset(12), fake_features(12, (2, 2, 3)), 1).folder


def letters(folder: Path) -> str:
    """What the labels of a cache begin with, as a reader sees it; the cache is sound."""
    assert verify(folder).sound
    return "".join({label[0] for label in open_cache(folder).rows["label"]})


def relabel(folder: Path, letter: str) -> bool:
    found = open_cache(folder)
    return found.replace_dataset(relabelled(images_in(found.dataset), letter))


def test_killed_before_each_step_with_others_in_between(cache: Path, shops: Shops) -> None:
    relabel(cache, "A")
    steps, traced = cache.with_name("steps"), shutil.copytree(cache, cache.parent / "traced" / cache.name)
    assert shops.both[0].run("relabel", traced, "B", fault=("traced", steps)).returned
    assert letters(traced) == "B"
    relabel(traced, "D")
    before, n_steps = contents(traced), len(steps.read_text().splitlines())
    assert n_steps > 12

    def trial(shop: Workshop, step: int) -> str:
        mine = shutil.copytree(cache, cache.parent / str(step) / cache.name)
        early = open_cache(mine)
        images = images_in(early.dataset)
        killed = shop.run("relabel", mine, "B", fault=("killed", step))
        assert killed.code == -signal.SIGKILL, killed
        if step % 4 == 1:  # who looks ends what was begun; who does not must cope with it too
            assert letters(mine) in ("A", "B")
        killed = shop.run("relabel", mine, "C", fault=("killed", n_steps - 1 - step // 2))
        seen = letters(mine)
        assert seen in ("A", "B", "C")
        assert early.replace_dataset(relabelled(images, "D"))
        assert letters(mine) == "D"
        assert {name for name in contents(mine) if not name.startswith(("leases", "."))} == before.keys()
        shutil.rmtree(mine)
        return seen

    assert set(shops.each(trial, range(1, n_steps, 2))) >= {"B", "C"}


def test_who_opened_it_before_another_was_killed_loses_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest promises labels that still wait under their other name: they must not be written over."""
    relabel(cache, "A")
    early, other = open_cache(cache), open_cache(cache)
    images = images_in(early.dataset)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", lambda one, to: stopped() if to.name == "dataset.parquet" else one.rename(to))
        other.replace_dataset(relabelled(images, "B"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest, "write", stopped)
        early.replace_dataset(relabelled(images, "C"))
    assert letters(cache) == "B"
