"""Views of images, rendered in threads ahead of the networks; each file is decoded once, each view rendered once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from featcache.core.errors import DatasetError, ImageError
from featcache.core.files import sha256_bytes
from featcache.core.machine import usable_cores
from featcache.core.recipe import FeatureSpace
from featcache.datasets import Dataset, LabelledImage
from featcache.extraction.stage_times import StageTimes
from featcache.images import (
    OF_ARRAY,
    RULES,
    Box,
    Pixels,
    PixelSize,
    ViewParameters,
    identity_of,
    identity_of_pixels,
    image_id_of,
    read_bytes,
    read_picture,
    render,
)
from featcache.segmentation import CellCut, Framing, GivenMask, Plain, Segmenter, plain_view, read_mask

_REMEMBERED_BYTES, _REMEMBERED_MASKS = 192 << 20, 64 << 20

Value = TypeVar("Value")


class Renderer:
    """Renders what several caches ask for. What two of them ask for at about the same time is made once.

    dataset : of the images
    remarks : of what was rendered, by path and box: images in which no cell was found
    segmenter : opens the fitted one that cuts cells out; None of it where there is none
    for_several : whether views are remembered for other caches; decoded files always are, for their other boxes
    """

    def __init__(
        self,
        dataset: Dataset,
        shares: StageTimes,
        *,
        for_several: bool,
        segmenter: Callable[[], Segmenter | None] = lambda: None,
    ) -> None:
        self._segmenter = segmenter
        self._shares = shares
        self.remarks: dict[tuple[str, Box | None], str] = {}
        self._pool = ThreadPoolExecutor(usable_cores(), "featcache-render")
        self._files = _FilesOnce(dataset)
        self._views: _Once[Pixels] | None = _Once(_REMEMBERED_BYTES, lambda view: view.nbytes) if for_several else None

    def submit(
        self, image: LabelledImage, space: FeatureSpace, *, parameters: Sequence[ViewParameters]
    ) -> Future[list[Pixels]]:
        """Begin to render views of an image. Its result raises DatasetError as `render_views` does."""
        return self._pool.submit(self._render, image, space, parameters, self._segmenter())

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def _render(
        self,
        image: LabelledImage,
        space: FeatureSpace,
        parameters: Sequence[ViewParameters],
        segmenter: Segmenter | None,
    ) -> list[Pixels]:
        plain: Pixels | None = None

        def view(how: ViewParameters) -> Pixels:
            nonlocal plain
            if plain is None:
                with self._shares.of("decode"):
                    plain, remark = _plain(image, space, self._files, segmenter)
                if remark:
                    self.remarks[image.path, image.box] = remark
            with self._shares.of("render"):
                return render(plain, how)

        frame = (space.input_size_px, *Framing.of(space))
        if self._views is None:
            return [view(how) for how in parameters]
        return [self._views.get((image.image_id, *frame, how), partial(view, how)) for how in parameters]


class _Once(Generic[Value]):
    """Values by key, each made by whoever asks first; the latest are remembered, up to so many bytes."""

    def __init__(self, most_bytes: int, size: Callable[[Value], int]) -> None:
        self._most_bytes, self._size = most_bytes, size
        self._lock = Lock()
        self._made: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            future = self._made.get(key)
            is_mine = future is None
            if future is None:
                future = self._made[key] = Future()
            self._made.move_to_end(key)
        if is_mine:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
                raise
            self._remember(future)
        return future.result()

    def _remember(self, future: Future[Value]) -> None:
        with self._lock:
            self._bytes += self._size(future.result())
            for key, old in list(self._made.items()):
                if self._bytes <= self._most_bytes:
                    break
                if old.done() and old is not future:
                    del self._made[key]
                    self._bytes -= self._size(old.result()) if old.exception() is None else 0


def render_views(
    image: LabelledImage,
    dataset: Dataset,
    *,
    space: FeatureSpace,
    parameters: Sequence[ViewParameters],
    segmenter: Segmenter | None = None,
) -> list[Pixels]:
    """Read and decode an image, and render the wanted views of it, each of the input size of a feature space.

    Raises DatasetError, with the image's path, for what is no image, or no longer the one that it is named by.
    """
    plain, _ = _plain(image, space, _Files(dataset), segmenter)
    return [render(plain, how) for how in parameters]


class _MaskFile(NamedTuple):
    """The digest of a mask's bytes, and what it shows, if that was asked for; or why it shows nothing."""

    sha256: str
    shown: GivenMask | ImageError | None


