"""featcache fit-segmenter"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featcache.backbones import NetworkSpec
from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option
from featcache.cli.output import print_json, say, say_left_out, shown
from featcache.cli.settings import given, options
from featcache.extraction import ExtractOptions
from featcache.pixelwise import FitSegmenterOptions


@click.command("fit-segmenter", cls=Command)
@click.argument("images", type=click.Path(path_type=Path), metavar="IMAGES")
@option("--masks", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder of the masks.")
@option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE", help="File to write.")
@options(FitSegmenterOptions, "job", "per_picture", "units", "passes", "seed", "white")
@option(
    "--model", default="mobilenetv2", show_default=True, metavar="NAME", help="Network, or pixels.", group="Network"
)
@options(NetworkSpec, "weights", "weights_seed", "input_size_px", group="Network")
@option(
    "--layer",
    metavar="NAME",
    default_text="the last with a quarter of the input's side",
    help="Early layer whose map is taken.",
    group="Network",
)
@options(ExtractOptions, "offline", group="Network")
@json_option
def command(images: Path, masks: Path, out: Path, model: str, layer: str | None, as_json: bool, **values: Any) -> None:
    """Fit a segmenter to pictures with masks, for 'featcache dataset segment --segmenter FILE'.

    Each picture of IMAGES has a mask of its name and size: 0 for background, 128 for cytoplasm and 255 for nucleus. The
    segmenter classifies pixels by an early feature map of a frozen network, and by their colour.
    """
    from featcache.datasets import LeftOut
    from featcache.pixelwise import fit_segmenter

    done = fit_segmenter(
        images,
        masks,
        out=out,
        model=model,
        layer=layer,
        progress=TERMINAL,
        **given(values, FitSegmenterOptions),
        **given(values, NetworkSpec),
        **given(values, ExtractOptions),
    )
    if as_json:
        print_json({**asdict(done), "path": str(done.path), "left_out": list(done.left_out)})
        return
    say_left_out([LeftOut(item["image"], item["reason"]) for item in done.left_out], as_json)
    counts = ", ".join(f"{count:,} of {name}" for name, count in done.pixels.items())
    say(f"fitted to {done.cells} cells of {done.pictures} pictures: {counts} pixels")
    say(f"it classifies {100 * done.accuracy:.0f} % of these pixels as the masks do")
    say(f"wrote {shown(done.path)}")
