"""featcache count"""

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
from featcache.cli.output import percent, print_json, print_table, say, say_left_out, shown
from featcache.cli.settings import given, options
from featcache.counting import CountOptions
from featcache.extraction import ExtractOptions

if TYPE_CHECKING:
    from featcache.counting import Counted


@click.command("count", cls=Command)
@click.argument("paths", nargs=-1, required=True, metavar="SMEAR...")
@option("--run", required=True, metavar="RUN", help="Name or folder of the run that names the cells, or a bundle.")
@option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write pictures, tables and page to.")
@options(CountOptions, "method", "red_cell_px", "border", group="Finding cells")
@options(CountOptions, "margin", "background", group="Crops")
@options(CountOptions, "unsure_below", group="Unsure cells")
@confidence_option
@false_alarms_option
@weights_option
@um_per_px_option
@tta_option
@options(ExtractOptions, "engine", "batch_rows", "offline")
@project_option
@json_option
def command(
    paths: tuple[str, ...],
    run: str,
    out: Path | None,
    confidence: float | None,
    false_alarms: float,
    weights: str | None,
    um_per_px: float | None,
    tta: int,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Count the white cells of whole smears by class, with intervals.

    SMEAR is a picture, or a folder of pictures. The segmenter finds the white cells, and the run names them. --out gets
    the pictures with all cells marked, tables and a page; an interrupted command continues when you run it again.
    """
    from featcache.counting import count

    done = count(
        paths,
        run,
        out=out,
        project=project_or_none(folder),
        weights=weights,
        um_per_px=um_per_px,
        confidence=confidence,
        false_alarms=false_alarms,
        tta=tta,
        progress=TERMINAL,
        **given(values, CountOptions),
        **given(values, ExtractOptions),
    )
    if as_json:
        about = {} if done.folder is None else {"folder": str(done.folder), "page": str(done.page)}
        print_json({**done.to_dict(), **about})
    else:
        _say(done)


def _say(done: Counted) -> None:
    rows = [
        [
            label,
            f"{of['n']:,}",
            f"{of['low']} to {of['high']}",
            f"{_share(of, 'share_low')} to {_share(of, 'share_high')}",
        ]
        for label, of in done.total.items()
    ]
    print_table(["class", "cells", "95 %", "share, %, 95 %"], rows, least=["cells"])
    fields, cells = len(done.images), len(done.cells)
    say(f"{cells} white cells in {fields} {'field' if fields == 1 else 'fields'}; {done.unsure} of them unsure")
    if done.empty:
        say(f"{len(done.empty)} fields without a white cell")
    if unlike := sum(bool(cell["unlike"]) for cell in done.cells):
        say(f"{unlike} of {cells} cells are unlike the training images: do not trust their class")
    if done.left_out:
        from featcache.datasets import LeftOut

        say_left_out([LeftOut(item["image"], item["reason"]) for item in done.left_out], as_json=False)
    if done.page:
        say(f"wrote {shown(done.page)}")


def _share(of: Any, name: str) -> str:
    return percent(of[name], of=1000)
