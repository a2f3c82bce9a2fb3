"""featcache init"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.left_out import listing_left_out
from featcache.cli.options import AUGMENTATION_NAMES, given, given_views, json_option, strict_option, views_options
from featcache.cli.output import print_counts, print_json, say, say_left_out, say_next
from featcache.core.files import resolved

_DATASET_NAMES = (
    *("split_seed", "group_pattern", "voc_object", "margin", "class_level"),
    *("path_column", "label_column", "group_column", "split_column"),
)


@click.command("init")
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[FOLDER]")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to write.")
@click.option("--relabel", is_flag=True, help="Take the source's labels and splits where dataset.csv was edited.")
@click.option("--resplit", is_flag=True, help="Make new splits even where the source has some.")
@click.option("--split", metavar="TRAIN/VAL/TEST", help="Shares of the splits.  [default: 70/15/15]")
@click.option("--split-counts", metavar="TRAIN/VAL/TEST", help="Images a class, e.g. 100/10/10.")
@click.option("--split-seed", type=click.IntRange(0), help="Another seed gives other splits.")
@click.option("--group-pattern", metavar="REGEX", help="What it finds in a path is the image's group.")
@click.option("--without", multiple=True, metavar="LABEL", help="Leave a class out (may be repeated).")
@click.option("--voc-object", help="Annotated object that the labels belong to.  [default: WBC]")
@click.option(
    "--class-level", type=click.IntRange(1, 20), help="Folders that name the class: 1 those of FOLDER, 2 those in them."
)
@click.option("--path-column", metavar="NAME", help="Column of a CSV that names the images.")
@click.option("--label-column", metavar="NAME", help="Column of a CSV that holds the labels.")
@click.option("--group-column", metavar="NAME", help="Column of a CSV that holds the groups; none: there is none.")
@click.option("--split-column", metavar="NAME", help="Column of a CSV that holds the splits; none: there is none.")
@click.option(
    "--box-columns",
    metavar="A,B,C,D",
    help="Columns of a CSV that hold boxes: left, top, right, bottom; or left, top, width, height; none: no boxes.",
)
@click.option("--margin", type=click.FloatRange(0, 5), help="Grow boxes by this part of their side.")
@click.option("--per-class", type=click.IntRange(3), default=80, show_default=True, help="Generated cells a class.")
@click.option(
    "--resize",
    type=click.Choice(["stretch", "pad", "crop"]),
    help="How images and boxes become square: stretched, padded with black, or cropped.  [default: stretch]",
)
@views_options
@strict_option
@json_option
def command(source: Path | None, into: Path, as_json: bool, **values: Any) -> None:
    """Write featcache.toml and dataset.csv here, for the images in FOLDER (or listed in a CSV file).

    FOLDER may hold class folders, class folders in train, val and test, a CSV with the columns path and
    label (and split, group, x_min, y_min, x_max, y_max if there are any), or Pascal VOC annotations with a
    label file. Annotations and lists may lie in train, val and test, too. Without FOLDER, leukocytes are
    generated into leukocytes/.

    Run again, it reads the images again; those known keep their split and group, and what was edited in
    dataset.csv stays.
    """
    from featcache.datasets import InitOptions, init

    dataset = given(values, _DATASET_NAMES)
    if values["box_columns"]:
        dataset["box_columns"] = tuple(name.strip() for name in values["box_columns"].split(","))
    if values["without"]:
        dataset["without"] = values["without"]
    if values["split"]:
        dataset |= {"split": _numbers(values["split"], "--split"), "split_counts": None}
    if values["split_counts"]:
        dataset["split_counts"] = _numbers(values["split_counts"], "--split-counts")
    options = InitOptions(
        dataset=dataset,
        views={**given_views(values), **given(values, ("resize",))},
        augmentation=given(values, AUGMENTATION_NAMES),
        **{name: values[name] for name in ("per_class", "resplit", "relabel", "strict")},
    )
    with listing_left_out(as_json):
        done = init(source, into, options=options, progress=TERMINAL)
    say(f"took it for {done.about}", as_json)
    for remark in done.remarks:
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
                "remarks": list(done.remarks),
            }
        )
        return
    print_counts(counts)
    say(f"wrote featcache.toml and dataset.csv ({len(done.dataset.images)} images)")
    say_next("extract", "--model", "efficientnet-lite0", into=done.project.folder)


def _numbers(text: str, option: str) -> list[float]:
    """100/10/10 -> [100, 10, 10]"""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not min(numbers) > 0:
        raise click.BadParameter(f"{text!r}: expected three numbers over 0, like 70/15/15", param_hint=option)
    return numbers
