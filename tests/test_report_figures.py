"""Figures: PNG files of a sane size with something in them, whatever the history, the classes or the title."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featcache.reporting import figures
from featcache.training.history import Epoch


def history(epochs: int, val: bool = True, seed: int = 0) -> list[Epoch]:
    """A course that falls and rises as trainings do, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.01, epochs)
    fall = np.exp(-5 * np.arange(1, epochs + 1) / epochs)
    return [
        Epoch(
            epoch=i + 1,
            loss=float(0.2 + 1.4 * fall[i] + noise[i]),
            accuracy=float(0.95 - 0.7 * fall[i] + noise[i]),
            val_loss=float(0.3 + 1.4 * fall[i] - noise[i]) if val else float("nan"),
            val_accuracy=float(0.9 - 0.7 * fall[i] - noise[i]) if val else float("nan"),
            lr=0.003,
            seconds=0.1,
        )
        for i in range(epochs)
    ]


def pixels(png: Path | bytes) -> np.ndarray:
    """(height, width, 3) of a PNG that is neither blank nor of an absurd size."""
    with Image.open(io.BytesIO(png) if isinstance(png, bytes) else png) as image:
        assert image.format == "PNG"
        found = np.asarray(image.convert("RGB"))
    assert 200 < found.shape[0] < 4000
    assert 200 < found.shape[1] < 4000
    assert (found != 255).any(axis=2).mean() > 0.005
    return found


def has_color(image: np.ndarray, color: str) -> bool:
    """Whether some pixels are of a palette's colour."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(image.astype(int) - wanted).max(axis=2) < 6).sum() > 20)


@pytest.mark.parametrize("epochs", [1, 2, 100, 5000])
def test_write_curves_shows_both_lines(tmp_path: Path, epochs: int) -> None:
    figures.write_curves(pd.DataFrame(history(epochs)), tmp_path / "curves.png", title="head-vgg16-1a2b3c4d")
    image = pixels(tmp_path / "curves.png")
    assert has_color(image, figures.PALETTE[0])
    assert has_color(image, figures.PALETTE[1])
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_write_curves_without_validation_draws_and_names_training_only(tmp_path: Path) -> None:
    figures.write_curves(pd.DataFrame(history(9, val=False)), tmp_path / "curves.png")
    image = pixels(tmp_path / "curves.png")
    assert has_color(image, figures.PALETTE[0])
    assert not has_color(image, figures.PALETTE[1])


@pytest.mark.parametrize("factor", [0.0, 1e-9, 1e6])
def test_write_curves_of_losses_of_any_size(tmp_path: Path, factor: float) -> None:
    frame = pd.DataFrame(history(20))
    frame["loss"] *= factor
    figures.write_curves(frame, tmp_path / "curves.png")
    pixels(tmp_path / "curves.png")


@pytest.mark.parametrize("title", ["$x_{", "a\nb", "白血球 <b>", "\ud800", "x" * 500, "_hidden"])
def test_titles_and_classes_are_text_and_no_formulas(tmp_path: Path, title: str) -> None:
    figures.write_curves(pd.DataFrame(history(3)), tmp_path / "curves.png", title=title)
    figures.write_confusion([[3, 1], [0, 4]], [title, f"{title} 2"], path=tmp_path / "confusion.png", title=title)
    pixels(tmp_path / "curves.png")
    pixels(tmp_path / "confusion.png")


@pytest.mark.parametrize("n", [2, 4, 9, 20])
def test_write_confusion_from_two_to_twenty_classes(tmp_path: Path, n: int) -> None:
    confusion = (np.eye(n, dtype=int) * 1000 + 1).tolist()
    confusion[0] = [0] * n
    names = [f"a class with quite a long name, number {i}" for i in range(n)]
    figures.write_confusion(confusion, names, path=tmp_path / "confusion.png")
    assert has_color(pixels(tmp_path / "confusion.png"), "#0F5F9A")


def test_drawing_touches_no_global_state_and_importing_loads_no_matplotlib() -> None:
    code = (
        "import sys, pandas as pd\n"
        "from pathlib import Path\n"
        "from featcache.reporting import figures, page\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figures._figure(3, 3)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_matplotlibrc_in_the_folder_is_not_obeyed(tmp_path: Path) -> None:
    code = (
        "import numpy as np, sys; from featcache.reporting.figures import confusion_matrix;"
        "sys.stdout.buffer.write(confusion_matrix([[3, 1], [0, 4]], ['a', 'b'], title='title'))"
    )
    drawn = []
    for text in (
        "",
        "savefig.facecolor: red\naxes.facecolor: red\nfont.size: 40\nnonsense: 1\nbackend: module://evil\n",
    ):
        (tmp_path / "matplotlibrc").write_text(text)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
        assert done.stderr == b""
        drawn.append(done.stdout)
    assert drawn[0] == drawn[1]
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\x80")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 or b"damaged matplotlibrc" in done.stderr
