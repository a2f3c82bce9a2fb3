"""The commands that look after caches, with a real network: what they print, what they refuse, how they end."""

from __future__ import annotations

import json
import os
import shutil
import time
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import EXTRACT, Made, Ran, Run, contents
from test_store_hostile import relist, reseal

from featcache.store._verify import verify
from featcache.store.cache import open_cache


def cache_of(project: Path, made: Made) -> Path:
    return project / "cache" / made.cache.name


def flip(path: Path, place: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def found_wrong(ran: Ran) -> str:
    """What a command printed that found something wrong: exit code 1, and nothing of a traceback."""
    assert ran.code == 1
    assert "Traceback" not in ran.out + ran.err
    assert "defect of featcache" not in ran.err
    return ran.out


def unchanged(run: Run, project: Path, *args: str) -> Ran:
    before = contents(project)
    ran = run(*args, cwd=project)
    assert contents(project) == before
    return ran


# verify


def test_verify_of_a_sound_cache_by_every_name(run: Run, project: Path, made: Made, monkeypatch: Any) -> None:
    cache = cache_of(project, made)
    for names in ((), (cache.name,), ("mobile",), (str(cache),), (f"cache/{cache.name}",), (f"cache/{cache.name}/",)):
        ran = unchanged(run, project, "verify", *names)
        assert ran.code == 0, ran.err
        assert ran.out.startswith(f"{cache.name}: sound: ")
        value = unchanged(run, project, "verify", *names, "--json").value
        (value,) = value if not names else [value]
        assert (value["cache"], value["sound"], value["problems"]) == (cache.name, True, [])
        assert (value["repaired_rows"], value["recomputed"], value["damaged_shards"]) == (None, None, [])
        assert value["path"] == str(cache)
    assert run("verify", ".", cwd=cache).code == 0
    both = run("verify", "mobile", str(cache), "--json", cwd=project).value
    assert [item["cache"] for item in both] == [cache.name] * 2


def test_verify_where_there_is_nothing(run: Run, project: Path, made: Made) -> None:
    name = made.cache.name
    assert f"no finished cache 'vgg' in {project}/cache (there: {name})" in run("verify", "vgg", cwd=project).error
    assert "there is no such cache" in run("verify", "cache/vgg", cwd=project).error
    for odd in ("x" * 5000, "\n"):
        assert "no finished cache" in run("verify", odd, cwd=project).error
    (project / "cache" / name / "manifest.json").unlink()
    assert "(there: none)" in run("verify", name, cwd=project).error
    assert "it was never finished: run its extract command again" in run("verify", f"cache/{name}", cwd=project).error
    ran = run("verify", cwd=project)
    assert (ran.code, f"{name}: unfinished" in ran.out, "no finished caches" in ran.out) == (1, True, True)
    assert run("verify", "--json", cwd=project).out.strip() == "[]"
    for wrong in (("--recompute", "0"), ("--recompute", "x"), ("--seed", "-1")):
        assert run("verify", *wrong, cwd=project).code == 2


def test_a_folder_that_is_called_as_a_cache_is_not_in_the_way(run: Run, project: Path, made: Made) -> None:
    (project / "mobilenetv2").mkdir()
    assert run("verify", "mobilenetv2", cwd=project).code == 0


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json", "rows.parquet", "features.zarr/c/0/0/0/0"])
def test_verify_of_a_damaged_cache(run: Run, project: Path, made: Made, name: str) -> None:
    cache = cache_of(project, made)
    flip(cache / name)
    for names in ((), (cache.name,), ("mobile",), (f"cache/{cache.name}",)):
        out = found_wrong(unchanged(run, project, "verify", *names))
        assert f"{cache.name}: DAMAGED\n  {name}: " in out
        assert f"'featcache verify {cache.name} --repair' repairs it" in out
        ran = unchanged(run, project, "verify", *names, "--recompute", "3", "--json")
        value = json.loads(found_wrong(ran))
        (value,) = value if not names else [value]
        assert (value["sound"], value["recomputed"]) == (False, None)
        assert [problem["file"] for problem in value["problems"]] == [name]
    (cache / name).unlink()
    if name != "manifest.json":
        assert f"{name}: is missing" in found_wrong(unchanged(run, project, "verify", cache.name))


def test_one_damaged_cache_does_not_hide_the_others(run: Run, project: Path, made: Made) -> None:
    assert run(*EXTRACT, "--views", "1", cwd=project).code == 0
    flip(cache_of(project, made) / "recipe.json")
    out = found_wrong(run("verify", cwd=project))
    assert out.count("DAMAGED") == 1
    assert out.count(": sound: ") == 1
    value = json.loads(found_wrong(run("verify", "--json", cwd=project)))
    assert sorted(item["sound"] for item in value) == [False, True]


def test_recompute_with_a_real_network(run: Run, project: Path, made: Made) -> None:
    ran = unchanged(run, project, "verify", "--recompute", "5", "--seed", "1")
    assert ran.code == 0, ran.err
    assert "5 rows computed again agree: at most " in ran.out
    value = unchanged(run, project, "verify", "mobile", "--recompute", "500", "--json").value
    assert value["recomputed"]["rows"] == list(range(72))
    assert value["recomputed"]["deviating"] == []
    assert value["recomputed"]["largest_deviation"] < 1
    assert run(*EXTRACT, "--dtype", "float16", "--format", "hdf5", cwd=project).code == 0
    assert run("verify", "--recompute", "9", cwd=project).code == 0


def test_recompute_finds_a_value_whose_digests_all_fit(run: Run, project: Path, made: Made) -> None:
    """One row made 2 % larger, in a shard, a ledger and a manifest that agree."""
    folder = cache_of(project, made)
    cache = open_cache(folder)
    features = cache.features[:].copy()
    features[40] *= 1.02
    from featcache.store.zarr_store import ZarrStore

    ZarrStore(folder, cache.features.layout).write_shard(0, np.ascontiguousarray(features))
    relist(folder)
    assert verify(folder).sound
    assert run("verify", cwd=project).code == 0
    out = found_wrong(unchanged(run, project, "verify", "--recompute", "72"))
    assert "1 of 72 rows computed again DIFFER from the cache: [40]" in out
    value = json.loads(found_wrong(run("verify", "mobile", "--recompute", "72", "--json", cwd=project)))
    assert (value["sound"], value["recomputed"]["deviating"]) == (True, [40])
    assert value["recomputed"]["largest_deviation"] > 1


def test_recompute_without_images_or_weights(run: Run, project: Path) -> None:
    message = run("verify", "--recompute", "1", "--weights", "gone.h5", cwd=project).error
    assert "there is no weights file gone.h5" in message
    frame = pd.read_csv(project / "dataset.csv", dtype=str)
    shutil.rmtree(project / "leukocytes")
    assert "no usable image" in run("verify", "--recompute", "1", cwd=project).error
    assert len(frame) == 24
    assert run("verify", cwd=project).code == 0


@pytest.mark.parametrize("format_", ["zarr", "hdf5"])
def test_repair(run: Run, project: Path, made: Made, format_: str) -> None:
    done = run(*EXTRACT, "--format", format_, "--json", cwd=project).value
    cache = Path(done["path"])
    before = contents(cache)
    array = cache / ("features.h5" if format_ == "hdf5" else "features.zarr/c/0/0/0/0")
    flip(array, array.stat().st_size // 2)
    flip(cache / "rows.parquet")
    if format_ == "hdf5":
        shutil.rmtree(cache_of(project, made))
    ran = run("verify", cache.name, "--repair", cwd=project)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0] == f"{cache.name}: DAMAGED"
    assert f"{cache.name}: repaired, 72 rows computed" in ran.out
    assert ran.out.splitlines()[-1].startswith(f"{cache.name}: sound: ")
    after = contents(cache)
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}
    flip(cache / "ledger.jsonl")
    value = run("verify", cache.name, "--repair", "--json", cwd=project).value
    assert (value["sound"], value["repaired_rows"]) == (True, 0)
    assert run("verify", "--repair", cwd=project).code == 0  # nothing to do
    flip(cache / "rows.parquet")
    settings = project / "featcache.toml"
    settings.write_text(settings.read_text() + "\n")
    (project / "dataset.csv").unlink()
    refused = run("verify", cache.name, "--repair", "--json", cwd=project)
    assert refused.code == 1
    assert "there is no such file" in refused.err.splitlines()[-1]


