"""export: a run as one model that other programs run."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import import_keras, require_keras
from featcache.core.errors import BackboneError, FeatcacheError, HeadError, RunError, UsageError, nearest
from featcache.core.extras import is_installed, require_extra
from featcache.core.files import PARTIAL_SUFFIX, replace_folder, resolved, sync
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.recipe import ADDED
from featcache.core.shown import shown
from featcache.deployment.formats import FORMATS, computed_by, write
from featcache.deployment.graph import PROBABILITIES, graph_of
from featcache.heads import Head
from featcache.measures import THRESHOLD
from featcache.prediction import classes_of, head_of, open_run, recipe_of
from featcache.training import Run

if TYPE_CHECKING:
    import keras

DESCRIPTION_FORMAT = 1
HEAD_ALONE = "head"
"""The format that is no whole network: a .keras file from features to probabilities."""
MOST_DIFFERENCE = 1e-4
"""In probability, between an exported model in its own runtime and the run's."""

_EXTRAS = {"onnx": "export", "openvino": "openvino"}
_CHECKED_ROWS = 8
_DECODING = {
    "orientation": "as EXIF says",
    "alpha": "over white",
    "grey": "the same value in R, G and B",
    "depth": "v / white * 255, rounded, where a channel has more than 8 bits",
    "frames": "the first",
    "shrinking": "mean over areas",
    "growing": "bicubic",
}


@dataclass(frozen=True)
class Exported:
    """A model that was written.

    Attributes
    ----------
    run : its name
    format : "keras", "savedmodel", "onnx", "openvino" or "head"
    path : the file; of a SavedModel the folder; of OpenVINO the .xml file, with the .bin file beside it
    classes : labels, in the order of the outputs
    input_size_px : side of the square images; None for "head", which takes features
    bytes : of all its files
    largest_difference : in probability, between this model in its own runtime and the run's, on random pixels; None
        where its runtime is not installed
    """

    run: str
    format: str
    path: Path
    classes: tuple[str, ...]
    input_size_px: int | None
    bytes: int
    largest_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON."""
        return {**asdict(self), "path": str(resolved(self.path)), "classes": list(self.classes)}


def export(
    run: Run | str | Path,
    *,
    format: str = "keras",  # noqa: A002 - as everywhere in featcache
    out: str | Path | None = None,
    weights: str | None = None,
    project: Project | None = None,
    offline: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a run as one model, from pixels to probabilities, that other programs run without featcache.

    The model takes images (n, s, s, 3), uint8, RGB, and carries a description: classes, input, how files are decoded.
    The format "head" is the head alone, from features of one row or more, float32: weights and Keras are not needed.

    Parameters
    ----------
    run : a run, its folder, or its name in the project
    format : "keras" (one .keras file), "savedmodel" (a folder for TensorFlow), "onnx", "openvino" (.xml and .bin), or
        "head" (one .keras file of the head alone)
    out : file or folder to write; by default the name of the run with the suffix of the format, in the current folder
    weights, project, offline : as of `predict`
    again : replace what is there already
    progress : told how far it is

    Returns
    -------
    Exported: `path`, `classes`, `largest_difference`

    Raises
    ------
    BackboneError : the format cannot take the network; its layer is named
    RunError : there is no such run, it is damaged, or the model cannot be written
    WeightsError, HeadError : as of `predict`
    MissingPackageError : a package that the format needs is not installed

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> fc.export(run, out="cells.keras").classes
    ('eosinophil', 'lymphocyte', 'monocyte', 'neutrophil')
    """
    progress = shown(progress)
    found = open_run(run, project)
    path = _path(found, format, out=out, again=again)
    if format == HEAD_ALONE:
        return _export_head(found, path)
    refuse_missing(format)
    with _written(path, format) as partial, progress.begin(f"exporting {found.name}", 3) as advance:
        model = graph_of(found, weights=weights, offline=offline)
        advance(1)
        write(format, model, path=partial, description=json.dumps(description_of(found), ensure_ascii=False))
        advance(1)
        difference = _difference(found, model, format_=format, path=partial)
        n_bytes = sum(file.stat().st_size for file in partial.parent.rglob("*") if file.is_file())
        advance(1)
    space = recipe_of(found).space
    return Exported(found.name, format, path, classes_of(found), space.input_size_px, n_bytes, difference)


def _export_head(run: Run, path: Path) -> Exported:
    try:
        head = head_of(run)
        if not isinstance(head, Head):
            raise HeadError("a head that goes by distances is none of Keras' layers")
        dropout = run.config["head"].get("dropout", 0.0)
        with _written(path, HEAD_ALONE) as partial:
            replace(head, dropout=float(dropout)).write_keras(partial)
            n_bytes = partial.stat().st_size
    except HeadError as error:
        raise HeadError(f"{run.name}: {error}", "Export the whole network: `format='keras'`") from error
    return Exported(run.name, HEAD_ALONE, path, classes_of(run), None, n_bytes, None)


