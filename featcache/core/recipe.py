"""What decides a feature's value, as frozen records with one digest each.

Features are a pure function of a recipe and an image. A recipe holds everything that can change a
value and nothing that cannot: no path, no label, no code, no time. Digests are SHA-256 over canonical
JSON, so they are the same on every machine and in every language.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

RECIPE_FORMAT = 1
RENDERING_VERSION = 1
"""Raised by hand when decoding or rendering gives other pixels; a golden test guards it."""

ADDED: Mapping[str, Any] = {
    **{"precision": "float32", "resize": "stretch", "colour": "none", "tokens": "none"},
    **{"interpolation": "area-bicubic", "resize_px": 0, "padding": "#000000", "margin": 0.0, "white": 0},
    **{"zoom": 0.0, "stain": 0.0, "blur": 0.0, "noise": 0.0, "um_per_px": 0.0},
}
"""Fields that a recipe says only where they are not as they were before there was such a field, which stands here."""
LEFT_OUT = frozenset(ADDED)

Resize = Literal["stretch", "pad", "crop"]
RESIZES: tuple[Resize, ...] = ("stretch", "pad", "crop")
Interpolation = Literal["area-bicubic", "area", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("area-bicubic", "area", "bilinear", "bicubic", "lanczos")
UM_PER_PX = (1e-4, 1e3)
"""Smallest and largest side of a pixel, micrometres: of an atom, and of a millimetre."""
BLACK, EDGE = "#000000", "edge"
"""What stands beside an image that is padded: a colour as #rrggbb, or the colours of its edge."""

Pooling = Literal["none", "avg", "max"]
Precision = Literal["float32", "bfloat16", "float16"]
LOW_PRECISIONS: Mapping[str, float] = {"bfloat16": 0.35, "float16": 0.1}
"""Precisions below float32, and which share of a row's norm two engines may differ by there.

By measurement: MobileNetV2 differs most, by 0.28 and 0.04; VGG16 by 0.01 and 0.001.
"""
Tokens = Literal["cls", "patches", "cls+avg", "all"]
Preprocessing = Literal["caffe", "tf", "torch", "lite0", "rescale", "none"]

FillMode = Literal["constant", "nearest", "reflect", "wrap"]
FILL_MODES: tuple[FillMode, ...] = ("constant", "nearest", "reflect", "wrap")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
"""Made once: every row has a digest, and making an encoder takes longer than using it."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN, UTF-8 as it is."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _without_added(value: dict[str, Any]) -> dict[str, Any]:
    return {name: of for name, of in value.items() if name not in ADDED or of != ADDED[name]}


@dataclass(frozen=True)
class Augmentation:
    """How augmented views differ from the plain one (view 0). The defaults are the study's.

    seed : together with image_id and view it decides every parameter of a view
    rotation_deg : largest rotation to either side, degrees
    shift : largest shift along each axis, as a fraction of the side
    horizontal_flip, vertical_flip : whether half of the views are mirrored that way
    brightness, contrast, saturation : largest relative change of each
    hue_deg : largest turn of the hue, degrees
    fill_modes : what points outside the border become; one is drawn for each view
    fill_value : grey level of the fill mode "constant", 0 to 255
    zoom : largest relative change of the size
    stain : largest relative change of the amount of haematoxylin, and of eosin
    blur : largest standard deviation of a Gaussian blur, as a fraction of the side
    noise : largest standard deviation of noise on each pixel and channel, as a fraction of full white
    """

    seed: int = 0
    rotation_deg: float = 20.0
    shift: float = 0.10
    horizontal_flip: bool = True
    vertical_flip: bool = True
    brightness: float = 0.10
    contrast: float = 0.15
    saturation: float = 0.20
    hue_deg: float = 6.0
    fill_modes: tuple[FillMode, ...] = FILL_MODES
    fill_value: int = 0
    zoom: float = 0.0
    stain: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self) if item.type == "float"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)  # -0.0 becomes 0.0
        object.__setattr__(self, "fill_modes", tuple(self.fill_modes))

    def to_dict(self) -> dict[str, Any]:
        """The augmentation as it stands in recipe.json."""
        return _without_added({**asdict(self), "fill_modes": list(self.fill_modes)})


@dataclass(frozen=True)
class WeightsSource:
    """Where a network's weights come from, for people: what tells weights apart is their digest.

    Attributes
    ----------
    kind : "" where there are none, or nobody knows
    seed : of random weights
    name : of the file, or of the function that gave them
    """

    kind: Literal["imagenet", "random", "file", ""]
    seed: int = 0
    name: str = ""

    @classmethod
    def of(cls, weights: str | Path, seed: int = 0) -> Self:
        """The source that a network is asked to have: "imagenet", "random", or a file."""
        if weights in ("imagenet", "random"):
            return cls("random", seed) if weights == "random" else cls("imagenet")
        return cls("file", name=Path(weights).name)

    @classmethod
    def read(cls, text: str) -> Self:
        """The source that a manifest or a run names, as `__str__` wrote it."""
        if random := re.fullmatch(r"random-([0-9]{1,18})", text):
            return cls("random", int(random[1]))
        return cls.of(text) if text else cls("")

    def __str__(self) -> str:
        return f"random-{self.seed}" if self.kind == "random" else self.name or self.kind


@dataclass(frozen=True)
class Transform:
    """How a network's library makes an image square. The fields are those of a `FeatureSpace`."""

    resize: Resize = "stretch"
    interpolation: Interpolation = "area-bicubic"
    resize_px: int = 0
    padding: str = BLACK


