"""Figures that a run keeps: its curves and its confusion matrix. Those of a report are made by `charts`.

matplotlib is loaded when a figure is drawn, not before, and only through its object API: no global
state is touched, so that figures may be drawn in any thread and beside a user's own plots.
"""

from __future__ import annotations

import functools
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import RunError
from featcache.core.files import write_bytes
from featcache.reporting.text import shorten
from featcache.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion.png"
SWEEP_FIGURE = "sweep.png"

# Okabe & Ito's palette, which colour-blind readers can tell apart, without its yellow: too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
_INK, _QUIET, _GRID = "#222222", "#5F6368", "#E4E6E8"
_DPI = 160
_LONGEST_LINE = 300  # points a line; longer histories become means with a band of lowest to highest

_MOST_WRITTEN = 30
"""Classes of a confusion matrix whose counts and names can be read; of more, colours alone are drawn."""

Line = NDArray[np.float64]


def draw(run: Run, *, with_curves: bool = True) -> Run:
    """Draw the curves and the confusion of a run that is written."""
    with suppress(OSError, MemoryError, RunError):  # no picture is worth a training
        if with_curves:
            write_curves(run.history, run.folder / CURVES_FILE, title=run.name)
        if not run.config.get("label_separator"):  # of several labels each has its own, which are few numbers
            write_confusion(run.metrics["test"]["confusion"], run.config["classes"], path=run.folder / CONFUSION_FILE)
    return run


def write_curves(history: pd.DataFrame, path: Path, *, title: str = "") -> None:
    """`curves` into a PNG file."""
    write_bytes(path, curves(history, title))


def curves(history: pd.DataFrame, title: str = "") -> bytes:
    """Loss and accuracy per epoch, training and validation, as PNG.

    history : one line an epoch with epoch, loss, accuracy, val_loss, val_accuracy; the last two may be NaN
    """
    width, height = 9.6, 3.7
    figure = _figure(width, height, layout=None)  # to find margins takes as long as to draw
    left, right, below, above, between = 0.7, 0.1, 0.5, 0.7 if title else 0.35, 0.75  # inches
    panel = (width - left - right - between) / 2
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height, between / panel)
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        lines = ((measure, "training"), (f"val_{measure}", "validation"))
        drawn = [
            _draw_line(axes, history["epoch"], values=history[column], label=label, color=color)
            for (column, label), color in zip(lines, PALETTE, strict=False)
        ]
        _dress(axes, measure)
        _limit(axes, measure, drawn)
    # Beside the panel's title, where no line can run beneath it.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=2, frameon=False, labelcolor=_INK)
    if title:
        _title(figure, title)
    return _png(figure)


def write_sweep(table: pd.DataFrame, measure: str, *, path: Path) -> None:
    """Draw mean and spread of every combination of a sweep, best first, into a PNG file.

    table : one line a combination: swept fields, then `measure` (its mean), spread, epoch
    """
    shown = table[np.isfinite(table[measure])].head(30)
    fields = [name for name in table.columns if name not in (measure, "spread", "epoch", "diverged")]
    names = [", ".join(f"{name} {line[name]}" for name in fields) for line in shown.to_dict("records")]
    figure = _figure(9.6, 1.2 + 0.28 * len(shown))
    axes = figure.subplots()
    places = np.arange(len(shown))
    axes.errorbar(shown[measure], places, xerr=shown["spread"], fmt="o", color=PALETTE[0], ecolor=_QUIET, capsize=2)
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    _dress(axes, f"{measure}: mean and standard deviation over seeds")
    axes.set_xlabel(measure, color=_QUIET)
    write_bytes(path, _png(figure))


def write_confusion(confusion: list[list[int]], classes: Sequence[str], *, path: Path, title: str = "") -> None:
    """`confusion_matrix` into a PNG file."""
    write_bytes(path, confusion_matrix(confusion, classes, title=title))


def confusion_matrix(confusion: list[list[int]], classes: Sequence[str], *, title: str = "") -> bytes:
    """A confusion matrix as PNG: counts, and percent of the row's class; of many classes the shares as colours alone.

    confusion : (classes, classes), true down, predicted across
    """
    counts = np.asarray(confusion, dtype=np.float64).reshape(len(classes), len(classes))
    support = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, support, out=np.zeros_like(counts), where=support > 0)
    n = len(classes)
    if n > _MOST_WRITTEN:
        return _shares_alone(share, title)
    cell = 1.05 if n <= 6 else 0.75 if n <= 12 else 0.62  # inches
    names = [shorten(label, 22) for label in classes]
    margin = 0.075 * max(len(name) for name in names)  # what names take, inches
    below = margin * (0.75 if n > 4 else 0.3)
    width, height = n * cell + margin + 1.2, n * cell + below + 1.2
    figure = _figure(width, height, layout=None)
    figure.subplots_adjust((margin + 1) / width, (below + 0.7) / height, 1 - 0.2 / width, 1 - 0.5 / height)
    axes = figure.subplots()
    axes.imshow(share, cmap=_blues(), vmin=0, vmax=1)
    _write_cells(axes, counts, share, support[:, 0], size=11.5 if n <= 6 else 9 if n <= 12 else 7.5)
    _name_classes(axes, names, support[:, 0])
    if title:
        _title(figure, title)
    return _png(figure, bbox_inches="tight", pad_inches=0.15)


