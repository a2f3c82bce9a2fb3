"""Caches to be filled, with their writers opened, and the networks that rows are left for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from featcache.core.progress import Progress
from featcache.extraction.one_pass import Target
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan
from featcache.extraction.stage_times import StageTimes
from featcache.sharing import RemoteDonors
from featcache.store import CacheWriter, DonorIndex


def target_of(plan: Plan, asked: RemoteDonors, *, options: ExtractOptions, writers: ExitStack) -> Target:
    """A cache to be filled, with its writer opened."""
    shape = plan.cut.feature_shape
    reach = DonorIndex(
        (plan.parent, *options.reuse_from, *asked.donors), plan.recipe.space, row_shape=shape, but=plan.folder
    )
    reach.look_for(plan.rows)
    writer = CacheWriter(
        plan.parent,
        plan.recipe,
        rows=plan.rows,
        row_shape=shape,
        format_=plan.storage.format,
        allow_nonfinite=options.allow_nonfinite,
    )
    return Target(writers.enter_context(writer), plan.engine, plan.number, reach)


def opened(targets: Sequence[Target], progress: Progress) -> StageTimes:
    """Open the networks that have rows to compute, which takes seconds, and say so. Returns what that took."""
    shares = StageTimes()
    needed = dict.fromkeys(target.engine for target in targets if _has_rows_to_compute(target))
    if needed:
        with progress.begin("opening the network", len(needed)) as advance, shares.of("open"):
            for engine in needed:
                engine()
                advance(1)
    return shares


def _has_rows_to_compute(target: Target) -> bool:
    writer, reach = target.writer, target.reach
    numbers = (number for shard in writer.missing for number in range(*writer.store.layout.span(shard)))
    return any(not (reach and reach.holds(writer.rows[number])) for number in numbers)
