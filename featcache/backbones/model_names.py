"""What a name of a model means: a row of the registry, a file, a function, or a model of another library."""

from __future__ import annotations

from typing import Literal

from featcache.backbones import own_models, registry
from featcache.backbones.onnx_file import SUFFIX

Kind = Literal["pixels", "onnx", "file", "builder", "registry"]


def kind_of(model: str) -> Kind:
    """What `model` means; "registry" for any name that is nothing else, which the registry may not have."""
    if model == registry.PIXELS:
        return "pixels"
    if model.lower().endswith(SUFFIX):
        return "onnx"
    if own_models.is_file(model):
        return "file"
    return "builder" if own_models.is_builder(model) else "registry"


def needs_keras(model: str) -> bool:
    """Whether the network is certainly one of Keras; what a function builds is not known before."""
    return kind_of(model) in ("registry", "file")


def is_model_file(model: str) -> bool:
    """Whether the name is the path of a file."""
    return kind_of(model) in ("onnx", "file")


def is_in_registry(model: str) -> bool:
    """Whether it can only be a name of the registry; pixels have one, too."""
    return kind_of(model) in ("registry", "pixels")
