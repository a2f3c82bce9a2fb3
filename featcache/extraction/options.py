"""What to extract, as one record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featcache.core.recipe import Pooling, Precision, Preprocessing
from featcache.core.settings import setting

if TYPE_CHECKING:
    from featcache.backbones import NetworkSpec

EngineName = Literal["auto", "keras", "openvino"]


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract. What is None or not given is as featcache.toml says.

    Attributes
    ----------
    views, augmentation, storage : values that replace those of the sections of featcache.toml
    """

    weights: str = setting("imagenet", "Weights of the network.")
    weights_seed: int = setting(0, "Seed of random weights.", ge=0)
    input_size_px: int | None = setting(None, "Side of the square input in pixels (default: the network's own).", ge=1)
    preprocessing: Literal["model"] | Preprocessing | None = setting(
        "model", "How pixels are scaled: as the network was trained (model), or by this formula."
    )
    layers: Sequence[str] = setting((), "Layer to take features from (default: the last feature map).")
    pooling: Pooling = setting("none", "Keep the mean or maximum of each channel instead of the feature map.")
    precision: Precision = setting("float32", "Precision of the network's arithmetic. It changes the features.")
    unsafe: bool = setting(False, "Allow a model file to run its own code.")
    engine: EngineName = setting("auto", "Engine that computes the features. OpenVINO is fast on CPUs.")
    batch_rows: int | None = setting(None, "Batch size of the network (default: the fastest).", ge=1)
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    reuse_from: Sequence[Path] = setting((), "Copy rows from the caches in this folder, too.")
    no_remote: bool = setting(False, "Do not look for features on remotes.")
    offline: bool = setting(False, "Block all network access. Weights must be on this machine.")
    allow_nonfinite: bool = setting(False, "Store NaN and infinite values instead of stopping.")
    check_bytes: bool = setting(False, "Read every image, even if its size and time have not changed.")
    strict: bool = setting(False, "Stop at the first image that cannot be used, instead of leaving it out.")

    def network(self, model: str) -> NetworkSpec:
        """The network that `model` is to be."""
        from featcache.backbones import NetworkSpec

        return NetworkSpec(
            model=model,
            weights=self.weights,
            weights_seed=self.weights_seed,
            input_size_px=self.input_size_px,
            preprocessing=self.preprocessing,
            layers=tuple(self.layers),
            pooling=self.pooling,
            precision=self.precision,
            unsafe=self.unsafe,
        )
