"""preview: a contact sheet of what a network sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.backbones import NetworkSpec
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.datasets import preview as draw
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import plan_extraction


def preview(
    project: Project,
    out: Path | None = None,
    *,
    network: NetworkSpec | None = None,
    per_class: int = 2,
    n_views: int = 8,
    augmentation: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Write a contact sheet: some images of each class, view 0 first, then their augmented views.

    network : whose input is drawn, made as `extract` makes it; None for squares of 224 px, made as featcache.toml says

    Raises BackboneError or WeightsError for a network that cannot be had.
    """
    space = None
    if network is not None:
        options = ExtractOptions(views=views or {}, augmentation=augmentation or {})
        plan, *_ = plan_extraction(project, [network], options=options, progress=progress, keep=False)
        space = plan.recipe.space
    return draw(project, out, per_class=per_class, n_views=n_views, augmentation=augmentation, views=views, space=space)
