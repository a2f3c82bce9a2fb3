"""What a network is asked to be, as one record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from featcache.core.recipe import Pooling, Precision, Preprocessing, Tokens
from featcache.core.settings import setting


@dataclass(frozen=True)
class NetworkSpec:
    """A network as a person asks for it.

    Attributes
    ----------
    model : a name of the registry, "timm/NAME", "torchvision/NAME", "huggingface/ORGANISATION/NAME",
        "kerashub/PRESET", a .keras, .h5 or .onnx file, "module:attribute" of a builder, or "pixels"
    weights : "imagenet", "random" or the path of a weights file; "" too where the model is "pixels", which have none
    layers : one cache each
    """

    model: str
    weights: str = setting("imagenet", "Weights of the network.")
    weights_seed: int = setting(0, "Seed of random weights.", ge=0)
    input_size_px: int | None = setting(None, "Side of the square input in pixels (default: the network's own).", ge=1)
    preprocessing: Literal["model"] | Preprocessing | None = setting(
        "model", "How pixels are scaled: as the network was trained (model), or by this formula."
    )
    mean: tuple[float, ...] | None = setting(
        None, "Mean of red, green and blue, 0 to 1, instead of the network's own. With std."
    )
    std: tuple[float, ...] | None = setting(
        None, "Deviation of red, green and blue, 0 to 1, instead of the network's own. With mean."
    )
    colour_order: Literal["rgb", "bgr"] = setting(
        "rgb", "Order in which the network gets the channels: rgb leaves it as the preprocessing has it, bgr turns it."
    )
    layers: Sequence[str] = setting((), "Layer to take features from (default: the last feature map).")
    pooling: Pooling = setting("none", "Keep the mean or maximum of each channel instead of the feature map.")
    tokens: Tokens | None = setting(
        None, "Tokens of a vision transformer to keep (default: CLS, or the patches with a pooling)."
    )
    interpolate_positions: bool = setting(
        False, "Resample the position table of a vision transformer that is for another input size."
    )
    precision: Precision | Literal["auto"] = setting(
        "float32",
        "Precision of the network's arithmetic: it changes the features. auto is bfloat16 where the machine is quicker "
        "in it, and else float32.",
    )
    unsafe: bool = setting(False, "Allow a model file to run its own code.")
