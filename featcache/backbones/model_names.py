"""What a name of a model means: a row of the registry, a file, a function, or a model of another library."""

from __future__ import annotations

from typing import Literal

from featcache.backbones import own_models, registry
from featcache.backbones.onnx_file import SUFFIX

Kind = Literal["pixels", "onnx", "file", "builder", "registry", "timm", "torchvision", "huggingface", "kerashub"]
LIBRARIES: tuple[Kind, ...] = ("timm", "torchvision", "huggingface")
"""Those that have networks of PyTorch by name, as in "timm/resnet18"."""
KERAS_HUB: Kind = "kerashub"
"""Of its presets, as in "kerashub/resnet_18_imagenet", and of folders of such, as in "kerashub/./mine"."""


def kind_of(model: str) -> Kind:
    """What `model` means; "registry" for any name that is nothing else, which the registry may not have."""
    if model == registry.PIXELS:
        return "pixels"
    if model.lower().endswith(SUFFIX):
        return "onnx"
    for library in (*LIBRARIES, KERAS_HUB):
        if model.startswith(f"{library}/"):
            return library
    if own_models.is_file(model):
        return "file"
    return "builder" if own_models.is_builder(model) else "registry"


def needs_keras(model: str) -> bool:
    """Whether the network is certainly one of Keras; what a function builds is not known before."""
    return kind_of(model) in ("registry", "file", KERAS_HUB)


def is_model_file(model: str) -> bool:
    """Whether the name is the path of a file."""
    return kind_of(model) in ("onnx", "file")


def is_in_registry(model: str) -> bool:
    """Whether it can only be a name of the registry; pixels have one, too."""
    return kind_of(model) in ("registry", "pixels")


def name_of(model: str) -> str:
    """What a network of a library is called in recipes and names of caches, where "/" is not allowed."""
    library, _, name = model.partition("/")
    return f"{library}-{name.replace('/', '--')}"


def model_of(backbone: str) -> str:
    """The inverse of `name_of`; any other name as it is."""
    library, _, name = backbone.partition("-")
    return f"{library}/{name.replace('--', '/')}" if library in (*LIBRARIES, KERAS_HUB) and name else backbone


def is_of_library(model: str) -> bool:
    """Whether it is a network of a library of PyTorch, by its name there."""
    return kind_of(model) in LIBRARIES
