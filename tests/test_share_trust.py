"""Whom a pull believes: signatures, changed records, steps back, hostile manifests, tampering with files; privacy."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import contents
from hypothesis import HealthCheck, given, settings, strategies as st
from test_share import copy_of, only_in
from test_store_contract import dataset, fake_features, make_cache, recipe, rows_for, small_shards
from test_store_hostile import MANIFESTS, reseal

from featcache.core.errors import FeatcacheError, RemoteError, TrustError, UsageError
from featcache.core.files import sha256_bytes
from featcache.datasets.manifest import Dataset
from featcache.remotes.contract import Remote
from featcache.remotes.urls import open_remote
from featcache.sharing import keys
from featcache.sharing.bundle import Bundle, bundle_of_cache, bundle_of_run
from featcache.sharing.catalog import Entry, find, latest
from featcache.sharing.cleanup import verify_remote
from featcache.sharing.commit import Attribution
from featcache.sharing.private import private_bundle, read_secret
from featcache.sharing.receive import Pulled, Trust, pull
from featcache.sharing.record import Record
from featcache.sharing.send import push
from featcache.store._verify import verify
from featcache.store.cache import Cache, open_cache
from featcache.store.donors import DonorIndex
from featcache.store.manifest import FileEntry
from featcache.store.tables import rows_in

IMAGES = dataset(35)
X = fake_features(70, (3, 4, 5))


@pytest.fixture(scope="module")
def cache(quick: Path) -> Cache:
    """A cache of five shards; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_shards(monkeypatch, 16)
        return make_cache(quick / "trust", IMAGES, X, 2)


@pytest.fixture
def store(place: Path) -> Remote:
    return open_remote(str(place / "r"))


@pytest.fixture
def anna(place: Path) -> Any:
    keys.new_key("anna", place / "keys")
    return keys.open_key("anna", place / "keys")


def got(store: Remote, parent: Path, trust: Trust | None = None) -> Pulled:
    parent.mkdir(exist_ok=True)
    return pull(store, find(store, ""), parent=parent, trust=trust)


