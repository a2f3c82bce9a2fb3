"""Nuclei: what is most purple, as groups of lobes that can belong to one cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from featcache.segmentation.contract import Mask

_SPECK = 0.03
"""Area of a component that is too small to be a lobe, in red cells."""
_GAP, _TOGETHER = 0.55, 1.75
"""Lobes of one nucleus: the widest gap between two of them, and the circle around all of them, in diameters of red
cells."""
_LONG, _APART, _WAIST, _WHOLE = 1.9, 1.1, 0.65, 0.45
"""Touching nuclei: the circle around both and the distance of their middles, in diameters of red cells; the waist over
the thinner one's radius; the least area of each, in red cells."""
_POINTS = 60
"""Of an outline, for measuring distances."""


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of a picture, each a group of lobes.

    labels : (height, width) int32: 0, or the number of a nucleus from 1
    outlines : points (n, 2) on the outlines of each one's lobes, x and y, float32
    areas_px : area of each
    """

    labels: NDArray[np.int32]
    outlines: tuple[NDArray[np.float32], ...]
    areas_px: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.outlines)

    def joined(self, pairs: Iterable[tuple[int, int]]) -> Nuclei:
        """The same, where each pair (counted from 0) is one nucleus."""
        root = list(range(len(self)))
        for a, b in pairs:
            ends = _root(root, a), _root(root, b)
            root[max(ends)] = min(ends)
        roots = sorted({_root(root, number) for number in root})
        number = np.zeros(len(self) + 1, np.int32)
        number[1:] = [1 + roots.index(_root(root, one)) for one in range(len(self))]
        return _nuclei(number[self.labels], number[1:], self.outlines, self.areas_px)

    def only(self, chosen: NDArray[np.bool_]) -> Nuclei:
        """Some of them."""
        number = np.zeros(len(self) + 1, np.int32)
        number[1:][chosen] = 1 + np.arange(chosen.sum())
        return Nuclei(
            number[self.labels], tuple(self.outlines[i] for i in np.flatnonzero(chosen)), self.areas_px[chosen]
        )


def nuclei_of(purple: NDArray[np.float32], field: Mask, *, threshold: float, red_px: float) -> Nuclei:
    """What is more purple than the threshold, opened, parted where nuclei touch, and lobes taken together.

    red_px : diameter of a red cell
    """
    reach = 2 * max(1, round(0.06 * red_px)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    dark = cv2.morphologyEx(((purple > threshold) & field).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(dark, ltype=cv2.CV_32S)
    red_area = np.pi / 4 * red_px**2
    parted = np.zeros(labels.shape, np.int32)
    outlines, areas = [], []
    for label in range(1, count):
        x, y, w, h, area = stats[label].tolist()
        if area <= _SPECK * red_area:
            continue
        window = parted[y : y + h, x : x + w]
        for part in _parts(labels[y : y + h, x : x + w] == label, red_px=red_px):
            outlines.append(_outline(part) + np.array([x, y], np.float32))
            areas.append(float(part.sum()))
            window[part] = len(outlines)
    found = Nuclei(parted, tuple(outlines), np.array(areas))
    return found.joined(_lobes(found.outlines, red_px=red_px))


def diameter(outline: NDArray[np.float32]) -> float:
    """Of the smallest circle around an outline."""
    return 2 * float(cv2.minEnclosingCircle(outline)[1])


def near(outlines: tuple[NDArray[np.float32], ...], distance: float) -> list[tuple[int, int]]:
    """Pairs of outlines whose middles are no further apart."""
    if len(outlines) < 2:
        return []
    tree = cKDTree([outline.mean(axis=0) for outline in outlines])
    return sorted((int(min(pair)), int(max(pair))) for pair in tree.query_pairs(distance))


def _nuclei(
    labels: NDArray[np.int32],
    number: NDArray[np.int32],
    outlines: tuple[NDArray[np.float32], ...],
    areas_px: NDArray[np.float64],
) -> Nuclei:
    """Nuclei whose parts are numbered: part i belongs to nucleus number[i], from 1."""
    groups = [np.flatnonzero(number == one) for one in range(1, int(number.max(initial=0)) + 1)]
    together = tuple(np.concatenate([outlines[part] for part in group]) for group in groups)
    return Nuclei(labels, together, np.array([areas_px[group].sum() for group in groups]))


def _root(root: list[int], number: int) -> int:
    while root[number] != number:
        number = root[number]
    return number


def _outline(part: Mask) -> NDArray[np.float32]:
    found, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(found)[:, 0]
    return np.asarray(points[:: max(1, len(points) // _POINTS)], np.float32)


def _parts(part: Mask, *, red_px: float) -> list[Mask]:
    """The nuclei that touch in one component: each pixel belongs to the nearest peak of the distance to the border.

    A component is parted only where it is long and has a waist, and where each part is as large as a nucleus.
    """
    red_area = np.pi / 4 * red_px**2
    if part.sum() < 2 * _WHOLE * red_area or diameter(_outline(part)) < _LONG * red_px:
        return [part]
    depth = cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(depth, (0, 0), max(0.5, 0.05 * red_px))
    reach = 2 * max(1, round(0.3 * red_px)) + 1
    peaks = np.argwhere((smooth == cv2.dilate(smooth, np.ones((reach, reach), np.uint8))) & (depth > 0.25 * red_px))
    chosen = _with_waists(smooth, peaks, least_px=_APART * red_px)
    if len(chosen) < 2:
        return [part]
    distances = ((np.argwhere(part)[:, None] + 1 - chosen[None]) ** 2).sum(axis=2)
    nearest = np.zeros(part.shape, int)
    nearest[part] = 1 + distances.argmin(axis=1)
    parts = [nearest == number for number in range(1, len(chosen) + 1)]
    return parts if all(one.sum() > _WHOLE * red_area for one in parts) else [part]


def _with_waists(depth: NDArray[np.float32], peaks: NDArray[np.intp], *, least_px: float) -> NDArray[np.intp]:
    """The deepest peaks, each far from those before it, with a waist between."""
    chosen: list[NDArray[np.intp]] = []
    for peak in sorted(peaks, key=lambda one: -depth[tuple(one)]):
        if all(np.hypot(*(peak - other)) >= least_px and _is_waist(depth, peak, other) for other in chosen):
            chosen.append(peak)
    return np.array(chosen)


def _is_waist(depth: NDArray[np.float32], a: NDArray[np.intp], b: NDArray[np.intp]) -> bool:
    steps = np.linspace(0, 1, 20)[:, None]
    y, x = np.rint(a + steps * (b - a)).astype(int).T
    return bool(depth[y, x].min() < _WAIST * min(depth[tuple(a)], depth[tuple(b)]))


def _lobes(outlines: tuple[NDArray[np.float32], ...], *, red_px: float) -> list[tuple[int, int]]:
    """Pairs that belong to one nucleus: the closest first, as long as a circle of the size of a nucleus holds all."""
    members = {number: [number] for number in range(len(outlines))}
    gaps = {}
    for a, b in near(outlines, 2 * red_px):
        gap = float(cKDTree(outlines[a]).query(outlines[b])[0].min())
        if gap < _GAP * red_px:
            gaps[a, b] = gap
    pairs = []
    of = dict(zip(members, members, strict=True))
    for a, b in sorted(gaps, key=lambda pair: gaps[pair]):
        first, second = of[a], of[b]
        if first == second:
            continue
        together = members[first] + members[second]
        if diameter(np.concatenate([outlines[one] for one in together])) < _TOGETHER * red_px:
            members[first] = together
            of.update(dict.fromkeys(members.pop(second), first))
            pairs.append((a, b))
    return pairs
