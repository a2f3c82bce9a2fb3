"""Valid files, changed at random: whoever reads them gets a result or one of our errors, soon and in little memory.

FEATCACHE_FUZZ_EXAMPLES=20000 tries more changes of each kind of file; FEATCACHE_FUZZ_SEED=7 other ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from test_heads_checkpoint import start, trained
from test_report import FAIR, make_run
from test_store_contract import dataset, fake_features, make_cache
from test_store_hostile import reseal

from featcache.backbones import remembered as known
from featcache.core.errors import FeatcacheError
from featcache.core.npz import open_npy
from featcache.core.project import Project, Settings, find_project, read_settings, write_project
from featcache.datasets.build import SplitRule, build
from featcache.datasets.manifest import read_dataset, write_dataset
from featcache.datasets.sources import find_images
from featcache.doubt import Doubt, Likeness
from featcache.heads import checkpoint
from featcache.heads.distance_head import DistanceHead, Neighbours, load_head, on_kernel
from featcache.heads.head import Head
from featcache.heads.resume import interrupted
from featcache.images.scanning import scan
from featcache.prediction.bundle import Bundle, expected_of
from featcache.remotes.objects import _aws_settings
from featcache.remotes.urls import open_remote, parse_url, redacted
from featcache.remotes.web import _login
from featcache.reporting import content, provenance, tables
from featcache.reporting.judging import mistakes_of, read_judgement
from featcache.reporting.labels import labels_of
from featcache.reporting.one_run import section_of
from featcache.reporting.records import read_history, read_records
from featcache.sharing.bundle import bundle_of_cache, bundle_of_run, parse_run_files
from featcache.sharing.catalog import listing
from featcache.sharing.chunks import parse_chunks
from featcache.sharing.keys import new_key, open_key, own_keys, read_public, read_trusted, unusable
from featcache.sharing.remote import add_remote, remotes_of
from featcache.sharing.send import push
from featcache.sharing.web_index import write_index
from featcache.store._verify import verify
from featcache.store.cache import open_cache
from featcache.store.catalog import list_caches
from featcache.synthetic.drawing import write_image
from featcache.training.runs import list_runs

EXAMPLES = int(os.environ.get("FEATCACHE_FUZZ_EXAMPLES", "40"))
SEED = int(os.environ.get("FEATCACHE_FUZZ_SEED", "0"))
MOST_BYTES = 1 << 30
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, "", " ", "nan", "None", "a" * 5000, "\0", "\ud800",
    "../x", "é", "e\u0301", "\u202e", "=1+1", "\x1b]52;c;x\x07", [], {}, [[]], [None], {"": None}, float("nan"),
    float("inf"), "1e999",
]  # fmt: skip
BITS = [b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b"[", b"{", b"<", b"&#0;", b"-",
        b"=", b"9" * 400, b"1e999", b"NaN", b"[" * 3000, b"\xed\xa0\x80", b"\xc3", "\u2028".encode(), b"%00", b"//",
        b"<!DOCTYPE x>"]  # fmt: skip


def changed(data: bytes, dice: random.Random, is_json: bool) -> bytes:
    """The bytes of a file, changed in one or a few places: as JSON half of the time, where it is JSON."""
    if is_json and dice.random() < 0.6:
        value = json.loads(data)
        for _ in range(dice.randint(1, 3)):
            value = _other_value(value, dice)
        return json.dumps(value, indent=2).encode("utf-8", "surrogatepass")
    for _ in range(dice.randint(1, 4)):
        data = _other_bytes(data, dice)
    return data


def _other_value(value: Any, dice: random.Random) -> Any:
    """Parsed JSON with another value, key or nesting somewhere."""
    if isinstance(value, (dict, list)) and value and dice.random() < 0.85:
        key = dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        other = value.copy()
        how = dice.random()
        if how < 0.1:
            del other[key]
        elif how < 0.15 and isinstance(other, dict):
            other[str(dice.choice(ODD))] = other.pop(key)
        elif how < 0.2 and isinstance(other, list):
            other *= dice.choice([2, 50])
        else:
            other[key] = _other_value(value[key], dice)
        return other
    if dice.random() < 0.1:
        for _ in range(dice.choice([1, 40, 900])):
            value = [value]
        return value
    return dice.choice(ODD)


def _other_bytes(data: bytes, dice: random.Random) -> bytes:
    place = dice.randint(0, len(data))
    end = min(len(data), place + dice.choice([0, 1, 4, 50, 1000]))
    how = dice.randrange(7)
    if how == 0 and place < len(data):
        return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
    if how == 1:
        return data[:place]
    if how == 2:
        return data[:place] + data[end:]
    if how == 3:
        return data[:place] + data[place:end] * dice.choice([2, 30]) + data[end:]
    if how == 4:
        return data[:place] + dice.randbytes(dice.choice([1, 4, 40])) + data[end:]
    if how == 5 and b"\n" in data:
        lines = data.split(b"\n")
        dice.shuffle(lines)
        return b"\n".join(lines)
    return data[:place] + dice.choice(BITS) + data[end:]


@dataclass(frozen=True)
class Target:
    """A valid file, and who reads it.

    prepare : makes the change fit what is digested elsewhere
    costs : how many times fewer changes are tried, since each takes long
    """

    file: Path
    read: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    costs: int = 1


Targets = dict[str, Target]


def _pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, np.full((24, 24, 3), 10 * number, np.uint8))


def _built(place: Path) -> object:
    return build(find_images(place), SplitRule())


def _sources(root: Path) -> Iterator[tuple[str, Target]]:
    names = [f"{number}.png" for number in range(6)]
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    for kind in ("list", "voc", "coco", "stamps", "yolo", "cvat", "createml"):
        _pictures(root / kind, [f"images/{name}" for name in names] if kind == "voc" else names)
    rows = "".join(f"{name},{'ab'[number % 2]},g{number},1,1,20,20\n" for number, name in enumerate(names))
    file = root / "list/labels.csv"
    file.write_text("path,label,group,x_min,y_min,x_max,y_max\n" + rows)
    yield "a list", Target(file, lambda: _built(root / "list/labels.csv"))
    (root / "voc/annotations").mkdir()
    for number, name in enumerate(names):
        file = root / f"voc/annotations/{number}.xml"
        file.write_text(
            f"<annotation><filename>{name}</filename><size><width>24</width><height>24</height><depth>3</depth></size>"
            f"<object><name>{'ab'[number % 2]}</name>{box}</object></annotation>"
        )
    yield "an annotation", Target(file, lambda: _built(root / "voc"))
    images = [{"id": n, "file_name": name, "width": 24, "height": 24} for n, name in enumerate(names)]
    objects = [{"id": n, "image_id": n, "category_id": n % 2, "bbox": [1, 1, 20, 20]} for n in range(6)]
    file = root / "coco/labels.json"
    kinds = [{"id": n, "name": "ab"[n]} for n in range(2)]
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": kinds}))
    yield "COCO", Target(file, lambda: _built(root / "coco"))
    for number in range(6):
        (root / f"yolo/{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n1 .1 .1 .2 .2 .3 .1\n")
    (root / "yolo/data.yaml").write_text("nc: 2\nnames: {0: a, 1: b}\n")
    yield "YOLO", Target(root / "yolo/0.txt", lambda: _built(root / "yolo"))
    yield "data.yaml", Target(root / "yolo/data.yaml", lambda: _built(root / "yolo"))
    shape = '<box label="{}" xtl="1" ytl="1" xbr="20" ybr="20" rotation="5"/><polygon label="a" points="1,2;3,4;9,1"/>'
    tags = "".join(f'<image name="{name}" width="24" height="24">{shape.format("ab"[n % 2])}</image>'
                   for n, name in enumerate(names))  # fmt: skip
    file = root / "cvat/annotations.xml"
    file.write_text(f"<annotations>{tags}</annotations>")
    yield "CVAT", Target(file, lambda: _built(root / "cvat"))
    file = root / "createml/annotations.json"
    at = {"x": 10, "y": 10, "width": 8, "height": 8}
    value = [
        {"image": name, "annotations": [{"label": "ab"[n % 2], "coordinates": at}]} for n, name in enumerate(names)
    ]
    file.write_text(json.dumps(value))
    yield "CreateML", Target(file, lambda: _built(root / "createml"))
    stamps = root / "stamps.csv"
    scan(root / "stamps", names, stamps=stamps)
    yield "stamps", Target(stamps, lambda: scan(root / "stamps", names, stamps=stamps))


def _caches(root: Path) -> Iterator[tuple[str, Target]]:
    cache = make_cache(root / "caches", dataset(12), fake_features(24, (3,)), 2)
    write_dataset(root / "dataset.csv", dataset(12).images)
    yield "dataset.csv", Target(root / "dataset.csv", lambda: read_dataset(root / "dataset.csv", root))

    def read() -> None:
        assert len(list_caches(cache.folder.parent)) == 1
        verify(cache.folder)
        opened = open_cache(cache.folder)
        _ = opened.views, opened.dataset, opened.rows, opened.recipe, opened.features[0:2]

    for name in ("manifest.json", "recipe.json", "ledger.jsonl", "rows.parquet", "dataset.parquet"):
        yield name, Target(cache.folder / name, read)
        if name != "manifest.json":
            yield f"{name}, resealed", Target(cache.folder / name, read, lambda: reseal(cache.folder), 3)


def _runs(root: Path) -> Iterator[tuple[str, Target]]:
    results, project = root / "results", root / "featcache.toml"
    run = make_run(results, "one", FAIR, FAIR)
    make_run(results, "two", FAIR, None)
    (root / "pulled").mkdir()
    write_project(root, Settings())

    def report() -> None:
        records, problems = read_records(list_runs(results))
        assert len(records) + len(problems) == 2
        labels = labels_of(records)
        tables.summary(records, labels), tables.recalls(records, labels), tables.times(records, labels)
        for record in records:
            section_of(record, "label", place="run-1-1", folded=False)
            mistakes_of(read_judgement(record))
            provenance.methods(record), provenance._command(record)
        if EXAMPLES > 1000 and random.random() < 0.02:
            content.gather(list_runs(results))

    yield "config.json", Target(run.folder / "config.json", report)
    yield "metrics.json", Target(run.folder / "metrics.json", report)
    yield "predictions.csv", Target(run.folder / "predictions.csv", report)
    yield (
        "history.csv",
        Target(run.folder / "history.csv", lambda: _epochs(results)),
    )
    yield (
        "a training's config.json",
        Target(run.folder / "config.json", lambda: interrupted(Project(root, Settings()), "one", given={"epochs": 3})),
    )
    yield "featcache.toml", Target(project, lambda: read_settings(project))
    state = trained()
    checkpoint.save(root / "state.npz", state, best=state, identity="me")
    yield "state.npz", Target(root / "state.npz", lambda: checkpoint.load(root / "state.npz", "me", like=start()))
    layers = [(np.ones((4, 3), "f4"), np.ones(3, "f4")), (np.ones((3, 2), "f4"), np.ones(2, "f4"))]
    Head((4,), 1.0, layers, 0.5, ("a", "b"), space="0" * 64).save(root)
    yield "head.npz", Target(root / "head.npz", lambda: Head.load(root))
    for name, decide in (
        ("neighbours", Neighbours(np.array([0, 1, 1]), 2, 2)),
        ("rbf", on_kernel(np.ones((3, 1)), np.ones(1), classes=("a", "b"))),
    ):
        (folder := root / name).mkdir()
        np.save(folder / "rows.npy", np.eye(3, 4, dtype="f4"))
        DistanceHead((4,), open_npy(folder / "rows.npy"), 1.0, decide, ("a", "b")).save(folder)
        for file in ("head.npz", "rows.npy"):
            yield f"{name}: {file}", Target(folder / file, lambda folder=folder: _decided(folder))  # type: ignore[misc]
    _some_doubt().save(root)
    yield "doubt.npz", Target(root / "doubt.npz", lambda: _doubted(root))
    bundle = _bundle(root)
    yield "a bundle", Target(bundle, lambda: (Bundle.read(bundle).head_and_doubt, expected_of(Bundle.read(bundle))))
    (root / "known.json").write_text(json.dumps({"a": {"sizes": [1, 2], "x": {"y": 0.5}}}))
    yield "what is known of networks", Target(root / "known.json", lambda: known._read(root / "known.json"))


def _decided(folder: Path) -> object:
    """What a head that keeps rows says; it takes rows of any width that its file says."""
    head = load_head(folder)
    if np.prod(head.row_shape) < 1000:
        with np.errstate(all="ignore"):
            return head.probabilities_of(np.ones((2, *head.row_shape), "f4"))
    return None


def _some_doubt() -> Doubt:
    X, y = np.random.default_rng(0).random((12, 4)), np.arange(12) % 2
    return Doubt.of(np.full((12, 2), 0.5), y, groups=np.arange(12), likeness=Likeness.of(X), features=X)


def _doubted(folder: Path) -> object:
    """What a run's doubt says; its features are as wide as its file says."""
    doubt = Doubt.load(folder)
    p = np.full((2, 2), 0.5)
    if doubt is None or doubt.likeness is None or len(doubt.likeness.mean) > 1000:
        return None
    with np.errstate(all="ignore"):
        distances = doubt.distances_of(np.ones((2, len(doubt.likeness.mean))))
        return doubt.calibrated(p), doubt.sets(p, 0.9), doubt.unlike(distances, 0.1)


