"""Models of cellpose and StarDist, from files that are on this machine. Nothing is ever downloaded.

Both libraries fetch weights that they do not find. So a file is looked at first, and no connection is allowed while
they work, whatever the user allows otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, FeatcacheError, ImageError, OfflineError, UsageError, refuse_shortage
from featcache.core.extras import keep_triton_out, require_extra
from featcache.core.files import sha256_file
from featcache.core.offline import offline
from featcache.core.strict_json import read_json
from featcache.images import Pixels
from featcache.segmentation import InstanceSegmenter, Objects

LIBRARIES = ("cellpose", "stardist")
_CONFIG, _THRESHOLDS = "config.json", "thresholds.json"
_H5 = (".h5", ".hdf5")
_MOST_BYTES = 8 << 30
_LIMITS: Mapping[str, tuple[int, int]] = {
    "n_rays": (3, 256),
    "n_channel_in": (1, 3),
    "unet_n_depth": (1, 6),
    "unet_n_filter_base": (1, 256),
    "unet_n_conv_per_depth": (1, 8),
    "unet_expansion": (1, 4),
    "net_conv_after_unet": (0, 2048),
}
"""Numbers in the configuration of a StarDist model: what decides how large its network is."""
_PAIRS = ("grid", "unet_kernel_size", "unet_pool")
_NAMES = ("unet_activation", "unet_last_activation")
_ACTIVATIONS = ("relu", "elu", "selu", "gelu", "tanh", "sigmoid", "linear", "swish")


def opened_model(library: str, weights: Path | None) -> tuple[InstanceSegmenter, str]:
    """A segmenter by a model of cellpose or StarDist, and the name of its method.

    weights : file of a cellpose model; of StarDist its folder, or the file of weights in it, with config.json beside

    Raises MissingPackageError where the library is not installed, UsageError without a file, DatasetError for a file
    that is no such model.
    """
    if weights is None:
        raise UsageError(f"`method={library!r}` takes a model from a file: name it with `weights=PATH`")
    require_extra(library, f"a model of {library}")
    if not weights.exists():
        raise DatasetError(f"{weights}: there is no such file")
    try:
        objects, digest = (_cellpose if library == "cellpose" else _stardist)(weights)
    except OSError as error:
        raise DatasetError(f"{weights}: cannot be read: {error.strerror or error}") from error
    return InstanceSegmenter(objects), f"{library}-{digest}"


class _Model:
    """A model of another library as `Objects`."""

    def __init__(self, what: str, evaluate: Any) -> None:
        self._what, self._evaluate = what, evaluate

    def numbers(self, pixels: Pixels) -> NDArray[np.integer]:
        """See `Objects`."""
        with _alone(self._what, ImageError):
            found = np.asarray(self._evaluate(pixels))
        if found.shape != pixels.shape[:2] or found.dtype.kind not in "iu":
            raise ImageError(f"{self._what}: gives {found.dtype} of {found.shape} for a picture of {pixels.shape}")
        return found


@contextmanager
def _alone(what: str, failed: type[DatasetError] = DatasetError) -> Iterator[None]:
    """Let a library work without connections and without words on standard output; its errors become `failed`."""
    try:
        with offline(), redirect_stdout(io.StringIO()):
            yield
    except OfflineError as error:
        raise DatasetError(f"{what}: wants to reach another machine, which is not allowed ({error.message})") from error
    except FeatcacheError:
        raise
    except Exception as error:
        refuse_shortage(error, what)
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise failed(f"{what}: cannot be used: {said}") from error


def _cellpose(file: Path) -> tuple[Objects, str]:
    if not file.is_file():
        raise DatasetError(f"{file}: is no file: a model of cellpose is one")
    _refuse_large(file)
    what = f"{file}, as a model of cellpose"
    keep_triton_out()
    with _alone(what):
        import torch
        from cellpose.models import CellposeModel

        tensors = torch.load(file, map_location="cpu", weights_only=True)  # numbers alone: a file runs nothing
        if not isinstance(tensors, Mapping) or not any(str(name).endswith("W2") for name in tensors):
            raise ValueError("it is no model of cellpose 4; models of earlier versions cannot be used")
        del tensors
        model = CellposeModel(gpu=False, pretrained_model=str(file), device=torch.device("cpu"), use_bfloat16=False)

    def evaluate(pixels: Pixels) -> Any:
        return model.eval(pixels, max_size_fraction=1.0)[0]

    return _Model(what, evaluate), sha256_file(file)


def _stardist(place: Path) -> tuple[Objects, str]:
    file = _weights_in(place) if place.is_dir() else place
    folder = file.parent
    _refuse_large(file)
    what = f"{file}, as a model of StarDist"
    known = _config(folder)
    thresholds = _thresholds(folder)
    with _alone(what):
        from csbdeep.utils import normalize
        from stardist.models import Config2D, StarDist2D

        _refuse_unpacked(file)
        model = StarDist2D(Config2D(**known), name=folder.name, basedir=None)
        model.keras_model.load_weights(str(file))

    def evaluate(pixels: Pixels) -> Any:
        seen = pixels if known["n_channel_in"] == 3 else pixels.mean(axis=2)
        return model.predict_instances(normalize(seen, 1, 99.8, axis=(0, 1)), show_tile_progress=False, **thresholds)[0]

    digest = sha256(f"{sha256_file(file)}{sorted(known.items())}{sorted(thresholds.items())}".encode()).hexdigest()
    return _Model(what, evaluate), digest


def _weights_in(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in _H5)
    best = [path for path in files if "best" in path.name] or files
    if len(best) != 1:
        raise DatasetError(f"{folder}: holds {len(best)} files of weights (.h5): name one")
    return best[0]


def _config(folder: Path) -> dict[str, Any]:
    """The settings of a StarDist model that decide its network. Raises DatasetError where they cannot be read."""
    path = folder / _CONFIG
    try:
        read = read_json(path)
    except OSError as error:
        raise DatasetError(f"{path}: a model of StarDist has its settings there: {error.strerror}") from error
    except ValueError as error:
        raise DatasetError(f"{path}: cannot be read: {error!s:.200}") from error
    problem = _problem_of(read)
    if problem:
        raise DatasetError(f"{path}: is not of a model of StarDist in two dimensions: {problem}")
    names = (*_LIMITS, *_PAIRS, *_NAMES, "unet_batch_norm", "unet_prefix")
    known = {name: read[name] for name in names if name in read}
    return {**known, "axes": "YXC" if read["n_channel_in"] == 3 else "YX", "backbone": "unet"}


def _problem_of(read: Any) -> str:
    if not isinstance(read, dict) or read.get("n_dim", 2) != 2 or read.get("backbone", "unet") != "unet":
        return "no unet"
    if read.get("n_classes") is not None:
        return "it names classes"
    for name, (least, most) in _LIMITS.items():
        if name in read or name in ("n_rays", "n_channel_in"):
            value = read.get(name)
            if type(value) is not int or not least <= value <= most:
                return f"{name} is {value!r:.40}"
    if read["n_channel_in"] == 2:
        return "it takes two channels"
    for name in _PAIRS:
        pair = read.get(name, [1, 1])
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(n) is int and 1 <= n <= 16 for n in pair):
            return f"{name} is {pair!r:.40}"
    odd = [name for name in _NAMES if read.get(name, "relu") not in _ACTIVATIONS]
    odd += [] if isinstance(read.get("unet_batch_norm", False), bool) else ["unet_batch_norm"]
    prefix = read.get("unet_prefix", "")
    odd += [] if isinstance(prefix, str) and (not prefix or prefix.isidentifier()) else ["unet_prefix"]
    return f"{odd[0]} is {read.get(odd[0])!r:.40}" if odd else ""


def _thresholds(folder: Path) -> dict[str, float]:
    """Of probability and of overlap, where the model has its own."""
    path = folder / _THRESHOLDS
    if not path.is_file():
        return {}
    try:
        read = read_json(path)
        found = {f"{name}_thresh": float(read[name]) for name in ("prob", "nms")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read: {error!s:.200}") from error
    if not all(0 <= value <= 1 for value in found.values()):
        raise DatasetError(f"{path}: expected numbers from 0 to 1")
    return found


def _refuse_large(file: Path) -> None:
    if not 0 < file.stat().st_size <= _MOST_BYTES:
        raise DatasetError(f"{file}: is empty, or larger than any model")


def _refuse_unpacked(file: Path) -> None:
    """Raise ValueError for a file of HDF5 whose arrays are much larger than the file."""
    import h5py

    sizes: list[int] = []
    with h5py.File(file, "r") as opened:
        opened.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    if sum(sizes) > 4 * file.stat().st_size + (1 << 20):
        raise ValueError("its arrays are much larger than the file")
