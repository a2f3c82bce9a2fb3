"""Bundles: they predict what the run predicts, elsewhere; changed ones are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import BackboneError, MissingPackageError, RunError, TrustError, UsageError
from featcache.core.progress import SILENT
from featcache.heads.classical import KINDS
from featcache.synthetic.drawing import write_cells

pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install 'featcache[export]'")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> fc.Project:
    folder = tmp_path_factory.mktemp("bundle")
    write_cells(folder / "cells", 8, seed=2, size_px=64)
    return fc.init(folder / "cells", folder, views={"train": 2}, progress=SILENT)


@pytest.fixture(scope="module")
def cache(project: fc.Project) -> fc.Cache:
    return fc.extract(project, "pixels", input_size_px=16, progress=SILENT)


@pytest.fixture(scope="module")
def trained(cache: fc.Cache) -> fc.Run:
    return fc.fit_head(cache, epochs=3, hidden=(8,), solver="gram", progress=SILENT)


@pytest.fixture(scope="module")
def made(trained: fc.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "cells.zip"
    done = fc.bundle(trained, out=path, licence="CC0", contact="lab@example.org", progress=SILENT)
    assert (done.rows, done.made_up, done.signed_by) == (8, False, "") or done.rows < 8
    return path


def same(found: fc.Predictions, expected: fc.Predictions) -> None:
    assert (found.run, found.classes, found.paths) == (expected.run, expected.classes, expected.paths)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found.unlike, expected.unlike)
    np.testing.assert_array_equal(found.sets, expected.sets)


def test_a_bundle_predicts_what_its_run_predicts(project: fc.Project, trained: fc.Run, made: Path) -> None:
    options: dict[str, Any] = {"confidence": 0.5, "progress": SILENT}
    same(fc.predict(made, project.images_folder, **options), trained.predict(project.images_folder, **options))


def test_it_predicts_the_rows_of_a_cache_too(cache: fc.Cache, trained: fc.Run, made: Path) -> None:
    options: dict[str, Any] = {"confidence": 0.5, "progress": SILENT}
    same(fc.predict(made, cache, **options), trained.predict(cache, **options))


def test_it_says_which_places_decide(project: fc.Project, trained: fc.Run, made: Path) -> None:
    file = sorted(project.images_folder.rglob("*.png"))[0]
    found, expected = (fc.attribution(run, file, progress=SILENT) for run in (made, trained))
    np.testing.assert_allclose(found.places, expected.places, atol=1e-4)
    assert found.exact


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head(kind: str, cache: fc.Cache, project: fc.Project, tmp_path: Path) -> None:
    run = fc.fit_head(cache, head=kind, progress=SILENT)
    run.bundle(out=tmp_path / "b.zip", progress=SILENT)
    assert fc.check(tmp_path / "b.zip", progress=SILENT).sound
    found, expected = (fc.predict(one, project.images_folder, progress=SILENT) for one in (tmp_path / "b.zip", run))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)


def test_a_backbone_and_float16_features(project: fc.Project, tmp_path: Path) -> None:
    cache = fc.extract(project, "efficientnet-lite0", input_size_px=32, dtype="float16", progress=SILENT)
    run = fc.fit_head(cache, epochs=3, progress=SILENT)
    run.bundle(out=tmp_path / "b.zip", progress=SILENT)
    checked = fc.check(tmp_path / "b.zip", progress=SILENT)
    assert checked.sound and checked.largest_difference < 1e-4
    found, expected = (fc.predict(one, project.images_folder, progress=SILENT) for one in (tmp_path / "b.zip", run))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)


def test_a_whole_network(project: fc.Project, cache: fc.Cache, tmp_path: Path) -> None:
    quick = {"recipe": "study", "input_size_px": 32, "epochs": 1, "batch": 16}
    run = fc.fit_scratch(project, "resnet20", **quick, progress=SILENT)
    run.bundle(out=tmp_path / "b.zip", progress=SILENT)
    assert fc.check(tmp_path / "b.zip", progress=SILENT).sound
    found, expected = (fc.predict(one, project.images_folder, progress=SILENT) for one in (tmp_path / "b.zip", run))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    with pytest.raises(UsageError, match="is a whole network"):
        fc.predict(tmp_path / "b.zip", cache, progress=SILENT)


def test_both_runtimes_check_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import featcache.prediction.bundle as reading

    assert fc.check(made, progress=SILENT).runtime == "onnxruntime"
    monkeypatch.setattr(reading, "is_installed", lambda package: package == "openvino")
    found = fc.check(made, progress=SILENT)
    assert (found.runtime, found.sound) == ("openvino", True)
    monkeypatch.setattr(reading, "is_installed", lambda _: False)
    with pytest.raises(MissingPackageError, match="requires onnxruntime or openvino"):
        fc.check(made, progress=SILENT)


def test_its_own_lines_of_code_need_no_featcache(
    project: fc.Project, trained: fc.Run, made: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path)
    code = (tmp_path / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    assert "featcache" not in code
    files = sorted(map(str, project.images_folder.rglob("*.png")))
    block = "import sys\nsys.modules.update(dict.fromkeys(('featcache', 'tensorflow', 'keras', 'cv2')))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + code, *files], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said = [
        line.removeprefix(f"{file} ").split()[0] for line, file in zip(done.stdout.splitlines(), files, strict=True)
    ]
    expected = list(trained.predict(files, progress=SILENT).labels)
    assert np.mean([one == other for one, other in zip(said, expected, strict=True)]) == 1


def test_the_model_card(made: Path, trained: fc.Run) -> None:
    with zipfile.ZipFile(made) as archive:
        card = archive.read("model_card.md").decode()
    metrics = trained.metrics["test"]
    assert f"# Model card: {trained.name.replace('_', chr(92) + '_')}" in card
    assert "- Licence: CC0" in card and "- Contact: lab@example.org" in card
    assert f"| test | {metrics['rows']} | {metrics['groups']} | {100 * metrics['accuracy']:.1f} |" in card
    for label, line in zip(trained.config["classes"], metrics["confusion"], strict=True):
        assert f"| {label} | {' | '.join(map(str, line))} |" in card
        assert f"**{label}**" in card  # of each there are few test images
    assert trained.config["dataset"][:16] in card


def test_nothing_of_the_project_where_that_is_asked(trained: fc.Run, tmp_path: Path) -> None:
    done = trained.bundle(out=tmp_path / "b.zip", images=False, progress=SILENT)
    assert done.made_up and done.rows == 8
    with zipfile.ZipFile(done.path) as archive:
        rows = json.loads(archive.read("check/expected.json"))["rows"]
    assert all(row["path"].startswith("made-up image") for row in rows)
    assert fc.check(done.path, progress=SILENT).sound


def test_a_run_without_its_project_gets_made_up_images(trained: fc.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    assert fc.bundle(tmp_path / "run", out=tmp_path / "b.zip", progress=SILENT).made_up


# --- changed and cut short -----------------------------------------------------------------------


def rewritten(path: Path, to: Path, change: Callable[[dict[str, bytes]], None], compress: bool = False) -> Path:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return to


def in_record(**changed: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files["bundle.json"] = json.dumps({**json.loads(files["bundle.json"]), **changed}).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.update({"model.onnx": files["model.onnx"][:-1] + b"x"}),
        lambda files: files.update({"check/1.png": files["check/2.png"]}),
        lambda files: files.update({"evil.py": b"print()"}),
        lambda files: files.pop("labels.json"),
        lambda files: files.pop("bundle.json"),
        lambda files: files.update({"bundle.json": b"{}"}),
        lambda files: files.update({"bundle.json": b"[1"}),
        in_record(format=2),
        in_record(classes=["a"]),
        in_record(extra=1),
        in_record(recipe={}),
        in_record(classes=["a", "b", "c", "d"]),
        in_record(row_shape=[4]),
        in_record(dtype="float64"),
    ],
)
def test_a_changed_bundle_is_refused(made: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    path = rewritten(made, tmp_path / "changed.zip", change)
    with pytest.raises(RunError, match=r"changed\.zip: "):
        fc.check(path, progress=SILENT)


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_one_that_was_cut_short_is_refused(made: Path, tmp_path: Path, keep: float) -> None:
    data = made.read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    for attempt in (fc.check, lambda path, progress: fc.predict(path, np.zeros((1, 9, 9, 3), np.uint8))):
        with pytest.raises(RunError, match=r"cut\.zip: cannot be read"):
            attempt(tmp_path / "cut.zip", progress=SILENT)


def test_one_that_is_packed_or_not_there_is_refused(made: Path, tmp_path: Path) -> None:
    packed = rewritten(made, tmp_path / "packed.zip", lambda _: None, compress=True)
    with pytest.raises(RunError, match="its files are compressed"):
        fc.check(packed, progress=SILENT)
    with pytest.raises(RunError, match="there is no such bundle"):
        fc.check(tmp_path / "nothing.zip", progress=SILENT)


def test_other_probabilities_are_said(made: Path, tmp_path: Path, run: Run) -> None:
    def change(files: dict[str, bytes]) -> None:
        import hashlib

        expected = json.loads(files["check/expected.json"])
        first = expected["rows"][0]["probabilities"]
        label = next(iter(first))
        first[label] += 0.01
        data = json.dumps(expected).encode()
        files["check/expected.json"] = data
        record = json.loads(files["bundle.json"])
        record["files"]["check/expected.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files["bundle.json"] = json.dumps(record).encode()

    path = rewritten(made, tmp_path / "other.zip", change)
    checked = fc.check(path, progress=SILENT)
    assert not checked.sound and checked.largest_difference == pytest.approx(0.01, abs=1e-4)
    said = run("check", str(path), "--json", cwd=tmp_path)
    assert (said.code, json.loads(said.out)["sound"]) == (1, False)
    assert "other probabilities" in said.err


# --- signatures, the commands, bad input ---------------------------------------------------------


def test_a_signed_bundle(
    trained: fc.Run, made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    monkeypatch.setenv("FEATCACHE_CONFIG", str(tmp_path / "config"))
    assert run("key", "new", "lab", cwd=tmp_path).code == 0
    done = trained.bundle(out=tmp_path / "signed.zip", sign="lab", progress=SILENT)
    assert done.signed_by == "lab"
    checked = fc.check(done.path, require_signed=True, progress=SILENT)
    assert (checked.sound, checked.signed, checked.signed_by) == (True, "trusted", "lab")
    with pytest.raises(TrustError, match="is not signed"):
        fc.check(made, require_signed=True, progress=SILENT)
    with pytest.raises(TrustError, match="signature does not fit"):
        fc.check(rewritten(done.path, tmp_path / "c.zip", in_record(created="yesterday")), progress=SILENT)
    monkeypatch.setenv("FEATCACHE_CONFIG", str(tmp_path / "elsewhere"))
    assert fc.check(done.path, progress=SILENT).signed == "unknown"
    with pytest.raises(TrustError, match="not trusted here"):
        fc.check(done.path, require_signed=True, progress=SILENT)


def test_the_commands(project: fc.Project, trained: fc.Run, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    said = run("bundle", trained.name, "--out", str(path), "--json", cwd=project.folder).value
    assert Path(said["path"]) == path.resolve() and "model.onnx" in said["files"]
    checked = run("check", str(path), "--json", cwd=tmp_path).value
    assert checked["sound"] is True and checked["rows"] == said["rows"] and checked["largest_difference"] < 1e-4
    file = sorted(project.images_folder.rglob("*.png"))[0]
    rows = run("predict", str(path), str(file), "--json", cwd=tmp_path).value["rows"]
    assert set(rows[0]) == {"path", "class", "probabilities", "confidence", "set", "unlike"}
    again = run("bundle", trained.name, "--out", str(path), cwd=project.folder)
    assert (again.code, "exists already" in again.err) == (1, True)
    assert "as it was made" in run("check", str(path), cwd=tmp_path).out


def test_bad_arguments(made: Path, trained: fc.Run, tmp_path: Path) -> None:
    image = np.zeros((1, 9, 9, 3), np.uint8)
    with pytest.raises(UsageError, match="ends with"):
        trained.bundle(out=tmp_path / "b.tar", progress=SILENT)
    for options in ({"weights": "x.h5"}, {"engine": "keras"}):
        with pytest.raises(UsageError, match="brings its own"):
            fc.predict(made, image, **options, progress=SILENT)
    with pytest.raises(RunError, match="cannot be written"):
        trained.bundle(out=tmp_path / "no" / "b.zip", progress=SILENT)
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_used_is_left_out(made: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((3, 9000, 3), 200, np.uint8))
    said = fc.predict(made, tmp_path, progress=SILENT)
    assert [Path(path).name for path in said.paths] == ["wide.png"]
    assert [Path(path).name for path, _ in said.left_out] == ["broken.png"]


def test_a_damaged_model_is_no_traceback(made: Path, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        import hashlib

        files["model.onnx"] = data = bytes(1000)
        record = json.loads(files["bundle.json"])
        record["files"]["model.onnx"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files["bundle.json"] = json.dumps(record).encode()

    with pytest.raises((RunError, BackboneError), match=r"damaged\.zip"):
        fc.check(rewritten(made, tmp_path / "damaged.zip", change), progress=SILENT)
