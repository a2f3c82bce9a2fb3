"""The README.md of a bundle: how to use the model without featcache, in lines of Python that make images its input."""

from __future__ import annotations

from importlib import resources
from string import Template

from featcache.core.recipe import ADDED, EDGE, FeatureSpace

_ONE_CLASS = "print(path, classes[probabilities[0].argmax()], probabilities[0].max())"
_SEVERAL_LABELS = "print(path, [(name, p) for name, p in zip(classes, probabilities[0].tolist()) if p > 0.5])"
_CUT_OUT = (
    "    # featcache cuts the cell out of the image first: without it, give squares that hold a cell and little else\n"
)
_NORMALISED = "    # featcache brings the colours to one appearance, which this does not: expect other probabilities\n"
_MARGIN = "    # of images with boxes: give the box with a margin of {margin:g} of its longer side on each side\n"
_WEIGHTS = """
def weights(n, side):  # of n pixels for each of side places: areas to shrink, cubic curves to grow
    if n >= side:
        edges, pixel = np.arange(side + 1) * n / side, np.arange(n)
        W = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    else:
        d = np.abs((np.arange(side)[:, None] + 0.5) * n / side - 0.5 - np.arange(-2, n + 2))
        W = np.where(d < 1, 1.25 * d**3 - 2.25 * d**2 + 1, np.where(d < 2, -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3, 0))
        W[:, 2] += W[:, :2].sum(1)
        W[:, -3] += W[:, -2:].sum(1)
        W = W[:, 2:-2]
    return W / W.sum(1, keepdims=True)
"""
_PIXELS = """    pixels = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), float)
    high, wide = pixels.shape[:2]
"""
_MIDDLE = """    high_px, wide_px = (min(max(round(n * {side} / {px}), 1), most) for n, most in ({sides}))
    top, left = (high - high_px) // 2, (wide - wide_px) // 2
    pixels, high, wide = pixels[top : top + high_px, left : left + wide_px], high_px, wide_px
"""
_SIDES = {
    "stretch": "(high, high), (wide, wide)",
    "crop": "(min(high, wide), high), (min(high, wide), wide)",
    "pad": "(max(high, wide), high), (max(high, wide), wide)",
}
_RESIZED = """{sizes}    rows = np.einsum("yh,hwc->ywc", weights(high, to_high), pixels)
    image = np.einsum("xw,ywc->yxc", weights(wide, to_wide), rows).round().clip(0, 255).astype(np.uint8)
"""
_ALL = "    to_high = to_wide = {side}\n"
_PART = "    to_high, to_wide = (max(round({side} * n / max(high, wide)), 1) for n in (high, wide))\n"
_PADDED = """    top, left = ({side} - to_high) // 2, ({side} - to_wide) // 2
    square = np.full(({side}, {side}, 3), {colour}, np.uint8)
    square[top : top + to_high, left : left + to_wide] = image
    image = square
"""
_PADDED_EDGE = """    top, left = ({side} - to_high) // 2, ({side} - to_wide) // 2
    beside = ((top, {side} - to_high - top), (left, {side} - to_wide - left), (0, 0))
    image = np.pad(image, beside, mode="edge")
"""
_PILLOW = """    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    wide, high = picture.size
{sizes}    picture = picture.resize((to_wide, to_high), Image.Resampling.{filter})
    left, top = round((to_wide - {side}) / 2), round((to_high - {side}) / 2)
"""
_SIZES = {
    "stretch": "    to_wide = to_high = {px}\n",
    "crop": "    to_wide, to_high = (int({px} * n / min(wide, high)) for n in (wide, high))\n",
    "pad": "    to_wide, to_high = (max(round(n / max(wide, high) * {px}), 1) for n in (wide, high))\n",
}
_PASTED = """    square = Image.new("RGB", ({side}, {side}), "{colour}")
    square.paste(picture, (-left, -top))
    image = np.asarray(square)
"""
_EDGED = """    above, before = max(-top, 0), max(-left, 0)
    below, after = max({side} - to_high - above, 0), max({side} - to_wide - before, 0)
    image = np.pad(np.asarray(picture), ((above, below), (before, after), (0, 0)), mode="edge")
    image = image[max(top, 0) :, max(left, 0) :][:{side}, :{side}]
"""
_WINDOW = """    um_per_px = {um}  # width of a pixel of this image in micrometres: write what it is
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    wide, high = picture.size
    side = {side} * {um} / um_per_px  # of what the model sees, in pixels of the image
    beyond = int(max(side - min(wide, high), 0) / 2 + 3 * max(side / {side}, 1)) + 2
{bordered}
    left, top = (wide - side) / 2 + beyond, (high - side) / 2 + beyond
    picture = picture.resize(({side}, {side}), {filter}, (left, top, left + side, top + side))
    image = np.asarray(picture)
"""
_BORDERED = '    picture = ImageOps.expand(picture, beyond, "{colour}")'
_BORDERED_EDGE = """    beside = ((beyond, beyond), (beyond, beyond), (0, 0))
    picture = Image.fromarray(np.pad(np.asarray(picture), beside, mode="edge"))"""
