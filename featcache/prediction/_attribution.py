"""attribution: which places of an image speak for a class."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, RunError, UsageError
from featcache.core.files import write_bytes
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown
from featcache.extraction import stream
from featcache.heads import Attributed, TrainedHead, attribute, is_exact, refuse_other_space
from featcache.images import Item, png_of
from featcache.prediction.bundle import Bundle
from featcache.prediction.opening import (
    as_cache,
    check_um_per_px,
    items_in,
    names_of_rows,
    refuse_size_of_rows,
    size_remedy,
    with_sizes,
)
from featcache.prediction.predictor import Predictor, head_for, open_trained
from featcache.reporting import heatmap
from featcache.store import Cache
from featcache.training import Run

_BLOCK_BYTES = 32 << 20
"""Of features in float64, at a time: the weights of a head are taken up once for each block."""


@dataclass(frozen=True)
class Attribution:
    """What each place of some images adds to the logit of a class.

    For every image, `logits == places.sum(axis=(1, 2)) + rest`.

    Attributes
    ----------
    run : its name
    paths : of each image; "image 17" of an array
    labels : (n,), the class that is explained
    logits : (n,), float64, of that class
    places : (n, h, w), float64, one value for each place of the last feature map
    rest : (n,), float64, what no place adds: the biases
    exact : False of a head with a curved activation, whose difference from its gradient is in `rest`; and of a whole
        network, since a place of its last feature map has seen more of the image than that place
    left_out : (path, reason) of what could not be used
    """

    run: str
    paths: tuple[str, ...]
    labels: NDArray[np.str_]
    logits: NDArray[np.float64]
    places: NDArray[np.float64]
    rest: NDArray[np.float64]
    exact: bool
    left_out: tuple[tuple[str, str], ...]
    _picture: Callable[[int], NDArray[np.uint8]]

    def heatmap(self, number: int) -> NDArray[np.uint8]:
        """An image as the network got it, and beside it with its heatmap: ndarray (448, 896, 3), uint8, RGB.

        Red places speak for the class, blue ones against it.

        Raises UsageError for rows of a cache, which keeps no images.
        """
        return heatmap(self._picture(number), self.places[number])

    def save(self, folder: str | Path) -> list[Path]:
        """Write the heatmap of every image as PNG into a folder. Returns their paths, in the order of the images."""
        files = []
        for number, (path, label) in enumerate(zip(self.paths, self.labels, strict=True)):
            name = re.sub(r"[^\w.-]+", "_", f"{number + 1:04d}-{Path(path).stem:.80}-{label:.40}")
            file = Path(folder) / f"{name}.png"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, png_of(self.heatmap(number)))
            except OSError as error:
                raise RunError(f"{file}: cannot be written: {error.strerror or error}") from error
            files.append(file)
        return files

    def to_frame(self) -> pd.DataFrame:
        """One line an image: path, class, logit, rest."""
        return pd.DataFrame({"path": self.paths, "class": self.labels, "logit": self.logits, "rest": self.rest})

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON, with `places`: {run, exact, rows: [{path, class, logit, rest, places}]}."""
        return {
            "run": self.run,
            "exact": self.exact,
            "rows": [
                {**row, "places": places.tolist()}
                for row, places in zip(self.to_frame().to_dict("records"), self.places, strict=True)
            ],
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
        }

    def __len__(self) -> int:
        return len(self.paths)


