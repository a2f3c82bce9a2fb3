"""featcache predict"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import (
    confidence_option,
    false_alarms_option,
    json_option,
    project_option,
    project_or_none,
    tta_option,
    um_per_px_option,
    weights_option,
)
from featcache.cli.output import percent, print_json, print_table, say, say_left_out
from featcache.cli.settings import given, options
from featcache.datasets import LeftOut
from featcache.extraction import ExtractOptions

if TYPE_CHECKING:
    from featcache.prediction import Predictions

_LISTED = 40


@click.command("predict", cls=Command)
@click.argument("run", metavar="RUN")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@weights_option
@um_per_px_option
@tta_option
@confidence_option
@false_alarms_option
@option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="CSV file to write all rows to.")
@options(ExtractOptions, "engine", "batch_rows", "offline", "strict")
@project_option
@json_option
def command(
    run: str,
    paths: tuple[str, ...],
    weights: str | None,
    um_per_px: float | None,
    tta: int,
    confidence: float | None,
    false_alarms: float,
    csv_file: Path | None,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Predict the class of new images with a trained run.

    RUN is the name of a run in results/, or its folder. PATH is an image, a folder of images, a project (its images
    and boxes), or a cache, whose rows need no network. The run says which network computes the features.
    """
    from featcache.prediction import predict
    from featcache.training import runs

    done = predict(
        run,
        paths,
        project=project_or_none(folder),
        weights=weights,
        um_per_px=um_per_px,
        tta=tta,
        confidence=confidence,
        false_alarms=false_alarms,
        progress=TERMINAL,
        **given(values, ExtractOptions),
    )
    say_left_out([LeftOut(path, reason) for path, reason in done.left_out], as_json)
    if csv_file is not None:
        runs.write_table(csv_file, done.to_frame())
        say(f"wrote {csv_file} ({len(done)} images)", as_json)
    if as_json:
        print_json(done.to_dict())
        return
    if csv_file is None:
        print_table(*_listed(done))
        if len(done) > _LISTED:
            say(f"... and {len(done) - _LISTED} more: --csv FILE or --json for all")
    if done.unlike is not None and done.unlike.any():
        say(f"{done.unlike.sum()} of {len(done)} images are unlike the training images: do not trust their class")


def _listed_labels(done: Predictions) -> tuple[list[str], list[list[str]]]:
    """The same of several labels an image, with the probability of each that it has."""
    marked = done.unlike is not None and bool(done.unlike.any())
    rows = []
    for number, labels in enumerate(done.label_sets[:_LISTED]):
        shares = dict(zip(done.classes, done.probabilities[number].tolist(), strict=True))
        of_labels = ", ".join(percent(shares[label]) for label in labels)
        row = [done.paths[number], ", ".join(labels) or "none of the labels", of_labels]
        if done.unlike is not None and marked:
            row.append("unlike the training images" if done.unlike[number] else "")
        rows.append(row)
    return ["image", "labels", "probability, %", *([""] if marked else [])], rows


def _listed(done: Predictions) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table of the first images."""
    if done.several_labels:
        return _listed_labels(done)
    shares = done.probabilities.max(axis=1) if done.confidence is None else done.confidence
    columns = ["image", "class", "probability, %"]
    marked = done.unlike is not None and bool(done.unlike.any())
    columns += (["set"] if done.sets is not None else []) + ([""] if marked else [])
    rows = []
    for number in range(min(len(done), _LISTED)):
        row = [done.paths[number], str(done.labels[number]), percent(float(shares[number]))]
        if (inside := done.set_of(number)) is not None:
            row.append(" or ".join(inside) or "none of them")
        if done.unlike is not None and marked:
            row.append("unlike the training images" if done.unlike[number] else "")
        rows.append(row)
    return columns, rows
