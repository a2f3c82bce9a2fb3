"""featcache dataset check, preview, generate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Group, option
from featcache.cli.extract_options import augmentation_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.left_out import listing_left_out
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_counts, print_json, say, say_left_out, shown
from featcache.cli.settings import given
from featcache.core.files import resolved
from featcache.core.project import AugmentationSection


@click.group("dataset", cls=Group)
def command() -> None:
    """Check the data set, preview its views, or generate one."""


@command.command("check", short_help="Check every image.")
@project_option
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Check every image of dataset.csv: broken files, duplicates, groups in two splits, empty classes."""
    from featcache.core.project import init_call
    from featcache.datasets import check as check_images, current_dataset

    project = open_project(folder)
    with listing_left_out(as_json):
        dataset, left_out = current_dataset(project, progress=TERMINAL)
    say_left_out(left_out, as_json)
    with listing_left_out(as_json):
        check_images(dataset.images, str(project.dataset_file), remedy=init_call(into=project.folder, resplit=True))
    counts = dataset.counts()
    if as_json:
        listed = [{"path": item.path, "reason": item.reason} for item in left_out]
        print_json({"images": len(dataset.images), "classes": counts, "digest": dataset.digest, "left_out": listed})
        return
    print_counts(counts)
    say(f"{len(dataset.images)} images can be used; digest {dataset.digest}")


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
@augmentation_options(group="Augmentation", default_text="as in featcache.toml")
@project_option
@json_option
def preview(out: Path | None, per_class: int, views: int, folder: Path, as_json: bool, **values: Any) -> None:
    """Draw a contact sheet: images of each class, each with its plain view and its augmented views."""
    from featcache.datasets import preview as draw

    path = draw(
        open_project(folder), out, per_class=per_class, n_views=views, augmentation=given(values, AugmentationSection)
    )
    if as_json:
        print_json({"path": str(resolved(path))})
    else:
        say(f"wrote {shown(path)}")


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
