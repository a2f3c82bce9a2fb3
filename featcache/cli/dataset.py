"""featcache dataset check, relabel, preview, segment, generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.backbones import NetworkSpec
from featcache.cli.command import Group, option
from featcache.cli.extract_options import augmentation_options, cells_options, square_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.left_out import listing_left_out
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_counts, print_json, say, say_left_out, say_next, shown
from featcache.cli.settings import given, options
from featcache.core.files import resolved
from featcache.core.project import AugmentationSection, ViewsSection
from featcache.core.settings import settings_of
from featcache.segmentation import SegmentOptions

if TYPE_CHECKING:
    from featcache.datasets import CheckedDataset

_LISTED = 10


@click.group("dataset", cls=Group)
def command() -> None:
    """Check the data set, correct its labels, preview its views, cut cells out of smears, or generate one."""


@command.command("check", short_help="Check every image, and find those that show the same.")
@option("--fix", is_flag=True, help="Join images that show the same pixels into one group, and put it into one split.")
@option("--no-compare", "compare", is_flag=True, flag_value=False, default=True, help="Do not compare images.")
@option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default_text="shared-pixels.png",
    help="PNG file to draw the images into that show the same pixels.",
)
@project_option
@json_option
def check(fix: bool, compare: bool, out: Path | None, folder: Path, as_json: bool) -> None:
    """Check every image of dataset.csv: broken files, duplicates, groups in two splits, empty classes.

    Images are compared with each other, too. Near duplicates and overlapping fields show the same pixels: if one is
    trained on, the other must not be tested on.
    """
    from featcache.datasets import check_dataset

    project = open_project(folder)
    with listing_left_out(as_json):
        done = check_dataset(project, fix=fix, compare=compare, out=out, progress=TERMINAL)
    say_left_out(done.left_out, as_json)
    counts = done.dataset.counts()
    if as_json:
        listed = [{"path": item.path, "reason": item.reason} for item in done.left_out]
        pairs = [
            {
                "a": pair.a,
                "b": pair.b,
                "share": pair.share,
                "correlation": pair.correlation,
                "across": pair in done.across,
            }
            for pair in done.pairs
        ]
        value = {"images": len(done.dataset.images), "classes": counts, "digest": done.dataset.digest}
        print_json({**value, "left_out": listed, "pairs": pairs, "joined": done.joined, "moved": done.moved})
        return
    print_counts(counts)
    say(f"{len(done.dataset.images)} images can be used; digest {done.dataset.digest}")
    if done.drawn:
        _say_pairs(done, done.drawn)
        if fix:
            say(f"joined {done.joined} groups into others, and moved {done.moved} images to another split")
        else:
            say_next("dataset", "check", "--fix", into=project.folder)


def _say_pairs(done: CheckedDataset, drawn: Path) -> None:
    """What shows the same pixels."""
    near = sum(pair.is_near_duplicate for pair in done.pairs)
    say(f"{len(done.pairs)} pairs of images show the same pixels, {near} of them nearly all")
    for pair in done.pairs[:_LISTED]:
        mark = ", on two sides of a split" if pair in done.across else ""
        say(f"  {pair.a} and {pair.b}: {100 * pair.share:.0f} %{mark}")
    if len(done.pairs) > _LISTED:
        say(f"  ... and {len(done.pairs) - _LISTED} more (all of them in --json)")
    if done.across:
        say(f"{len(done.across)} pairs stand on two sides of a split: what is trained on is tested on, too")
    say(f"drew them into {shown(drawn)}")


@command.command("relabel", short_help="Correct labels in dataset.csv.")
@click.argument("images", metavar="[IMAGE]...", nargs=-1)
@option("--to", "label", metavar="LABEL", help="Label that the images get.")
@option("--none", "takes_away", is_flag=True, help="Take the labels of the images away: they are not trained on then.")
@option(
    "--from",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="CSV file with the columns image and label, instead of IMAGE and --to.",
)
@option("--new-class", is_flag=True, help="Take a label that no image has so far.")
@project_option
@json_option
def relabel(
    images: tuple[str, ...],
    label: str | None,
    takes_away: bool,
    file: Path | None,
    new_class: bool,
    folder: Path,
    as_json: bool,
) -> None:
    """Correct labels in dataset.csv. The next training takes them; nothing is extracted again.

    IMAGE is a path as in dataset.csv, or an image_id, or its first eight digits or more.
    """
    from featcache.datasets import relabel as correct

    if (file is None) == (not images) or (file is None) == (label is None and not takes_away):
        raise click.UsageError("give IMAGE with --to LABEL or --none, or --from FILE")
    if label is not None and takes_away:
        raise click.UsageError("--to excludes --none")
    project = open_project(folder)
    done = correct(project, file if file is not None else dict.fromkeys(images, label or ""), new_class=new_class)
    if as_json:
        changed = [
            {"path": image.path, "image_id": image.image_id, "from": image.label, "to": to}
            for image, to in done.changed
        ]
        print_json({"changed": changed, "classes": done.dataset.counts(), "new_classes": list(done.new_classes)})
        return
    for image, to in done.changed[:_LISTED]:
        say(f"{image.path}: {image.label or 'no label'} -> {to or 'no label'}")
    if len(done.changed) > _LISTED:
        say(f"... and {len(done.changed) - _LISTED} more (all of them in --json)")
    print_counts(done.dataset.counts())
    say(f"{len(done.changed)} labels changed in {shown(project.dataset_file)}")
    say_next("fit-head", into=project.folder)


@command.command("preview", short_help="Draw a contact sheet of views.")
@option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default_text="contact-sheet.png",
    help="PNG file to write.",
)
@option("--images", "per_class", type=click.IntRange(1), default=2, show_default=True, help="Images of each class.")
@option(
    "--views", type=click.IntRange(1), default=8, show_default=True, help="Views of each image, the plain one first."
)
@option("--model", metavar="NAME", group="Network", help="Network whose input is drawn (default: 224 px of any).")
@options(NetworkSpec, "weights", "input_size_px", group="Network")
@square_options("um_per_px", group="Input", default_text="as in featcache.toml")
@cells_options(group="Cells", default_text="as in featcache.toml")
@augmentation_options(group="Augmentation", default_text="as in featcache.toml")
@project_option
@json_option
def preview(
    out: Path | None, model: str | None, per_class: int, views: int, folder: Path, as_json: bool, **values: Any
) -> None:
    """Draw a contact sheet: images of each class, each with its plain view and its augmented views.

    With --model, these are the pixels that the network gets.
    """
    from featcache.extraction import preview as draw

    asked = given(values, NetworkSpec)
    if model is None and asked:
        raise click.UsageError("--weights and --input-size are for --model")
    path = draw(
        open_project(folder),
        out,
        network=NetworkSpec(model, **asked) if model is not None else None,
        per_class=per_class,
        n_views=views,
        views=given(values, ViewsSection),
        augmentation=given(values, AugmentationSection),
        progress=TERMINAL,
    )
    if as_json:
        print_json({"path": str(resolved(path))})
    else:
        say(f"wrote {shown(path)}")


@command.command("segment", short_help="Find the white cells in pictures, and cut them out.")
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER")
@option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to.")
@option(
    "--segmenter",
    "--method",
    "method",
    metavar="stain|colour|FILE|cellpose|stardist",
    default_text=str(settings_of(SegmentOptions)["method"].default),
    help=settings_of(SegmentOptions)["method"].help,
)
@options(SegmentOptions, "job", "red_cell_px", "white")
@options(SegmentOptions, "background", "margin", group="Crops")
@option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    group="Crops",
    default_text="FOLDER itself, if it has annotations or a list",
    help="Project, folder or list with labels of boxes in these pictures.",
)
@option(
    "--weights",
    metavar="PATH",
    group="Fitted segmenter, cellpose, StarDist",
    help="Weights of its network, if they are in a file; the file or folder of a model.",
)
@option(
    "--offline", is_flag=True, group="Fitted segmenter, cellpose, StarDist", help="Do not connect to any other machine."
)
@json_option
def segment(
    source: Path, out: Path, labels: Path | None, weights: str | None, offline: bool, as_json: bool, **values: Any
) -> None:
    """Find the white cells in the pictures of FOLDER, and write masks, crops, tables and overlays.

    FOLDER holds smears, or pictures of one cell each. masks/ has 0 for background, 128 for cytoplasm and 255 for
    nucleus. cells.csv lists the cells, left_out.csv what was left out and why. 'featcache init' reads crops.csv.
    Cells get the labels of class folders, or of labelled boxes that they overlap. An interrupted command continues
    when you run it again.
    """
    from featcache.datasets import LeftOut
    from featcache.pixelwise import segment as find_cells

    done = find_cells(
        source, out, labels=labels, weights=weights, offline=offline, progress=TERMINAL, **given(values, SegmentOptions)
    )
    if as_json:
        about = {"folder": str(done.folder), "job": done.job, "images": done.images}
        print_json({**about, "cells": list(done.cells), "left_out": list(done.left_out)})
        return
    what = "smears" if done.job == "smear" else "pictures of one cell each"
    cut_off = sum(cell["at_border"] for cell in done.cells)
    say(f"{len(done.cells)} white cells in {done.images} {what}; the border cuts {cut_off} of them")
    if labelled := sum(bool(cell["label"]) for cell in done.cells):
        say(f"{labelled} of them have a label")
    say_left_out([LeftOut(item["image"], item["reason"]) for item in done.left_out], as_json)
    say(f"wrote masks, crops, overlays, cells.csv and left_out.csv into {shown(done.folder)}")


@command.command("generate", short_help="Generate images.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@option("--per-class", type=click.IntRange(1), default=60, show_default=True, help="Cells of each class.")
@option("--smears", type=click.IntRange(0), default=0, help="Generate this many annotated smears instead of cells.")
@option("--size", "size_px", type=click.IntRange(16), default=240, show_default=True, help="Side of a cell in pixels.")
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the drawing.")
@json_option
def generate(folder: Path, per_class: int, smears: int, size_px: int, seed: int, as_json: bool) -> None:
    """Draw leukocytes of four classes into FOLDER: cells in class folders, or smears with Pascal VOC annotations."""
    from featcache.synthetic import generate as draw

    draw(folder, per_class, smears=smears, seed=seed, size_px=size_px)
    if as_json:
        print_json({"path": str(resolved(folder)), "images": smears or 4 * per_class})
    else:
        say(f"drew {smears or 4 * per_class} {'smears' if smears else 'cells'} into {folder}/")
