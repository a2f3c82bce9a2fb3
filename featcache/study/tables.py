"""The tables of a recipe, as records: their keys are the arguments of the functions that do the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featcache.backbones import NetworkSpec
from featcache.core.project import AugmentationSection, DatasetSection, StorageSection, ViewsSection
from featcache.core.settings import Setting, setting, settings_of
from featcache.datasets import InitOptions
from featcache.extraction import ExtractOptions
from featcache.heads import HeadConfig, Protocol, Solver
from featcache.networks import ScratchConfig, ScratchOptions

Measure = Literal["loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc"]
HeadKind = Literal["dense", "logreg", "linear-svm", "rbf-svm", "knn", "mlp"]
_NETWORKS = "Names of the networks that it is done with; * stands for any characters."


@dataclass(frozen=True)
class DataTable:
    """[dataset]: what [dataset] of featcache.toml has, and these."""

    source: str | None = setting(None, "Folder or list of images. Without it, cells are generated.")
    classes: tuple[str, ...] = setting((), "The classes that the images must have, and no others.")


@dataclass(frozen=True)
class NetworkTable:
    """[networks.NAME]: what [extract] has, and these."""

    model: str | None = setting(None, "The network: a backbone, a file of a model, or MODULE:FUNCTION (default: NAME).")


@dataclass(frozen=True)
class HeadTable:
    """[heads.NAME]: settings of the head, and these."""

    head: HeadKind = setting("dense", "Kind of head.")
    preset: Literal["default", "study"] = setting("default", "Settings to start from.")
    solver: Solver = setting(
        "auto", "Solver: Gram space, blocks (many rows), Keras (primal), or the fastest of them (auto)."
    )
    seeds: int = setting(1, "Train with this many seeds.", ge=1)
    networks: tuple[str, ...] = setting(("*",), _NETWORKS)


@dataclass(frozen=True)
class ScratchTable:
    """[scratch.NAME]: settings of the training, and these."""

    recipe: Literal["study", "modern", "fine-tune"] = setting("modern", "Settings to start from.")
    weights: str = setting("random", "Weights to start from. All but random mean fine-tuning.")
    networks: tuple[str, ...] = setting(("*",), _NETWORKS)


@dataclass(frozen=True)
class CrossTable:
    """[cross_validate.NAME]: how images are divided into folds, and these."""

    heads: tuple[str, ...] = setting(("*",), "Names of the heads whose settings are judged.")
    networks: tuple[str, ...] = setting(("*",), _NETWORKS)
    without_test: bool = setting(
        True, "Leave out the test images. Only then can [ensembles] choose by it and be judged on them."
    )


@dataclass(frozen=True)
class EnsembleTable:
    """[ensembles.NAME]: the average of the probabilities of several runs."""

    members: tuple[str, ...] = setting((), "Steps whose runs are averaged, such as head/100 or head/*/vgg*.")
    choose: str = setting("", "Take the heads that this table of [cross_validate] judges best, instead.")
    best: int = setting(1, "How many of them.", ge=1)
    measure: Measure = setting("loss", "Measure of the cross-validation that decides.")


_OF_INIT = ("per_class", "resplit", "strict")
_OF_STORAGE = settings_of(StorageSection)


def _known(*parts: Mapping[str, Setting]) -> dict[str, Setting]:
    return {name: one for part in parts for name, one in part.items()}


_EXTRACT = _known(
    settings_of(NetworkSpec),
    {name: one for name, one in settings_of(ExtractOptions).items() if name != "reuse_from"},
    _OF_STORAGE,
)
SETTINGS: dict[str, dict[str, Setting]] = {
    "dataset": _known(settings_of(DatasetSection), settings_of(DataTable))
    | {name: settings_of(InitOptions)[name] for name in _OF_INIT},
    "views": _known(settings_of(ViewsSection)),
    "augmentation": _known(settings_of(AugmentationSection)),
    "extract": _EXTRACT,
    "networks": _known(_EXTRACT, settings_of(NetworkTable)),
    "heads": _known(settings_of(HeadConfig), settings_of(HeadTable)),
    "scratch": _known(
        settings_of(ScratchConfig),
        {name: one for name, one in settings_of(ScratchOptions).items() if name != "head"},
        settings_of(ScratchTable),
    ),
    "cross_validate": _known(settings_of(Protocol), settings_of(CrossTable)),
    "ensembles": _known(settings_of(EnsembleTable)),
}
"""The keys of each table, or of each [table.NAME]."""
NAMED = ("networks", "heads", "scratch", "cross_validate", "ensembles")
"""Tables that hold one table for each NAME."""


@dataclass(frozen=True)
class DataSet:
    """A data set of a study: what `init` is told of it.

    dataset : values of [dataset] that were given; init : arguments of `init` besides
    """

    name: str
    source: str | None
    classes: Sequence[str]
    dataset: Mapping[str, Any]
    views: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    init: Mapping[str, Any]


@dataclass(frozen=True)
class OneNetwork:
    """A network of a study. options : arguments of `extract`"""

    name: str
    model: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class OneHead:
    """A head of a study. options : arguments of `fit_head`, but for `head`; config : None of classical heads"""

    name: str
    networks: Sequence[str]
    head: str
    seeds: int
    options: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class OneScratch:
    """A training of whole networks. options : arguments of `fit_scratch`"""

    name: str
    networks: Sequence[str]
    options: Mapping[str, Any]

    def arguments(self, network: OneNetwork) -> dict[str, Any]:
        """All arguments of `fit_scratch` for a network: its input, and how it is trained."""
        shared = ("input_size_px", "preprocessing", "unsafe", "offline", "no_remote", "strict")
        return {**{name: network.options[name] for name in shared if name in network.options}, **self.options}


@dataclass(frozen=True)
class OneCross:
    """A cross-validation of the study's heads. options : arguments of `cross_validate` that say how"""

    name: str
    heads: Sequence[str]
    networks: Sequence[str]
    without_test: bool
    options: Mapping[str, Any]


@dataclass(frozen=True)
class OneEnsemble:
    """An average of runs: of some steps, or of those that a cross-validation judges best."""

    name: str
    members: Sequence[str]
    choose: str
    best: int
    measure: str


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, checked."""

    name: str
    title: str
    datasets: Sequence[DataSet]
    networks: Sequence[OneNetwork]
    heads: Sequence[OneHead] = field(default=())
    scratch: Sequence[OneScratch] = field(default=())
    cross_validate: Sequence[OneCross] = field(default=())
    ensembles: Sequence[OneEnsemble] = field(default=())
