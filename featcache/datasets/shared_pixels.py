"""Pairs of images that show the same pixels: near duplicates, mirrored and turned ones, and fields that overlap.

Keypoints of all images (SIFT: Lowe 2004, doi:10.1023/B:VISI.0000029664.99615.94) are looked up among those of all
others, mirrored too. Where several of two images agree on one similarity transform, one image is laid over the other,
and the part that both show is compared pixel by pixel. That decides: in real sets, details of the same pixels correlate
by 0.8 and more, and others by 0.53 at most, for all that keypoints of round cells agree now and then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from featcache.core.errors import ImageError
from featcache.core.project import ImageFolders
from featcache.images import read_bytes, read_picture

LEAST_SHARE = 0.05
"""Of the smaller image, in both: what is less is not found."""
_SIDE_PX = 192
_SAME = 0.68
_NEAR_DUPLICATE = 0.9
_LEAST_POINTS = 4
_MOST_POINTS, _ALL_POINTS = 200, 600_000
_CONTRAST = 0.02
"""Of SIFT, half of its default: smears are pale."""
_NEIGHBOURS, _FARTHEST = 6, 0.6
_REACH_PX = 2.0
_SCALES = (0.5, 2.0)
_PARTNERS = 12
"""Images that are compared with one: those with the most points alike."""
_BLUR_PX = 4.0
_KD_TREES, _CHECKS = {"algorithm": 1, "trees": 4}, {"checks": 32}
# The 4x4 cells of a descriptor, each with 8 directions, as a mirrored image has them.
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()

Points = NDArray[np.float32]


@dataclass(frozen=True)
class SharedPixels:
    """Two files of which parts, or all, show the same.

    a, b : their paths
    share : of the smaller one, how much both show
    correlation : of the pixels there
    corners : of `a` in `b`, clockwise from its top left one, (x, y) in shares of the width and height of `b`
    """

    a: str
    b: str
    share: float
    correlation: float
    corners: tuple[tuple[float, float], ...]

    @property
    def is_near_duplicate(self) -> bool:
        """Whether both show nearly the same."""
        return self.share >= _NEAR_DUPLICATE


@dataclass(frozen=True)
class _Looked:
    """What is kept of an image: it in small and gray, its keypoints (n, 2), x first, and their descriptors (n, 128)."""

    path: str
    gray: NDArray[np.uint8]
    points: Points
    descriptors: NDArray[np.float32]


@dataclass(frozen=True)
class _Candidate:
    """Points of two images that look alike, those of the first mirrored or not: (n, 2) of each, x first."""

    a: _Looked
    b: _Looked
    mirrored: bool
    of_a: Points
    of_b: Points


def find_shared_pixels(
    folder: ImageFolders,
    paths: Sequence[str],
    *,
    mirrored: bool = True,
    white: int = 0,
    on_file: Callable[[], object] = lambda: None,
) -> tuple[SharedPixels, ...]:
    """All pairs among files, those that share most first; files that cannot be read are left out.

    mirrored : whether mirrored copies are found, too
    white : as of `featcache.images.read_picture`
    on_file : called once a file, for progress
    """
    most = min(_MOST_POINTS, max(_ALL_POINTS // max(len(paths), 1), 30))

    def look(path: str) -> _Looked | None:
        try:
            looked = _look(path, read_picture(read_bytes(folder / path), white).pixels, most)
        except ImageError:
            looked = None
        on_file()
        return looked

    parallel = Parallel(n_jobs=-1, require="sharedmem")
    found = [one for one in parallel(delayed(look)(path) for path in paths) if one is not None]
    pairs = parallel(delayed(_compared)(candidate) for candidate in _candidates(found, mirrored))
    best: dict[tuple[str, str], SharedPixels] = {}
    for pair in sorted((pair for pair in pairs if pair), key=lambda pair: pair.correlation):
        best[pair.a, pair.b] = pair
    return tuple(sorted(best.values(), key=lambda pair: (-pair.share, pair.a, pair.b)))


def _look(path: str, pixels: NDArray[np.uint8], most_points: int) -> _Looked:
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    scale = _SIDE_PX / max(gray.shape)
    size = [max(round(scale * side), 1) for side in gray.shape[::-1]]
    gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    sift = cv2.SIFT_create(nfeatures=most_points, contrastThreshold=_CONTRAST)  # type: ignore[attr-defined]
    keypoints, descriptors = sift.detectAndCompute(gray, None)
    if descriptors is None:
        return _Looked(path, gray, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6))  # of length one
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)
    return _Looked(path, gray, points[:most_points], descriptors[:most_points])


def _candidates(images: Sequence[_Looked], with_mirrored: bool) -> list[_Candidate]:
    """Pairs that have points alike, at most some for each image."""
    descriptors = np.concatenate([image.descriptors for image in images]) if images else np.zeros((0, 128))
    if len(descriptors) <= _NEIGHBOURS:
        return []
    points = np.concatenate([image.points for image in images])
    image_of = np.repeat(np.arange(len(images)), [len(image.points) for image in images])
    cv2.setRNGSeed(0)  # trees are drawn
    index = cv2.flann_Index(descriptors, _KD_TREES)  # type: ignore[attr-defined]
    made = []
    for mirrored in (False, True)[: 1 + with_mirrored]:
        asked = np.ascontiguousarray(descriptors[:, _MIRRORED]) if mirrored else descriptors
        near, squared = index.knnSearch(asked, _NEIGHBOURS, params=_CHECKS)
        first, second = np.repeat(np.arange(len(asked)), _NEIGHBOURS), near.ravel()
        alike = (squared.ravel() < _FARTHEST**2) & (image_of[first] != image_of[second])
        both = np.stack([first, second], axis=1)[alike]
        both.sort(axis=1)  # points of the earlier image come first
        both = np.unique(both, axis=0)
        owners = image_of[both]
        pairs, pair_of, counts = np.unique(owners, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(pair_of.ravel(), kind="stable")
        places = np.split(order, np.cumsum(counts)[:-1])
        taken: Counter[int] = Counter()
        for number in np.argsort(-counts, kind="stable"):
            a, b = pairs[number]
            if counts[number] < _LEAST_POINTS:
                break
            if min(taken[a], taken[b]) >= _PARTNERS:
                continue
            taken.update((a, b))
            where = both[places[number]]
            made.append(_Candidate(images[a], images[b], mirrored, points[where[:, 0]], points[where[:, 1]]))
    return made


def _compared(candidate: _Candidate) -> SharedPixels | None:
    """What two images share, if they share enough."""
    gray_a, of_a, gray_b = candidate.a.gray, candidate.of_a, candidate.b.gray
    (height_a, width_a), (height, width) = gray_a.shape, gray_b.shape
    if candidate.mirrored:
        gray_a, of_a = gray_a[:, ::-1], np.array([width_a - 1, 0], np.float32) + of_a * np.array([-1, 1], np.float32)
    transform, agree = cv2.estimateAffinePartial2D(
        of_a, candidate.of_b, method=cv2.RANSAC, ransacReprojThreshold=_REACH_PX
    )
    if transform is None or agree.sum() < _LEAST_POINTS:
        return None
    scale = float(np.hypot(*transform[:, 0]))
    if not _SCALES[0] < scale < _SCALES[1]:
        return None
    inside = cv2.warpAffine(np.full(gray_a.shape, 255, np.uint8), transform, (width, height)) == 255
    share = float(inside.sum() / min(inside.size, gray_a.size * scale**2))
    if share < LEAST_SHARE:
        return None
    laid = cv2.warpAffine(_without_light(gray_a), transform, (width, height))[inside]
    correlation = float(np.corrcoef(laid, _without_light(gray_b)[inside])[0, 1])
    if not correlation > _SAME:  # NaN where one is flat
        return None
    edges = np.array([[0, 0], [width_a, 0], [width_a, height_a], [0, height_a]])
    corners = (edges @ transform[:, :2].T + transform[:, 2]) / (width, height)
    if candidate.mirrored:
        corners = corners[[1, 0, 3, 2]]
    places = tuple((float(x), float(y)) for x, y in corners)
    return SharedPixels(candidate.a.path, candidate.b.path, min(share, 1.0), correlation, places)


def _without_light(gray: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The image without what changes slowly: the light of the microscope is the same in all images."""
    values = gray.astype(np.float32)
    return np.asarray(values - cv2.GaussianBlur(values, (0, 0), _BLUR_PX))
