"""fit-segmenter: painted cells and their masks, hostile files, and what is left out."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray

import featcache as fc
from featcache.core.errors import BackboneError, DatasetError, UsageError
from featcache.core.progress import SILENT
from featcache.extraction import opened_segmenter
from featcache.segmentation import PixelClassifier, SegmenterFile, SegmentOptions
from featcache.segmentation.fitted_segmenter import masks_of

Array = NDArray[Any]
EMPTY, RED, CYTOPLASM, NUCLEUS = (228, 222, 214), (200, 150, 140), (190, 160, 205), (95, 55, 150)
FIT = {"model": "pixels", "input_size_px": 32, "per_picture": 80, "progress": SILENT}


def disc(picture: Array, at: tuple[float, float, float], value: Any) -> None:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    picture[(x - at[0]) ** 2 + (y - at[1]) ** 2 <= at[2] ** 2] = value


def painted(seed: int, *, size: int = 90, cells: int = 1) -> tuple[Array, Array]:
    """A picture of white cells among red ones, and the mask; the first cell is in the middle."""
    rng = np.random.default_rng(seed)
    picture, mask = np.full((size, size * cells, 3), EMPTY, np.uint8), np.zeros((size, size * cells), np.uint8)
    for _ in range(6 * cells):
        disc(picture, (*rng.uniform(0, (size * cells, size)), size / 9), RED)
    for number in range(cells):
        x, y, radius = (number + 0.5) * size + rng.uniform(-4, 4), size / 2 + rng.uniform(-4, 4), size * 0.28
        for target, outer, inner in ((picture, CYTOPLASM, NUCLEUS), (mask, 128, 255)):
            disc(target, (x, y, radius), outer)
            disc(target, (x + 2, y - 1, radius * 0.6), inner)
    noisy = cv2.GaussianBlur(picture, (0, 0), 0.8) + rng.normal(0, 2, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), mask


def save(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def write(folder: Path, seeds: range, *, cells: int = 1) -> None:
    for seed in seeds:
        picture, mask = painted(seed, cells=cells)
        save(folder / f"images/c{seed}.png", picture)
        save(folder / f"masks/c{seed}.png", mask)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of one cell each with masks in `train`, four others in `new`, and a segmenter in `one.npz`."""
    folder = tmp_path_factory.mktemp("fitted")
    write(folder / "train", range(12))
    write(folder / "new", range(100, 104))
    fc.fit_segmenter(folder / "train/images", folder / "train/masks", out=folder / "one.npz", **FIT)
    return folder


def dice(a: Array, b: Array) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_cells_that_it_has_not_seen_are_outlined(made: Path, tmp_path: Path, run: Run) -> None:
    shown = run(
        *("dataset", "segment", str(made / "new/images"), "--method", str(made / "one.npz")),
        *("--job", "cell", "--out", "cut", "--json"),
        cwd=tmp_path,
    )
    assert shown.code == 0 and len(shown.value["cells"]) == 4 and not shown.value["left_out"]
    for path in sorted((made / "new/masks").iterdir()):
        known, found = (
            cv2.imread(str(of / path.name), cv2.IMREAD_UNCHANGED) for of in (path.parent, tmp_path / "cut/masks")
        )
        assert dice(found > 0, known > 0) > 0.93 and dice(found == 255, known == 255) > 0.93
    settings = json.loads((tmp_path / "cut/segment.json").read_text())
    assert settings["method"].startswith("fitted-") and str(made) not in json.dumps(settings)


def test_of_a_smear_each_cell_of_the_mask_is_fitted_to_and_each_cell_found(made: Path, tmp_path: Path) -> None:
    write(tmp_path, range(3), cells=3)
    fitted = fc.fit_segmenter(tmp_path / "images", tmp_path / "masks", out=tmp_path / "s.npz", job="smear", **FIT)
    assert (fitted.pictures, fitted.cells) == (3, 9) and fitted.accuracy > 0.9
    done = fc.segment(tmp_path / "images", tmp_path / "cut", method=tmp_path / "s.npz", job="smear", progress=SILENT)
    classical = fc.segment(tmp_path / "images", tmp_path / "old", job="smear", progress=SILENT)
    assert len(done.cells) == len(classical.cells) > 0
    for name in ("c0", "c1", "c2"):
        known, found = (cv2.imread(str(tmp_path / of / f"{name}.png"), -1) for of in ("masks", "cut/masks"))
        assert dice((found == 255) & (known > 0), (known == 255) & (found > 0)) > 0.9


