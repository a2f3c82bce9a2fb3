"""The lines of the table of docs/reference/backbones.md, each run as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from featcache.core.extras import is_installed

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "backbones.md"
_TABLE = PAGE.read_text(encoding="utf-8").split("## What can be used from where")[1].split("\n## ")[0]
LINES = re.findall(r"`featcache (extract --model ([^\s`]+)[^`]*)`", _TABLE)
DOWNLOADED = ("timm", "torchvision")
"""Libraries whose weights are not at hand: random ones stand in for them."""
NEEDED = {"net.onnx": ("onnx",), "nets:build": ("torch",), "net.keras": ("tensorflow",)}
"""What other models than those of a library need."""

FUNCTION = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 32, 1), torch.nn.ReLU())
"""


def provide(model: str, folder: Path) -> None:
    """Make what a line takes from the user: a file, a function, a folder in place of a download."""
    if model == "net.onnx":
        import onnx
        from onnx_models import convolutions

        onnx.save(convolutions(shape=("n", 3, 224, 224)), folder / model)
    elif model == "net.keras":
        import keras

        inputs = keras.Input((64, 64, 3))
        keras.Model(inputs, keras.layers.Conv2D(4, 3, strides=16)(inputs)).save(folder / model)
    elif model == "nets:build":
        (folder / "nets.py").write_text(FUNCTION)
    elif model.startswith("huggingface/"):
        import transformers

        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        kept = folder / model.removeprefix("huggingface/")
        transformers.ResNetModel(config).save_pretrained(kept)
        says = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}
        (kept / "preprocessor_config.json").write_text(json.dumps(says))
    elif model.startswith("kerashub/"):
        from test_backbones_kerashub import save_resnet

        save_resnet(folder / model.removeprefix("kerashub/"), side_px=64)


def test_the_table_has_every_kind() -> None:
    kinds = {model.partition("/")[0] for _, model in LINES}
    assert {"net.onnx", "net.keras", "nets:build", "timm", "torchvision", "huggingface"} < kinds
    assert len(LINES) == len(re.findall(r"^\| [^|]+ \| ", _TABLE, re.MULTILINE)) - 1  # but its head


@pytest.mark.parametrize(("line", "model"), LINES, ids=[model.replace("/", "-") for _, model in LINES])
def test_the_line_works(line: str, model: str, tmp_path: Path) -> None:
    library = model.partition("/")[0]
    packages = {"huggingface": ("torch", "transformers"), "kerashub": ("keras_hub",), "timm": ("torch", "timm")}
    for package in (*NEEDED.get(model, ()), *packages.get(library, ("torch",) if library == "torchvision" else ())):
        if not is_installed(package):
            pytest.skip(f"{package} is not installed")
    rng = np.random.default_rng(0)
    for name in (f"{split}/{label}" for split in ("train", "val", "test") for label in ("eosinophil", "monocyte")):
        picture = tmp_path / "cells" / name / "1.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(picture)
    run_command("init", "cells", "--json", cwd=tmp_path, check=True)
    provide(model, tmp_path)
    drawn = ("--weights", "random") if library in DOWNLOADED else ()
    words = [*shlex.split(line), *drawn, "--views", "1", "--json"]
    made_cache = run_command(*words, cwd=tmp_path, check=True).value
    verified = run_command("verify", made_cache["cache"], "--json", cwd=tmp_path, check=True).value
    assert verified["rows"] == 6
