"""What is asked of a remote is asked of every spelling of its address: signatures, and no step back."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_store_contract import dataset, fake_features, make_cache

from featcache.core.errors import RemoteError, TrustError
from featcache.core.project import Project, RemoteSection, Settings
from featcache.remotes.urls import open_remote, place_of
from featcache.sharing import rollback_guard as seen
from featcache.sharing._pull import pull
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import latest
from featcache.sharing.commit import Attribution
from featcache.sharing.remote import add_remote, open_named, resolve
from featcache.sharing.send import push

SAME = [
    ("https://lab.example/a/b", "https://LAB.example:443//a/./b/"),
    ("https://lab.example/a/b", "http://lab.example./a/%62"),
    ("http://127.0.0.1:8000/x", "http://127.1:08000/x"),
    ("http://[::1]/x", "http://[0:0::1]:80/x/"),
    ("s3://lab/a/b", "s3://lab//a/b/?region=eu-west-1"),
    ("s3://lab/a", "s3://lab/a?endpoint=https://s3.lab.example"),
    ("sftp://host/a", "sftp://anna@HOST:22/./a"),
]
OTHER = [
    ("https://lab.example/a", "https://lab.example/A"),
    ("http://127.0.0.1:8000/x", "http://127.0.0.1:8001/x"),
    ("s3://lab/a", "gs://lab/a"),
    ("s3://lab/a", "s3://lab/ab"),
    ("https://lab.example/a", "https://lab.example/a.zip"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_place(one: str, other: str) -> None:
    assert place_of(one) == place_of(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_places_that_differ(one: str, other: str) -> None:
    assert place_of(one) != place_of(other)


def spellings(folder: Path) -> list[str]:
    """Ways to name one folder from the project's."""
    link = folder.with_name("link")
    link.symlink_to(folder)
    escaped = str(folder).replace("r", "%72")
    urls = [
        f"file://{folder}",
        f"file://localhost{folder}/",
        f"file://{folder.parent}/./{folder.name}",
        f"file://{escaped}",
    ]
    return [*urls, str(folder), f"{folder}/", f"{folder.parent}//{folder.name}", str(link), f"file://{link}"]


def test_signatures_are_asked_for_in_every_spelling(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_CONFIG", str(place / "config"))
    cache = make_cache(place / "mine", dataset(6), fake_features(6, (5,)))
    push(open_remote(str(place / "r")), bundle_of_cache(cache.folder))
    (place / "config").mkdir()
    add_remote("lab", str(place / "r"), file=place / "config" / "config.toml", signed=True)
    alias = Settings(remotes={"mine": RemoteSection(url=f"file://localhost{place}/r", signed=False)})
    shadow = Settings(remotes={"lab": RemoteSection(url=f"file://{place}/r", signed=False)})
    for text in spellings(place / "r"):
        assert open_named(text, None).signed, text
        with pytest.raises(TrustError, match="is not signed"):
            pull(resolve(f"{text.rstrip('/')}/{cache.name}", None), place / "pulled", results=place / "runs")
    assert open_named("mine", Project(place, alias)).signed
    assert open_named("lab", Project(place, shadow)).signed
    assert not open_named(str(place), None).signed


def test_a_step_back_is_seen_in_every_spelling(place: Path) -> None:
    cache = make_cache(place / "mine", dataset(6), fake_features(6, (5,)))
    store = open_remote(str(place / "r"))
    first = push(store, bundle_of_cache(cache.folder)).entry
    second = push(store, bundle_of_cache(cache.folder), words=Attribution(licence="CC0")).entry
    assert second.record.generation == 2
    seen.remember(place, f"file://{place}/r", entry=second)
    for text in spellings(place / "r"):
        with pytest.raises(RemoteError, match="an older state"):
            seen.refuse_older(place, open_remote(text).url, entry=first)
    assert latest(store, "cache", name=cache.name) == second
