"""featcache export"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, project_option, project_or_none, weights_option
from featcache.cli.output import print_json, say, shown
from featcache.cli.settings import given, options
from featcache.core.files import resolved
from featcache.core.units import size
from featcache.extraction import ExtractOptions


@click.command("export", cls=Command)
@click.argument("run", metavar="RUN")
@option(
    "--format",
    "format_",
    type=click.Choice(["keras", "savedmodel", "onnx", "openvino", "head"]),
    default="keras",
    show_default=True,
    help="Format of the model; head is the head alone, from features, as a .keras file.",
)
@option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    default_text="the run's name with .keras, .savedmodel, .onnx or .xml",
    help="File to write; of a SavedModel the folder.",
)
@weights_option
@option("--again", is_flag=True, help="Replace what is there already.")
@options(ExtractOptions, "offline")
@project_option
@json_option
def command(
    run: str,
    format_: str,
    out: Path | None,
    weights: str | None,
    again: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a trained run as one model that other programs run.

    RUN is the name of a run in results/, or its folder. The model takes RGB images (uint8) and gives probabilities:
    preprocessing, network and head are in it. What it says of itself: classes, input, how files are decoded.
    """
    from featcache.deployment import export

    done = export(
        run,
        format=format_,
        out=out,
        weights=weights,
        project=project_or_none(folder),
        again=again,
        progress=TERMINAL,
        **given(values, ExtractOptions),
    )
    if as_json:
        print_json(done.to_dict())
        return
    side = done.input_size_px
    takes = "features" if side is None else f"images of {side}x{side} px"
    say(f"{shown(resolved(done.path))}: {size(done.bytes)}, {takes} to {len(done.classes)} classes")
    if side is None:
        return
    if done.largest_difference is None:
        say("  not checked: what runs this format is not installed here")
    else:
        say(f"  checked: probabilities differ by {done.largest_difference:.0e} at most from the run's")
