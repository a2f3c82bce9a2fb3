"""Small pictures of a project's images: only of files that dataset.csv lists and that lie in its folders."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import DatasetError, FeatcacheError, ImageError
from featcache.core.files import resolved, sha256_bytes
from featcache.core.project import ImageFolders, Project
from featcache.datasets import LabelledImage, dataset_of
from featcache.images import identity_of, image_id_of, read_bytes, read_picture

_QUALITY = 76


@dataclass
class Pictures:
    """The images of a project by id.

    white : as of `featcache.images.read_picture`
    missing : why pictures were not made, by id
    """

    images: ImageFolders
    by_id: dict[str, LabelledImage]
    white: int = 0
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project | None) -> Pictures | None:
        """Those that dataset.csv lists; None where there is no project, or no such list."""
        if project is None:
            return None
        try:
            listed = dataset_of(project)
        except (DatasetError, OSError):
            return None
        return cls(project.images, {image.image_id: image for image in listed.images if image.image_id}, listed.white)

    def jpeg(self, image_id: str, side_px: int) -> bytes | None:
        """The image as JPEG, its longer side `side_px`; None where it is not there, or not the same any more."""
        try:
            return _jpeg(self._pixels(image_id), side_px)
        except FeatcacheError as error:
            self.missing[image_id] = str(error)
            return None

    def _pixels(self, image_id: str) -> NDArray[np.uint8]:
        image = self.by_id.get(image_id)
        if image is None:
            raise ImageError("is not in dataset.csv")
        folder, rest = self.images.parted(image.path)
        if not resolved(folder / rest).is_relative_to(resolved(folder)):
            raise ImageError("lies outside of the project's folders of images")
        data = read_bytes(folder / rest)
        picture = read_picture(data, self.white)
        mask_sha256 = sha256_bytes(read_bytes(self.images / image.mask)) if image.mask else ""
        identity = identity_of(sha256_bytes(data), picture.rules)
        if image_id_of(identity, image.box, mask_sha256=mask_sha256, um_per_px=image.um_per_px) != image_id:
            raise ImageError("has changed since it was judged")
        box = image.box
        return picture.pixels if box is None else picture.pixels[box.y_min : box.y_max, box.x_min : box.x_max]


def _jpeg(pixels: NDArray[np.uint8], side_px: int) -> bytes:
    if not pixels.size:
        raise ImageError("its box lies outside of the image")
    scale = side_px / max(pixels.shape[:2])
    size = [max(round(scale * side), 1) for side in pixels.shape[1::-1]]
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(data.tobytes())
