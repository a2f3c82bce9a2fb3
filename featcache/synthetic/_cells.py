"""The painter behind `synthetic`: blood cells as layers of dye, lit from behind.

A field of view holds, per pixel and colour channel, how much light the dyes take away (optical density).
Cells add to it, overlaps add up as they do under a microscope, and `develop` turns the sum into an image.
All lengths are in units of one pixel of a 640x480 smear, so a picture is the same at every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Pair: TypeAlias = tuple[float, float]

ANGLES = np.linspace(0.0, 2.0 * np.pi, 360, endpoint=False)
WAVES = np.outer([2, 3, 4, 5, 7], ANGLES)  # dents around an outline, (5, 360) ...
DENTS = np.concatenate([np.cos(WAVES), np.sin(WAVES)])  # (10, 360)
DEPTHS = np.tile([0.7, 0.42, 0.25, 0.17, 0.08], 2)  # ... and how deep each may be, (10,)


@dataclass(frozen=True)
class Kind:
    """What a class of white cell tends to look like. A pair is a mean and a standard deviation."""

    radius: Pair
    lobes: tuple[float, ...]  # chances of 1, 2, 3, ... lobes
    lobe_size: Pair  # radius of all lobes taken together, over the radius of the cell
    spread: Pair  # distance of the lobes from the middle, over the radius of the cell
    sweep: Pair  # the part of a full turn that the lobes lie along
    waist: Pair  # thickness of the bridges, over the radius of a lobe
    azure: Pair  # blue of the cytoplasm
    eosin: Pair  # red of the cytoplasm
    granule_size: Pair
    granule_strength: Pair
    vacuoles: float  # mean number


# The spreads are wide on purpose: every single property overlaps between the classes.
KINDS: dict[str, Kind] = {
    "eosinophil": Kind(
        radius=(66, 9), lobes=(0.08, 0.70, 0.22), lobe_size=(0.56, 0.05), spread=(0.46, 0.06),
        sweep=(0.38, 0.06), waist=(0.45, 0.15), azure=(0.25, 0.15), eosin=(0.30, 0.12),
        granule_size=(3.7, 0.6), granule_strength=(0.72, 0.23), vacuoles=0.1,
    ),
    "lymphocyte": Kind(
        radius=(57, 9), lobes=(0.88, 0.12), lobe_size=(0.85, 0.06), spread=(0.10, 0.05),
        sweep=(0.30, 0.10), waist=(0.95, 0.05), azure=(0.75, 0.25), eosin=(0.08, 0.06),
        granule_size=(1.8, 0.4), granule_strength=(0.04, 0.08), vacuoles=0.2,
    ),
    "monocyte": Kind(
        radius=(77, 11), lobes=(0.10, 0.0, 0.45, 0.45), lobe_size=(0.70, 0.06), spread=(0.33, 0.10),
        sweep=(0.48, 0.13), waist=(0.92, 0.10), azure=(0.60, 0.20), eosin=(0.12, 0.08),
        granule_size=(1.5, 0.3), granule_strength=(0.10, 0.10), vacuoles=2.0,
    ),
    "neutrophil": Kind(
        radius=(70, 10), lobes=(0.0, 0.16, 0.38, 0.32, 0.14), lobe_size=(0.55, 0.05), spread=(0.50, 0.06),
        sweep=(0.66, 0.12), waist=(0.36, 0.12), azure=(0.22, 0.14), eosin=(0.22, 0.11),
        granule_size=(1.8, 0.5), granule_strength=(0.19, 0.13), vacuoles=0.2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Stain:
    """Optical density of each dye, (3,) float32 for red, green and blue; one staining batch."""

    nuclear: Floats
    azure: Floats
    eosin: Floats
    haemoglobin: Floats


@dataclass(frozen=True)
class Field:
    """A field of view: `density` of shape (3, h, w), float32, and its pixels a unit of length."""

    density: Floats
    scale: float
    stain: Stain


@dataclass(frozen=True)
class Outline:
    """A closed curve: a centre and its distance at each of `ANGLES`, (360,) float32."""

    x: float
    y: float
    radii: Floats
    radius: float  # mean of `radii`
    reach: float  # maximum of `radii`

    def bounds(self) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max in units."""
        x = self.x + self.radii * np.cos(ANGLES)
        y = self.y + self.radii * np.sin(ANGLES)
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@dataclass(frozen=True)
class Patch:
    """The part of a field around one cell: its pixels and their coordinates in units, (h, w) float32."""

    density: Floats
    x: Floats
    y: Floats
    scale: float


