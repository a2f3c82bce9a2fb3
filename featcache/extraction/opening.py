"""Opening the network that features are of: the one that a person asks for, or the one that a recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from featcache.backbones import (
    CALIBRATION_FILE,
    KERAS_HUB,
    KNOWN_FILE,
    AnyNetwork,
    ChosenEngine,
    Cut,
    Network,
    NetworkSpec,
    available,
    identify,
    is_own_name,
    kind_of,
    load_network,
    model_of,
    open_engine,
    open_network,
    pixels,
    quick_precision,
    registry,
)
from featcache.core.errors import BackboneError, WeightsError
from featcache.core.progress import SILENT, Progress
from featcache.core.recipe import FeatureSpace, WeightsSource
from featcache.segmentation import Framing

_DIGITS = 16


def network_for(
    spec: NetworkSpec,
    memory: Path | None,
    *,
    engine: str = "auto",
    batch_rows: int | None = None,
    progress: Progress = SILENT,
) -> tuple[tuple[Cut, ...], Callable[[], ChosenEngine]]:
    """What a network computes, and how to open it.

    memory : folder that remembers what was found out about networks and engines; None for none

    Raises BackboneError or WeightsError for a network that cannot be had.
    """
    if spec.model == registry.PIXELS:
        cut = pixels.cut_of(spec)
        return (cut,), cache(lambda: ChosenEngine(pixels.PixelsEngine(cut), "pixels as they are rendered"))
    known: AnyNetwork | None
    if spec.precision == "auto":
        spec = replace(spec, precision=quick_precision(engine, kind_of(spec.model)))
    if memory is None:
        known = open_network(spec)
        cuts = known.cuts
    else:
        cuts, known = identify(memory / KNOWN_FILE, spec)

    @cache
    def opened() -> ChosenEngine:
        calibration = memory / CALIBRATION_FILE if memory else None
        network = known or open_network(spec)
        return open_engine(network, engine, batch_rows=batch_rows, memory=calibration, on_event=progress.note)

    return cuts, opened


def network_of(
    space: FeatureSpace,
    provenance: Mapping[str, Any],
    *,
    weights: str | None = None,
    memory: Path | None = None,
    engine: str = "auto",
    batch_rows: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Cut, Callable[[], ChosenEngine]]:
    """The network that a feature space is of; its weights are known by their digest.

    provenance : of a cache or run; "weights" says what they were called
    weights : as for `extract`; None for what the provenance says. Of a network that is not in the registry, its model
    memory, engine, batch_rows : as of `network_for`

    Raises BackboneError or WeightsError where it cannot be had.
    """
    spec = _spec(space, WeightsSource.read(str(provenance.get("weights", "imagenet"))), weights)
    try:
        (cut,), opened = network_for(spec, memory, engine=engine, batch_rows=batch_rows, progress=progress)
    except BackboneError as error:
        if isinstance(error, WeightsError) or weights is None or not is_own_name(space.backbone):
            raise
        raise WeightsError(
            f"{space.backbone}: this cannot be the network of the cache: {error.message}",
            "Name the file of the network with `weights=PATH`",
        ) from error
    _refuse_other_network(cut, space, weights or spec.weights)
    return cut, opened


def loaded_network(space: FeatureSpace, provenance: Mapping[str, Any], *, weights: str | None = None) -> Network:
    """As `network_of`, the network itself; of pixels, which pass through none, there is none (BackboneError)."""
    spec = _spec(space, WeightsSource.read(str(provenance.get("weights", "imagenet"))), weights)
    network = load_network(spec)
    _refuse_other_network(network.cuts[0], space, weights or spec.weights)
    return network


def _refuse_other_network(cut: Cut, space: FeatureSpace, weights: str) -> None:
    """Raise WeightsError for a network that is not the one of a feature space."""
    found = cut.stored(space.dtype, **Framing.of(space)._asdict())
    if found != space:
        ours, theirs = asdict(found), asdict(space)
        fields = [
            f"{name} {ours[name]!s:.20} here, {theirs[name]!s:.20} there" for name in ours if ours[name] != theirs[name]
        ]
        raise WeightsError(
            f"{space.backbone}: {weights}: this is not the network of the cache: {'; '.join(fields)}",
            "Name the file of its weights with `weights=PATH`",
        )


def _spec(space: FeatureSpace, made_with: WeightsSource, weights: str | None) -> NetworkSpec:
    model = model_of(space.backbone)
    known = model != space.backbone or not is_own_name(space.backbone)
    source = weights or made_with.name or made_with.kind
    if weights is None and not known:
        raise WeightsError(f"made with the model {space.backbone}", "Say where its file is with `weights=PATH`")
    if weights is None and made_with.kind == "file":
        row = registry.BACKBONES.get(space.backbone)
        if row is None or available(row) in ("download", "none"):
            raise WeightsError(
                f"{space.backbone}: made with the weights file {made_with} (digest {space.weights_digest[:_DIGITS]}..)",
                "Say where it is with `weights=PATH`",
            )
        source = "imagenet"  # its digest will tell
    if not known and Path(source).is_dir():  # of a preset that Keras Hub saved
        source = f"{KERAS_HUB}/{source}"
    model, weights = (model, source) if known else (source, "imagenet")
    as_there = {name: getattr(space, name) for name in ("input_size_px", "preprocessing", "pooling", "precision")}
    tokens: Any = None if space.tokens == "none" else space.tokens
    return NetworkSpec(model, weights, made_with.seed, layers=(space.layer,), tokens=tokens, **as_there)
