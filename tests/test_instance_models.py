"""Models of cellpose and StarDist: what is made of their objects, and tiny models of the real classes, offline."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from numpy.typing import NDArray
from test_fit_segmenter import dice, disc, painted, save

import featcache as fc
from featcache.core.errors import DatasetError, UsageError
from featcache.core.extras import is_installed
from featcache.core.progress import SILENT
from featcache.images import Box
from featcache.segmentation import InstanceSegmenter
from featcache.segmentation.contract import Cell
from featcache.segmentation.instances import outlined_by

Array = NDArray[Any]
needs_cellpose = pytest.mark.skipif(not is_installed("cellpose"), reason="cellpose is not installed")
needs_stardist = pytest.mark.skipif(not is_installed("stardist"), reason="StarDist is not installed")


def cell_at(x: int, y: int, radius: int) -> Cell:
    mask, nucleus = (np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8) for _ in range(2))
    disc(mask, (radius, radius, radius), 1)
    disc(nucleus, (radius, radius, radius * 0.5), 1)
    box = Box(x - radius, y - radius, x + radius + 1, y + radius + 1)
    return Cell(box, mask > 0, nucleus > 0, 0.9)


def test_an_object_around_the_nucleus_is_the_cell() -> None:
    numbers = np.zeros((100, 120), np.uint16)
    disc(numbers, (60, 50, 25), 3)
    disc(numbers, (20, 20, 15), 4)  # a red cell
    found = outlined_by(numbers, cell_at(58, 51, 20))
    assert found is not None and found.box == Box(35, 25, 86, 76) and found.score == 0.9
    np.testing.assert_array_equal(found.mask, numbers[25:76, 35:86] == 3)
    assert found.nucleus.sum() == cell_at(58, 51, 20).nucleus.sum() and not (found.nucleus & ~found.mask).any()


def test_objects_within_the_nucleus_are_its_lobes() -> None:
    cell = cell_at(60, 50, 20)
    numbers = np.zeros((100, 120), np.int32)
    disc(numbers, (55, 50, 5), 70_000)
    disc(numbers, (65, 50, 5), 2)
    found = outlined_by(numbers, cell)
    assert found is not None and found.box == cell.box and (found.mask == cell.mask).all()
    assert found.nucleus.sum() == (numbers > 0).sum()


def test_no_object_a_small_one_and_a_clump_are_none() -> None:
    cell, numbers = cell_at(60, 50, 15), np.zeros((100, 120), np.uint8)
    assert outlined_by(numbers, cell) is None
    disc(numbers, (60, 50, 2), 1)
    assert outlined_by(numbers, cell) is None
    numbers[:] = 1
    assert outlined_by(numbers, cell) is None


def test_a_segmenter_of_objects_outlines_what_is_found_and_lists_the_rest() -> None:
    picture, mask = painted(5, cells=2)
    objects = (mask > 0).astype(np.int32) * np.where(np.arange(180) < 90, 1, 2)

    class Known:
        def __init__(self, numbers: Array) -> None:
            self._numbers = numbers

        def numbers(self, pixels: Array) -> Array:
            return self._numbers

    found = InstanceSegmenter(Known(objects)).find(picture)
    classical = InstanceSegmenter(Known(np.where(objects == 1, 1, 0))).find(picture)
    assert len(found.cells) == 2 and dice(found.labels(*mask.shape) > 0, mask > 0) == 1
    assert len(classical.cells) == 1 and [item.reason for item in classical.left_out] == [
        "the model finds no object there"
    ]
    glass = np.full((90, 90, 3), 240, np.uint8)
    assert not InstanceSegmenter(Known(objects)).find(glass).cells


@pytest.fixture
def smears(tmp_path: Path) -> Path:
    for seed in range(2):
        save(tmp_path / f"smears/{seed}.png", painted(seed, cells=2)[0])
    return tmp_path / "smears"


def test_without_a_file_or_the_library_it_is_one_message(smears: Path, tmp_path: Path, run: Run) -> None:
    for library in ("cellpose", "stardist"):
        refused = run("dataset", "segment", "smears", "--segmenter", library, "--out", "o", cwd=tmp_path)
        assert refused.code == 1 and "--weights PATH" in refused.err, refused.err
        gone = run(
            *("dataset", "segment", "smears", "--segmenter", library, "--weights", "gone", "--out", "o"), cwd=tmp_path
        )
        said = "no such file" if is_installed(library) else f"pip install 'featcache[{library}]'"
        assert gone.code == 1 and said in " ".join(gone.err.split()), gone.err
    assert not (tmp_path / "o").exists()
    with pytest.raises(UsageError, match="cellpose"):
        fc.segment(smears, tmp_path / "o", method="cellpos", progress=SILENT)


def no_connection(*_: Any, **__: Any) -> Any:
    raise AssertionError("a connection")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, and no other machine."""
    monkeypatch.setattr(socket.socket, "connect", no_connection)
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@needs_cellpose
@pytest.mark.filterwarnings("ignore")
def test_a_small_model_of_cellpose(
    smears: Path, tmp_path: Path, run: Run, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from segment_anything import sam_model_registry
    from segment_anything.build_sam import _build_sam

    sizes = {"encoder_embed_dim": 32, "encoder_depth": 2, "encoder_num_heads": 2, "encoder_global_attn_indexes": [1]}
    monkeypatch.setitem(sam_model_registry, "vit_l", lambda _=None: _build_sam(**sizes, checkpoint=None))
    from cellpose.vit import CPSAM

    torch.manual_seed(0)
    network = CPSAM()
    network.out.bias.data += 5  # cells everywhere
    network.save_model(tmp_path / "small.cp")
    how = ("dataset", "segment", "smears", "--segmenter", "cellpose", "--weights", "small.cp", "--job", "smear")
    done = run(*how, "--out", "cut", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    classical = fc.segment(smears, tmp_path / "plain", job="smear", progress=SILENT)
    assert done.value["images"] == 2
    missed = [item for item in done.value["left_out"] if item["reason"] == "the model finds no object there"]
    assert len(done.value["cells"]) + len(missed) == len(classical.cells) > 0
    assert json.loads((tmp_path / "cut/segment.json").read_text())["method"].startswith("cellpose-")
    for name in ("0", "1"):
        mask = cv2.imread(str(tmp_path / f"cut/masks/{name}.png"), -1)
        assert mask.shape == (90, 180) and set(np.unique(mask)) <= {0, 128, 255}
    again = run(*how, "--out", "cut", "--json", cwd=tmp_path)
    assert again.value == done.value
    bad: dict[str, Any] = {"text": b"no model", "empty": b"", "torn": (tmp_path / "small.cp").read_bytes()[:5000]}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"x": torch.zeros(3)}, tmp_path / "other")
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil")
    for name in (*bad, "other", "evil"):
        refused = run(*how[:6], name, "--out", "o", cwd=tmp_path)
        assert refused.code == 1 and name in refused.err and "Traceback" not in refused.err, refused.err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "o").exists() and not (alone / ".cellpose").exists()


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@needs_stardist
@pytest.mark.filterwarnings("ignore")
def test_a_small_model_of_stardist(smears: Path, tmp_path: Path, run: Run, alone: Path) -> None:
    from stardist.models import Config2D, StarDist2D

    config = Config2D(
        n_rays=8, grid=(2, 2), n_channel_in=3, unet_n_depth=1, unet_n_filter_base=4, net_conv_after_unet=8
    )
    made = StarDist2D(config, name="small", basedir=str(tmp_path))
    made.keras_model.save_weights(str(tmp_path / "small/weights_best.h5"))
    (tmp_path / "small/thresholds.json").write_text('{"prob": 0.45, "nms": 0.3}')
    how = ("dataset", "segment", "smears", "--segmenter", "stardist", "--job", "smear", "--weights")
    done = run(*how, "small", "--out", "cut", "--json", cwd=tmp_path)
    assert done.code == 0 and done.value["images"] == 2, done.err
    classical = fc.segment(smears, tmp_path / "plain", job="smear", progress=SILENT)
    missed = [item for item in done.value["left_out"] if item["reason"] == "the model finds no object there"]
    assert len(done.value["cells"]) + len(missed) == len(classical.cells) > 0
    same = run(*how, "small/weights_best.h5", "--out", "cut", "--json", cwd=tmp_path)
    assert same.value == done.value
    whole = json.loads((tmp_path / "small/config.json").read_text())
    changes: list[dict[str, Any]] = [
        *({"n_rays": 10**6}, {"n_rays": "8"}, {"n_dim": 3}, {"unet_n_depth": 60}, {"grid": [2, 2, 2]}),
        *({"unet_activation": "os.system"}, {"n_channel_in": 1}, {"n_classes": 2}, {"unet_prefix": "../x"}),
    ]
    for number, change in enumerate(changes):
        shutil.copytree(tmp_path / "small", tmp_path / f"bad{number}")
        (tmp_path / f"bad{number}/config.json").write_text(json.dumps(whole | change))
    shutil.copytree(tmp_path / "small", tmp_path / "bare")
    (tmp_path / "bare/config.json").unlink()
    shutil.copytree(tmp_path / "small", tmp_path / "text")
    (tmp_path / "text/weights_best.h5").write_bytes(b"\x89HDF no weights")
    shutil.copytree(tmp_path / "small", tmp_path / "odd")
    (tmp_path / "odd/thresholds.json").write_text('{"prob": 7}')
    for name in (*(f"bad{number}" for number in range(len(changes))), "bare", "text", "odd"):
        refused = run(*how, name, "--out", "o", cwd=tmp_path)
        assert refused.code == 1 and name in refused.err and "Traceback" not in refused.err, (name, refused.err)
    assert not (tmp_path / "o").exists()
    with pytest.raises(DatasetError, match="no such file"):
        fc.segment(smears, tmp_path / "o", method="stardist", weights=str(tmp_path / "none"), progress=SILENT)
