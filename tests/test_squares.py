"""How an image becomes a square: against Pillow and torchvision's rules, to a grey level; and what settings mean."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featcache.backbones.torch_models import transform_of_huggingface
from featcache.core.errors import ArgumentsError, DatasetError, ProjectError
from featcache.core.project import DatasetSection, Settings, ViewsSection, changed_views, refuse_two_margins
from featcache.core.recipe import INTERPOLATIONS, FeatureSpace, Recipe, Transform
from featcache.deployment.readme import readme
from featcache.images.identity import Box
from featcache.images.resampling import FILTERS, resampled
from featcache.images.squares import cut_and_resize, in_box, window
from featcache.segmentation.framing import Framing

RNG = np.random.default_rng(11)
SHAPES = [(97, 131), (131, 97), (300, 40), (31, 500), (20, 23), (7, 5), (64, 64), (1, 9), (3, 400)]
REFERENCE = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(high: int, wide: int) -> NDArray[np.uint8]:
    """The hardest picture: each pixel differs from its neighbours."""
    return RNG.integers(0, 256, (high, wide, 3), dtype=np.uint8)


def as_torchvision(pixels: NDArray[np.uint8], size_px: int, resize_px: int, how: Image.Resampling) -> NDArray[Any]:
    """transforms.Resize(resize_px) and transforms.CenterCrop(size_px) on a Pillow image, by their documented rules."""
    image = Image.fromarray(pixels)
    short, long = sorted(image.size)
    to = (resize_px, int(resize_px * long / short))
    image = image.resize(to if image.width <= image.height else to[::-1], how)
    left, top = round((image.width - size_px) / 2.0), round((image.height - size_px) / 2.0)
    return np.asarray(image.crop((left, top, left + size_px, top + size_px)))


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


# --- the plain view -------------------------------------------------------------------------------


def test_filters_are_those_that_recipes_may_name() -> None:
    assert dict(FILTERS) == REFERENCE


@pytest.mark.parametrize("filter_", REFERENCE)
@pytest.mark.parametrize("size_px", [24, 33, 64])
def test_each_way_is_the_reference_s(filter_: str, size_px: int) -> None:
    how = REFERENCE[filter_]
    for high, wide in SHAPES:
        pixels = noise(high, wide)
        image = Image.fromarray(pixels)
        stretched = cut_and_resize(pixels, None, size_px=size_px, interpolation=filter_)
        np.testing.assert_array_equal(stretched, np.asarray(image.resize((size_px, size_px), how)))
        for resize_px in (size_px, int(size_px / 0.875), int(size_px / 0.6)):
            cropped = cut_and_resize(
                pixels, None, size_px=size_px, resize="crop", interpolation=filter_, resize_px=resize_px
            )
            assert_same(cropped, as_torchvision(pixels, size_px, resize_px, how))
        if round(min(high, wide) / max(high, wide) * size_px) == 0:
            continue  # Pillow leaves nothing of it
        padded = cut_and_resize(pixels, None, size_px=size_px, resize="pad", interpolation=filter_, padding="#0a1428")
        assert_same(padded, np.asarray(ImageOps.pad(image, (size_px, size_px), how, color=(10, 20, 40))))


def test_stretched_and_cropped_as_timm_s_squash() -> None:
    pixels = noise(50, 90)
    whole = np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC))
    found = cut_and_resize(pixels, None, size_px=31, interpolation="bicubic", resize_px=40)
    assert_same(found, whole[4:35, 4:35])


@pytest.mark.parametrize("filter_", REFERENCE)
@pytest.mark.parametrize(("kind", "white"), [(np.uint16, 65535), (np.float32, 1.0)])
def test_other_depths_are_filtered_alike(filter_: str, kind: Any, white: float) -> None:
    """As Pillow filters each channel in floating point, which is far closer than a 255th of white."""
    for (high, wide), (to_high, to_wide) in [((61, 47), (24, 33)), ((9, 13), (31, 29)), ((40, 10), (20, 20))]:
        deep = (RNG.random((high, wide, 3)) * white).astype(kind)
        found = resampled(deep, filter_, width_px=to_wide, height_px=to_high)
        assert found.dtype == kind
        for channel in range(3):
            plane = Image.fromarray(deep[..., channel].astype(np.float32), "F")
            expected = np.asarray(plane.resize((to_wide, to_high), REFERENCE[filter_]))
            if kind == np.uint16:
                expected = expected.clip(0, white)
            assert np.abs(found[..., channel] - expected).max() <= white / 65000


def test_edges_and_colours_beside_a_padded_image() -> None:
    wide = noise(10, 40)
    for filter_ in ("area-bicubic", "bicubic"):
        edged = cut_and_resize(wide, None, size_px=40, resize="pad", padding="edge", interpolation=filter_)
        np.testing.assert_array_equal(edged[15:25], wide)
        assert (edged[:15] == wide[0]).all()
        assert (edged[25:] == wide[-1]).all()
        white = cut_and_resize(wide, None, size_px=40, resize="pad", padding="#ffffff", interpolation=filter_)
        assert (white[:15] == 255).all()
        np.testing.assert_array_equal(white[15:25], wide)


def test_a_share_of_the_old_filter_is_the_middle_of_the_image() -> None:
    pixels = noise(80, 120)
    found = cut_and_resize(pixels, None, size_px=30, resize="crop", resize_px=40)
    middle = pixels[10:70, 30:90]
    np.testing.assert_array_equal(found, cut_and_resize(middle, None, size_px=30))
    assert cut_and_resize(noise(1, 50), None, size_px=8, resize="crop", resize_px=11).shape == (8, 8, 3)


def test_a_very_long_image_takes_no_memory() -> None:
    pixels = np.full((2, 200_000, 3), 9, np.uint8)
    for resize in ("crop", "pad"):
        found = cut_and_resize(pixels, None, size_px=224, resize=resize, interpolation="lanczos", resize_px=256)
        assert (found.shape, found.max()) == ((224, 224, 3), 9)
    for interpolation in INTERPOLATIONS:  # of a tiny share, or of a recipe that somebody made up
        for resize_px in (10**6, 10**9):
            found = cut_and_resize(
                pixels[:, :90], None, size_px=16, resize="crop", interpolation=interpolation, resize_px=resize_px
            )
            assert (found == 9).all()


def test_what_another_version_wrote_is_refused() -> None:
    for wrong, said in (({"interpolation": "sinc"}, "interpolation 'sinc'"), ({"resize": "fit"}, "resize 'fit'")):
        with pytest.raises(DatasetError, match=f"{said}: expected one of .*update featcache"):
            cut_and_resize(noise(9, 9), None, size_px=8, **wrong)
    for name, number in (("resize_px", -1), ("margin", -0.6)):
        with pytest.raises(DatasetError, match=f"{name} {number}: expected at least 0"):
            cut_and_resize(noise(9, 9), Box(2, 2, 5, 5), size_px=8, **{name: number})  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="padding 'mean': expected #rrggbb or edge"):
        cut_and_resize(noise(9, 5), None, size_px=8, resize="pad", padding="mean")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        # CLIP's, ViT's, DINOv2's and ConvNeXt's preprocessor_config.json
        (
            {"do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True}
            | {"crop_size": {"height": 224, "width": 224}},
            Transform("crop", "bicubic", 224),
        ),
        (
            {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2},
            Transform("stretch", "bilinear", 224),
        ),
        (
            {"size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True}
            | {"crop_size": {"height": 224, "width": 224}},
            Transform("crop", "bicubic", 256),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, Transform("crop", "bicubic", 256)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}, Transform("stretch", "bicubic", 384)),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 2}, None),
        ({"do_resize": False, "size": {"height": 224, "width": 224}}, None),
        ({"size": {"height": 224, "width": 224}, "resample": 0}, None),
        ({"size": {"height": 224, "width": 224}, "do_pad": True}, None),
        ({}, None),
    ],
)
def test_what_image_processors_of_hugging_face_say(says: dict[str, Any], expected: Transform | None) -> None:
    own_px = 384 if says.get("size") == {"shortest_edge": 384} else 224
    assert transform_of_huggingface(says, own_px) == expected


# --- margins --------------------------------------------------------------------------------------


def test_a_margin_is_around_a_box_and_mirrored_at_the_border() -> None:
    pixels = noise(60, 80)
    np.testing.assert_array_equal(in_box(pixels, Box(30, 20, 50, 30), margin=0.25), pixels[15:35, 25:55])
    mirrored = np.pad(pixels, ((5, 5), (5, 5), (0, 0)), mode="symmetric")
    for box in (Box(0, 0, 20, 10), Box(70, 55, 80, 60), Box(0, 0, 10, 60)):
        by = round(0.25 * max(box.x_max - box.x_min, box.y_max - box.y_min))
        if by <= 5:
            expected = mirrored[box.y_min - by + 5 : box.y_max + by + 5, box.x_min - by + 5 : box.x_max + by + 5]
            np.testing.assert_array_equal(in_box(pixels, box, margin=0.25), expected)
        found = in_box(pixels, box, margin=0.25)
        assert found.shape[:2] == (box.y_max - box.y_min + 2 * by, box.x_max - box.x_min + 2 * by)
    np.testing.assert_array_equal(in_box(pixels, None, margin=0.25), pixels)
    assert in_box(pixels, Box(0, 0, 80, 60), margin=2.0).shape == (60 + 320, 80 + 320, 3)
    with pytest.raises(DatasetError, match="reaches out"):
        in_box(pixels, Box(0, 0, 81, 60), margin=0.1)
    with pytest.raises(DatasetError, match="has more than 120,000,000 pixels"):
        in_box(np.zeros((3000, 3000, 3), np.uint8), Box(0, 0, 3000, 3000), margin=2.0)


# --- recipes and settings -------------------------------------------------------------------------

SPACE = FeatureSpace("vgg16", "block5_pool", 224, "caffe", "none", "ab" * 32, rendering=1)


def test_recipes_say_only_what_is_not_as_it_always_was() -> None:
    assert SPACE.digest == "c98b349f9b50c86556d522fe8108bcd188cb39eed3bd35a77e916adc6de4401c"
    fields = {"resize": "crop", "interpolation": "bicubic", "resize_px": 256}
    made = FeatureSpace(**{**SPACE.to_dict(), **fields, "margin": 1, "padding": "#ffffff"})
    assert made.to_dict() == {**SPACE.to_dict(), **fields, "margin": 1.0, "padding": "#ffffff"}
    assert Recipe.from_dict(Recipe(made).to_dict()) == Recipe(made)
    assert Framing.of(made) == Framing("crop", "none", "none", "bicubic", 256, "#ffffff", 1.0)
    assert made.digest == "7ec4b7ad1738f48c1af515dd729bc80efa862975915f1c0b55a4328c7bf09ca9"


TIMM = Transform("crop", "bicubic", 256)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Framing("crop", interpolation="bicubic", resize_px=256)),
        ({"interpolation": "lanczos"}, Framing("crop", interpolation="lanczos", resize_px=256)),
        ({"resize": "pad", "padding": "White"}, Framing("pad", interpolation="bicubic", padding="#ffffff")),
        ({"resize": "crop", "crop_share": 0.9}, Framing("crop", interpolation="bicubic", resize_px=248)),
        ({"resize": "crop"}, Framing("crop", interpolation="bicubic", resize_px=256)),
        ({"crop_share": 1.0}, Framing("crop", interpolation="bicubic")),
        ({"resize": "stretch"}, Framing("stretch", interpolation="bicubic")),
        ({"margin": 0.25}, Framing("crop", interpolation="bicubic", resize_px=256, margin=0.25)),
    ],
)
def test_the_network_s_own_way_is_the_default(said: dict[str, Any], expected: Framing) -> None:
    views = changed_views(ViewsSection(as_trained=True, resize="pad"), said)
    assert Framing.asked(views, 224, own=TIMM, said=said) == expected


def test_old_settings_mean_what_they_meant() -> None:
    assert Framing.asked(ViewsSection(), 224, own=TIMM) == Framing()
    assert Framing.asked(ViewsSection(resize="crop"), 224, own=TIMM) == Framing("crop")
    kept = ViewsSection(as_trained=True, resize="pad")
    assert Framing.asked(kept, 224) == Framing("pad")
    assert Framing.asked(kept, 224, own=Transform("stretch", "bicubic", 224)) == Framing(interpolation="bicubic")


def test_contradictions_and_what_is_out_of_bounds() -> None:
    for wrong, said in [
        ({"interpolation": "nearest"}, "interpolation"),
        ({"crop_share": 0.0, "resize": "crop"}, "crop_share"),
        ({"crop_share": 1.2, "resize": "crop"}, "crop_share"),
        ({"margin": -0.1}, "margin"),
        ({"margin": 7}, "margin"),
        ({"padding": "blurple", "resize": "pad"}, "'blurple' is no colour: expected a name such as white, #rrggbb"),
        ({"padding": "#ffffff80", "resize": "pad"}, "is no colour"),
        ({"padding": "white", "resize": "crop"}, "`padding` is for `resize='pad'`, not for `resize='crop'`"),
        ({"crop_share": 0.9}, "`crop_share` is for `resize='crop'`, not for `resize='stretch'`"),
        ({"margin": 0.1, "segment": "stain"}, "around cells that are found, set `cell_margin`"),
    ]:
        with pytest.raises(ProjectError, match=said):
            changed_views(ViewsSection(), wrong)
    padded = ViewsSection(resize="pad", padding="white")
    assert changed_views(padded, {"resize": "crop"}) == ViewsSection(resize="crop")
    views = changed_views(ViewsSection(as_trained=True, resize="pad"), {"padding": "white"})
    with pytest.raises(ArgumentsError, match=r"`padding` is for `resize='pad'`, and the network's library says crop"):
        Framing.asked(views, 224, own=TIMM, said={"padding"})


def test_a_margin_does_not_come_on_top_of_another() -> None:
    with pytest.raises(ProjectError, match=r"enlarged by 0.1 when they were read .* a `margin` of 0.25"):
        refuse_two_margins(DatasetSection(margin=0.1), ViewsSection(margin=0.25))
    with pytest.raises((ProjectError, ValueError), match="come on top"):
        Settings(dataset=DatasetSection(margin=0.1), views=ViewsSection(margin=0.25))


# --- what is told to others -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"resize": "pad"},
        {"resize": "pad", "padding": "edge"},
        {"resize": "pad", "padding": "#0a1428"},
        {"resize": "crop"},
        {"resize": "crop", "resize_px": 40},
        {"interpolation": "bicubic"},
        {"interpolation": "area", "resize": "crop", "resize_px": 40},
        {"interpolation": "lanczos", "resize": "pad", "padding": "#0a1428"},
        {"interpolation": "bilinear", "resize": "pad", "padding": "edge"},
        {"interpolation": "bicubic", "resize": "stretch", "resize_px": 40},
        {"interpolation": "bicubic", "resize": "pad", "padding": "edge", "resize_px": 40},
        {"um_per_px": 0.7},
        {"um_per_px": 2.5, "padding": "#0a1428"},
        {"um_per_px": 1.3, "interpolation": "lanczos", "padding": "edge"},
        {"um_per_px": 4.0, "interpolation": "bilinear"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(90, 61), (50, 120)])
def test_the_lines_in_a_bundle_make_the_same_input(
    fields: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    space = replace(SPACE, input_size_px=32, **fields)
    rough = Image.fromarray(noise(9, 9)).resize(shape[::-1], Image.Resampling.BICUBIC)
    rough.save(tmp_path / "1.png")
    code = readme("head", space, several_labels=False).split("```python\n")[1].split("```")[0]
    body = code[code.index("for path in") : code.index("    (probabilities,)")]
    helper = code[code.index("def weights") : code.index("classes =")] if "def weights" in code else ""
    names: dict[str, Any] = {
        "np": np,
        "Image": Image,
        "ImageOps": ImageOps,
        "sys": SimpleNamespace(argv=["", tmp_path / "1.png"]),
    }
    if um := fields.get("um_per_px"):  # of an image whose pixels are 1 µm wide
        body = re.sub(r"um_per_px = [\d.]+", "um_per_px = 1.0", body)
        how = {name: value for name, value in fields.items() if name != "um_per_px"}
        expected = window(np.asarray(rough), None, size_px=32, scale=um, **how)
    else:
        expected = cut_and_resize(np.asarray(rough), None, size_px=32, **fields)
    exec(helper + body, names)  # noqa: S102 - the page's own
    difference = np.abs(names["image"].astype(int) - expected)
    assert difference.max() <= (1 if um else 0 if space.interpolation != "area-bicubic" else 2)
    assert (difference > 1).mean() < 0.01
