"""Features of images one after the other, without a cache: rendered in threads ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import Engine
from featcache.core.errors import DatasetError
from featcache.core.machine import usable_cores
from featcache.core.recipe import Augmentation
from featcache.images import Item, Pixels, read_bytes, render, view_parameters
from featcache.segmentation import CellCut, Framing, Segmenter, plain_view, read_mask

_AHEAD_ROWS = 96
_CALL_ROWS = 64
_CALL_BYTES = 256 << 20
Given = TypeVar("Given")
Made = TypeVar("Made")


NEEDS_MASKS = "no mask came with it, and cells are cut out by the masks that come with images (`segment='given'`)"


class Rendered(NamedTuple):
    """The views of an image and what is to be said of it; or none, and why it cannot be used."""

    views: list[Pixels]
    remark: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Rendering:
    """How images become the input of a network, as in a feature space; and the first so many views of each.

    segmenter : the fitted one that cuts cells out, where it is one
    """

    size_px: int
    framing: Framing
    augmentation: Augmentation
    views: int = 1
    segmenter: Segmenter | None = None

    def __call__(self, item: Item) -> Rendered:
        """The views of an image, or why it cannot be used."""
        try:
            image_id, pixels, size = item.read(self.framing.white)
            mask = None
            if CellCut.is_given(self.framing.segmentation):
                if item.mask is None:
                    raise DatasetError(NEEDS_MASKS)
                mask = read_mask(read_bytes(item.mask))
            plain, remark = plain_view(
                pixels,
                item.box,
                size_px=self.size_px,
                framing=self.framing,
                segmenter=self.segmenter,
                mask=mask,
                size=size,
            )
        except DatasetError as error:
            return Rendered([], problem=str(error))
        views = (view_parameters(self.augmentation, image_id, view=view) for view in range(self.views))
        return Rendered([render(plain, how) for how in views], remark)


@dataclass(frozen=True)
class Streamed:
    """What came of one image: `values`, one for each view, and a remark or ""; or the problem, and no values."""

    item: Item
    values: NDArray[Any] | None
    problem: str = ""
    remark: str = ""


def stream(
    items: Iterable[Item],
    engine: Engine,
    *,
    rendering: Rendering,
    finish: Callable[[NDArray[Any]], NDArray[Any]] = lambda features: features,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Streamed]:
    """The features of each item, in order. Only as many images are in memory as keep the network busy.

    finish : applied to the features (n, ...) of every batch, in the network's thread
    stopped : once it says True, KeyboardInterrupt is raised
    """
    row_bytes = 4 * int(np.prod(engine.feature_shapes[0]))
    call_rows = max(min(_CALL_ROWS, _CALL_BYTES // row_bytes) // engine.batch_rows, 1) * engine.batch_rows

    def compute(batch: list[tuple[Item, Rendered]]) -> list[Streamed]:
        pixels = [view for _, rendered in batch for view in rendered.views]
        values = finish(engine.features(np.stack(pixels))[0]) if pixels else np.empty(0)
        made, place = [], 0
        for item, (views, remark, problem) in batch:
            made.append(Streamed(item, None if problem else values[place : place + len(views)], problem, remark))
            place += len(views)
        return made

    render_pool = ThreadPoolExecutor(usable_cores(), "featcache-render")
    compute_pool = ThreadPoolExecutor(1, "featcache-compute")
    try:
        most = max(_AHEAD_ROWS // rendering.views, usable_cores())
        rendered = ahead(render_pool, lambda item: (item, rendering(item)), things=items, most=most)
        batches = _batched(rendered, call_rows, rendering.views)
        for made in ahead(compute_pool, compute, things=batches, most=2):
            yield from made
            if stopped():
                raise KeyboardInterrupt
    finally:
        render_pool.shutdown(cancel_futures=True)
        compute_pool.shutdown(cancel_futures=True)


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], *, things: Iterable[Given], most: int
) -> Iterator[Made]:
    """What `work` makes of each thing, in order; at most so many are under way before they are asked for."""
    under_way: deque[Future[Made]] = deque()
    for thing in things:
        under_way.append(pool.submit(work, thing))
        while len(under_way) > most or (under_way and under_way[0].done()):
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _batched(
    rendered: Iterable[tuple[Item, Rendered]], call_rows: int, views: int
) -> Iterator[list[tuple[Item, Rendered]]]:
    """Images together, with about `call_rows` views."""
    batch: list[tuple[Item, Rendered]] = []
    for one in rendered:
        batch.append(one)
        if len(batch) * views >= call_rows:
            yield batch
            batch = []
    if batch:
        yield batch