def test_one_call_gives_one_file_whatever_the_order_and_another_seed_another(made: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        source = made / "train"
        fc.fit_segmenter(source / "images", source / "masks", out=tmp_path / f"{name}.npz", seed=seed, **FIT)
    assert (tmp_path / "a.npz").read_bytes() == (made / "one.npz").read_bytes()
    assert (tmp_path / "b.npz").read_bytes() != (made / "one.npz").read_bytes()


def test_the_classifier_is_that_of_scikit_learn() -> None:
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, 600)
    values = (rng.normal(size=(600, 5)) * (1, 10, 0.1, 3, 1) + 2 * classes[:, None]).astype(np.float32)
    ours = PixelClassifier.fit(values, classes, units=7, passes=4, seed=9)
    scaled = StandardScaler().fit_transform(values.astype(np.float64))
    with pytest.warns(UserWarning, match="Maximum iterations"):
        theirs = MLPClassifier((7,), batch_size=512, learning_rate_init=3e-3, max_iter=4, random_state=9).fit(
            scaled, classes
        )
    np.testing.assert_allclose(ours.probabilities(values), theirs.predict_proba(scaled), atol=2e-4)


def test_touching_cells_are_parted_and_the_middle_one_is_taken() -> None:
    probabilities = np.zeros((100, 100, 3), np.float32)
    probabilities[..., 0] = 1
    for x in (45, 88):
        disc(probabilities, (x, 50, 24), (0, 1, 0))
        disc(probabilities, (x, 50, 10), (0, 0, 1))
    cell, nucleus = masks_of(probabilities, (100, 100))
    one = np.zeros((100, 100), bool)
    disc(one, (45, 50, 24), True)
    assert dice(cell, one) > 0.95 and not (nucleus & ~cell).any() and not nucleus[:, 70:].any()
    assert not any(mask.any() for mask in masks_of(np.tile(np.float32([1, 0, 0]), (40, 40, 1)), (40, 40)))