_FILTERS = {"area": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


def readme(name: str, space: FeatureSpace, *, several_labels: bool) -> str:
    """What README.md says of a run called `name`."""
    text = resources.files("featcache.deployment").joinpath("bundle_readme.md").read_text("utf-8")
    is_old = space.interpolation == ADDED["interpolation"] and not space.um_per_px
    made = _at_one_magnification if space.um_per_px else _by_areas if is_old else _by_pillow
    return Template(text).substitute(
        name=name,
        weights=_WEIGHTS if is_old else "",
        image=_remarks(space) + made(space),
        named=_SEVERAL_LABELS if several_labels else _ONE_CLASS,
    )


def _remarks(space: FeatureSpace) -> str:
    cut_out = _CUT_OUT if space.segmentation != "none" else ""
    normalised = _NORMALISED if space.colour != "none" else ""
    return cut_out + normalised + (_MARGIN.format(margin=space.margin) if space.margin else "")


def _by_areas(space: FeatureSpace) -> str:
    is_cut = space.segmentation != "none"
    side, way = space.input_size_px, "stretch" if is_cut else space.resize
    px = side if is_cut else space.resize_px or side
    middle = _MIDDLE.format(side=side, px=px, sides=_SIDES[way]) if px != side or way == "crop" else ""
    sizes = (_PART if way == "pad" else _ALL).format(side=side)
    padded = "" if way != "pad" else _PADDED_EDGE if space.padding == EDGE else _PADDED
    return _PIXELS + middle + _RESIZED.format(sizes=sizes) + padded.format(side=side, colour=_numbers(space.padding))


def _by_pillow(space: FeatureSpace) -> str:
    is_cut = space.segmentation != "none"
    side, way = space.input_size_px, "stretch" if is_cut else space.resize
    px = side if is_cut else space.resize_px or side
    begin = _PILLOW.format(sizes=_SIZES[way].format(px=px), filter=_FILTERS[space.interpolation], side=side)
    return begin + (_EDGED if space.padding == EDGE else _PASTED).format(side=side, colour=space.padding)


def _at_one_magnification(space: FeatureSpace) -> str:
    side, name = space.input_size_px, _FILTERS.get(space.interpolation)
    filter_ = f"Image.Resampling.{name}" if name else f'Image.Resampling["BOX" if side > {side} else "BICUBIC"]'
    bordered = _BORDERED_EDGE if space.padding == EDGE else _BORDERED.format(colour=space.padding)
    return _WINDOW.format(um=f"{space.um_per_px:g}", side=side, bordered=bordered, filter=filter_)


def _numbers(padding: str) -> tuple[int, ...]:
    return () if padding == EDGE else tuple(bytes.fromhex(padding.removeprefix("#")))
