"""featcache adapt"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.hints import in_flags
from featcache.cli.interrupts import TERMINAL
from featcache.cli.labelled_options import labelled_source_options, mapping_option
from featcache.cli.options import json_option, project_option, project_or_none, weights_option
from featcache.cli.output import percent, print_json, print_table, say, say_left_out, shown
from featcache.cli.settings import given, options
from featcache.core.project import DatasetSection
from featcache.extraction import ExtractOptions

if TYPE_CHECKING:
    from featcache.prediction import Adapted


@click.command("adapt", cls=Command)
@click.argument("run", metavar="RUN")
@option("--with", "labelled", required=True, metavar="SOURCE", help="Folder or list of labelled images, or a project.")
@option(
    "--per-class",
    type=click.IntRange(1),
    metavar="N",
    default_text="all of them",
    help="Use N images of each class; the others judge the new head.",
)
@option(
    "--weight",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of all new rows together, if the old ones together have 1.",
)
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choice of images.")
@mapping_option
@weights_option
@labelled_source_options
@options(ExtractOptions, "engine", "batch_rows", "offline", "strict")
@option("--again", is_flag=True, help="Fit it again, even if the run exists.")
@project_option
@json_option
def command(
    run: str,
    labelled: str,
    per_class: int | None,
    weight: float,
    seed: int,
    mapping: dict[str, str],
    weights: str | None,
    again: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Fit a head to the rows of RUN and to a few labelled images of another laboratory.

    It takes seconds, because the features of RUN are in its cache. The new head is a logistic regression, and a run
    like any other. A learning curve says what more labels bring, each head judged by new images that it has not seen.
    """
    from featcache.prediction import adapt

    done = adapt(
        run,
        labelled,
        per_class=per_class,
        weight=weight,
        seed=seed,
        mapping=mapping,
        project=project_or_none(folder),
        weights=weights,
        again=again,
        progress=TERMINAL,
        **given(values, DatasetSection),
        **given(values, ExtractOptions),
    )
    for remark in done.remarks:
        say(in_flags(remark), as_json)
    say_left_out(done.left_out, as_json)
    if as_json:
        print_json(_as_json(done))
    else:
        _say(done)


def _as_json(done: Adapted) -> dict[str, Any]:
    return {
        "run": done.run.name,
        "path": str(done.run.folder),
        "of": done.run.config["adapted"]["from"],
        "with": done.run.config["on"],
        "reused": done.reused,
        "used": dict(done.used),
        "before": done.before,
        "after": done.after,
        "curve": [asdict(point) for point in done.curve],
        "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
    }


def _say(done: Adapted) -> None:
    if done.reused:
        say("this run exists already; --again fits it anew")
    say(f"fitted to the old rows and to {', '.join(f'{count} {label}' for label, count in done.used.items())}")
    rows = [
        [str(point.per_class), str(point.draws), f"{100 * point.balanced_accuracy:.0f}", _range(point.low, point.high)]
        for point in done.curve
    ]
    print_table(["labels a class", "draws", "balanced accuracy, %", "worst to best"], rows)
    if done.before and done.after:
        of = done.after["groups"]
        parts = [
            f"{percent(found['balanced_accuracy'], of=of)} % "
            f"({' to '.join(percent(end, of=of) for end in found['intervals']['balanced_accuracy'])})"
            for found in (done.before, done.after)
        ]
        say(f"balanced accuracy on {of} other images: {done.run.config['adapted']['from']} {parts[0]}, now {parts[1]}")
    else:
        say("no new image was left to judge the head by: keep some back with --per-class")
    say(f"run: {shown(done.run.folder)}")


def _range(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f}"
