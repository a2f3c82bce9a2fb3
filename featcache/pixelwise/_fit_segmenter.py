"""fit_segmenter: a classifier of pixels, fitted to pictures with masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.backbones import PIXELS, Engine, NetworkSpec, is_in_registry, layers_to_cut, registry
from featcache.core.errors import BackboneError, DatasetError, ImageError, ProjectError
from featcache.core.files import make_folder, resolved
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.shown import shown
from featcache.extraction import network_for
from featcache.images import cut_and_resize, identity_of_pixels
from featcache.pixelwise.options import FitSegmenterOptions
from featcache.pixelwise.pairs import Crop, crops_of, masks_in
from featcache.segmentation import (
    CLASSES,
    MOST_CHANNELS,
    SIDES_PX,
    Floats,
    PixelClassifier,
    SegmenterFile,
    background_of,
    colours_of,
    pictures_in,
    values_of,
    with_white,
)

_STRIDE = 4
"""Of the early layer that is taken where none is named."""
_ENLARGED = 2
"""Side of the square that pixels are classified in, in sides of the map."""
Sample = tuple[Floats, NDArray[np.int64]]


@dataclass(frozen=True)
class FittedSegmenter:
    """What `fit_segmenter` made.

    Attributes
    ----------
    path : of the file
    model, layer : whose maps it looks at
    pictures, cells : that it was fitted to
    pixels : of each class
    accuracy : share of these pixels that it classifies as the masks do
    left_out : a dict for each picture that was left out: image, reason
    """

    path: Path
    model: str
    layer: str
    pictures: int
    cells: int
    pixels: dict[str, int]
    accuracy: float
    left_out: tuple[dict[str, str], ...]


def fit_segmenter(
    images: str | Path,
    masks: str | Path,
    *,
    out: str | Path,
    model: str = "mobilenetv2",
    weights: str = "imagenet",
    weights_seed: int = 0,
    layer: str | None = None,
    input_size_px: int | None = None,
    job: Literal["cell", "smear"] = "cell",
    per_picture: int = 60,
    units: int = 32,
    passes: int = 40,
    seed: int = 0,
    white: int | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> FittedSegmenter:
    """Fit a segmenter to pictures whose cells have masks: background, cytoplasm and nucleus.

    It classifies each pixel by an early feature map of a frozen network, and by its colour. The maps are computed once
    for each call, and not kept. `segment` takes the file as its `method`.

    Parameters
    ----------
    images : folder of pictures
    masks : folder of masks, which have the names and sizes of the pictures: 0 background, 128 cytoplasm, 255 nucleus
    out : file to write, .npz
    model, weights, weights_seed, input_size_px : as of `extract`
    layer : layer whose map is taken; None for the last one with a quarter of the input's side
    job : what a picture shows: one "cell" in the middle, or a "smear", of which each cell of the mask is cut out
    per_picture : pixels of each class that are taken from each cell
    units : hidden units of the classifier
    passes : largest number of passes over the pixels
    seed : of the choice of pixels and of the classifier
    white : value of white in pictures of more than 8 bits that do not say it; None finds it from all pictures
    offline : contact no other machine
    progress : told how far it is

    Raises
    ------
    DatasetError : no picture has a mask that can be used
    BackboneError : there is no such network or layer, or its maps do not fit

    Examples
    --------
    >>> import featcache as fc
    >>> from pathlib import Path
    >>> from featcache.synthetic import generate
    >>> generate(Path("smears"), 1, smears=2)
    >>> done = fc.segment("smears/images", "cells")
    >>> fitted = fc.fit_segmenter(
    ...     "smears/images", "cells/masks", out="mine.npz", model="pixels", input_size_px=64, job="smear"
    ... )
    >>> fitted.pictures
    2
    """
    options = FitSegmenterOptions(job, per_picture, units, passes, seed, white)
    file, told = resolved(Path(out)), shown(progress)
    known = masks_in(Path(masks))
    pictures = [one for one in pictures_in([Path(images)], file) if not one.path.is_relative_to(resolved(Path(masks)))]
    pictures = with_white(pictures, white, progress=told)
    spec = NetworkSpec(model, weights, weights_seed=weights_seed, input_size_px=input_size_px)
    with without_network(offline):
        (cut,), opened = network_for(_at(spec, layer), None, batch_rows=1, progress=told)
        side_px = _side_px(cut.feature_shape, f"{model}: layer {cut.space.layer}")
        engine = opened()
    looked = _Looking(engine, cut.space.input_size_px, side_px, options)
    left_out: list[dict[str, str]] = []
    samples: list[Sample] = []
    with told.begin("reading masks", len(pictures)) as advance:
        for picture in pictures:
            try:
                samples += [looked.sample(crop) for crop in crops_of(picture, known, is_smear=job == "smear")]
            except ImageError as error:
                left_out.append({"image": picture.image, "reason": str(error)})
            advance(1)
    if not samples:
        why = f": {left_out[-1]['reason']}" if left_out else ""
        raise DatasetError(f"{images}: no picture has a mask that can be used{why}")
    values, classes = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    counts = dict(zip(CLASSES, np.bincount(classes, minlength=3).tolist(), strict=True))
    if missing := [name for name, count in counts.items() if not count]:
        raise DatasetError(f"{masks}: no mask shows {' or '.join(missing)}")
    told.note(f"fitting a classifier to {len(values):,} pixels")
    classifier = PixelClassifier.fit(values, classes, units=units, passes=passes, seed=seed)
    used = len(pictures) - len(left_out)
    try:
        make_folder(file.parent)
        SegmenterFile(classifier, cut.space, str(cut.weights), side_px, used, len(samples), counts).write(file)
    except OSError as error:
        raise ProjectError(f"{file}: cannot be written: {error.strerror or error}") from error
    accuracy = float((classifier.probabilities(values).argmax(axis=1) == classes).mean())
    return FittedSegmenter(file, model, cut.space.layer, used, len(samples), counts, accuracy, tuple(left_out))


@dataclass(frozen=True)
class _Looking:
    """How pixels of crops are looked at, and which of them are taken."""

    engine: Engine
    size_px: int
    side_px: int
    options: FitSegmenterOptions

    def sample(self, crop: Crop) -> Sample:
        """As many pixels of each class as are asked for, or there are, and their classes. The crop alone decides."""
        background = background_of(crop.pixels)
        if background is None:
            raise ImageError("black: there is no light in it")
        colours = colours_of(crop.pixels, background, side_px=self.side_px)
        view = cut_and_resize(crop.pixels, None, size_px=self.size_px)
        maps = self.engine.features(view[None])[0][0]
        values = values_of(maps, colours).reshape(self.side_px**2, -1)
        side = (self.side_px, self.side_px)
        classes = cv2.resize(crop.classes, side, interpolation=cv2.INTER_NEAREST).ravel()
        random = np.random.default_rng([self.options.seed, int(identity_of_pixels(crop.pixels)[:16], 16)])
        of_classes = [np.flatnonzero(classes == number) for number in range(len(CLASSES))]
        taken = [random.choice(of, min(len(of), self.options.per_picture), replace=False) for of in of_classes]
        chosen = np.concatenate(taken)
        return values[chosen], classes[chosen].astype(np.int64)


def _at(spec: NetworkSpec, layer: str | None) -> NetworkSpec:
    """The network at the layer that is asked for, or at an early one."""
    if layer is None and spec.model != PIXELS:
        layer = _early_layer(spec)
    return replace(spec, layers=(layer,) if layer else ())


def _early_layer(spec: NetworkSpec) -> str:
    """The last layer whose map has a quarter of the input's side."""
    if not is_in_registry(spec.model):
        raise BackboneError(f"{spec.model}: its early layers are not known", "Name one with `layer=NAME`")
    side_px = spec.input_size_px or registry.get(spec.model).input_size_px
    found = [
        layer.name
        for layer in layers_to_cut(spec)
        if not layer.problem
        and layer.output_shape[:2] == (side_px // _STRIDE, side_px // _STRIDE)
        and len(layer.output_shape) == 3
        and (layer.output_shape[2] or 0) <= MOST_CHANNELS
    ]
    if not found:
        raise BackboneError(f"{spec.model}: no layer has a quarter of the input's side", "Name one with `layer=NAME`")
    return found[-1]


def _side_px(shape: tuple[int, ...], what: str) -> int:
    """Side of the square that pixels are classified in, for maps of a shape. Raises BackboneError for no map."""
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] > MOST_CHANNELS:
        raise BackboneError(
            f"{what} gives {'x'.join(map(str, shape))}: expected a square map of {MOST_CHANNELS} channels at most",
            "Name an early layer with `layer=NAME`",
        )
    side_px = _ENLARGED * shape[0]
    if not SIDES_PX[0] <= side_px <= SIDES_PX[1]:
        least, most = (side // _ENLARGED for side in SIDES_PX)
        raise BackboneError(
            f"{what} has a side of {shape[0]}: expected {least} to {most}", "Name an early layer with `layer=NAME`"
        )
    return side_px
