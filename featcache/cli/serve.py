"""featcache serve"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import (
    confidence_option,
    false_alarms_option,
    json_option,
    project_option,
    project_or_none,
    weights_option,
)
from featcache.cli.output import print_json


@click.command("serve", cls=Command)
@click.argument("run", metavar="FILE.zip|RUN")
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 answers other machines.")
@option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 is a free one.")
@confidence_option
@false_alarms_option
@option("--max-mb", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Largest file, MB.")
@option(
    "--read-s", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Seconds to send it."
)
@option("--waiting", type=click.IntRange(1), default=64, show_default=True, help="Images in hand at once.")
@weights_option
@project_option
@json_option
def command(run: str, folder: Path, as_json: bool, **values: Any) -> None:
    """Answer requests for predictions over HTTP, and show a page to drop images on.

    FILE.zip is a bundle; RUN is the name of a run in results/, or its folder. POST an image to /predict for its class
    as JSON. /health says that it answers, /metrics counts for Prometheus. Only this machine is answered, unless you
    name a host.
    """
    from featcache.serving import serve

    ready = (lambda address: print_json({"address": address})) if as_json else None
    serve(run, project=project_or_none(folder), ready=ready, progress=TERMINAL, **values)