def test_what_cannot_be_fitted_to_is_left_out_with_the_reason(made: Path, tmp_path: Path, run: Run) -> None:
    write(tmp_path, range(3))
    picture, mask = painted(50)
    wrong = {
        "alone": (picture, None, "no mask"),
        "small": (picture, mask[:50], "90x50"),
        "numbers": (picture, mask // 128, "no nucleus"),
        "grey": (picture, np.where(mask > 0, 60, 0).astype(np.uint8), "other values"),
        "red": (picture, np.dstack([mask, mask, mask * 0]), "other values"),
        "empty": (picture, mask * 0, "no nucleus"),
        "black": (picture * 0, mask, "black"),
    }
    for name, (pixels, of, _) in wrong.items():
        save(tmp_path / f"images/{name}.png", pixels)
        if of is not None:
            save(tmp_path / f"masks/{name}.png", of)
    (tmp_path / "images/broken.png").write_bytes(b"\x89PNG broken")
    shown = run(
        *("fit-segmenter", "images", "--masks", "masks", "--out", "f.npz", "--model", "pixels"),
        *("--input-size", "32", "--per-picture", "20", "--passes", "2", "--json"),
        cwd=tmp_path,
    )
    assert shown.code == 0 and shown.value["pictures"] == 3
    reasons = {item["image"]: item["reason"] for item in shown.value["left_out"]}
    assert set(reasons) == {"broken.png", *(f"{name}.png" for name in wrong)}
    assert all(said in reasons[f"{name}.png"] for name, (_, _, said) in wrong.items())
    save(tmp_path / "bare/masks/c0.png", np.where(mask > 0, 255, 0).astype(np.uint8))
    save(tmp_path / "bare/images/c0.png", picture)
    with pytest.raises(DatasetError, match="no mask shows cytoplasm"):
        fc.fit_segmenter(tmp_path / "bare/images", tmp_path / "bare/masks", out=tmp_path / "n.npz", **FIT)
    save(tmp_path / "none/alone.png", picture)
    refused = run("fit-segmenter", "none", "--masks", "masks", "--out", "n.npz", "--model", "pixels", cwd=tmp_path)
    assert refused.code == 1 and "no mask" in refused.error and not (tmp_path / "n.npz").exists()


def changed(path: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    with np.load(path) as there:
        arrays = dict(there)
    change(arrays)
    np.savez(out, **arrays)
    return out


def said(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        about = json.loads(arrays["about"].tobytes()) | changes
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return change


HOSTILE = {
    "another format": said(format=2),
    "a huge side": said(side_px=10**9),
    "a side that is text": said(side_px="112"),
    "no recipe": said(recipe={}),
    "another class": said(pixels={"dog": 1}),
    "a class by text": said(pixels={"background": "1", "cytoplasm": 1, "nucleus": 1}),
    "a missing array": lambda arrays: arrays.pop("out"),
    "one more array": lambda arrays: arrays.update(more=np.zeros(3)),
    "other shapes": lambda arrays: arrays.update(out=arrays["out"][:-1]),
    "one axis": lambda arrays: arrays.update(hidden=arrays["hidden"][0]),
    "no numbers": lambda arrays: arrays.update(out=arrays["out"] * np.float32("nan")),
    "float64": lambda arrays: arrays.update(out=arrays["out"].astype(float)),
    "a scale of nothing": lambda arrays: arrays.update(scale=arrays["scale"] * 0),
    "large numbers": lambda arrays: arrays.update(out=arrays["out"] + np.float32(1e30)),
    "a pickle": lambda arrays: arrays.update(about=np.array([{}], object)),
    "deep text": lambda arrays: arrays.update(about=np.frombuffer(b"[" * 100_000, np.uint8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    file = changed(made / "one.npz", tmp_path / "bad.npz", HOSTILE[name])
    with pytest.raises(DatasetError, match=r"bad\.npz"):
        SegmenterFile.read(file)


def test_damaged_large_and_packed_files_are_refused(made: Path, tmp_path: Path, run: Run) -> None:
    data = (made / "one.npz").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", b"\0" * 5_000_000)
    for part in (b"", b"text", data[: len(data) // 2], data[:-30], packed.getvalue(), b"\0" * (17 << 20)):
        (tmp_path / "bad.npz").write_bytes(part)
        with pytest.raises(DatasetError, match=r"bad\.npz"):
            SegmenterFile.read(tmp_path / "bad.npz")
    refused = run("dataset", "segment", str(made / "new/images"), "--method", "bad.npz", "--out", "o", cwd=tmp_path)
    assert refused.code == 1 and "bad.npz" in refused.error and not (tmp_path / "o").exists()


def test_methods_that_are_none_and_other_networks_are_refused(made: Path, tmp_path: Path, run: Run) -> None:
    images = str(made / "new/images")
    refused = run("dataset", "segment", images, "--method", "stian", "--out", "o", cwd=tmp_path)
    assert refused.code == 1 and "stain, colour" in refused.error
    with pytest.raises(UsageError, match="fitted segmenter"):
        fc.segment(images, tmp_path / "o", weights="w.h5", progress=SILENT)
    with pytest.raises(DatasetError, match="no such file"):
        fc.segment(images, tmp_path / "o", method="gone.npz", progress=SILENT)
    with pytest.raises(UsageError, match="method"):
        SegmentOptions(method="magic")
    recipe = json.loads(np.load(made / "one.npz")["about"].tobytes())["recipe"]
    recipe["space"]["input_size_px"] = 64  # other pixels than it was fitted to, but a network that there is
    opened_segmenter(SegmenterFile.read(changed(made / "one.npz", tmp_path / "size.npz", said(recipe=recipe))))
    recipe["space"]["weights_digest"] = "0" * 64
    with pytest.raises(BackboneError, match="not the network"):
        opened_segmenter(SegmenterFile.read(changed(made / "one.npz", tmp_path / "other.npz", said(recipe=recipe))))
    save(tmp_path / "p/c.png", painted(1)[0])
    fc.segment(tmp_path / "p", tmp_path / "cut", method=made / "one.npz", job="cell", progress=SILENT)
    again = run("dataset", "segment", "p", "--out", "cut", "--job", "cell", cwd=tmp_path)
    assert again.code == 1 and "other settings" in again.error


def test_an_early_layer_is_found_and_a_late_one_refused(made: Path, tmp_path: Path) -> None:
    source = made / "train"
    network = {**FIT, "model": "mobilenetv2", "weights": "random", "input_size_px": 64, "per_picture": 10, "passes": 2}
    fitted = fc.fit_segmenter(source / "images", source / "masks", out=tmp_path / "m.npz", **network)
    assert fitted.layer == "block_3_expand_relu"
    known = SegmenterFile.read(tmp_path / "m.npz")
    assert (known.side_px, known.weights) == (32, "random-0")
    assert opened_segmenter(known).cut_out(painted(7)[0]).cells
    for layer in ("out_relu", "block_12_add"):
        with pytest.raises(BackboneError, match="early layer"):
            fc.fit_segmenter(source / "images", source / "masks", out=tmp_path / "n.npz", layer=layer, **network)