class _Files:
    """The files of images: pictures and masks."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def picture(self, image: LabelledImage, *, mask_sha256: str, white: int) -> tuple[str, Pixels, PixelSize]:
        """What names an image's file or array, its pixels, and how large they are, as the file says it.

        Raises ImageError for another one than is listed.
        """
        if (pixels := self._dataset.arrays.get(image.path)) is not None:
            identity = identity_of_pixels(pixels)
            _check_bytes(image, identity, mask_sha256=mask_sha256)
            return identity, pixels, OF_ARRAY
        data = read_bytes(self._dataset.folder / image.path)
        sha256 = sha256_bytes(data)
        _check_bytes(image, *(identity_of(sha256, rules) for rules in RULES), mask_sha256=mask_sha256)
        picture = read_picture(data, white)
        return identity_of(sha256, picture.rules), picture.pixels, picture.size

    def mask(self, image: LabelledImage, *, is_shown: bool) -> _MaskFile:
        """The mask of an image. is_shown : whether its cells are asked for, and not its digest alone"""
        data = read_bytes(self._dataset.folder / image.mask)
        try:
            return _MaskFile(sha256_bytes(data), read_mask(data) if is_shown else None)
        except ImageError as error:
            return _MaskFile(sha256_bytes(data), ImageError(f"its mask, {image.mask}: {error}"))


class _FilesOnce(_Files):
    """The same, remembered for other boxes and views of the files."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._pictures: _Once[tuple[str, Pixels, PixelSize]] = _Once(_REMEMBERED_BYTES, lambda found: found[1].nbytes)
        self._masks: _Once[_MaskFile] = _Once(_REMEMBERED_MASKS, lambda found: getattr(found.shown, "nbytes", 0))

    def picture(self, image: LabelledImage, *, mask_sha256: str, white: int) -> tuple[str, Pixels, PixelSize]:
        """See `_Files`."""
        return self._pictures.get(
            (image.path, white), partial(super().picture, image, mask_sha256=mask_sha256, white=white)
        )

    def mask(self, image: LabelledImage, *, is_shown: bool) -> _MaskFile:
        """See `_Files`."""
        return self._masks.get((image.mask, is_shown), partial(super().mask, image, is_shown=is_shown))


def _plain(image: LabelledImage, space: FeatureSpace, files: _Files, segmenter: Segmenter | None) -> Plain:
    try:
        framing = Framing.of(space)
        mask = files.mask(image, is_shown=CellCut.is_given(framing.segmentation)) if image.mask else None
        mask_sha256, shown = mask or ("", None)
        identity, pixels, said = files.picture(image, mask_sha256=mask_sha256, white=space.white)
        _check_bytes(image, identity, mask_sha256=mask_sha256)  # decoded, perhaps, for another box of the file
        if isinstance(shown, ImageError):
            raise shown
        return plain_view(
            pixels,
            image.box,
            size_px=space.input_size_px,
            framing=framing,
            segmenter=segmenter,
            mask=shown,
            size=PixelSize(image.um_per_px) if image.um_per_px else said,
        )
    except DatasetError as error:
        raise DatasetError(f"{image.path}: {error}") from error


def _check_bytes(image: LabelledImage, *identities: str, mask_sha256: str) -> None:
    """The bytes must be those that the image is named by: no feature is of another picture."""
    more: dict[str, Any] = {"mask_sha256": mask_sha256, "um_per_px": image.um_per_px}
    names = (image_id_of(identity, image.box, **more) for identity in identities)
    if image.image_id not in names:
        raise ImageError("its bytes changed while features were computed: run the command again")