def _bundle(root: Path) -> Path:
    rows = [{"file": "check/1.png", "probabilities": {"a": 0.5, "b": 0.5}}]
    files = {
        "head.npz": (root / "head.npz").read_bytes(),
        "doubt.npz": (root / "doubt.npz").read_bytes(),
        "check/1.png": b"",
        "check/expected.json": json.dumps({"rows": rows}).encode(),
    }
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    record = {
        **{"format": 1, "kind": "bundle", "name": "one", "created": "", "featcache": "", "classes": ["a", "b"]},
        **{"is_whole": False, "dtype": "float32", "row_shape": [4], "recipe": {}, "files": entries},
    }
    with zipfile.ZipFile(root / "bundle.zip", "w") as archive:
        for name, data in {"bundle.json": json.dumps(record).encode(), **files}.items():
            archive.writestr(name, data)
    return root / "bundle.zip"


def _epochs(results: Path) -> object:
    run = list_runs(results)[0]
    return read_history(run), run.epochs


def _remote(root: Path) -> Iterator[tuple[str, Target]]:
    caches = root / "pushed"
    cache, other = (make_cache(caches, dataset(12), fake_features(24, (3,)), 2, seed=number) for number in range(2))
    store = open_remote(str(root / "remote"))
    for one in (cache, other):
        push(store, bundle_of_cache(one.folder))
    run = make_run(root / "runs", "one", FAIR, None)
    push(store, bundle_of_run(run.folder))
    record = root / f"remote/caches/{cache.name}/00000001.json"

    def read() -> None:
        found = listing(store, "cache")
        assert {one.name for one in found if one.entry} >= {other.name}
        write_index(store)

    yield "a record", Target(record, read)
    for name, parse in (("chunks.json", parse_chunks), ("files.json", parse_run_files)):
        file = next((root / "remote").rglob(name))
        yield name, Target(file, lambda file=file, parse=parse: parse(file.read_bytes(), str(file)))  # type: ignore[misc]


