"""Push and pull against real servers: what arrives is what was sent, or nothing; whoever may not is told so."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from conftest import contents
from servers import S3, netrc_in, ssh_server, web_server
from test_store_contract import dataset, fake_features, make_cache, rows_for, small_shards

from featcache.core.errors import (
    CacheError,
    MissingPackageError,
    RemoteAccessError,
    RemoteDroppedError,
    RemoteError,
    RemoteNotFoundError,
    UsageError,
)
from featcache.datasets.manifest import Dataset
from featcache.remotes.bounded import THREAD_NAME
from featcache.remotes.contract import Remote, read
from featcache.remotes.urls import open_remote
from featcache.sharing import rollback_guard as seen, send as pushing
from featcache.sharing.bundle import bundle_of_cache
from featcache.sharing.catalog import find, latest, listing
from featcache.sharing.commit import Attribution
from featcache.sharing.receive import Pulled, Trust, pull
from featcache.sharing.send import Pushed, push
from featcache.sharing.web_index import write_index
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.layout import FORMATS
from featcache.store.writer import CacheWriter

IMAGES = dataset(35)
X = fake_features(70, (3, 4, 5))
KINDS = ("file", "s3", "sftp")


@pytest.fixture(scope="module")
def caches(quick: Path) -> dict[str, Cache]:
    """One cache of five shards in each format; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return {name: make_cache(quick / "shared", IMAGES, X, 2, format_=name) for name in FORMATS}


@pytest.fixture(scope="module")
def cache(caches: dict[str, Cache]) -> Cache:
    return caches["zarr"]


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest, place: Path) -> Iterator[Remote]:
    """An empty remote of each kind that can be written."""
    yield from _remote(request, request.param, place)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, place: Path) -> Iterator[Remote]:
    """An empty remote on S3."""
    yield from _remote(request, "s3", place)


def _remote(request: pytest.FixtureRequest, kind: str, place: Path) -> Iterator[Remote]:
    home, monkeypatch = request.getfixturevalue("home"), request.getfixturevalue("monkeypatch")
    if kind == "file":
        yield open_remote(f"file://{place}/a remote")
    elif kind == "s3":
        server: S3 = request.getfixturevalue("s3")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield open_remote(server.url(f"{uuid.uuid4().hex[:8]}/x y"))
    else:
        if servers.SSHD is None:
            pytest.skip("openssh-server is not installed: .ci/run installs it")
        with ssh_server(place / "sshd", home) as url:
            yield open_remote(f"{url}{place}/over ssh")


def copy_of(cache: Cache, parent: Path) -> Path:
    return shutil.copytree(cache.folder, parent / cache.name)


def got(store: Remote, name: str, parent: Path) -> Pulled:
    parent.mkdir(exist_ok=True)
    return pull(store, find(store, name), parent=parent)


def only_in(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name != seen.SEEN_FILE)


# There and back


@pytest.mark.parametrize("format_", FORMATS)
def test_what_was_pushed_is_pulled_bit_for_bit(
    remote: Remote, caches: dict[str, Cache], format_: str, place: Path
) -> None:
    cache = caches[format_]
    first = push(remote, bundle_of_cache(cache.folder), words=Attribution("CC-BY-4.0", "lab@example.org"))
    assert not first.reused
    assert first.sent_bytes > cache.bytes()
    assert first.remarks == ()
    again = push(remote, bundle_of_cache(cache.folder))
    assert (again.reused, again.sent_files, again.sent_bytes) == (True, 0, 0)
    pulled = got(remote, "tiny", place / "b")
    assert not pulled.reused
    assert pulled.fetched_bytes == cache.bytes()
    assert contents(pulled.folder) == contents(cache.folder)
    assert (pulled.record.licence, pulled.record.contact) == ("CC-BY-4.0", "lab@example.org")
    assert got(remote, cache.name, place / "b").reused
    assert only_in(place / "b") == [cache.name]
    assert verify(pulled.folder).sound
    (listed,) = listing(remote, "cache")
    assert listed.entry == find(remote, "t") == latest(remote, "cache", name=cache.name)
    assert listing(remote, "run") == []


def test_a_store_travels_to_another_process_without_its_credentials(remote: Remote, cache: Cache) -> None:
    push(remote, bundle_of_cache(cache.folder))
    packed = pickle.dumps(remote)
    assert b"secret" not in packed
    assert find(pickle.loads(packed), "tiny") == find(remote, "tiny")


