"""Caches to be filled, with their writers opened, and the networks that rows are left for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from featcache.core.progress import Progress
from featcache.extraction.one_pass import Target
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan
from featcache.extraction.stage_times import StageTimes
from featcache.sharing import RemoteDonors, RemoteWriter, open_folder
from featcache.store import CacheWriter, DonorIndex, Row

_LONG_S = 60.0
"""Of computing, from which on it is worth seconds to find out what would be quicker."""


def target_of(
    plan: Plan,
    asked: RemoteDonors,
    *,
    options: ExtractOptions,
    writers: ExitStack,
    on_event: Callable[[str], object] = lambda _: None,
) -> Target:
    """A cache to be filled, with its writer opened. on_event : told what a remote that it is made on makes wait for"""
    shape = plan.cut.feature_shape
    reach = DonorIndex(
        (plan.parent, *options.reuse_from, *asked.donors),
        plan.recipe.space,
        row_shape=shape,
        but=None if plan.url else plan.folder,
    )
    reach.look_for(plan.rows)
    of_cache: dict[str, Any] = {
        "rows": plan.rows,
        "row_shape": shape,
        "format_": plan.storage.format,
        "allow_nonfinite": options.allow_nonfinite,
    }
    if plan.url:
        store = open_folder(plan.url, on_event)
        writer: CacheWriter = RemoteWriter(store, plan.recipe, parent=plan.parent, **of_cache)
    else:
        writer = CacheWriter(plan.parent, plan.recipe, **of_cache)
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


def note_what_is_quicker(plans: Sequence[Plan], targets: Sequence[Target], *, progress: Progress) -> None:
    """Where it takes long, say what bfloat16 would gain on this machine."""
    rows = {plan.engine: sum(1 for _ in _rows_to_compute(target)) for plan, target in zip(plans, targets, strict=True)}
    for engine, n_rows in ((opened(), n_rows) for opened, n_rows in rows.items() if n_rows):
        if engine.images_per_s and n_rows / engine.images_per_s > _LONG_S and (gain := engine.bfloat16_gain()):
            progress.note(
                f"in bfloat16 this processor computes the network {gain:.2g} times as fast, with slightly other "
                "features: `precision='auto'`"
            )


def _has_rows_to_compute(target: Target) -> bool:
    return next(_rows_to_compute(target), None) is not None


def _rows_to_compute(target: Target) -> Iterator[Row]:
    """The rows of a cache that no cache in reach holds."""
    writer, reach = target.writer, target.reach
    rows = (writer.rows[number] for shard in writer.missing for number in range(*writer.store.layout.span(shard)))
    return (row for row in rows if not (reach and reach.holds(row)))