def draw_stain(rng: Generator) -> Stain:
    """One staining batch: every dye a little off in strength and in hue."""
    strength = rng.uniform(0.75, 1.25)

    def dye(red: float, green: float, *, blue: float) -> Floats:
        hue = rng.normal(1.0, 0.10, 3)
        amount = strength * rng.normal(1.0, 0.1)
        return np.maximum(np.array([red, green, blue]) * hue * amount, 0.0).astype(np.float32)

    return Stain(
        nuclear=dye(rng.uniform(0.65, 1.05), 1.05, blue=0.12),
        azure=dye(0.48, 0.36, blue=0.06),
        eosin=dye(0.05, 0.78, blue=rng.uniform(0.34, 0.54)),
        haemoglobin=dye(0.16, 0.46, blue=0.42),
    )


def outline(x: float, y: float, *, radius: float, wobble: float, rng: Generator) -> Outline:
    """A rounded shape: an ellipse with ever weaker dents. `wobble` 0 is a circle."""
    dents = (wobble * DEPTHS * rng.standard_normal(len(DEPTHS))) @ DENTS
    radii = radius * np.clip(1.0 + dents, 0.6, 1.5)
    return Outline(x, y, radii.astype(np.float32), float(radii.mean()), float(radii.max()))


def white_outline(label: str, x: float, *, y: float, rng: Generator) -> Outline:
    """The border of a white cell of class `label`."""
    radius = float(np.clip(rng.normal(*KINDS[label].radius), 40.0, 100.0))
    return outline(x, y, radius=radius, wobble=0.05, rng=rng)


def red_outline(x: float, y: float, *, rng: Generator) -> Outline:
    """The border of a red cell."""
    return outline(
        x, y, radius=float(np.clip(rng.normal(46.0, 4.0), 34.0, 56.0)), wobble=rng.uniform(0.02, 0.09), rng=rng
    )


def cut(field: Field, x: float, *, y: float, reach: float) -> Patch:
    """The pixels of `field` within `reach` of (x, y), as a view to paint on; empty where it lies outside."""
    _, height, width = field.density.shape
    rows, cols = (
        pixels(y, reach, scale=field.scale, length_px=height),
        pixels(x, reach, scale=field.scale, length_px=width),
    )
    ys = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / np.float32(field.scale)
    xs = (np.arange(cols.start, cols.stop, dtype=np.float32) + 0.5) / np.float32(field.scale)
    grid_x, grid_y = np.meshgrid(xs.astype(np.float32), ys.astype(np.float32))
    return Patch(field.density[:, rows, cols], grid_x, grid_y, field.scale)


def pixels(middle: float, reach: float, *, scale: float, length_px: int) -> slice:
    """The pixels that middle - reach to middle + reach touch, of a line of `length_px`."""
    first, last = math.floor((middle - reach) * scale), math.ceil((middle + reach) * scale)
    return slice(min(max(first, 0), length_px), min(max(last, 0), length_px))


def add_dye(patch: Patch, amount: Floats, *, dye: Floats) -> None:
    """Put `amount` (h, w) of a dye (3,) on the patch."""
    for channel, strength in zip(patch.density, dye, strict=True):
        channel += amount * strength


