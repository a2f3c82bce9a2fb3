"""featcache predict"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, project_option, project_or_none
from featcache.cli.output import percent, print_json, print_table, say

_LISTED = 40


@click.command("predict", cls=Command)
@click.argument("run", metavar="RUN")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("--weights", metavar="PATH", help="The weights of the run's network, where they are not ImageNet's.")
@option(
    "--tta",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="VIEWS",
    help="Average over this many augmented views of each image.",
)
@option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all rows to this file.")
@option(
    "--engine",
    type=click.Choice(["auto", "keras", "openvino"]),
    default="auto",
    show_default=True,
    help="Library that computes the features.",
)
@option("--batch", "batch_rows", type=click.IntRange(1), help="Images per batch.  [default: the fastest]")
@option("--offline", is_flag=True, help="Make no network connection.")
@option("--strict", is_flag=True, help="Stop at an image that cannot be used.")
@project_option
@json_option
def command(
    run: str,
    paths: tuple[str, ...],
    weights: str | None,
    tta: int,
    csv_file: Path | None,
    engine: Literal["auto", "keras", "openvino"],
    batch_rows: int | None,
    offline: bool,
    strict: bool,
    folder: Path,
    as_json: bool,
) -> None:
    """Name the class of new images with a trained RUN.

    RUN is the name of a run in results/, or its folder. PATH is an image, a folder with images, a project (its images
    and boxes), or a cache, whose rows need no network. The network is the one of the run's recipe.
    """
    from featcache.prediction import predict
    from featcache.training import runs

    done = predict(
        run,
        paths,
        project=project_or_none(folder),
        weights=weights,
        tta=tta,
        engine=engine,
        batch_rows=batch_rows,
        offline=offline,
        strict=strict,
        progress=TERMINAL,
    )
    if done.left_out:
        say(f"left out: {len(done.left_out)}", as_json)
        for path, reason in done.left_out[:_LISTED]:
            say(f"  {path}: {reason}", as_json)
    if csv_file is not None:
        runs.write_table(csv_file, done.to_frame())
        say(f"wrote {csv_file} ({len(done)} images)", as_json)
    if as_json:
        print_json(done.to_dict())
        return
    if csv_file is None:
        best = done.probabilities.max(axis=1)
        listed = zip(done.paths[:_LISTED], done.labels[:_LISTED], best[:_LISTED], strict=True)
        rows = [[path, str(label), percent(float(share))] for path, label, share in listed]
        print_table(["image", "class", "probability, %"], rows)
        if len(done) > _LISTED:
            say(f"... and {len(done) - _LISTED} more: --csv FILE or --json for all")
