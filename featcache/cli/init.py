"""featcache init"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.extract_options import augmentation_options, cells_options, square_options, views_options
from featcache.cli.hints import in_flags
from featcache.cli.interrupts import TERMINAL
from featcache.cli.left_out import listing_left_out
from featcache.cli.options import json_option
from featcache.cli.output import print_counts, print_json, say, say_left_out, say_next
from featcache.cli.settings import given, options
from featcache.core.files import resolved
from featcache.core.project import AugmentationSection, DatasetSection, ViewsSection
from featcache.datasets import InitOptions


@click.command("init", cls=Command)
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[FOLDER]")
@options(DatasetSection, "split", "split_counts", "split_seed", group="Splits")
@options(InitOptions, "resplit", "relabel", group="Splits")
@options(
    DatasetSection, "class_level", "without", "label_from", "group_from", "group_pattern", group="Labels and groups"
)
@options(DatasetSection, "path_column", "label_column", "group_column", "split_column", group="CSV files")
@options(DatasetSection, "label_separator", "label_columns", group="CSV files")
@options(DatasetSection, "roots", group="CSV files")
@options(DatasetSection, "box_columns", "voc_object", "masks", "mask_column", group="Boxes")
@options(DatasetSection, "um_per_px", group="Input")
@square_options(group="Input")
@cells_options(group="Cells")
@views_options(group="Views")
@augmentation_options(group="Augmentation")
@options(InitOptions, "per_class", "offline", "strict")
@option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    default_text="the current folder",
    help="Folder of the project.",
)
@json_option
def command(source: Path | None, into: Path, as_json: bool, **values: Any) -> None:
    """Find the images in FOLDER, and write featcache.toml and dataset.csv.

    FOLDER may hold class folders; class folders in train, val and test; a CSV file with the columns path and
    label (and split, group, x_min, y_min, x_max, y_max, if you have them); or annotations of Pascal VOC, COCO,
    YOLO, CVAT or CreateML. It may also be a CSV or zip file, or MedMNIST's npz.

    Without FOLDER, leukocytes are generated into leukocytes/.

    Run it again when images have changed. Known images keep their split and group, and your edits of
    dataset.csv are kept.
    """
    from featcache.api import init

    with listing_left_out(as_json):
        done = init(
            source,
            into,
            views=given({**values, "um_per_px": None}, ViewsSection),  # here it is of the images, not of views
            augmentation=given(values, AugmentationSection),
            progress=TERMINAL,
            **given(values, DatasetSection),
            **given(values, InitOptions),
        ).found
    say(f"found {done.about}", as_json)
    remarks = [in_flags(remark) for remark in done.remarks]
    for remark in remarks:
        say(remark, as_json)
    say_left_out(done.left_out, as_json)
    counts = done.dataset.counts()
    if as_json:
        print_json(
            {
                "project": str(resolved(done.project.folder)),
                "layout": done.layout,
                "about": done.about,
                "images": len(done.dataset.images),
                "classes": counts,
                "digest": done.dataset.digest,
                "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
                "remarks": remarks,
            }
        )
        return
    print_counts(counts)
    say(f"wrote featcache.toml and dataset.csv ({len(done.dataset.images)} images)")
    say_next("extract", "--model", "efficientnet-lite0", into=done.project.folder)