# convert, diff, ls, info


def test_convert(run: Run, project: Path, made: Made) -> None:
    name = made.cache.name
    ran = run("convert", "--format", "hdf5", cwd=project)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0].startswith(f"{name}-hdf5: written from {name}; 72 rows, ")
    assert ran.out.splitlines()[1] == f"folder: cache/{name}-hdf5"
    assert "is there already" in run("convert", name, "--format", "hdf5", cwd=project).out
    value = run("convert", f"cache/{name}", "--dtype", "float16", "--to", "other", "--json", cwd=project).value
    assert (value["source"], value["reused"], value["format"], value["dtype"]) == (name, False, "zarr", "float16")
    largest = np.abs(open_cache(cache_of(project, made)).features[:].reshape(72, -1)).max(axis=1)
    assert (value["rows"], value["faint_rows"]) == (72, int((largest < np.finfo(np.float16).smallest_normal).sum()))
    assert value["path"] == str(project / "other" / value["cache"])
    half = open_cache(value["path"])
    np.testing.assert_array_equal(half.features[:], open_cache(cache_of(project, made)).features[:].astype("float16"))
    assert run("verify", value["path"], cwd=project).code == 0
    refused = unchanged(run, project, "convert", f"other/{half.name}", "--dtype", "float32")
    assert "the digits of float32 are lost" in refused.error
    assert "several caches could be meant" in unchanged(run, project, "convert", "mobile", "--dtype", "float16").error
    assert "is zarr and float32 already" in unchanged(run, project, "convert", name).error
    assert run("convert", name, "--format", "pickle", cwd=project).code == 2
    assert run("convert", name, "--to", "featcache.toml", cwd=project).code == 2
    assert run(*EXTRACT, "--format", "hdf5", "--json", cwd=project).value["computed"] == 0


