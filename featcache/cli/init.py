"""featcache init"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.options import AUGMENTATION_NAMES, VIEW_NAMES, given, json_option, strict_option, views_options
from featcache.cli.output import print_json, print_table, say, say_left_out, track


@click.command("init")
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[FOLDER]")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to write.")
@click.option("--update", is_flag=True, help="Read the images again; those known keep their split and group.")
@click.option("--resplit", is_flag=True, help="Make new splits even where the source has some.")
@click.option("--split", "fractions", metavar="TRAIN/VAL/TEST", help="Shares of the splits.  [default: 70/15/15]")
@click.option("--split-counts", "counts", metavar="TRAIN/VAL/TEST", help="Images a class, e.g. 100/10/10.")
@click.option("--split-seed", type=click.IntRange(0), default=0, help="Another seed gives other splits.")
@click.option("--group-pattern", default="", metavar="REGEX", help="What it finds in a path is the image's group.")
@click.option("--without", multiple=True, metavar="LABEL", help="Leave a class out (may be repeated).")
@click.option("--voc-object", default="WBC", show_default=True, help="Annotated object that the labels belong to.")
@click.option("--margin", type=click.FloatRange(0, 5), default=0.0, help="Grow boxes by this part of their side.")
@click.option("--per-class", type=click.IntRange(3), default=60, show_default=True, help="Generated cells a class.")
@views_options
@strict_option
@json_option
def command(source: Path | None, into: Path, as_json: bool, **values: Any) -> None:
    """Write featcache.toml and dataset.csv here, for the images in FOLDER (or listed in a CSV file).

    FOLDER may hold class folders, class folders in train, val and test, a CSV with the columns path and
    label (and split, group, x_min, y_min, x_max, y_max if there are any), or Pascal VOC annotations with a
    label file. Without FOLDER, leukocytes are generated into leukocytes/.
    """
    from featcache.dataset.build import SplitRule
    from featcache.pipeline.init import InitOptions, init

    rule = SplitRule(
        fractions=_shares(values["fractions"]),
        counts=_counts(values["counts"]),
        seed=values["split_seed"],
        resplit=values["resplit"],
        group_pattern=values["group_pattern"],
    )
    options = InitOptions(
        rule=rule,
        without=values["without"],
        voc_object=values["voc_object"],
        margin=values["margin"],
        views=given(values, VIEW_NAMES),
        augmentation=given(values, AUGMENTATION_NAMES),
        per_class=values["per_class"],
        seed=values["seed"] or 0,
        update=values["update"],
        strict=values["strict"],
    )
    done = init(source, into, options, track)
    say(f"took it for {done.about}", as_json)
    for remark in done.remarks:
        say(remark, as_json)
    say_left_out(done.left_out, as_json)
    counts = done.dataset.counts()
    if as_json:
        print_json(
            {
                "project": str(done.project.folder),
                "layout": done.project.settings.dataset.layout,
                "about": done.about,
                "images": len(done.dataset.images),
                "classes": counts,
                "digest": done.dataset.digest,
                "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
                "remarks": list(done.remarks),
            }
        )
        return
    rows = [[label, *(str(n) for n in of.values())] for label, of in counts.items()]
    print_table(["class", "train", "val", "test"], rows)
    say(f"wrote featcache.toml and dataset.csv ({len(done.dataset.images)} images)")
    say("next: featcache extract --model efficientnet-lite0")


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or min(numbers) <= 0:
        raise click.BadParameter(f"{text!r}: expected three numbers over 0, like 70/15/15", param_hint=option)
    return numbers


def _shares(text: str | None) -> dict[str, float] | None:
    numbers = _numbers(text, "--split")
    return numbers and {s: n / sum(numbers) for s, n in zip(("train", "val", "test"), numbers, strict=True)}  # type: ignore[return-value]


def _counts(text: str | None) -> dict[str, int] | None:
    numbers = _numbers(text, "--split-counts")
    if numbers and any(number != int(number) for number in numbers):
        raise click.BadParameter(f"{text!r}: expected whole numbers of images", param_hint="--split-counts")
    return numbers and {s: int(n) for s, n in zip(("train", "val", "test"), numbers, strict=True)}  # type: ignore[return-value]
