"""One pass over the images that fills one cache, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from featcache.backbones import Engine
from featcache.datasets import Dataset
from featcache.extraction.cache_filler import CacheFiller, Counts
from featcache.extraction.computing import Computer
from featcache.extraction.rendering import Renderer
from featcache.extraction.stage_times import StageTimes
from featcache.images import Box
from featcache.segmentation import Segmenter
from featcache.store import CacheWriter, DonorIndex


@dataclass(frozen=True)
class Target:
    """A cache to fill.

    writer : of the cache
    engine : gives the network; called when the first row is to be computed. Cuts of one network have the same
    cut : which of the network's outputs it keeps
    reach : other caches that rows may be copied from
    """

    writer: CacheWriter
    engine: Callable[[], Engine]
    cut: int = 0
    reach: DonorIndex | None = None


@dataclass(frozen=True)
class Extraction:
    """What an extraction did for each target, where the time went, and remarks on images by path and box."""

    counts: tuple[Counts, ...]
    shares: StageTimes
    remarks: Mapping[tuple[str, Box | None], str]


def extract(
    targets: Sequence[Target],
    dataset: Dataset,
    *,
    on_rows: Callable[[int], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
    shares: StageTimes | None = None,
    most_shards: int | None = None,
    segmenter: Callable[[], Segmenter | None] = lambda: None,
) -> Extraction:
    """Write every shard that the caches still miss: rows that other caches hold are copied, the rest is computed.

    The caches advance side by side, row by row, so that an image is decoded once and a view rendered once for all of
    them, and a network computed once for all of its cuts. Other processes may be at work on the same caches; this one
    returns when no shard is missing any more.

    dataset : all images that the rows are of
    on_rows : called with the number of rows that are there besides those before
    stopped : once it says True, the shards in hand are finished and nothing else begun
    shares : where the time is added up; None for a new one
    most_shards : of each cache, to be written at most, and what others are at work on is not waited for; None: all
    segmenter : opens the fitted one that cuts cells out; called when the first row is to be computed

    Raises DatasetError if an image is no longer what the manifest says, CacheError if a cache cannot be written.
    Shards finished before are kept.
    """
    shares = shares or StageTimes()
    images = {image.image_id: image for image in dataset.images}
    with ExitStack() as closing:
        renderer = Renderer(dataset, shares, for_several=len(targets) > 1, segmenter=segmenter)
        closing.callback(renderer.close)
        compute = ThreadPoolExecutor(1, "featcache-compute")
        closing.push(partial(_end, compute))
        computers = {target.engine: Computer(compute, target.engine, shares=shares) for target in targets}
        fillings = []
        for target in targets:
            computer = computers[target.engine]
            filling = CacheFiller(
                target.writer,
                images,
                renderer=renderer,
                computer=computer,
                cut=target.cut,
                reach=target.reach,
                shares=shares,
                on_rows=on_rows,
                stopped=stopped,
                most_shards=most_shards,
            )
            closing.callback(filling.close)
            fillings.append(filling)
        under_way = {filling: filling.steps() for filling in fillings}
        while under_way:
            last = min(under_way, key=lambda filling: (filling.waits, filling.row))
            if next(under_way[last], None) is None:
                del under_way[last]
    return Extraction(tuple(filling.counts for filling in fillings), shares, renderer.remarks)


def _end(compute: ThreadPoolExecutor, kind: type[BaseException] | None, *_: object) -> None:
    """Wait for the network, unless a person waits for the end: a batch of a large network takes long."""
    is_urgent = kind is not None and issubclass(kind, KeyboardInterrupt)
    compute.shutdown(wait=not is_urgent, cancel_futures=True)