def description_of(run: Run) -> dict[str, Any]:
    """What an exported model says of itself."""
    space = recipe_of(run).space
    return {
        "format": DESCRIPTION_FORMAT,
        "run": run.name,
        "classes": list(classes_of(run)),
        "input": {
            "size_px": space.input_size_px,
            "resize": space.resize,
            **{
                name: getattr(space, name)
                for name in ("interpolation", "resize_px", "padding", "margin", "white", "um_per_px")
                if getattr(space, name) != ADDED[name]
            },
            **({"segmentation": space.segmentation} if space.segmentation != "none" else {}),
            **({"colour": space.colour} if space.colour != "none" else {}),
            "colour": "RGB",
            "dtype": "uint8",
            "layout": "NHWC",
        },
        "decoding": _DECODING,
        "backbone": space.backbone,
        "weights": str(run.config.get("weights", "")),
        "feature_space": space.digest,
        **({"several_labels": True, "threshold": THRESHOLD} if run.config.get("label_separator") else {}),
    }


def refuse_missing(format_: str) -> None:
    """Raise MissingPackageError or BackboneError where this installation cannot write a format."""
    require_keras(f"the format {format_}")
    if format_ in _EXTRAS:
        require_extra(_EXTRAS[format_], f"the format {format_}")
    backend = import_keras().backend.backend()
    if format_ != "keras" and backend != "tensorflow":
        raise BackboneError(
            f"the format {format_} needs Keras on TensorFlow, not on {backend}",
            "Set `format='keras'`, or KERAS_BACKEND=tensorflow",
        )


def checking_pixels(size_px: int, n_rows: int = _CHECKED_ROWS) -> NDArray[np.uint8]:
    """Random images (n, s, s, 3), always the same: noise of each pixel, and of large patches."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (n_rows, size_px, size_px, 3), np.uint8)
    step = -(-size_px // 4)
    places = np.arange(size_px) // step
    pixels[::2] = random.integers(0, 256, (n_rows, 4, 4, 3), np.uint8)[::2][:, places][:, :, places]
    return pixels


def _difference(run: Run, model: keras.Model, *, format_: str, path: Path) -> float | None:
    """The largest difference in probability from the written model in its own runtime. Refuses a large one."""
    if not is_installed(FORMATS[format_].package):
        return None
    pixels = checking_pixels(model.input_shape[1])
    expected = computed_by(model)(pixels)[PROBABILITIES]
    if not np.isfinite(expected).all():
        raise RunError(f"{run.name}: its probabilities are not finite: the model is damaged", "Train the run again")
    compute, _ = FORMATS[format_].read(path)
    found = np.concatenate([compute(rows)[PROBABILITIES] for rows in (pixels[:1], pixels[1:])])
    largest = float(np.abs(found - expected).max())
    if not largest <= MOST_DIFFERENCE:
        raise BackboneError(
            f"{run.name}: as {format_}, its probabilities differ by {largest:.2g} from the run's: expected at most "
            f"{MOST_DIFFERENCE:.0e}",
            f"Export it in another format: {', '.join(name for name in FORMATS if name != format_)}",
        )
    return largest


def _path(run: Run, format_: str, *, out: str | Path | None, again: bool) -> Path:
    """Where to write. Raises UsageError for an unknown format, another suffix, and what is there already."""
    if format_ not in (*FORMATS, HEAD_ALONE):
        raise UsageError(f"no format {format_!r:.80}: {nearest(format_, (*FORMATS, HEAD_ALONE))}")
    kind = FORMATS["keras" if format_ == HEAD_ALONE else format_]
    path = Path(out) if out is not None else Path(f"{run.name}{'-head' * (format_ == HEAD_ALONE)}{kind.suffix}")
    if path.suffix != kind.suffix and not kind.is_folder:
        raise UsageError(f"{path}: expected a name that ends with {kind.suffix}")
    for one in (path, *(path.with_suffix(suffix) for suffix in kind.companions)):
        if one.exists() and not again:
            raise UsageError(f"{one}: exists already", "Name another one with `out`, or set `again=True`")
        if one.exists() and one.is_dir() != kind.is_folder:
            raise UsageError(f"{one}: is {'a folder' if one.is_dir() else 'no folder'}", "Name another one with `out`")
    return path


@contextmanager
def _written(path: Path, format_: str) -> Iterator[Path]:
    """A path to write to, in a folder beside; all that lies there gets its place when the block ends well."""
    folder = path.parent / f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
    try:
        folder.mkdir()
        yield folder / path.name
        for file in folder.rglob("*"):
            sync(file)
        for part in sorted(folder.iterdir()):  # the weights of OpenVINO before the graph that names them
            if part.is_dir():
                replace_folder(path, part, old=folder / "old")
            else:
                part.replace(path.with_name(part.name))
        sync(path.parent)
    except OSError as error:
        if isinstance(error, FeatcacheError):
            raise
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
