"""How to extract, as one record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featcache.core.settings import setting

EngineName = Literal["auto", "keras", "openvino", "onnxruntime", "torch"]


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract. What is None or not given is as featcache.toml says.

    Attributes
    ----------
    views, augmentation, storage : values that replace those of the sections of featcache.toml
    """

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
    cluster: str | None = setting(None, "Compute on several workers: local:N, dask://HOST:PORT or ray://HOST:PORT.")
    strict: bool = setting(False, "Stop at the first image that cannot be used, instead of leaving it out.")
