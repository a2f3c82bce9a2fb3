"""A dry run of `extract`: rows, bytes and time, the latter from a few rows that are rendered and computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.backbones import NetworkSpec
from featcache.core.machine import usable_cores
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.datasets import Dataset, LeftOut
from featcache.extraction._explain import Explanation, explain_plan
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.extraction.rendering import render_views
from featcache.images import Pixels, view_parameters

_SAMPLE_ROWS = 8
_MOST_VIEWS = 16


@dataclass(frozen=True)
class Estimate:
    """What `extract` would have to do for one cache.

    bytes : of the rows that are to be computed, before they are compressed
    seconds : computing included, with that of other cuts of the same network; 0 where nothing is to be computed
    engine : which would compute, and why; "" where nothing is to be computed
    """

    explained: Explanation
    bytes: int
    seconds: float
    engine: str


def estimate(
    project: Project,
    networks: Sequence[NetworkSpec],
    *,
    options: ExtractOptions | None = None,
    images: tuple[Dataset, Sequence[LeftOut]] | None = None,
    progress: Progress = SILENT,
) -> list[Estimate]:
    """Say what `extract` with these arguments would take, a cache each. Nothing is kept but what the engine found out.

    Raises what `extract` raises.
    """
    options = options or ExtractOptions()
    plans = plan_extraction(project, networks, options=options, images=images, progress=progress, keep=False)
    s_a_row: dict[Callable[[], object], float] = {}
    estimates = []
    for plan in plans:
        explained = explain_plan(plan, options)
        row_bytes = int(np.prod(plan.cut.feature_shape)) * np.dtype(plan.recipe.space.dtype).itemsize
        seconds, engine = 0.0, ""
        if explained.compute:
            if plan.engine not in s_a_row:
                s_a_row[plan.engine] = seconds_a_row(plan)
            seconds, engine = explained.compute * s_a_row[plan.engine], plan.engine().why
        estimates.append(Estimate(explained, explained.compute * row_bytes, seconds, engine))
    return estimates


def seconds_a_row(plan: Plan) -> float:
    """Of rendering and computing one row of a plan, by a few rows of it, each with the other views of its image."""
    engine, space, segmenter = plan.engine(), plan.recipe.space, plan.segmenter()
    rows = plan.rows[:: max(len(plan.rows) // _SAMPLE_ROWS, 1)][:_SAMPLE_ROWS]
    images = {image.image_id: (image, n_views) for image, n_views in zip(plan.dataset.images, plan.views, strict=True)}
    rendered = 0.0
    pixels: list[Pixels] = []
    for row in rows:
        image, n_views = images[row.image_id]
        views = [
            view_parameters(plan.recipe.augmentation, row.image_id, view=view) for view in range(n_views)[:_MOST_VIEWS]
        ]
        start = time.perf_counter()
        pixels += render_views(image, plan.dataset, space=space, parameters=views, segmenter=segmenter)[:1]
        rendered += (time.perf_counter() - start) / len(views) / len(rows) / usable_cores()
    batch = np.stack([pixels[number % len(pixels)] for number in range(max(engine.batch_rows, _SAMPLE_ROWS))])
    engine.features(batch)  # the first call is slower
    start = time.perf_counter()
    engine.features(batch)
    return rendered + (time.perf_counter() - start) / len(batch)