def _settings_of_a_user(root: Path) -> Iterator[tuple[str, Target]]:
    home = root / "home"
    config = home / "config"
    config.mkdir(parents=True)
    key = new_key("anna", config)
    (config / "trusted").write_text(f"anna {key.public}\n")
    add_remote("lab", "s3://lab/x?endpoint=https://host", file=config / "config.toml")
    (home / ".netrc").write_text("machine host login anna password hunter2\n")
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = hunter2\n")
    (home / "url").write_text("s3://lab/x?endpoint=https://host:9000/a&region=x")
    yield "config.toml", Target(config / "config.toml", lambda: remotes_of(None))
    yield "trusted", Target(config / "trusted", lambda: read_trusted(config / "trusted"))
    yield "anna.pub", Target(config / "anna.pub", lambda: (own_keys(config), read_public(config / "anna.pub")))
    yield "anna.key", Target(config / "anna.key", lambda: (unusable(config), open_key("anna", config)))
    yield ".netrc", Target(home / ".netrc", lambda: _login("https://host/x"))
    yield ".aws/credentials", Target(home / ".aws/credentials", _aws_settings)

    def address() -> None:
        url = (home / "url").read_text("utf-8", "surrogateescape")
        redacted(url)
        parse_url(url)

    yield "an address", Target(home / "url", address)


