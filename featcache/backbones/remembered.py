"""Remembers what a network with given weights computes, so that a cache can be named without building it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featcache.backbones import registry
from featcache.backbones.doors import AnyNetwork, open_network
from featcache.backbones.import_keras import require_keras
from featcache.backbones.keras_hub_models import preset_folder
from featcache.backbones.model_names import KERAS_HUB, is_model_file, is_of_library, kind_of, needs_keras
from featcache.backbones.network import Cut
from featcache.backbones.onnx_network import OnnxNetwork
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.weights import source_of
from featcache.core.extras import is_installed
from featcache.core.files import expanded, resolved, write_json
from featcache.core.recipe import FeatureSpace, Transform, WeightsSource, digest
from featcache.core.strict_json import read_json

KNOWN_FILE = ".backbones.json"


def identify(memory: Path, spec: NetworkSpec) -> tuple[tuple[Cut, ...], AnyNetwork | None]:
    """What the network of `spec` computes, and the network itself if it had to be built.

    Files are known again by their path, size and times; an ONNX file whose weights lie in others is not. A network that
    a function of the user's builds is built anew each time, since nothing tells whether the function is still the same.

    memory : file that remembers; losing it only costs building the network once more

    Raises what `open_network` raises.
    """
    if needs_keras(spec.model):
        require_keras()
    key = _key(spec)
    known = _read(memory)
    with suppress(KeyError, TypeError):
        if key is not None:
            return tuple(_cut(value) for value in known[key]), None
    network = open_network(spec)
    if key is not None and not (isinstance(network, OnnxNetwork) and network.is_external):
        _write(memory, {**known, key: [asdict(cut) for cut in network.cuts]})
    return network.cuts, network


def _key(spec: NetworkSpec) -> str | None:
    """A name of all that decides what a network computes; None where that cannot be said without building it."""
    if kind_of(spec.model) == "builder":
        return None
    asked = {**asdict(spec), "keras": version("keras") if needs_keras(spec.model) else ""}
    if is_model_file(spec.model):
        asked["model"] = _state(expanded(spec.model))
        named = spec.weights not in ("imagenet", "random")
        asked["weights"] = _state(expanded(spec.weights)) if named else spec.weights
    elif kind_of(spec.model) == KERAS_HUB:
        named = spec.weights not in ("imagenet", "random")
        asked["weights"] = _state(expanded(spec.weights)) if named else spec.weights
        asked["libraries"] = {"keras-hub": version("keras-hub") if is_installed("keras_hub") else ""}
        folder = preset_folder(spec.model)
        asked["files"] = sorted(map(str, map(_state, folder.rglob("*")))) if folder else []
    elif is_of_library(spec.model):
        named = spec.weights not in ("imagenet", "random")
        asked["weights"] = _state(expanded(spec.weights)) if named else spec.weights
        asked["libraries"] = {name: version(name) for name in _of(spec.model)}
    else:
        backbone = registry.get(spec.model)
        asked["model"] = asdict(backbone)
        asked["weights"] = _source(backbone, spec.weights)
    return digest(asked)


def _of(model: str) -> list[str]:
    """The libraries that a network is of, where they are installed."""
    named = {"timm": "timm", "torchvision": "torchvision", "huggingface": "transformers"}[kind_of(model)]
    return [name for name in ("torch", named) if is_installed(name)]


def _source(backbone: registry.Backbone, weights: str | Path) -> list[str | int] | None:
    source = source_of(backbone, weights)
    return _state(source) if source else None


def _state(path: Path) -> list[str | int] | None:
    """What tells a file from another or a later one; None where there is none, which whoever reads it will say."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [str(resolved(path)), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _cut(value: Any) -> Cut:
    transform = value["transform"]
    return Cut(
        FeatureSpace(**value["space"]),
        WeightsSource(**value["weights"]),
        tuple(value["feature_shape"]),
        Transform(**transform) if transform else None,
    )


def _write(path: Path, known: dict[str, Any]) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
