"""featcache attribution"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, project_option, project_or_none, um_per_px_option, weights_option
from featcache.cli.output import print_json, print_table, say, say_left_out
from featcache.cli.settings import given, options
from featcache.datasets import LeftOut
from featcache.extraction import ExtractOptions

_LISTED = 40


@click.command("attribution", cls=Command)
@click.argument("run", metavar="RUN")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("--class", "label", metavar="LABEL", default_text="the most probable one", help="Class to explain.")
@option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("heatmaps"),
    show_default=True,
    help="Folder to write the heatmaps to.",
)
@weights_option
@um_per_px_option
@options(ExtractOptions, "engine", "batch_rows", "offline", "strict")
@project_option
@json_option
def command(
    run: str,
    paths: tuple[str, ...],
    label: str | None,
    to: Path,
    weights: str | None,
    um_per_px: float | None,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Draw which places of an image speak for its class, and which against it.

    RUN is the name of a run in results/, or its folder. PATH is an image, a folder of images, or a project. The
    logit of a head is a sum over the places of the feature map, so its heatmap is exact. Red is for the class,
    blue against it.
    """
    from featcache.prediction import attribution

    done = attribution(
        run,
        paths,
        label=label,
        project=project_or_none(folder),
        weights=weights,
        um_per_px=um_per_px,
        progress=TERMINAL,
        **given(values, ExtractOptions),
    )
    files = done.save(to)
    say_left_out([LeftOut(path, reason) for path, reason in done.left_out], as_json)
    if as_json:
        value = done.to_dict()
        for row, file in zip(value["rows"], files, strict=True):
            row["heatmap"] = str(file)
        print_json(value)
        return
    listed = zip(done.paths[:_LISTED], done.labels[:_LISTED], done.logits[:_LISTED], done.rest[:_LISTED], strict=True)
    print_table(
        ["image", "class", "logit", "of biases"],
        [[path, str(name), f"{logit:.2f}", f"{rest:.2f}"] for path, name, logit, rest in listed],
    )
    if len(done) > _LISTED:
        say(f"... and {len(done) - _LISTED} more: --json for all")
    if not done.exact:
        say("an approximation: the model is not linear around an image")
    say(f"wrote {len(files)} heatmaps into {to}/")