MAKERS = (_sources, _caches, _runs, _remote, _settings_of_a_user)
NAMES = (
    "a list", "an annotation", "COCO", "YOLO", "data.yaml", "CVAT", "CreateML", "stamps", "dataset.csv",
    "manifest.json", "recipe.json", "recipe.json, resealed",
    "ledger.jsonl", "ledger.jsonl, resealed", "rows.parquet", "rows.parquet, resealed", "dataset.parquet",
    "dataset.parquet, resealed", "config.json", "metrics.json", "predictions.csv", "history.csv",
    "a training's config.json", "featcache.toml", "state.npz", "head.npz", "neighbours: head.npz",
    "neighbours: rows.npy", "rbf: head.npz", "rbf: rows.npy", "doubt.npz", "a bundle", "what is known of networks",
    "a record", "chunks.json", "files.json", "config.toml", "trusted", "anna.pub", "anna.key", ".netrc",
    ".aws/credentials", "an address",
)  # fmt: skip


@pytest.fixture(scope="module")
def targets(quick: Path) -> Iterator[Targets]:
    root = quick / "fuzz"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(root / "home"))
        patch.setenv("FEATCACHE_CONFIG", str(root / "home/config"))
        for variable in ("NETRC", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
            patch.delenv(variable, raising=False)
        found = dict(itertools.chain.from_iterable(make(root) for make in MAKERS))
        assert tuple(found) == NAMES
        yield found
    shutil.rmtree(root)


def _grown_bytes(before: int) -> int:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_changed_gives_a_result_or_an_error_of_ours(targets: Targets, name: str) -> None:
    target = targets[name]
    whole = target.file.read_bytes()
    around = {path: path.read_bytes() for path in target.file.parent.glob("manifest.json")}
    target.read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    is_json = target.file.suffix == ".json"

    @seed(SEED)
    @given(st.integers(0, 2**64 - 1))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_one(number: int) -> None:
        target.file.write_bytes(changed(whole, random.Random(number), is_json))
        try:
            target.prepare()
            target.read()
        except FeatcacheError as error:
            assert str(error)

    try:
        try_one()
    finally:
        target.file.write_bytes(whole)
        for path, data in around.items():
            path.write_bytes(data)
    assert _grown_bytes(before) < MOST_BYTES


def test_a_project_may_be_found_anywhere(targets: Targets) -> None:
    assert find_project(targets["featcache.toml"].file.parent)
