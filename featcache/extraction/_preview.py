"""preview: a contact sheet of what a network sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.backbones import NetworkSpec
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project, changed_views
from featcache.datasets import preview as draw
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import plan_extraction
from featcache.extraction.segmenters import cutting, with_fitted
from featcache.segmentation import Framing, Segmenter

_SIZE_PX = 224
"""Side of a view, where no network is named."""


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
    said = views or {}
    segmenter: Segmenter | None
    if network is not None:
        options = ExtractOptions(views=said, augmentation=augmentation or {})
        plan, *_ = plan_extraction(project, [network], options=options, progress=progress, keep=False)
        framing, size_px = Framing.of(plan.recipe.space), plan.recipe.space.input_size_px
        segmenter = plan.segmenter()
    else:
        wanted, fitted = with_fitted(changed_views(project.settings.views, said), said, folder=project.folder)
        framing, size_px = Framing.asked(wanted, _SIZE_PX), _SIZE_PX
        files = [wanted.segment_weights]
        segmenter = cutting(fitted, framing.segmentation, where="preview", weights=files, progress=progress)
    return draw(
        project,
        out,
        per_class=per_class,
        n_views=n_views,
        augmentation=augmentation,
        framing=framing,
        size_px=size_px,
        segmenter=segmenter,
    )