def attribution(
    run: Run | str | Path,
    source: Any,
    *,
    label: str | None = None,
    project: Project | None = None,
    weights: str | None = None,
    um_per_px: float | None = None,
    engine: str = "auto",
    batch_rows: int | None = None,
    offline: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Attribution:
    """Which places of images speak for their class, and which against it.

    A head on a feature map is linear around each image, so its logit is a sum over the places of the map. This is
    exact, and costs one product. Of a whole network, the sum over its last feature map is an approximation.

    Parameters
    ----------
    run : a run, its folder, or its name in the project; or the file of a bundle
    source : images as of `predict`; or a `Cache` or its folder, whose rows need no network
    label : the class to explain; None for the most probable one of each image
    um_per_px : side of a pixel of the images in micrometres, instead of what their files say; for runs on views of one
        magnification only
    project, weights, engine, batch_rows, offline, strict, progress : as of `predict`

    Returns
    -------
    Attribution, in the order of the source: `places` (n, h, w), `rest` (n,), `save(folder)`

    Raises
    ------
    HeadError : the features are pooled, the head goes by distances, or there is no such class
    RunError, WeightsError, DatasetError : as of `predict`

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> found = fc.attribution(run, "leukocytes/monocyte")
    >>> found.places.shape
    (8, 16, 16)
    >>> bool(abs(found.places.sum(axis=(1, 2)) + found.rest - found.logits).max() < 1e-4)
    True
    """
    progress = shown(progress)
    found = open_trained(run, project)
    with without_network(offline):
        cache = as_cache(source)
        if cache is not None:
            refuse_size_of_rows(cache, um_per_px)
            return _of_cache(found, cache, label)
        predictor = Predictor.of(found, weights=weights, engine=engine, batch_rows=batch_rows, progress=progress)
        head, rendering = predictor.head, predictor.rendering()
        check_um_per_px(um_per_px, predictor.recipe, name=predictor.name)
        items = with_sizes(items_in(source), um_per_px)
        total = len(items) if isinstance(items, list) else 0
        used: list[Item] = []
        parts: list[Attributed] = []
        block: list[NDArray[Any]] = []
        left_out = []
        step = _block_rows(head.row_shape)
        with progress.stopping() as stopped, progress.begin(f"explaining {found.name}", total) as advance:
            for one in stream(items, predictor.engine, rendering=rendering, stopped=stopped):
                advance(1)
                if one.values is not None:
                    used.append(one.item)
                    block.append(predictor.rounded(one.values))
                    if len(block) == step:
                        parts.append(attribute(head, np.concatenate(block), name=found.name, label=label))
                        block = []
                    continue
                left_out.append((one.item.name, one.problem))
                if strict:
                    raise DatasetError(f"{one.item.name}: {one.problem}")
    if block:
        parts.append(attribute(head, np.concatenate(block), name=found.name, label=label))
    if not used:
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise DatasetError(f"no image to explain{why}", size_remedy(um_per_px, predictor.recipe))

    def picture(number: int) -> NDArray[np.uint8]:
        rendered = rendering(used[number])
        if rendered.problem:
            raise DatasetError(f"{used[number].name}: {rendered.problem}")
        return rendered.views[0]

    return _joined(
        predictor.name,
        head,
        tuple(item.name for item in used),
        parts,
        picture,
        exact=is_exact(head) and not predictor.is_whole,
        left_out=tuple(left_out),
    )


def _of_cache(run: Run | Bundle, cache: Cache, label: str | None) -> Attribution:
    """Of the rows that a cache holds."""
    head = head_for(run, cache)
    refuse_other_space(cache, head.space)

    def picture(number: int) -> NDArray[np.uint8]:
        raise UsageError(f"{cache.name}: a cache keeps no images", "Give the images themselves")

    n_rows, step = len(cache.features), _block_rows(cache.features.shape[1:])
    parts = [
        attribute(head, np.asarray(cache.features[start : start + step]), name=run.name, label=label)
        for start in range(0, n_rows, step)
    ]
    return _joined(run.name, head, names_of_rows(cache), parts, picture, exact=is_exact(head))


def _joined(
    name: str,
    head: TrainedHead,
    paths: tuple[str, ...],
    parts: list[Attributed],
    picture: Callable[[int], NDArray[np.uint8]],
    *,
    exact: bool,
    left_out: tuple[tuple[str, str], ...] = (),
) -> Attribution:
    def joined(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, field) for part in parts])

    return Attribution(
        run=name,
        paths=paths,
        labels=np.array(head.classes, dtype=str)[joined("numbers")],
        logits=joined("logits"),
        places=joined("places"),
        rest=joined("rest"),
        exact=exact,
        left_out=left_out,
        _picture=picture,
    )


def _block_rows(row_shape: Sequence[int]) -> int:
    return max(1, _BLOCK_BYTES // (8 * int(np.prod(row_shape))))