def test_convert_says_how_many_rows_are_faint(run: Run, tmp_path: Path) -> None:
    from test_store_contract import dataset, fake_features, make_cache

    cache = make_cache(tmp_path, dataset(30), fake_features(30, (5,)) * np.float32(1e-7))
    ran = run("convert", str(cache.folder), "--dtype", "float16", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "rows hold only tiny values, which float16 stores with few digits: use float32" in ran.out
    large = make_cache(tmp_path, dataset(30), fake_features(30, (5,)) * np.float32(1e6), seed=1)
    before = contents(tmp_path)
    refused = run("convert", str(large.folder), "--dtype", "float16", cwd=tmp_path)
    assert "float16 holds values up to 65504" in refused.error
    assert contents(tmp_path) == before


def test_diff(run: Run, project: Path, made: Made) -> None:
    name = made.cache.name
    other = run(*EXTRACT, "--views", "2", "--format", "hdf5", "--json", cwd=project).value["cache"]
    ran = unchanged(run, project, "diff", name, other, "--values")
    assert ran.code == 0, ran.err
    for said in (
        f"rows: 40 in both, 32 only in {name}, 0 only in {other}",
        "values: 0 of 40 rows differ, by 0 at most",
    ):
        assert said in ran.out
    value = unchanged(run, project, "diff", name, f"cache/{other}", "--values", "--json").value
    assert (value["common"], value["only_a"], value["only_b"]) == (40, 32, 0)
    assert (value["differing"], value["largest"], value["fields"]) == (0, 0.0, [])
    assert {field["field"] for field in value["storage"]} == {"format", "shape"}
    assert run("diff", name, name, cwd=project).out.startswith("the recipes are the same")
    assert "no finished cache 'vgg'" in run("diff", name, "vgg", cwd=project).error
    assert run("diff", name, cwd=project).code == 2


def test_diff_of_infinite_values_is_json(run: Run, tmp_path: Path) -> None:
    from test_store_contract import dataset, fake_features, recipe, rows_for

    from featcache.store.writer import CacheWriter

    folders = []
    for number, value in enumerate((np.inf, 0)):
        features = fake_features(30, (5,))
        features[0] = value
        with CacheWriter(
            tmp_path / str(number), recipe(), rows=rows_for(dataset(30)), row_shape=(5,), allow_nonfinite=True
        ) as writer:
            writer.write(0, features)
            writer.finish(dataset(30), {})
        folders.append(str(writer.folder))
    assert run("diff", *folders, "--values", "--json", cwd=tmp_path).value["largest"] == 1e308
    assert "values: 1 of 30 rows differ, by inf at most" in run("diff", *folders, "--values", cwd=tmp_path).out


def test_ls_and_info_of_an_hdf5_cache(run: Run, project: Path, made: Made) -> None:
    name = run("convert", "--format", "hdf5", "--json", cwd=project).value["cache"]
    listed = {item["name"]: item for item in unchanged(run, project, "ls", "--json").value}
    assert set(listed) == {made.cache.name, name}
    assert {key: listed[name][key] for key in ("status", "rows", "shape", "dtype", "weights")} == {
        "status": "finished",
        "rows": 72,
        "shape": [72, 2, 2, 1280],
        "dtype": "float32",
        "weights": "random-0",
    }
    assert name in run("ls", cwd=project).out
    value = unchanged(run, project, "info", name, "--json").value
    assert (value["array"]["format"], value["name"], set(value["files"]) >= {"features.h5"}) == ("hdf5", name, True)
    assert "(72, 2, 2, 1280) float32" in unchanged(run, project, "info", name).out
    (project / "cache" / name / "features.h5").write_bytes(b"")
    assert "features.h5: expected" in run("info", name, cwd=project).error
    assert "features.h5: expected" in run("ls", cwd=project).out.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize("weights", [7, None, {"a": [1]}, "\x1b]0;owned\x07 \x1b[2J", "x" * 3000])
def test_a_provenance_of_nonsense_is_printed_harmlessly(run: Run, project: Path, made: Made, weights: Any) -> None:
    folder = cache_of(project, made)
    reseal(folder, lambda value: value["provenance"].update(weights=weights, created=weights, engine=weights))
    for args in (("ls",), ("info",), ("ls", "--json"), ("info", "--json"), ("verify",)):
        ran = run(*args, cwd=project)
        assert ran.code == 0, ran.err
        assert "\x1b" not in ran.out + ran.err


# explain, extract


def test_explain_and_dry_run_say_what_extract_does(run: Run, project: Path, made: Made) -> None:
    name = made.cache.name
    hit = unchanged(run, project, "explain", *EXTRACT[1:])
    assert f"{name}: hit: all 72 rows are cached, nothing to compute" in hit.out
    assert (
        unchanged(run, project, *EXTRACT, "--dry-run").out
        == f"{name}: hit: all 72 rows are cached, nothing to compute\n"
    )
    more = ("--views", "5", "--format", "hdf5")
    value = unchanged(run, project, *EXTRACT, *more, "--dry-run", "--json").value
    assert value["state"] == "miss"
    assert (value["rows"], value["compute"], value["copy"], value["sources"]) == (88, 16, 72, [name])
    told = unchanged(run, project, "explain", *EXTRACT[1:], *more, "--json").value
    assert (value.pop("bytes"), value.pop("seconds") > 0) == (16 * 2 * 2 * 1280 * 4, True)
    assert "images/s" in value.pop("engine")
    assert {key: told[key] for key in value} == value
    assert [neighbour["name"] for neighbour in told["neighbours"]] == [name]
    said = unchanged(run, project, "explain", *EXTRACT[1:], "--seed", "4").out
    assert f"differs from {name}: augmentation.seed is 0 there, 4 here" in said
    done = run(*EXTRACT, *more, "--json", cwd=project).value
    assert (done["cache"], done["computed"], done["copied"]) == (value["name"], 16, 72)
    assert (done["format"], done["copied_from"]) == ("hdf5", [name])
    both = unchanged(run, project, *EXTRACT, "--model", "mobilenetv2", "--dry-run", "--json").value
    assert [item["state"] for item in both] == ["hit", "hit"]
    assert "did you mean" in unchanged(run, project, "explain", "--model", "vgg61").error
    assert "did you mean" in unchanged(run, project, "extract", "--model", "vgg61", "--dry-run").error


def test_extract_in_float16_and_from_another_folder(run: Run, project: Path, made: Made, tmp_path: Path) -> None:
    args = (*EXTRACT, "--format", "hdf5", "--dtype", "float16")
    first = run(*args, "--json", cwd=project).value
    assert (first["dtype"], first["format"], first["computed"]) == ("float16", "hdf5", 72)
    full = open_cache(cache_of(project, made)).features[:]
    half = open_cache(first["path"]).features[:]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))
    shutil.move(project / "cache", tmp_path / "elsewhere")
    assert run(*args, "--reuse-from", "gone", cwd=project).code == 2
    again = run(*args, "--reuse-from", str(tmp_path / "elsewhere"), "--json", cwd=project).value
    assert (again["computed"], again["copied"], again["cache"]) == (0, 72, first["cache"])
    assert verify(Path(again["path"])).sound