@dataclass(frozen=True)
class FeatureSpace:
    """A backbone cut at a layer: what turns pixels into one feature tensor.

    weights_digest : over the weights' tensors, so that two file formats of the same weights agree
    precision : of the network's arithmetic; written only where it is not float32, which recipes say by leaving it out
    resize : how an image that is not square becomes so; written only where it is not "stretch", as all once were
    colour : how colours are brought to one appearance; written only where it is not "none"
    tokens : which tokens of a vision transformer are kept; written only where it is not "none", as of all else
    interpolation : filter of the resizing; written only where it is not "area-bicubic", as all once were
    resize_px : side that the shorter side of an image (padded: the longer one, stretched: both) is resized to before
        the square in the middle is cut out; 0, and not written, where it is the input size
    padding : what stands beside a padded image, #rrggbb or "edge"; written only where it is not black
    margin : room around a box, as a share of its longer side; written only where there is some
    white : value of white in files of more than 8 bits that do not say it; 0, and not written, where it is the largest
        of their type
    um_per_px : side of a pixel of the view in micrometres, to which every image is brought by its own physical size;
        0, and not written, where the physical size of an image does not count
    """

    backbone: str
    layer: str
    input_size_px: int
    preprocessing: str
    pooling: str
    weights_digest: str
    dtype: str = "float32"
    segmentation: str = "none"
    rendering: int = RENDERING_VERSION
    precision: str = "float32"
    resize: str = "stretch"
    colour: str = "none"
    tokens: str = "none"
    interpolation: str = "area-bicubic"
    resize_px: int = 0
    padding: str = BLACK
    margin: float = 0.0
    white: int = 0
    um_per_px: float = 0.0

    def __post_init__(self) -> None:
        for name in ("margin", "um_per_px"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)  # one spelling for one number

    def to_dict(self) -> dict[str, Any]:
        """The space as it stands in recipe.json."""
        return _without_added(asdict(self))

    @property
    def square(self) -> str:
        """How an image becomes the input, in words: "224 px, crop of 256 px, bicubic"."""
        parts = [f"{self.input_size_px} px", self.resize + (f" of {self.resize_px} px" if self.resize_px else "")]
        if self.um_per_px:
            parts[1] = f"a window of {self.input_size_px * self.um_per_px:g} µm, {self.um_per_px:g} µm a pixel"
        parts += [self.interpolation] if self.interpolation != ADDED["interpolation"] else []
        parts += [f"beside it {self.padding}"] if self.padding != BLACK else []
        parts += [f"margin {self.margin:g} around boxes"] if self.margin else []
        parts += [f"white at {self.white:,}"] if self.white else []
        return ", ".join(parts)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 that names this space."""
        return digest(self.to_dict())


@dataclass(frozen=True)
class Recipe:
    """All that decides a feature value of a cache: the feature space and the augmentation."""

    space: FeatureSpace
    augmentation: Augmentation = field(default_factory=Augmentation)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as it stands in recipe.json."""
        return {
            "format": RECIPE_FORMAT,
            "space": self.space.to_dict(),
            "augmentation": self.augmentation.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; raises ValueError or TypeError on anything else."""
        if not isinstance(value, Mapping) or value.get("format") != RECIPE_FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else value
            raise ValueError(f"recipe format {found!r:.80}, expected {RECIPE_FORMAT}")
        if set(value) != {"format", "space", "augmentation"}:
            raise ValueError(f"a recipe has the fields format, space and augmentation, found {sorted(map(str, value))}")
        recipe = cls(
            space=FeatureSpace(**_known(FeatureSpace, value["space"])),
            augmentation=Augmentation(**_known(Augmentation, value["augmentation"])),
        )
        if recipe.digest != digest(value):  # text that is no UTF-8 has none, which is a ValueError as well
            raise ValueError("the recipe does not survive a round trip")
        return recipe

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the whole recipe."""
        return digest(self.to_dict())


_KINDS: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}
_LARGEST = 1e15
"""Larger whole numbers are not the same as float and as int."""


def _known(record: Any, value: Any) -> dict[str, Any]:
    names = {item.name for item in fields(record)}
    if not isinstance(value, Mapping) or not names - LEFT_OUT <= set(value) <= names:
        raise ValueError(f"{record.__name__}: expected the fields {sorted(names - LEFT_OUT)}")
    for item in fields(record):
        if item.name not in value:
            continue
        kinds = _KINDS.get(str(item.type), (list, tuple))
        found = value[item.name]
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            raise TypeError(f"{record.__name__}.{item.name}: expected {item.type}, found {found!r:.80}")
        if isinstance(found, (list, tuple)) and not set(found) <= set(FILL_MODES):
            raise ValueError(f"{record.__name__}.{item.name}: expected some of {FILL_MODES}, found {found!r:.80}")
        if isinstance(found, (int, float)) and float in kinds and not abs(found) < _LARGEST:
            raise ValueError(f"{record.__name__}.{item.name}: {found!r:.80} is no usable number")
    return dict(value)


def row_id(space: FeatureSpace, image_id: str, *, parameters: Mapping[str, Any]) -> str:
    """Name of one row's value: what was rendered how, and in which feature space it lies.

    parameters : the view's own parameters; those of the plain view are the same under every plan, so
        its row has one name whatever the augmentation.
    """
    return digest([image_id, dict(parameters), space.digest])


def cache_digest(recipe: Recipe, rows: Iterable[tuple[str, int]]) -> str:
    """Digest that names a cache: its recipe and the set of its rows (image_id, view), in any order."""
    return digest([recipe.digest, sorted([image_id, view] for image_id, view in rows)])


def cache_name(backbone: str, cache_digest: str, *, format_: str = "zarr") -> str:
    """Folder name of a cache: the backbone for people, eight digits of the digest to tell them apart.

    The format decides no value and is in no digest. That of HDF5 stands in the name, so that both can be had.
    """
    return f"{backbone}-{cache_digest[:8]}" + ("" if format_ == "zarr" else f"-{format_}")
