"""extract asks remotes first: what a team has pushed, nobody computes again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_pipeline_verify import Small, small  # noqa: F401
from watching import Watching

from featcache.backbones import imagenet
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import WeightsError
from featcache.extraction import plan
from featcache.extraction._extract import extract
from featcache.extraction.options import ExtractOptions
from featcache.sharing._push import push
from featcache.sharing.remote import add_remote, open_named
from featcache.store.cache import Cache, open_cache


@pytest.fixture
def pushed(small: Small, tmp_path: Path) -> Cache:
    """A cache that is on a remote and not here any more."""
    add_remote("lab", str(tmp_path / "lab"), file=small.folder / "featcache.toml")
    cache = small.cache()
    assert small.computed() == len(cache.features)
    push(cache.folder, open_named("lab", small.project))
    features = cache.features[:]
    shutil.rmtree(cache.folder.parent)
    cache.features = features  # as it was
    return cache


def test_a_whole_cache_is_pulled(small: Small, pushed: Cache) -> None:
    done = small.extract()
    assert (done.cache, done.computed, done.pulled_from) == (pushed.name, 0, pushed.name)
    assert small.computed() == 0
    np.testing.assert_array_equal(open_cache(done.path).features[:], pushed.features)
    again = small.extract()
    assert (again.computed, again.pulled_from) == (0, "")


def test_labels_of_here_are_those_of_what_is_pulled(small: Small, pushed: Cache) -> None:
    lines = small.lines()
    lines["group"] = "one" + lines["split"]
    small.edit(lines)
    assert small.extract().relabelled
    assert set(open_cache(pushed.folder).dataset["group"]) == {"onetrain", "oneval", "onetest"}


@pytest.mark.parametrize("option", ["no_remote", "offline"])
def test_remotes_can_be_left_alone(small: Small, pushed: Cache, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_refuse_download", lambda *_: None)  # the cheap network is in no registry
    done = small.extract(**{option: True})
    assert (done.computed, done.pulled_from) == (len(pushed.features), "")


def test_only_rows_that_nobody_has_are_computed(small: Small, pushed: Cache) -> None:
    done = small.extract(views={"train": 4})
    assert done.copied == len(pushed.features)
    assert done.computed == small.computed() == done.rows - done.copied > 0
    assert not [path for path in done.path.parent.iterdir() if path.name.startswith(".donors")]


def test_a_remote_that_is_gone_is_said_and_everything_computed(small: Small, pushed: Cache, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "lab")
    add_remote("web", "http://127.0.0.1:9/nobody", file=small.folder / "featcache.toml")
    watching = Watching()
    done = extract(small.project, [NetworkSpec("tiny")], options=ExtractOptions(), progress=watching)
    assert done[0].computed == len(pushed.features)
    (said,) = watching.notes
    assert said.startswith("web: ")


def test_offline_weights_are_not_downloaded(small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(imagenet, "_download", lambda *_: pytest.fail("the network was used"))
    with pytest.raises(WeightsError, match="vgg16: the ImageNet weights are not on this machine, and `offline`"):
        extract(small.project, [NetworkSpec("vgg16")], options=ExtractOptions(offline=True))
