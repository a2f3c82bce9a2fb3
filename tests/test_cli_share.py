"""The commands that share: what they print, what they refuse, and two projects that exchange caches and runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import servers
from conftest import Made, Run, contents, run_command, without_networks
from servers import S3, netrc_in, web_server

from featcache.core.project import find_project
from featcache.core.recipe import Recipe
from featcache.remotes.contract import read
from featcache.remotes.urls import open_remote, redacted
from featcache.sharing._pull import ask_remotes
from featcache.store.cache import open_cache
from featcache.store.tables import rows_in

FIT = ("fit-head", "--epochs", "2", "--solver", "gram")


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture
def lab(place: Path, home: Path) -> str:
    """A folder that is a remote."""
    return str(place / "lab")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The folder of another team, which has nothing yet."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    return folder


def test_remotes_are_added_listed_and_removed(run: Run, project: Path, home: Path) -> None:
    file = project / "featcache.toml"
    before = "# ours\n" + file.read_text() + "\n# the end\n"
    file.write_text(before)
    assert "no remotes: 'featcache remote add NAME URL'" in run("remote", "ls", cwd=project).out
    assert run("remote", "add", "lab", "s3://bucket/a b", "--signed", cwd=project).out.startswith(
        "lab is s3://bucket/a%20b"
    )
    assert run("remote", "add", "all", "sftp://me@host:22/x", "--user", "--json", cwd=project).value["name"] == "all"
    assert (home / ".config/featcache/config.toml").is_file()
    listed = run("remote", "ls", "--json", cwd=project).value
    assert listed == [
        {"name": "all", "url": "sftp://me@host:22/x", "signed": False},
        {"name": "lab", "url": "s3://bucket/a%20b", "signed": True},
    ]
    assert file.read_text().startswith(before.rstrip())
    assert "has a remote lab already" in run("remote", "add", "lab", "s3://x", cwd=project).error
    assert "did you mean lab?" in run("remote", "rm", "lap", cwd=project).error
    assert "lab is no longer in" in run("remote", "rm", "lab", cwd=project).out
    written = file.read_text()
    file.write_text(
        f"{written}[remotes]  # of the ward\nlab = {{url = 's3://lab'}}  # ours\nhome = {{url = '/mnt/home'}}\n"
    )
    assert run("remote", "rm", "lab", cwd=project).code == 0
    assert file.read_text() == f"{written}[remotes]  # of the ward\nhome = {{url = '/mnt/home'}}\n"
    file.write_text(written)
    assert file.read_text().rstrip() == before.rstrip()
    assert run("remote", "rm", "all", cwd=project).code == 0
    assert run("remote", "ls", "--json", cwd=project).value == []
    for url in ("s3://key:secret@bucket/x", "https://me:secret@host", "ftp://x/secret"):
        said = run("remote", "add", "bad", url, cwd=project).error
        assert "secret" not in said.replace("/secret", "")
    assert "expected letters, digits" in run("remote", "add", "a b", "s3://x", cwd=project).error
    assert redacted("s3://key:secret@b/x?y=secret") == "s3://...@b/x"


def test_init_keeps_the_remotes(run: Run, project: Path, home: Path) -> None:
    run("remote", "add", "lab", "s3://bucket/x", cwd=project)
    assert run("init", cwd=project).code == 0
    assert run("remote", "ls", "--json", cwd=project).value == [
        {"name": "lab", "url": "s3://bucket/x", "signed": False}
    ]


def test_a_cache_and_a_run_go_there_and_back(run: Run, project: Path, made: Made, lab: str, theirs: Path) -> None:
    name = made.cache.name
    assert run("remote", "add", "lab", lab, cwd=project).code == 0
    plan = run("push", "--dry-run", "--json", cwd=project).value
    assert [one["name"] for one in plan] == [name]
    assert not Path(lab).exists()
    out = run("push", "--licence", "CC-BY-4.0", "--contact", "lab@example.org", cwd=project).out
    assert f"{name}: pushed to file://{lab}: " in out
    again = run("push", "--json", cwd=project).value
    assert [(one["reused"], one["sent_files"]) for one in again] == [(True, 0)]
    assert run("remote", "add", "lab", lab, cwd=theirs).code == 0
    assert (theirs / "featcache.toml").is_file()
    (listed,) = run("ls", "--remote", "lab", "--json", cwd=theirs).value
    assert (listed["name"], listed["record"]["licence"]) == (name, "CC-BY-4.0")
    assert name in run("ls", "--remote", "lab", cwd=theirs).out
    out = run("pull", "lab/mobile", cwd=theirs).out
    assert f"{name}: pulled, " in out
    assert "CC-BY-4.0, lab@example.org" in out
    assert "not signed" in out
    assert contents(theirs / "cache" / name) == contents(project / "cache" / name)
    assert f"{name}: is here already" in run("pull", "mobile", "--remote", lab, cwd=theirs).out
    assert run("verify", cwd=theirs).code == 0
    fitted = run(*FIT, "--json", cwd=theirs).value
    assert fitted["cache"] == name
    pushed = run("push", fitted["run"], "--json", cwd=theirs).value
    assert pushed[0]["kind"] == "run"
    back = run("pull", "lab/head", "--json", cwd=project).value
    assert contents(project / "results" / fitted["run"]).keys() - {"files.json"} == contents(
        Path(fitted["path"])
    ).keys() - {"files.json"}
    assert back["path"] == str(project / "results" / fitted["run"])
    assert run("report", "--json", cwd=project).value["runs"]
    assert run("push", fitted["run"], cwd=project).out.startswith(f"{fitted['run']}: is there already")
    kinds = {one["name"]: one["kind"] for one in run("ls", "--remote", lab, "--json", cwd=project).value}
    assert kinds == {name: "cache", fitted["run"]: "run"}


def test_info_verify_and_rm_on_a_remote(run: Run, project: Path, made: Made, lab: str) -> None:
    name = made.cache.name
    run("push", "--remote", lab, cwd=project)
    out = run("info", "mobile", "--remote", lab, cwd=project).out
    assert "not signed" in out
    assert "mobilenetv2" in out
    value = run("info", "--remote", lab, "--json", cwd=project).value
    assert (value["name"], value["signed"]["state"]) == (name, "none")
    assert run("verify", "--remote", lab, cwd=project).out.startswith(f"{name}: sound: ")
    (shard,) = Path(lab).rglob("c/0/0/0/0")
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    bad = run("verify", "mobile", "--remote", lab, "--json", cwd=project)
    assert bad.code == 1
    assert json.loads(bad.out)[0]["problems"][0]["file"] == "features.zarr/c/0/0/0/0"
    assert "pull the cache first" in run("verify", "--remote", lab, "--recompute", "2", cwd=project).error
    out = run("push", "--remote", lab, "--check", cwd=project).out
    assert f"{name}: is there already; 2 files" in out
    assert run("verify", "--remote", lab, cwd=project).code == 0
    assert "cannot ask here" in run("rm", "mobile", "--remote", lab, cwd=project).err
    dry = run("rm", "mobile", "--remote", lab, "--dry-run", "--json", cwd=project).value
    assert (dry["removed"], dry["items"][0]["path"]) == (False, name)
    assert run("verify", "--remote", lab, cwd=project).code == 0
    assert run("rm", "mobile", "--remote", lab, "--yes", cwd=project).code == 0
    assert "is empty: 'featcache push'" in run("ls", "--remote", lab, cwd=project).out
    assert [path for path in Path(lab).rglob("*") if path.is_file()] == []
    assert "nothing is there" in run("rm", "mobile", "--remote", lab, "--yes", cwd=project).error


def test_keys_sign_and_are_trusted(run: Run, project: Path, made: Made, lab: str, theirs: Path) -> None:
    assert "no keys" in run("key", "ls", cwd=project).out
    assert "featcache key new NAME" in run("push", "--remote", lab, "--sign", cwd=project).error
    public = run("key", "new", "anna", "--json", cwd=project).value["public"]
    assert ", signed by anna" in run("push", "--remote", lab, "--sign", cwd=project).out
    assert public in run("key", "ls", cwd=project).out
    run("remote", "add", "lab", lab, "--signed", cwd=theirs)
    assert run("pull", "lab/mobile", "--to", "own", cwd=theirs).out.count("who is trusted here") == 1  # our own key
    config = str(theirs / "config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_CONFIG", config)
        assert "anna, unknown" in run("ls", "--remote", "lab", cwd=theirs).out
        assert "which is not trusted here" in run("pull", "lab/mobile", cwd=theirs).error
        (theirs / "anna.pub").write_text(f"anna {public}\n")
        assert run("key", "trust", "anna", "anna.pub", cwd=theirs).code == 0
        value = run("pull", "lab/mobile", "--json", cwd=theirs).value
        assert (value["signed"], value["signed_by"], value["key"]) == ("trusted", "anna", public)
        assert run("key", "ls", "--json", cwd=theirs).value["trusted"] == [{"name": "anna", "public": public}]
        assert run("ls", "--remote", "lab", "--json", cwd=theirs).value[0]["signed"] == "trusted"
        (record,) = Path(lab).glob("caches/*/00000001.json")
        honest = record.read_text()
        record.write_text(honest.replace('"licence": ""', '"licence": "mine"'))
        assert "NOT by anna" in run("ls", "--remote", "lab", cwd=theirs).out
        assert "its signature does not fit" in run("verify", "--remote", "lab", cwd=theirs).out
        record.write_text(honest)
        assert run("key", "distrust", "anna", cwd=theirs).code == 0
        assert "no key 'anna'" in run("key", "distrust", "anna", cwd=theirs).error


def test_a_part_is_pulled_and_a_head_trained_on_what_stays_there(
    run: Run, project: Path, made: Made, lab: str, theirs: Path
) -> None:
    run("push", "--remote", lab, cwd=project)
    run("remote", "add", "lab", lab, cwd=theirs)
    value = run(
        "pull", "lab/mobile", "--split", "test", "--pooling", "avg", "--dtype", "float16", "--json", cwd=theirs
    ).value
    part = open_cache(value["path"])
    whole = open_cache(made.cache)
    assert value["of"] == whole.name != part.name
    assert part.features.shape == (len(whole.numbers("test")), whole.features.shape[-1])
    assert set(part.rows["split"]) == {"test"}
    assert "did you mean" in run("pull", "lab/mobile", "--class", "lymfocyte", cwd=theirs).error
    fitted = run(*FIT, "--cache", "lab/mobile", "--json", cwd=theirs).value
    assert fitted["cache"] == whole.name
    assert [path.name for path in (theirs / "cache").iterdir() if path.is_dir()] == [part.name]
    here = run(*FIT, "--json", cwd=project).value
    assert here["run"] == fitted["run"]
    heads = [arrays_of(Path(done["path"]) / "head.npz") for done in (here, fitted)]
    assert all(np.array_equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_head_is_trained_over_the_network_without_tensorflow_or_not_at_all(
    kind: str, request: pytest.FixtureRequest, run: Run, project: Path, made: Made, home: Path, theirs: Path
) -> None:
    name, bare = made.cache.name, without_networks(theirs / "bare")
    with contextlib.ExitStack() as stack:
        if kind == "s3":
            server: S3 = request.getfixturevalue("s3")
            for variable, value in server.environment().items():
                request.getfixturevalue("monkeypatch").setenv(variable, value)
            to = url = server.url(theirs.parent.name)
        elif servers.NGINX is None:
            pytest.skip("nginx is not installed: .ci/run installs it")
        else:
            to = str(home / "www")
            url = stack.enter_context(web_server(home / "nginx", home / "www"))
            netrc_in(home)
        assert run("push", "--remote", to, cwd=project).code == 0
        assert run("remote", "add", "lab", url, cwd=theirs).code == 0
        fitted = run_command(*FIT, "--cache", f"lab/{name}", "--json", cwd=theirs, env=bare, check=True).value
        assert run(*FIT, "--json", cwd=project).value["run"] == fitted["run"]
        heads = [arrays_of(parent / "results" / fitted["run"] / "head.npz") for parent in (project, theirs)]
        assert all(np.array_equal(heads[0][array], heads[1][array]) for array in heads[0])
        there = open_remote(to)
        (shard,) = [item.path for item in there.list("caches") if item.path.endswith("c/0/0/0/0")]
        data = read(there, shard, most=1 << 30)
        there.put(shard, data[:40] + bytes([data[40] ^ 1]) + data[41:])
        shutil.rmtree(theirs / "results")
        refused = run_command(*FIT, "--cache", f"lab/{name}", cwd=theirs, env=bare)
        assert "featcache push --check" in refused.error
        assert not list((theirs / "results").glob("*"))
        assert [path.name for path in (theirs / "cache").iterdir()] == [".remotes.json"]


def test_what_was_pulled_is_computed_again_as_proof(run: Run, project: Path, made: Made, lab: str) -> None:
    run("push", "--remote", lab, cwd=project)
    run("rm", made.cache.name, "--yes", cwd=project)
    run("pull", f"{lab}/mobile", cwd=project)
    (value,) = run("verify", "--recompute", "3", "--json", cwd=project).value
    assert (value["sound"], len(value["recomputed"]["rows"]), value["recomputed"]["deviating"]) == (True, 3, [])


def test_packs_and_an_index(run: Run, project: Path, made: Made, lab: str, theirs: Path) -> None:
    name = made.cache.name
    out = run("pack", "--to", "cells.zip", "--licence", "CC0", cwd=project).out
    assert out.startswith(f"cells.zip: {name}, ")
    first = (project / "cells.zip").read_bytes()
    assert "exists already" in run("pack", "--to", "cells.zip", cwd=project).error
    assert "ends with .zip" in run("pack", "--to", "cells.tar", cwd=project).error
    (theirs / "featcache.toml").touch()
    pack = str(project / "cells.zip")
    assert f"{name}: pulled" in run("pull", pack, cwd=theirs).out
    assert f"{name}: is here already" in run("pull", f"{pack}/mobile", cwd=theirs).out
    assert "sound" in run("verify", "--remote", pack, cwd=theirs).out
    assert "can only be read" in run("push", name, "--remote", pack, cwd=theirs).error
    assert (project / "cells.zip").read_bytes() == first
    before = contents(project / "cache" / name)
    assert "1 caches and runs are listed" in run("index", "--licence", "CC0", cwd=project).out
    assert run("index", "--json", cwd=project).value == {"names": [name], "left_out": []}
    assert contents(project / "cache" / name) == before
    page = (project / "cache/index.html").read_text()
    assert name in page
    assert "CC0" in page
    assert run("ls", "--json", cwd=project).value[0]["name"] == name
    value = run("pull", f"{project}/cache/{name}", "--to", str(theirs / "b"), "--json", cwd=theirs).value
    assert contents(Path(value["path"])) == before


def test_private_pushes(run: Run, project: Path, made: Made, lab: str, theirs: Path) -> None:
    secret = str(project / "secret")
    value = run("push", "--remote", lab, "--pseudonyms", secret, "--json", cwd=project).value
    assert value[0]["private"]
    assert value[0]["name"] != made.cache.name
    (theirs / "featcache.toml").touch()
    folder = run("pull", f"{lab}/mobile", "--json", cwd=theirs).value["path"]
    paths = set(open_cache(made.cache).rows["path"])
    assert not paths & set(open_cache(folder).rows["path"])
    run(*FIT, cwd=project)
    assert "--private is for caches only" in run("push", "head", "--remote", lab, "--private", cwd=project).error


def test_what_is_refused_says_what_to_do(run: Run, project: Path, made: Made, s3: S3, home: Path, theirs: Path) -> None:
    assert "which remote? (known: none" in run("push", cwd=project).error
    assert "no remote 'lab': none is known" in run("pull", "lab/x", cwd=project).error
    assert "no featcache.toml" in run("pull", "lab/x", cwd=theirs).error
    assert "AWS_ACCESS_KEY_ID" in run("ls", "--remote", s3.url("none"), cwd=project).error
    assert "no finished cache 'nothing'" in run("push", "nothing", "--remote", str(theirs), cwd=project).error
    assert run("pull", "lab/x", "--split", "all", cwd=project).code == 2
    for damaged in ("[remotes]\nlab = 1\n", "[remotes.lab]\nurl = 1\n", "no = "):
        (home / ".config/featcache").mkdir(parents=True, exist_ok=True)
        (home / ".config/featcache/config.toml").write_text(damaged)
        assert "config.toml" in run("remote", "ls", cwd=project).error


def test_a_missing_package_is_named_with_what_installs_it(
    run: Run, project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.core.extras.find_spec", lambda name: None)
    for url, extra in (("s3://b/x", "s3"), ("gs://b/x", "gs"), ("az://b/x", "az"), ("sftp://h/x", "sftp")):
        assert f"pip install 'featcache[{extra}]'" in run("ls", "--remote", url, cwd=project).error
    assert "pip install 'featcache[share]'" in run("key", "new", "x", cwd=project).error


def test_remotes_are_asked_before_an_extraction(run: Run, project: Path, made: Made, lab: str, theirs: Path) -> None:
    cache = open_cache(made.cache)
    rows = rows_in(cache.views)
    run("push", "--remote", lab, cwd=project)
    run("remote", "add", "away", "http://127.0.0.1:9/x", cwd=theirs)
    run("remote", "add", "lab", lab, cwd=theirs)
    other = find_project(theirs)
    some = rows[: len(rows) // 2]
    reached = ask_remotes(other, cache.recipe, rows=some)
    assert reached.whole is None
    assert reached.row_ids == {row.row_id for row in some}
    assert reached.remarks[0].startswith("away: ")
    reached.forget()
    assert not list((theirs / "cache").glob(".donors*"))
    found = ask_remotes(other, cache.recipe, rows=rows)
    assert found.whole is not None
    assert contents(found.whole.folder) == contents(made.cache)
    assert ask_remotes(other, Recipe(cache.recipe.space), rows=rows[:3]).row_ids