def test_extract_looks_at_bytes_when_asked(run: Run, project: Path, made: Made) -> None:
    """An image that was replaced with one of the same size, and its times set back."""
    path = project / "leukocytes" / pd.read_csv(project / "dataset.csv")["path"][0]
    status = path.stat()
    memory = project / "cache" / ".images.csv"
    assert run(*EXTRACT, "--json", cwd=project).value["computed"] == 0
    assert memory.is_file()
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data) + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(*EXTRACT, "--check-bytes", "--json", cwd=project).value["cache"] != made.cache.name


def test_nan_is_refused_unless_allowed(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import conftest

    shutil.rmtree(project / "cache")
    real = conftest._open_engine

    def strange(*args: Any, **more: Any) -> Any:
        engine = copy(real(*args, **more))

        def features(pixels: np.ndarray) -> list[np.ndarray]:
            (features,) = type(engine).features(engine, pixels)
            features[0, 0, 0, 0] = np.nan
            return [features]

        engine.features = features
        return engine

    monkeypatch.setattr(conftest, "_open_engine", strange)
    message = run(*EXTRACT, cwd=project).error
    assert "NaN or Inf in the features of" in message
    assert "set --allow-nonfinite to store them" in message
    value = run(*EXTRACT, "--allow-nonfinite", "--json", cwd=project).value
    assert np.isnan(open_cache(value["path"]).features[:]).sum() == 2
    ran = run("verify", cwd=project)
    assert ran.code == 0
    assert "2 rows hold NaN or Inf" in ran.out


# rm and gc


def test_rm_asks_nobody_and_needs_yes(run: Run, project: Path, made: Made) -> None:
    name = made.cache.name
    for args in (("rm", name), ("rm", "mobile"), ("rm", name, "--json")):
        refused = unchanged(run, project, *args)
        assert refused.code == 1
        assert "cannot ask here: add --yes to remove, or --dry-run" in refused.err
    dry = unchanged(run, project, "rm", name, "--dry-run")
    assert (dry.code, f"cache/{name}" in dry.out, "removed" in dry.out) == (0, True, False)
    value = unchanged(run, project, "rm", name, "--dry-run", "--json").value
    assert (value["removed"], [item["path"] for item in value["items"]]) == (False, [str(cache_of(project, made))])
    assert "no cache 'vgg'" in unchanged(run, project, "rm", "vgg", "--yes").error
    assert run("rm", cwd=project).code == 2
    done = run("rm", name, "--yes", "--json", cwd=project).value
    assert (done["removed"], done["bytes"]) == (True, value["bytes"])
    assert not cache_of(project, made).exists()
    assert run("ls", "--json", cwd=project).value == []


def test_gc(run: Run, project: Path, made: Made) -> None:
    assert unchanged(run, project, "gc", "--yes").out == "nothing to remove\n"
    assert run("gc", "--json", cwd=project).value["items"] == []
    small = run(*EXTRACT, "--views", "1", "--json", cwd=project).value["cache"]
    left = project / "cache" / ".0123456789ab.partial"
    left.mkdir()
    os.utime(left, (time.time() - 7200,) * 2)
    assert "add --yes" in unchanged(run, project, "gc").err
    value = unchanged(run, project, "gc", "--dry-run", "--json").value
    assert {Path(item["path"]).name: item["why"] for item in value["items"]} == {
        left.name: "left behind by a command", small: f"all its rows are in {made.cache.name}"}  # fmt: skip
    assert run("gc", "-y", cwd=project).out.splitlines()[-1].startswith("removed ")
    assert [item["name"] for item in run("ls", "--json", cwd=project).value] == [made.cache.name]
    (cache_of(project, made) / "manifest.json").unlink()
    assert run("gc", "--yes", cwd=project).out == "nothing to remove\n"
    assert unchanged(run, project, "gc", "--unfinished", "--dry-run").out.count("unfinished") == 1
    assert run("gc", "--unfinished", "--yes", cwd=project).code == 0
    assert not cache_of(project, made).exists()


def test_a_cache_that_is_written_or_cannot_be_removed(
    run: Run, project: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.core.leases import Leases

    folder = cache_of(project, made)
    leases = Leases(folder / "leases")
    assert leases.claim("0")
    assert (
        "a process is writing this cache. Stop it first, or set --force"
        in unchanged(run, project, "rm", folder.name, "--yes").error
    )
    leases.close()

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", fail)
    ran = run("rm", folder.name, "--yes", cwd=project)
    assert ran.code == 1
    assert ran.err == f"featcache: {folder}: cannot be removed: Permission denied\n"
