"""featcache bundle"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, project_option, project_or_none, weights_option
from featcache.cli.output import print_json, say, shown
from featcache.cli.push import sign_options, signing_key
from featcache.cli.settings import given, options
from featcache.core.files import resolved
from featcache.core.units import size
from featcache.extraction import ExtractOptions


@click.command("bundle", cls=Command)
@click.argument("run", metavar="RUN")
@option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.zip",
    default_text="the run's name with .zip",
    help="File to write.",
)
@option("--no-images", "without_images", is_flag=True, help="Put made-up images into it, none of the project.")
@weights_option
@option("--again", is_flag=True, help="Replace a file that is there already.")
@sign_options
@options(ExtractOptions, "offline")
@project_option
@json_option
def command(
    run: str,
    out: Path | None,
    without_images: bool,
    weights: str | None,
    again: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a trained run as one zip file that predicts anywhere.

    RUN is the name of a run in results/, or its folder. The file holds the model as ONNX, a model card, and eight test
    images with their probabilities: 'featcache check FILE.zip' computes them again on another machine. It needs no
    project, no cache and no training image.
    """
    from featcache.deployment import bundle

    done = bundle(
        run,
        out=out,
        images=not without_images,
        sign=signing_key(values.pop("sign"), values.pop("key_name")),
        licence=values.pop("licence") or "",
        contact=values.pop("contact") or "",
        weights=weights,
        project=project_or_none(folder),
        again=again,
        progress=TERMINAL,
        **given(values, ExtractOptions),
    )
    if as_json:
        print_json(done.to_dict())
        return
    signed = f", signed by {done.signed_by}" if done.signed_by else ""
    say(f"{shown(resolved(done.path))}: {size(done.bytes)}, {len(done.classes)} classes{signed}")
    made = "made-up images" if done.made_up else "test images of the project"
    say(f"  holds {done.rows} {made} with their probabilities: 'featcache check {done.path.name}' computes them again")