def rewrite(store: Remote, record: Record, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record where it lies, as whoever owns the remote can."""
    value = json.loads(record.text())
    change(value)
    store.put(record.path, (json.dumps(value, indent=2) + "\n").encode())


# Signatures


def test_a_signed_push_is_taken_by_who_trusts_the_key(store: Remote, cache: Cache, place: Path, anna: Any) -> None:
    push(store, bundle_of_cache(cache.folder), key=anna)
    trusting = Trust({anna[0].public: "anna of the lab"}, require_signed=True)
    signed = got(store, place / "b", trusting).signed
    assert (signed.state, signed.by) == ("trusted", "anna of the lab")
    assert got(store, place / "c").signed.state == "unknown"
    with pytest.raises(TrustError, match="which is not trusted here"):
        got(store, place / "d", Trust({}, require_signed=True))
    assert only_in(place / "d") == []


def test_an_unsigned_push_is_refused_where_a_signature_is_asked_for(
    store: Remote, cache: Cache, place: Path, anna: Any
) -> None:
    push(store, bundle_of_cache(cache.folder))
    trusting = Trust({anna[0].public: "anna"}, require_signed=True)
    with pytest.raises(TrustError, match="is not signed"):
        got(store, place / "b", trusting)
    assert got(store, place / "c").signed.state == "none"
    signed = push(store, bundle_of_cache(cache.folder), key=anna)
    assert (signed.entry.record.generation, signed.sent_files) == (2, 1)  # the manifest again; the features are there
    assert got(store, place / "b", trusting).signed.state == "trusted"


def test_a_later_record_keeps_the_words_and_says_whose_signature_went(store: Remote, cache: Cache, anna: Any) -> None:
    parcel = bundle_of_cache(cache.folder)
    push(store, parcel, words=Attribution("CC-BY-4.0", "lab@example.org"))
    signed = push(store, parcel, key=anna)
    record = signed.entry.record
    assert (record.generation, record.licence, record.contact) == (2, "CC-BY-4.0", "lab@example.org")
    assert signed.remarks == (
        "with the licence of the record before: CC-BY-4.0",
        "with the contact of the record before: lab@example.org",
    )
    other = push(store, parcel, words=Attribution("CC0"))
    record = other.entry.record
    assert (record.generation, record.licence, record.contact, record.signature) == (3, "CC0", "lab@example.org", None)
    assert other.remarks[1] == "no longer signed, as it was by anna; set `sign` to sign it"


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(licence="mine"),
        lambda value: value.update(generation=1, contact="x"),
        lambda value: value["about"].update(rows=71),
        lambda value: value["manifest"].update(sha256="0" * 64),
        lambda value: value.update(digest="0" * 64),
        lambda value: value.update(chunks=None),
        lambda value: value.update(root="caches/other"),
        lambda value: value.update(private=True),
        lambda value: value["signature"].update(by="bob", value="A" * 86 + "=="),
    ],
)
def test_a_record_that_was_changed_after_signing_is_refused(
    store: Remote, cache: Cache, place: Path, anna: Any, change: Any
) -> None:
    record = push(store, bundle_of_cache(cache.folder), key=anna).entry.record
    rewrite(store, record, change)
    with pytest.raises(TrustError, match="its signature does not fit: the record was changed"):
        got(store, place / "b")
    assert only_in(place / "b") == []


def test_a_stolen_signature_fits_no_other_record(store: Remote, cache: Cache, place: Path, anna: Any) -> None:
    signed = push(store, bundle_of_cache(cache.folder), key=anna).entry.record
    other = make_cache(place / "other", IMAGES, X + 1, 2)
    record = push(open_remote(str(place / "r2")), bundle_of_cache(other.folder)).entry.record
    stolen = record.model_copy(update={"signature": signed.signature})
    with pytest.raises(TrustError, match="does not fit"):
        keys.check_signature(stolen, {anna[0].public: "anna"})


def test_a_manifest_exchanged_under_a_signed_record_is_refused(
    store: Remote, cache: Cache, place: Path, anna: Any
) -> None:
    record = push(store, bundle_of_cache(cache.folder), key=anna).entry.record
    folder = copy_of(cache, place)
    reseal(folder, lambda value: value["provenance"].update(engine="evil"))
    store.put(record.manifest_path, (folder / "manifest.json").read_bytes())
    with pytest.raises(RemoteError, match="expected"):
        got(store, place / "b")


def test_a_step_back_is_refused(store: Remote, cache: Cache, place: Path) -> None:
    push(store, bundle_of_cache(cache.folder))
    push(store, bundle_of_cache(cache.folder), words=Attribution("CC0"))
    folder = got(store, place / "b").folder
    assert find(store, "").record.generation == 2
    shutil.rmtree(folder)
    store.remove(find(store, "").record.path)
    with pytest.raises(RemoteError, match="has generation 1, and had 2 before"):
        got(store, place / "b")
    assert got(store, place / "b", Trust(allow_older=True)).record.generation == 1
    shutil.rmtree(folder)
    rewrite(store, find(store, "").record, lambda value: value.update(licence="other"))
    with pytest.raises(RemoteError, match="another record in the same place"):
        got(store, place / "b")
    (place / "b/.remotes.json").write_text("[no")
    assert not got(store, place / "b").reused


# Keys


def test_keys_are_for_their_owner_alone(place: Path) -> None:
    made = keys.new_key("bob", place / "k")
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    assert keys.open_key("", place / "k")[0].public == made.public == keys.own_keys(place / "k")[0].public
    with pytest.raises(UsageError, match="there is a key of that name"):
        keys.new_key("bob", place / "k")
    for name in ("", "../x", "a b", "-x", "x" * 65):
        with pytest.raises(UsageError, match="expected letters"):
            keys.new_key(name, place / "k")
    made.file.chmod(0o644)
    with pytest.raises(TrustError, match="others may read it: chmod 600"):
        keys.open_key("bob", place / "k")
    made.file.chmod(0o600)
    made.file.write_text("no key")
    with pytest.raises(TrustError, match="is no private key"):
        keys.open_key("bob", place / "k")
    with pytest.raises(UsageError, match=r"no key 'eve'.*there: bob"):
        keys.open_key("eve", place / "k")
    with pytest.raises(UsageError, match="featcache key new NAME"):
        keys.open_key("", place / "none")


def test_a_new_key_that_was_killed_breaks_nothing_and_is_ended_by_the_next(place: Path) -> None:
    folder = place / "keys"
    whole = keys.new_key("anna", folder)
    for name in ("half", "empty"):
        keys.new_key(name, folder)
        (folder / f"{name}.pub").unlink()
    (folder / "empty.key").write_bytes(b"")
    (folder / "junk.key").write_text("-----BEGIN")
    (folder / "junk.pub").write_text("half a li")
    (folder / ".0123456789ab.partial.key").write_bytes(b"")
    assert [key.name for key in keys.own_keys(folder)] == ["anna", "half"]
    assert [why.partition(":")[0] for why in keys.unusable(folder)] == [
        str(folder / "empty.key"),
        str(folder / "junk.pub"),
    ]
    assert keys.open_key("anna", folder)[0] == whole
    before = keys.open_key("half", folder)[0].public
    assert keys.new_key("half", folder).public == before
    assert keys.new_key("empty", folder) == keys.open_key("empty", folder)[0]
    for name in ("anna", "half", "empty", "junk"):
        with pytest.raises(UsageError, match="there is a key of that name"):
            keys.new_key(name, folder)
    assert (folder / "anna.key").stat().st_mode & 0o777 == 0o600


def test_trusted_keys(place: Path) -> None:
    file, a, b = place / "t/trusted.keys", "A" * 43 + "=", "B" * 43 + "="
    assert keys.read_trusted(file) == {}
    keys.trust("anna", a, file=file)
    keys.trust("anna", a, file=file)
    keys.trust("bob", b, file=file)
    assert keys.read_trusted(file) == {a: "anna", b: "bob"}
    for name, public, said in (
        ("anna", "C" * 43 + "=", "has another key there"),
        ("eve", a, "has that key already, as anna"),
        ("eve", "short", "expected a public key of 44"),
    ):
        with pytest.raises(UsageError, match=said):
            keys.trust(name, public, file=file)
    keys.distrust("anna", file)
    assert keys.read_trusted(file) == {b: "bob"}
    with pytest.raises(UsageError, match=r"no key 'anna' \(there: bob\)"):
        keys.distrust("anna", file)
    file.write_text("# ours\n\nbob nonsense\n")
    with pytest.raises(TrustError, match="line 3"):
        keys.read_trusted(file)


# A remote that lies


def served(store: Remote, cache: Cache, change: Callable[[Path], object], place: Path) -> Entry:
    """What a hostile owner of a remote can serve: files of his own making, and a record that fits them."""
    honest = push(store, bundle_of_cache(cache.folder)).entry
    folder = copy_of(cache, place / "evil")
    change(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            store.put(honest.record.path_of(file.relative_to(folder).as_posix()), file.read_bytes())
    data = (folder / "manifest.json").read_bytes()
    entry = FileEntry(bytes=len(data), sha256=sha256_bytes(data))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) - len(data)
    about = {**honest.record.about, "bytes": size}
    rewrite(store, honest.record, lambda value: value.update(manifest=entry.model_dump(), chunks=None, about=about))
    found = latest(store, "cache", name=honest.record.name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_hostile_manifests_are_refused_and_touch_nothing(store: Remote, cache: Cache, place: Path, name: str) -> None:
    change, _ = MANIFESTS[name]
    entry = served(store, cache, lambda folder: reseal(folder, change), place)
    (place / "b").mkdir()
    outside = sorted(path for path in place.rglob("*") if "b" not in path.relative_to(place).parts)
    with pytest.raises(RemoteError) as caught:
        pull(store, entry, parent=place / "b")
    assert len(str(caught.value)) < 3000
    assert all(found.startswith(".") for found in only_in(place / "b"))
    assert sorted(path for path in place.rglob("*") if "b" not in path.relative_to(place).parts) == outside


def test_hostile_tables_are_refused(store: Remote, cache: Cache, place: Path) -> None:
    def swap_labels(folder: Path) -> None:
        (folder / "dataset.parquet").write_bytes((folder / "rows.parquet").read_bytes())
        reseal(folder)

    entry = served(store, cache, swap_labels, place)
    with pytest.raises(RemoteError, match="is not what it promises"):
        pull(store, entry, parent=place)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": 2}',
        b'{"format": 1, "format": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"NaN",
        b" " * (2 << 20),
    ],
)
def test_records_that_are_none(store: Remote, cache: Cache, text: bytes) -> None:
    record = push(store, bundle_of_cache(cache.folder)).entry.record
    store.put(record.path, text)
    with pytest.raises(RemoteError):
        find(store, record.name)


@pytest.mark.parametrize(
    "change",
    [
        {"root": "../../etc"},
        {"root": "/etc"},
        {"root": "a//b"},
        {"labels": ".ssh"},
        {"root": "a\\..\\b"},
        {"root": ""},
        {"name": "../x"},
        {"name": ".x"},
        {"generation": 0},
        {"generation": 2},
        {"kind": "weights"},
        {"digest": "x"},
        {"more": 1},
        {"licence": "x" * 300},
        {"manifest": {"bytes": 2**60, "sha256": "0" * 64}},
        {"manifest": {"bytes": 2**40, "sha256": "0" * 64}},
        {"about": {"rows": 1}},
        {"signature": {"key": "x", "by": "", "value": ""}},
    ],
)
def test_records_that_lie(store: Remote, cache: Cache, place: Path, change: dict[str, Any]) -> None:
    record = push(store, bundle_of_cache(cache.folder)).entry.record
    rewrite(store, record, lambda value: value.update(change))
    with pytest.raises(RemoteError):
        got(store, place / "b")
    assert all(name.startswith(".") for name in only_in(place / "b"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_object_is_found(store: Remote, cache: Cache, place: Path, data: st.DataObject) -> None:
    record = push(store, bundle_of_cache(cache.folder)).entry.record
    paths = [item.path for item in store.list("caches") if not item.path.endswith(("chunks.json", "1.json"))]
    file = place / "r" / data.draw(st.sampled_from(paths))
    honest = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(honest) - 1))
    broken = bytearray(honest)
    broken[bit // 8] ^= 1 << bit % 8
    file.write_bytes(broken)
    shutil.rmtree(place / "b", ignore_errors=True)
    try:
        with pytest.raises(RemoteError):
            got(store, place / "b")
        assert all(name.startswith(".") for name in only_in(place / "b"))
        (place / "work").mkdir()
        assert not verify_remote(store, Entry(record, ""), work=place / "work").sound
    finally:
        shutil.rmtree(place / "work", ignore_errors=True)
        file.write_bytes(honest)
    assert contents(got(store, place / "b").folder) == contents(cache.folder)


def test_swapped_shards_are_found(store: Remote, cache: Cache, place: Path) -> None:
    record = push(store, bundle_of_cache(cache.folder)).entry.record
    one, two = (place / "r" / record.path_of(f"features.zarr/c/{shard}/0/0/0") for shard in (0, 1))
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    with pytest.raises(RemoteError, match=r"damaged there or was exchanged|expected .* bytes"):
        got(store, place / "b")


def test_verify_of_a_remote_names_what_is_wrong(store: Remote, cache: Cache, place: Path) -> None:
    entry = push(store, bundle_of_cache(cache.folder)).entry
    (place / "w").mkdir()
    found = verify_remote(store, entry, work=place / "w")
    assert (found.sound, found.files) == (True, len(cache.manifest.files) + 2)
    store.remove(entry.record.path_of("features.zarr/c/1/0/0/0"))
    store.put(entry.record.path_of("ledger.jsonl"), b"x")
    store.put(entry.record.path_of("chunks.json"), b"x" * store.size(entry.record.path_of("chunks.json")))
    said = {problem.file: problem.what for problem in verify_remote(store, entry, work=place / "w").problems}
    assert said["features.zarr/c/1/0/0/0"] == "is missing"
    assert "bytes, found 1" in said["ledger.jsonl"]
    assert "SHA-256" in said["chunks.json"]
    done = push(store, bundle_of_cache(cache.folder), check=True)
    assert done.reused
    assert verify_remote(store, entry, work=place / "w").sound


# Runs


def a_run(parent: Path) -> Path:
    """The files of a small run."""
    folder = parent / "head-tiny-01234567"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"format": 1, "kind": "head", "cache": "x", "cache_name": "tiny"}')
    (folder / "metrics.json").write_text('{"format": 1, "test": {"accuracy": 0.5}}')
    (folder / "head.npz").write_bytes(bytes(range(256)))
    return folder


def test_a_run_is_pulled_bit_for_bit_and_any_flipped_bit_of_it_found(store: Remote, place: Path, anna: Any) -> None:
    run = a_run(place / "a")
    record = push(store, bundle_of_run(run), key=anna).entry.record
    trusting = Trust({anna[0].public: "anna"}, require_signed=True)
    files = [item.path for item in store.list("runs")]
    assert len(files) == 5
    for path in files:
        honest = (place / "r" / path).read_bytes()
        for place_of_bit in (0, len(honest) // 2, len(honest) - 2):
            store.put(path, honest[:place_of_bit] + bytes([honest[place_of_bit] ^ 1]) + honest[place_of_bit + 1 :])
            with pytest.raises(RemoteError):
                got(store, place / "b", trusting)
            assert all(name.startswith(".") for name in only_in(place / "b"))
            shutil.rmtree(place / "b")  # what had arrived whole would serve the next try
        store.put(path, honest)
    assert verify_remote(store, find(store, record.name), work=place).sound
    (place / "files.json").unlink()
    folder = got(store, place / "b", trusting).folder
    assert {**contents(folder), "files.json": b""} == {**contents(run), "files.json": b""}
    (folder / "head.npz").write_bytes(b"trained elsewhere")
    assert got(store, place / "b", trusting).remarks == ("with other results than on the remote; those here stay",)


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", ".x", "a/.x", "files.json", "a\\x", "a//x", "", "x" * 5000]
)
def test_a_run_that_names_files_elsewhere_is_refused(store: Remote, place: Path, name: str) -> None:
    record = push(store, bundle_of_run(a_run(place / "a"))).entry.record
    files = json.loads((place / "r" / record.manifest_path).read_text())
    files["files"][name] = files["files"].pop("head.npz")
    data = (json.dumps(files, indent=2, sort_keys=True) + "\n").encode()
    store.put(record.manifest_path, data)
    promised = {"bytes": len(data), "sha256": sha256_bytes(data)}
    rewrite(store, record, lambda value: value.update(manifest=promised, digest=promised["sha256"]))
    with pytest.raises(RemoteError):
        got(store, place / "b")
    assert all(found.startswith(".") for found in only_in(place / "b"))


# Privacy


def test_private_leaves_out_every_name(store: Remote, place: Path) -> None:
    whole = make_cache(place / "whole", IMAGES, X, 2)
    (place / "w").mkdir()
    parcel = private_bundle(whole.folder, place / "w")
    push(store, parcel)
    part = open_cache(got(store, place / "b").folder)
    assert part.name == whole.name
    assert verify(part.folder).sound
    served_bytes = b"".join(contents(place / "r").values()) + b"".join(contents(part.folder).values())
    for image in IMAGES.images:
        assert image.path.encode() not in served_bytes
    assert not {image.group for image in IMAGES.images} & set(part.rows["group"])
    assert list(part.rows["path"]) == list(part.rows["image_id"])
    assert list(part.rows["label"]) == list(whole.rows["label"])
    assert part.rows.groupby("group").size().tolist() == [2] * 35
    np.testing.assert_array_equal(part.features, whole.features)


def test_private_is_refused_where_the_names_are_there_already(store: Remote, cache: Cache, place: Path) -> None:
    push(store, bundle_of_cache(cache.folder))
    (place / "w").mkdir()
    for replace_it in (False, True):
        with pytest.raises(
            UsageError, match=f"with its paths and groups, which would stay there.*'featcache rm {cache.name}"
        ):
            push(store, private_bundle(cache.folder, place / "w"), replace=replace_it)
    assert find(store, "").record.generation == 1


def test_pseudonyms_make_another_cache_that_tells_nothing_of_its_images(store: Remote, place: Path) -> None:
    whole = make_cache(place / "whole", IMAGES, X, 2)
    secret = read_secret(place / "secret")
    assert stat.S_IMODE((place / "secret").stat().st_mode) == 0o600
    assert read_secret(place / "secret") == secret
    parcels: list[Bundle] = []
    for folder in ("w1", "w2"):
        (place / folder).mkdir()
        parcels.append(private_bundle(whole.folder, place / folder, secret=secret))
    assert parcels[0].manifest == parcels[1].manifest
    push(store, parcels[0])
    other = open_cache(got(store, place / "b").folder)
    assert other.name != whole.name
    assert verify(other.folder).sound
    served_bytes = b"".join(contents(place / "r").values())
    assert not any(image.image_id.encode() in served_bytes for image in IMAGES.images)
    np.testing.assert_array_equal(other.features, whole.features)
    assert list(other.rows["label"]) == list(whole.rows["label"])
    reach = DonorIndex([place / "b"], recipe().space, row_shape=X.shape[1:])
    reach.look_for(rows_for(IMAGES, 2))
    assert len(reach) == 0
    assert not {row.row_id for row in rows_in(other.views)} & {row.row_id for row in rows_in(whole.views)}


def test_secrets_that_are_none(place: Path) -> None:
    file = place / "secret"
    file.write_text("x" * 40)
    file.chmod(0o644)
    with pytest.raises(TrustError, match="others may read"):
        read_secret(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(TrustError, match="5 bytes: expected a secret of 32"):
        read_secret(file)
    for odd in (place, place / "no/secret"):
        with pytest.raises(FeatcacheError):
            read_secret(odd)
    assert [path.name for path in place.iterdir()] == ["secret"]


def test_private_groups_stay_together(place: Path) -> None:
    images = tuple(replace(image, group=f"patient-{n % 5}", split="train") for n, image in enumerate(IMAGES.images))
    whole = make_cache(place / "whole", Dataset(images, Path()), X, 2)
    (place / "w").mkdir()
    store = open_remote(str(place / "r"))
    push(store, private_bundle(whole.folder, place / "w"))
    rows = open_cache(got(store, place / "b").folder).rows
    pairs = set(zip(whole.rows["group"], rows["group"], strict=True))
    assert len(pairs) == 5
    assert {new for _, new in pairs} == {f"group-{n}" for n in range(1, 6)}