def _shares_alone(share: Line, title: str) -> bytes:
    """A picture of one size, however many classes there are; rows are reduced to what its pixels can show."""
    figure = _figure(9, 8.4)
    axes = figure.subplots()
    drawn = axes.imshow(share, cmap=_blues(), vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xlabel(f"predicted: {len(share):,} classes, by name", color=_QUIET)
    axes.set_ylabel("true", color=_QUIET)
    axes.tick_params(length=0, labelcolor=_QUIET)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=axes, label="share of the true class", format="{x:.0%}", fraction=0.04)
    if title:
        _title(figure, title)
    return _png(figure)


def _write_cells(axes: Axes, counts: Line, share: Line, support: Line, size: float) -> None:
    decimals = 1 if len(counts) <= 12 else 0
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    for (true, predicted), count in np.ndenumerate(counts):
        ink = "white" if share[true, predicted] > 0.45 else _INK if count else "#A0A4A8"
        weight = "bold" if true == predicted else "normal"
        text = axes.text(predicted, true, f"{count:,.0f}", color=ink, size=size, weight=weight, **centred)
        # Texts within the axes need no room of their own; measuring hundreds of them takes seconds.
        text.set_in_layout(False)
        if support[true] and count:
            text.set_y(true - 0.12)
            portion = f"{100 * share[true, predicted]:.{decimals}f} %"
            axes.text(predicted, true + 0.2, portion, color=ink, size=size * 0.76, **centred).set_in_layout(False)


def _name_classes(axes: Axes, names: Sequence[str], support: Line) -> None:
    numbers = range(len(names))
    turned = len(names) > 6 or max(len(name) for name in names) > 13
    axes.set_xticks(numbers, names, parse_math=False)
    axes.set_yticks(
        numbers, [f"{name}  ({count:,.0f})" for name, count in zip(names, support, strict=True)], parse_math=False
    )
    if turned:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("predicted", color=_QUIET, labelpad=8)
    axes.set_ylabel("true", color=_QUIET, labelpad=8)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.spines[:].set_visible(False)
    edges = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def _draw_line(axes: Axes, epochs: Any, values: Any, label: str, color: str) -> Line:
    """Draw one line, of many points with a band from the lowest to the highest; its values as drawn, shape (points,).

    What is no number is left out.
    """
    x, y = np.asarray(epochs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    starts = np.unique(np.linspace(0, len(y), min(len(y), _LONGEST_LINE), endpoint=False).astype(np.intp))
    sizes = np.diff([*starts, len(y)])
    centre, mean = (np.add.reduceat(axis, starts) / sizes if len(axis) else axis for axis in (x, y))
    if len(mean) < len(y):
        low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        axes.fill_between(centre, low, high, color=color, alpha=0.18, linewidth=0)
    marker = "o" if len(mean) <= 12 else ""
    # Without points there is no line, and no entry in the legend.
    axes.plot(centre, mean, lw=1.7, color=color, marker=marker, ms=5, label=label if len(mean) else "_")
    return mean


def _dress(axes: Axes, title: str) -> None:
    """Title, axes and grid of a panel of curves."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", size=11, weight="bold", color=_INK)
    axes.set_xlabel("epoch", color=_QUIET)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    else:
        axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9AA0A6")
    axes.tick_params(which="both", length=0, colors=_QUIET)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if not any(np.size(line.get_ydata()) for line in axes.get_lines()):
        axes.text(0.5, 0.5, "no rows", transform=axes.transAxes, ha="center", va="center", color=_QUIET)


def _limit(axes: Axes, measure: str, drawn: Sequence[Line]) -> None:
    """Limits and ticks of the vertical axis, from all that is drawn on it."""
    from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

    values = np.concatenate(drawn)
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if measure == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylim(max(0.0, low - 0.06), min(1.01, high + 0.06))
    elif low > 0 and high > 50 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=min(0.0, low))


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(shorten(title, 90), x=0.01, ha="left", size=12, color=_INK, parse_math=False)


def _figure(width_in: float, height_in: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    _import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout=layout, facecolor="white")


@functools.cache
def _import_matplotlib() -> None:
    """Matplotlib with its own defaults, quietly: it would obey a matplotlibrc that lies in the project's folder.

    Who has imported it before, in a notebook, keeps what is set there.
    """
    if "matplotlib" in sys.modules:
        return
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)  # fonts it looks for, folders it cannot write
    try:
        import matplotlib
    except (ValueError, OSError) as error:
        raise RunError(
            f"Matplotlib cannot be loaded ({error}): is there a damaged matplotlibrc in this folder?"
        ) from error
    matplotlib.rcdefaults()


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    # Steep at its foot: a mistake in one row of twenty should be seen.
    stops = [(0, "#F3F5F7"), (0.02, "#E6EEF5"), (0.15, "#BBD7EB"), (0.5, "#5BA3D0"), (1, "#0B5A94")]
    return LinearSegmentedColormap.from_list("blues", stops)


def _png(figure: Figure, **options: Any) -> bytes:
    """The figure as PNG, drawn by Agg; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A script that the font lacks becomes boxes in the figure; the tables hold the name itself.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None}, **options)
    return buffer.getvalue()
