"""A scikit-learn transformer: images to features of a frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from featcache.backbones import NetworkSpec
from featcache.core.errors import ArgumentsError, DatasetError
from featcache.core.offline import offline as without_network
from featcache.core.project import ViewsSection, changed_views
from featcache.core.recipe import Augmentation, Pooling, Precision, Preprocessing, Tokens
from featcache.extraction.opening import network_for
from featcache.extraction.segmenters import cutting, with_fitted
from featcache.extraction.streaming import Rendering, stream
from featcache.images import items_of
from featcache.segmentation import GIVEN, Framing, Segmenter


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images to features of a frozen backbone, for pipelines of scikit-learn. Nothing is fitted, nothing kept.

    Parameters
    ----------
    model, weights, weights_seed, input_size_px, preprocessing, pooling, tokens, engine, batch_rows, offline : as of
        `featcache.extract`
    layer : layer to cut at; None for the last feature map
    mean, std, colour_order : as of `featcache.extract`
    resize : how images become square: "stretch", "pad" or "crop"; None as the network's library says, and "pad" where
        it does not
    interpolation : filter of the resizing: "area", "bilinear", "bicubic", "lanczos", or "area-bicubic"; None as
        the network's library says, and "area-bicubic" where it does not
    crop_share : share of the resized image that a centre crop keeps; None as the network's library says, and 1
    padding : what stands beside a padded image: a colour, or "edge"; None for black
    white : value of white in files of more than 8 bits that do not say it; 0 for the largest of their type
    um_per_px : side of a pixel of the view in micrometres: images whose files say how large their pixels are, as arrays
        do not, are shown at one magnification; 0 fits images into the square
    segment : how the white cell in each image is found and cut out: "none" of them, "stain", "colour", or
        the file of a fitted segmenter
    segment_weights : file of the weights of the fitted segmenter's network, where they are in one
    background : what surrounds it: "keep", "white", "black" or "mean"
    cell_margin : room around it, as a share of its longer side
    precision : of the network's arithmetic: "float32", "bfloat16", "float16" or "auto"
    normalise : how colours are brought to one appearance: "none", "reinhard" or "macenko"

    Examples
    --------
    >>> import featcache as fc, numpy as np
    >>> images = np.zeros((2, 30, 40, 3), np.uint8)
    >>> fc.FeatureExtractor("pixels", input_size_px=8).fit_transform(images).shape
    (2, 192)
    """

    def __init__(
        self,
        model: str = "efficientnet-lite0",
        *,
        weights: str = "imagenet",
        weights_seed: int = 0,
        input_size_px: int | None = None,
        preprocessing: Preprocessing | None = None,
        layer: str | None = None,
        pooling: Pooling = "none",
        tokens: Tokens | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        colour_order: Literal["rgb", "bgr"] = "rgb",
        resize: str | None = None,
        interpolation: str | None = None,
        crop_share: float | None = None,
        padding: str | None = None,
        white: int = 0,
        um_per_px: float = 0.0,
        segment: str = "none",
        segment_weights: str | None = None,
        background: str = "keep",
        cell_margin: float = 0.1,
        normalise: str = "none",
        precision: Precision | Literal["auto"] = "float32",
        engine: str = "auto",
        batch_rows: int | None = None,
        offline: bool = False,
    ) -> None:
        self.model = model
        self.weights = weights
        self.weights_seed = weights_seed
        self.input_size_px = input_size_px
        self.preprocessing = preprocessing
        self.layer = layer
        self.pooling = pooling
        self.tokens = tokens
        self.mean = mean
        self.std = std
        self.colour_order = colour_order
        self.resize = resize
        self.interpolation = interpolation
        self.crop_share = crop_share
        self.padding = padding
        self.white = white
        self.um_per_px = um_per_px
        self.segment = segment
        self.segment_weights = segment_weights
        self.background = background
        self.cell_margin = cell_margin
        self.normalise = normalise
        self.precision = precision
        self.engine = engine
        self.batch_rows = batch_rows
        self.offline = offline

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Open the network. X and y are not looked at. Raises BackboneError or WeightsError where it cannot be had."""
        spec = NetworkSpec(
            self.model,
            self.weights,
            weights_seed=self.weights_seed,
            input_size_px=self.input_size_px,
            preprocessing=self.preprocessing,
            mean=self.mean,
            std=self.std,
            colour_order=self.colour_order,
            layers=(self.layer,) if self.layer else (),
            pooling=self.pooling,
            precision=self.precision,
            tokens=self.tokens,
        )
        with without_network(self.offline):
            (self.cut_,), opened = network_for(spec, None, engine=self.engine, batch_rows=self.batch_rows)
            self.engine_ = opened()
            self.framing_, self.segmenter_ = self._framing()
        self.n_features_out_ = int(np.prod(self.cut_.feature_shape))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of images: ndarray of shape (n, n_features), float32, each image's feature map flattened.

        X : files, arrays uint8 (n, h, w, 3), or what yields these

        Raises DatasetError for an image that cannot be used.
        """
        if not hasattr(self, "engine_"):
            self.fit()
        rendering = Rendering(self.cut_.space.input_size_px, self.framing_, Augmentation(), segmenter=self.segmenter_)
        rows = []
        for one in stream(items_of(X), self.engine_, rendering=rendering):
            if one.values is None:
                raise DatasetError(f"{one.item.name}: {one.problem}")
            rows.append(one.values.reshape(self.n_features_out_).astype(np.float32))
        if not rows:
            raise DatasetError("no image to take features of")
        return np.stack(rows)

    def _framing(self) -> tuple[Framing, Segmenter | None]:
        square = ("resize", "interpolation", "crop_share", "padding")
        said = {name: value for name in square if (value := getattr(self, name)) is not None}
        names = ("white", "um_per_px", "segment", "segment_weights", "background", "cell_margin", "normalise")
        cells = {name: value for name in names if (value := getattr(self, name)) is not None}
        views = changed_views(ViewsSection(as_trained=True, resize="pad"), {**said, **cells})
        if views.segment == GIVEN:
            raise ArgumentsError("`segment='given'` takes the masks that come with the images of a project")
        views, fitted = with_fitted(views, cells, folder=Path())
        framing = Framing.asked(views, self.cut_.space.input_size_px, own=self.cut_.transform, said=said)
        files = [self.segment_weights, self.weights]
        return framing, cutting(fitted, framing.segmentation, where="FeatureExtractor", weights=files)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the features: the backbone's and a number."""
        return np.array([f"{self.cut_.space.backbone}{number}" for number in range(self.n_features_out_)], dtype=object)