def depth(patch: Patch, shape: Outline) -> Floats:
    """How far each pixel lies from the centre: 0 there, 1 on the outline. (h, w) float32."""
    distance, angle = cv2.cartToPolar(patch.x - np.float32(shape.x), patch.y - np.float32(shape.y))
    nearest_angle = (angle * (len(ANGLES) / (2.0 * np.pi))).astype(np.intp) % len(ANGLES)
    share: Floats = distance / shape.radii[nearest_angle]
    return share


def inside(signed: Floats, softness: float) -> Floats:
    """Coverage, 1 where `signed` (units, negative inside) is well inside and 0 well outside."""
    share = np.clip(0.5 - signed / np.float32(softness), 0.0, 1.0)
    smooth: Floats = share * share * (3.0 - 2.0 * share)
    return smooth


def clouds(patch: Patch, shape: Outline, *, grain: float, rng: Generator) -> Floats:
    """Smooth noise around 0 with spots of about `grain` units, fixed to the cell. (h, w) float32."""
    cells = math.ceil(2.8 * shape.reach / grain) + 2
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    half = grain * cells / 2.0
    across = (patch.x - np.float32(shape.x - half)) / np.float32(grain)
    down = (patch.y - np.float32(shape.y - half)) / np.float32(grain)
    noise: Floats = cv2.remap(grid, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return noise


def paint_red_cell(field: Field, shape: Outline, *, rng: Generator) -> None:
    """A red cell: a disc of haemoglobin, thick at the rim and pale in the middle."""
    pale, hollow = rng.uniform(0.05, 0.75), rng.uniform(0.35, 0.6)
    thickness, gloss = rng.uniform(0.75, 1.15), rng.uniform(0.0, 0.10)
    tilt_x, tilt_y = (rng.uniform(-0.2, 0.2, 2) / shape.radius).astype(np.float32)
    patch = cut(field, shape.x, y=shape.y, reach=shape.reach * 1.15)
    if patch.density.size == 0:
        return
    q = depth(patch, shape)
    profile = 1.0 - pale * np.exp(-((q / hollow) ** 4)) + 0.22 * np.exp(-(((q - 0.88) / 0.1) ** 2))
    profile += tilt_x * (patch.x - shape.x) + tilt_y * (patch.y - shape.y)
    profile *= thickness * inside((q - 1.0) * shape.radius, 3.0)
    profile -= gloss * np.exp(-(((q - 1.06) / 0.04) ** 2))  # light bent around the rim
    add_dye(patch, profile, dye=field.stain.haemoglobin)


def paint_platelet(field: Field, shape: Outline, *, rng: Generator) -> None:
    """A platelet: a small speckled violet chip."""
    patch = cut(field, shape.x, y=shape.y, reach=shape.reach + 3.0)
    speckle = 0.5 + 0.15 * clouds(patch, shape, grain=4.0, rng=rng)
    cover = inside((depth(patch, shape) - 1.0) * shape.radius, 5.0)
    add_dye(patch, cover * speckle, dye=0.6 * field.stain.nuclear + 0.3 * field.stain.azure)


def nucleus_parts(kind: Kind, shape: Outline, *, rng: Generator) -> list[tuple[NDArray[np.float64], float]]:
    """The nucleus as capsules: each two end points (2, 2) and a radius, in units. Lobes, then bridges."""
    count = 1 + int(rng.choice(len(kind.lobes), p=kind.lobes))
    together = rng.normal(*kind.lobe_size) * shape.radius
    spread = max(rng.normal(*kind.spread), 0.0) * shape.radius if count > 1 else 0.0
    sweep = rng.normal(*kind.sweep) * 2.0 * np.pi
    waist = float(np.clip(rng.normal(*kind.waist), 0.15, 1.1))
    turns = rng.uniform(0.0, 2.0 * np.pi) + sweep * np.linspace(-0.5, 0.5, count) + rng.normal(0, 0.15, count)
    away = spread * rng.normal(1.0, 0.12, count)
    middle = np.array([shape.x, shape.y]) + rng.normal(0.0, 0.06 * shape.radius, 2)
    if count > 1:  # an arc's own middle lies beside its centre: shift it back into the cell
        middle -= 0.6 * np.array([(away * np.cos(turns)).mean(), (away * np.sin(turns)).mean()])
    centres = middle + away[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    radius = together * count**-0.5 * rng.normal(1.0, 0.1, count)
    along = np.stack([-np.sin(turns), np.cos(turns)], axis=1) * (rng.uniform(0.1, 0.6, count) * radius)[:, None]
    lobes = [(np.stack([c - a, c + a]), float(r)) for c, a, r in zip(centres, along, radius, strict=True)]
    bridges = [(centres[i : i + 2], waist * float(radius[i : i + 2].min())) for i in range(count - 1)]
    return lobes + bridges


def capsule(patch: Patch, ends: NDArray[np.float64], *, radius: float) -> Floats:
    """Signed distance to a thick line between two `ends`, negative inside, in units. (h, w) float32."""
    (ax, ay), (bx, by) = ends.astype(np.float32)
    dx, dy = bx - ax, by - ay
    px, py = patch.x - ax, patch.y - ay
    share = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0.0, 1.0)
    signed: Floats = cv2.magnitude(px - share * dx, py - share * dy) - np.float32(radius)
    return signed


def nucleus(kind: Kind, patch: Patch, *, shape: Outline, rng: Generator) -> Floats:
    """Signed distance to the nucleus: all of its parts, melted together, with an uneven border."""
    melt = np.float32(2.0)
    union = np.full(patch.x.shape, np.float32(1e-12))
    for ends, radius in nucleus_parts(kind, shape, rng=rng):
        union += np.exp(np.clip(-capsule(patch, ends, radius=radius) / melt, -25.0, 25.0))
    return -melt * np.log(union) + rng.uniform(0.6, 2.0) * clouds(patch, shape, grain=14.0, rng=rng)


def dots(patch: Patch, places: NDArray[np.float64], *, radii: NDArray[np.float64], tones: Floats) -> Floats:
    """Antialiased discs at `places` (n, 2) with `radii` (n,), units, and `tones` (n,) in 0..1. (h, w)."""
    mask = np.zeros(patch.x.shape, np.uint8)
    origin = np.array([patch.x[0, 0], patch.y[0, 0]])
    corners = np.rint((places - origin) * patch.scale * 16).astype(int).tolist()  # 4 bits below a pixel
    sizes = np.maximum(np.rint(radii * patch.scale * 16), 4).astype(int).tolist()
    for (x, y), size, tone in zip(corners, sizes, np.rint(tones * 255).astype(int).tolist(), strict=True):
        cv2.circle(mask, (x, y), size, tone, -1, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / np.float32(255.0)


def granules(kind: Kind, patch: Patch, *, shape: Outline, rng: Generator) -> Floats:
    """Density of the granules, (h, w) float32: few and coarse or many and fine."""
    size = float(np.clip(rng.normal(*kind.granule_size), 0.8, 5.0))
    strength = max(rng.normal(*kind.granule_strength), 0.0)
    count = min(int(0.75 * (shape.radius / size) ** 2), 450)
    turn, away = rng.uniform(0.0, 2.0 * np.pi, count), np.sqrt(rng.uniform(0.0, 0.92, count))
    reach = away * shape.radii[(turn * len(ANGLES) / (2.0 * np.pi)).astype(int)]
    places = np.stack([shape.x + reach * np.cos(turn), shape.y + reach * np.sin(turn)], axis=1)
    radii = size * rng.uniform(0.7, 1.2, count)
    return dots(patch, places, radii=radii, tones=rng.uniform(0.35, 1.0, count).astype(np.float32)) * np.float32(
        strength
    )


def vacuoles(kind: Kind, patch: Patch, *, shape: Outline, rng: Generator) -> Floats:
    """Coverage of clear bubbles, (h, w) float32."""
    count = int(rng.poisson(kind.vacuoles))
    turn, away = rng.uniform(0.0, 2.0 * np.pi, count), shape.radius * rng.uniform(0.2, 0.85, count)
    places = np.stack([shape.x + away * np.cos(turn), shape.y + away * np.sin(turn)], axis=1)
    return dots(
        patch, places, radii=rng.uniform(2.5, 6.5, count), tones=rng.uniform(0.4, 0.9, count).astype(np.float32)
    )


def paint_white_cell(field: Field, label: str, *, shape: Outline, rng: Generator) -> None:
    """A white cell of class `label`: cytoplasm, granules, nucleus, vacuoles. It hides what lies below."""
    kind, stain = KINDS[label], field.stain
    azure, eosin = max(rng.normal(*kind.azure), 0.05), max(rng.normal(*kind.eosin), 0.03)
    chromatin, darkness = rng.uniform(0.05, 0.16), rng.uniform(0.75, 1.15)
    patch = cut(field, shape.x, y=shape.y, reach=shape.reach + 8.0)
    edge = (depth(patch, shape) - 1.0) * shape.radius + 1.2 * clouds(patch, shape, grain=9.0, rng=rng)
    cell = inside(edge, rng.uniform(3.0, 7.0))
    signed = nucleus(kind, patch, shape=shape, rng=rng)
    core = inside(np.maximum(signed, edge + 2.0), rng.uniform(2.0, 4.5))
    uneven = 1.0 + 0.12 * clouds(patch, shape, grain=10.0, rng=rng) + 0.08 * clouds(patch, shape, grain=3.0, rng=rng)
    clumps = 1.0 + chromatin * (clouds(patch, shape, grain=11.0, rng=rng) + clouds(patch, shape, grain=5.0, rng=rng))
    rim = 1.0 - 0.18 * np.exp(-np.square(signed / 3.0))  # thinner towards its border
    speck = granules(kind, patch, shape=shape, rng=rng) * (1.0 - 0.85 * core)
    keep = cell * (1.0 - 0.75 * vacuoles(kind, patch, shape=shape, rng=rng))
    patch.density[...] *= 1.0 - cell
    add_dye(patch, keep * uneven * (1.0 - 0.6 * core), dye=azure * stain.azure + eosin * stain.eosin)
    add_dye(patch, keep * darkness * core * clumps * rim, dye=stain.nuclear)
    add_dye(patch, keep * speck, dye=stain.eosin + 0.15 * stain.azure)


def develop(field: Field, rng: Generator) -> NDArray[np.uint8]:
    """The camera's picture of a field, uint8 RGB of shape (h, w, 3): lamp, focus, white balance, noise."""
    _, height, width = field.density.shape
    lamp = (rng.uniform(196.0, 226.0) * rng.normal(1.0, 0.03, 3)).astype(np.float32)
    slope_x, slope_y, vignette = rng.normal(0.0, 0.05), rng.normal(0.0, 0.05), rng.uniform(0.0, 0.08)
    contrast, sigma, noise = rng.uniform(0.85, 1.1), rng.uniform(0.4, 2.2), rng.uniform(1.0, 4.0)
    across = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    down = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    light = 1.0 + slope_x * across + slope_y * down - vignette * (across**2 + down**2)
    planes = np.exp(field.density * np.float32(-contrast)) * light.astype(np.float32) * lamp[:, None, None]
    image = cv2.GaussianBlur(cv2.merge(list(planes)), (0, 0), max(sigma * field.scale, 0.25))
    image += np.float32(noise) * rng.standard_normal(image.shape, dtype=np.float32)
    rounded: NDArray[np.uint8] = cv2.convertScaleAbs(np.maximum(image, 0.0, out=image))  # stops at 255
    return rounded
