"""featcache dataset check, preview, generate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.left_out import listing_left_out
from featcache.cli.options import (
    AUGMENTATION_NAMES,
    augmentation_options,
    given,
    json_option,
    open_project,
    project_option,
)
from featcache.cli.output import print_counts, print_json, say, say_left_out, shown
from featcache.core.files import resolved


@click.group("dataset")
def command() -> None:
    """Check the data set, draw its views, generate one."""


@command.command("check", short_help="Broken files, duplicates, leaks, empty classes.")
@project_option
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Look at every image of dataset.csv: broken files, duplicates, groups in two splits, empty classes."""
    from featcache.core.project import command
    from featcache.datasets import check as check_images, current_dataset

    project = open_project(folder)
    with listing_left_out(as_json):
        dataset, left_out = current_dataset(project, progress=TERMINAL)
    say_left_out(left_out, as_json)
    with listing_left_out(as_json):
        check_images(
            dataset.images, str(project.dataset_file), remedy=repr(command("init", "--resplit", into=project.folder))
        )
    counts = dataset.counts()
    if as_json:
        listed = [{"path": item.path, "reason": item.reason} for item in left_out]
        print_json({"images": len(dataset.images), "classes": counts, "digest": dataset.digest, "left_out": listed})
        return
    print_counts(counts)
    say(f"{len(dataset.images)} images can be used; digest {dataset.digest}")


@command.command("preview", short_help="A contact sheet of images and their views.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: contact-sheet.png]")
@click.option("--images", "per_class", type=click.IntRange(1), default=2, show_default=True, help="A class.")
@click.option(
    "--views", type=click.IntRange(1), default=8, show_default=True, help="Of each image, the plain one first."
)
@augmentation_options
@project_option
@json_option
def preview(out: Path | None, per_class: int, views: int, folder: Path, as_json: bool, **values: Any) -> None:
    """Draw a contact sheet: images of every class, plain first, then their augmented views."""
    from featcache.datasets import preview as draw

    path = draw(
        open_project(folder), out, per_class=per_class, n_views=views, augmentation=given(values, AUGMENTATION_NAMES)
    )
    if as_json:
        print_json({"path": str(resolved(path))})
    else:
        say(f"wrote {shown(path)}")


@command.command("generate", short_help="Cells in class folders, or annotated smears.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--per-class", type=click.IntRange(1), default=60, show_default=True, help="Cells a class.")
@click.option("--smears", type=click.IntRange(0), default=0, help="Whole smears with annotations, instead of cells.")
@click.option("--size", "size_px", type=click.IntRange(16), default=240, show_default=True, help="Of a cell, px.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed draws other cells.")
@json_option
def generate(folder: Path, per_class: int, smears: int, size_px: int, seed: int, as_json: bool) -> None:
    """Draw leukocytes of four classes: class folders of cells, or smears with Pascal VOC annotations."""
    from featcache.synthetic import generate as draw

    draw(folder, per_class, smears=smears, seed=seed, size_px=size_px)
    if as_json:
        print_json({"path": str(resolved(folder)), "images": smears or 4 * per_class})
    else:
        say(f"drew {smears or 4 * per_class} {'smears' if smears else 'cells'} into {folder}/")