def test_names_that_mean_nothing_or_several(bucket: Remote, cache: Cache, place: Path) -> None:
    with pytest.raises(RemoteNotFoundError, match="nothing is there"):
        find(bucket, "tiny")
    push(bucket, bundle_of_cache(cache.folder))
    push(bucket, bundle_of_cache(make_cache(place / "c", IMAGES, X, 2, seed=5).folder))
    with pytest.raises(RemoteNotFoundError, match=f"no cache or run 'tyni'.*{cache.name}"):
        find(bucket, "tyni")
    with pytest.raises(UsageError, match=r"could be tiny-.*, tiny-.*: name one"):
        find(bucket, "tiny")
    for odd in ("../x", "a/b", "x" * 300, "*"):
        with pytest.raises((RemoteError, UsageError)):
            find(bucket, odd)


def test_a_plain_web_server_is_a_remote(cache: Cache, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if servers.NGINX is None:
        pytest.skip("nginx is not installed: .ci/run installs it")
    root = place / "www"
    files = open_remote(str(root))
    push(files, bundle_of_cache(cache.folder))
    with web_server(place / "nginx", root) as url:
        with pytest.raises(RemoteAccessError, match=r"401.*machine 127\.0\.0\.1 login NAME.*\.netrc"):
            find(open_remote(url), cache.name)
        netrc_in(home)
        store = open_remote(url)
        with pytest.raises(RemoteNotFoundError, match="'featcache index'"):
            find(store, "tiny")
        assert got(store, cache.name, place / "whole name").fetched_bytes == cache.bytes()
        write_index(files)
        assert contents(got(store, "tiny", place / "b").folder) == contents(cache.folder)
        with pytest.raises(RemoteError, match="can only be read"):
            push(store, bundle_of_cache(cache.folder))


def test_a_web_server_with_a_certificate_of_the_house(
    cache: Cache, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if servers.NGINX is None:
        pytest.skip("nginx is not installed: .ci/run installs it")
    push(open_remote(str(place / "www")), bundle_of_cache(cache.folder))
    with web_server(place / "nginx", place / "www", certificate=True) as url:
        netrc_in(home)
        with pytest.raises(RemoteError, match="certificate in SSL_CERT_FILE"):
            find(open_remote(url), cache.name)
        monkeypatch.setenv("SSL_CERT_FILE", str(place / "nginx/certificate"))
        assert contents(got(open_remote(url), cache.name, place / "b").folder) == contents(cache.folder)


def test_large_files_go_in_parts(bucket: Remote, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("featcache.remotes.objects._WHOLE_BYTES", "featcache.sharing.send.IN_MEMORY_BYTES"):
        monkeypatch.setattr(name, 6 << 20)
    monkeypatch.setattr("featcache.remotes.objects._PART_BYTES", 5 << 20)
    noise = np.random.default_rng(0).standard_normal((70, 60_000)).astype(np.float32)
    large = make_cache(place / "large", IMAGES, noise, 2, format_="hdf5")
    assert (large.folder / "features.h5").stat().st_size > 12 << 20
    entry = push(bucket, bundle_of_cache(large.folder)).entry
    assert contents(got(bucket, "tiny", place / "b").folder) == contents(large.folder)
    assert push(bucket, bundle_of_cache(large.folder), check=True).sent_files == 1  # the manifest
    assert latest(bucket, "cache", name=large.name) == entry


# Several at once


def test_two_pushers_of_one_cache_whose_rows_lie_otherwise(remote: Remote, place: Path) -> None:
    one = make_cache(place / "one", IMAGES, X, 2)
    order = np.argsort([row.row_id for row in rows_for(IMAGES, 2)], kind="stable")
    rows = [rows_for(IMAGES, 2)[number] for number in order]
    with CacheWriter(place / "two", one.recipe, rows=rows, row_shape=X.shape[1:]) as writer:
        writer.write(0, X[order])
        writer.finish(IMAGES, {"engine": "other"})
    two = open_cache(writer.folder)
    assert one.name == two.name
    parcels = [bundle_of_cache(one.folder), bundle_of_cache(two.folder)] * 3
    with ThreadPoolExecutor(6) as pool:
        done: list[Pushed] = list(pool.map(lambda parcel: push(remote, parcel), parcels))
    (entry,) = {found.entry.sha256 for found in done}
    assert sum(not found.reused for found in done) == 1
    pulled = got(remote, "tiny", place / "b")
    assert latest(remote, "cache", name=one.name).sha256 == entry  # type: ignore[union-attr]
    assert contents(pulled.folder) in (contents(one.folder), contents(two.folder))
    assert verify(pulled.folder).sound


def test_of_many_who_create_an_object_one_is_told_that_it_did(remote: Remote) -> None:
    for number in range(5):
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(lambda who, n=number: remote.create(f"a/b/{n}", f"{who}".encode()), range(8)))
        assert told.count(True) == 1
        assert read(remote, f"a/b/{number}", most=9) == f"{told.index(True)}".encode()
    assert sorted(item.path for item in remote.list("a")) == [f"a/b/{number}" for number in range(5)]
    assert remote.folders("a") == ["b"]
    for item in remote.list("a"):
        remote.remove(item.path)
        remote.remove(item.path)
    assert remote.list("a") == []  # SeaweedFS shows the empty folder for a while
    with pytest.raises(RemoteNotFoundError, match="is not there"):
        read(remote, "a/b/0", most=9)


def test_two_pulls_at_once_do_not_meet(bucket: Remote, cache: Cache, place: Path) -> None:
    push(bucket, bundle_of_cache(cache.folder))
    entry, begun, go_on = find(bucket, ""), threading.Event(), threading.Event()

    def slowly(_: int) -> None:
        begun.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(pull, bucket, entry, parent=place, trust=Trust(), advance=slowly)
        assert begun.wait(30)
        with pytest.raises(UsageError, match="another process pulls it now"):
            pull(bucket, entry, parent=place)
        go_on.set()
        assert not first.result().reused
    assert pull(bucket, entry, parent=place).reused


def test_a_remote_that_overwrites_instead_of_refusing(
    cache: Cache, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_remote(str(place / "r"))

    def overwrites(path: str, data: bytes) -> bool:
        store.put(path, data)
        return True

    monkeypatch.setattr(store, "create", overwrites)
    done = push(store, bundle_of_cache(cache.folder))
    assert done.remarks == (
        "this remote cannot tell who was first: of two pushes of one name at the same moment the last one counts",
    )
    assert contents(got(store, "tiny", place / "b").folder) == contents(cache.folder)
    assert not list((place / "r").glob(".featcache*"))


# Labels


def test_other_labels_count_only_when_asked_for_and_move_no_feature(remote: Remote, cache: Cache, place: Path) -> None:
    push(remote, bundle_of_cache(cache.folder))
    old = got(remote, "tiny", place / "old").folder
    ours = open_cache(copy_of(cache, place))
    ours.replace_dataset(Dataset(tuple(replace(image, label="other") for image in IMAGES.images), Path()))
    left = push(remote, bundle_of_cache(ours.folder))
    assert left.reused
    assert left.remarks == ("with other labels, splits, groups or paths than here; set `replace=True` to replace them",)
    done = push(remote, bundle_of_cache(ours.folder), replace=True)
    assert (done.reused, done.entry.record.generation, done.sent_files) == (False, 2, 2)
    assert done.sent_bytes < cache.bytes() / 2
    assert contents(got(remote, "tiny", place / "b").folder) == contents(ours.folder)
    here = got(remote, "tiny", place / "old")
    assert (here.reused, here.remarks) == (
        True,
        ("with other labels, splits, groups or paths than on the remote; those here stay",),
    )
    assert open_cache(old).classes == cache.classes


def test_another_cache_of_the_same_short_name_is_refused_on_both_sides(
    bucket: Remote, cache: Cache, place: Path
) -> None:
    push(bucket, bundle_of_cache(cache.folder))
    other = replace(bundle_of_cache(cache.folder), digest=cache.name[-8:] + "0" * 56)
    with pytest.raises(UsageError, match=r"another cache named .* whose digest begins alike"):
        push(bucket, other)
    entry = find(bucket, "tiny")
    copy_of(cache, place / "b")
    foreign = replace(entry, record=entry.record.model_copy(update={"digest": other.digest}))
    with pytest.raises(UsageError, match=r"holds another cache, whose digest begins alike\. .* `to=FOLDER`"):
        pull(bucket, foreign, parent=place / "b")


def test_a_cache_in_the_making_here_is_not_overwritten(bucket: Remote, cache: Cache, place: Path) -> None:
    push(bucket, bundle_of_cache(cache.folder))
    (copy_of(cache, place) / "manifest.json").unlink()
    before = contents(place / cache.name)
    with pytest.raises(UsageError, match=f"an unfinished cache .* 'featcache rm {cache.name}'"):
        got(bucket, "tiny", place)
    assert contents(place / cache.name) == before


# Who may what, and what is wrong with the way there


def test_keys_that_do_not_suffice(bucket: Remote, s3: S3, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bucket, bundle_of_cache(cache.folder))
    url = f"{bucket.url}?endpoint={s3.endpoint}"
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    reader = open_remote(url)
    assert find(reader, "tiny").record.name == cache.name
    with pytest.raises(RemoteAccessError, match=r"do not suffice \(AccessDenied\): set AWS_ACCESS_KEY_ID"):
        push(reader, bundle_of_cache(cache.folder), replace=True, check=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteAccessError, match="do not suffice") as caught:
        find(open_remote(url), "tiny")
    assert "wrong" not in str(caught.value)


def test_credentials_of_the_usual_file(bucket: Remote, s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in s3.environment():
        monkeypatch.delenv(name)
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = x\n"
        "[lab]\naws_access_key_id = writer\naws_secret_access_key = writer-secret\n"
    )
    (home / ".aws/config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    with pytest.raises(RemoteAccessError):
        listing(open_remote(f"s3://lab/usual?endpoint={s3.endpoint}"), "cache")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert listing(open_remote("s3://lab/usual"), "cache") == []
    (home / ".aws/config").write_text("no = section")
    with pytest.raises(RemoteAccessError, match=r"~/\.aws/config: cannot be read"):
        open_remote("s3://lab/usual")


def test_a_profile_that_signs_in_for_its_keys(
    bucket: Remote, s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program that gives them out, as profiles of roles and of single sign-on do by a server."""
    for name in s3.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "ward")
    (home / ".aws").mkdir()
    keys = {"Version": 1, "AccessKeyId": "writer", "SecretAccessKey": "writer-secret"}
    program = home / "keys"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(keys)}'\n")
    program.chmod(0o755)
    config = f"[profile ward]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\ncredential_process = {program}\n"
    (home / ".aws/config").write_text(config)
    remote = open_remote("s3://lab/signed-in")
    remote.put("cache/a", b"1")
    assert [item.path for item in remote.list("cache")] == ["cache/a"]
    program.write_text("#!/bin/sh\necho 'the ticket has run out' >&2; exit 3\n")
    with pytest.raises(RemoteAccessError, match=r"(?s)'ward' gives no keys: .*run out.*as with .aws sso login"):
        open_remote("s3://lab/signed-in")
    (home / ".aws/config").write_text(config.replace("credential_process", "role_arn"))
    with pytest.raises(RemoteAccessError, match="'ward' gives no keys"):
        open_remote("s3://lab/signed-in")
    monkeypatch.setattr("featcache.core.extras.is_installed", lambda package: package != "boto3")
    with pytest.raises(MissingPackageError, match=r"requires boto3.*featcache\[aws\]"):
        open_remote("s3://lab/signed-in")


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer(bucket: Remote, s3: S3, cache: Cache) -> None:
    with pytest.raises(RemoteError, match=r"(?s)bucket|do not suffice"):
        push(open_remote(f"s3://nobucket/x?endpoint={s3.endpoint}"), bundle_of_cache(cache.folder))
    with pytest.raises(RemoteDroppedError, match="try again"):
        find(open_remote("s3://lab/x?endpoint=http://127.0.0.1:9"), "tiny")


def test_an_ssh_server_that_is_not_known_or_knows_us_not(place: Path, home: Path) -> None:
    if servers.SSHD is None:
        pytest.skip("openssh-server is not installed: .ci/run installs it")
    with ssh_server(place / "sshd", home) as url:
        assert listing(open_remote(f"{url}{place}"), "cache") == []
        known = (home / ".ssh/known_hosts").read_text()
        (home / ".ssh/known_hosts").write_text("")
        with pytest.raises(RemoteAccessError, match=r"not in ~/\.ssh/known_hosts: connect once"):
            listing(open_remote(f"{url}{place}"), "cache")
        host, _, key = known.split(maxsplit=2)
        (home / ".ssh/known_hosts").write_text(f"{host} ssh-ed25519 {key[:-6]}AAAAA\n")
        with pytest.raises(RemoteError):
            listing(open_remote(f"{url}{place}"), "cache")
        (home / ".ssh/known_hosts").write_text(known)
        (home / ".ssh/id_ed25519").unlink()
        with pytest.raises(RemoteAccessError, match="no key is at hand"):
            listing(open_remote(f"{url}{place}"), "cache")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "do not belong into a URL"),
        ("https://user:secret@host/x", "do not belong into a URL"),
        ("https://user@host/x", "do not belong into a URL"),
        ("https://host/x?X-Amz-Signature=secret", "do not belong into a URL"),
        ("s3://bucket/x?secret_access_key=secret", "do not belong into a URL"),
        ("sftp://me:secret@host/x", "do not belong into a URL"),
        ("ftp://host/secret", "expected a URL that begins with"),
        ("s3://", "names no host or bucket"),
        ("file://host/x", "three slashes"),
        ("https://host/a/../../x", "without '..'"),
        ("https://host:port/x", "the port a number"),
    ],
)
def test_urls_that_are_refused_are_not_shown_with_their_secrets(url: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote(url)
    assert said in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


def test_a_damaged_cache_is_not_pushed(bucket: Remote, cache: Cache, place: Path) -> None:
    folder = copy_of(cache, place)
    shard = folder / "features.zarr/c/1/0/0/0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    with pytest.raises(CacheError, match="it is damaged here, and was not pushed"):
        push(bucket, bundle_of_cache(folder))
    assert listing(bucket, "cache") == []


def test_a_damaged_object_is_mended_by_push_with_check(bucket: Remote, cache: Cache, place: Path) -> None:
    entry = push(bucket, bundle_of_cache(cache.folder)).entry
    path = entry.record.path_of("features.zarr/c/1/0/0/0")
    data = (cache.folder / "features.zarr/c/1/0/0/0").read_bytes()
    bucket.put(path, data[:-1] + b"x")
    with pytest.raises(RemoteError, match="it was damaged or replaced there") as caught:
        got(bucket, "tiny", place)
    assert "`featcache.push(check=True)`" in str(caught.value)
    assert only_in(place) == [f".{cache.name}-{entry.sha256[:12]}.partial"]
    assert push(bucket, bundle_of_cache(cache.folder)).reused
    done = push(bucket, bundle_of_cache(cache.folder), check=True)
    assert (done.reused, done.sent_files) == (True, 2)  # the shard, and the manifest again
    assert contents(got(bucket, "tiny", place).folder) == contents(cache.folder)
    assert only_in(place) == [cache.name]


def test_a_push_goes_on_where_it_stopped(bucket: Remote, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel = bundle_of_cache(cache.folder)
    sent: list[str] = []
    put = bucket.put

    def noted(path: str, data: Any) -> None:
        put(path, data)
        sent.append(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("featcache.sharing.transfer.THREADS", 1)
        patch.setattr(bucket, "put", noted)
        push(bucket, parcel, stopped=lambda: len(sent) > 1)
    for thread in threading.enumerate():  # what was on its way may still arrive
        if thread.name == THREAD_NAME:
            thread.join(10)
    assert listing(bucket, "cache") == []
    there = {item.path for item in bucket.list(parcel.root)}
    assert 0 < len(there) < len(parcel.files)
    broken = sorted(there)[0]
    bucket.put(broken, b"x" * bucket.size(broken))  # damaged on its way, of the right size
    done = push(bucket, parcel)
    assert done.sent_files == len(parcel.files) + 2 - len(there) + 1
    assert pushing.push(bucket, parcel).reused


def test_a_pull_that_was_killed_at_its_very_end_leaves_nothing_for_ever(place: Path, cache: Cache) -> None:
    store = open_remote(str(place / "r"))
    push(store, bundle_of_cache(cache.folder))
    entry = find(store, "")
    pull(store, entry, parent=place / "b")
    left = place / "b" / f".{cache.name}-{entry.sha256[:12]}.partial"
    (left / "leases").mkdir(parents=True)
    assert pull(store, entry, parent=place / "b").reused
    assert not left.exists()
