"""How a data set is read, as a record. It imports little: the command line makes its options from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featcache.core.settings import setting

GENERATED_PER_CLASS = 80


@dataclass(frozen=True)
class InitOptions:
    """How `init` reads a source and what it changes in featcache.toml.

    Attributes
    ----------
    dataset, views, augmentation : values for those sections of featcache.toml
    """

    dataset: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    per_class: int = setting(GENERATED_PER_CLASS, "Images of each class to generate, if no FOLDER is given.", ge=3)
    resplit: bool = setting(False, "Make new splits, even if the source or dataset.csv has some.")
    relabel: bool = setting(False, "Take labels and splits from the source, and discard edits of dataset.csv.")
    offline: bool = setting(False, "Reach no other machine: addresses in a list must have been fetched before.")
    strict: bool = setting(False, "Stop at the first image that cannot be used, instead of leaving it out.")
