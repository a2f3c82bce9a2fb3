"""featcache report"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say, shown
from featcache.core.files import resolved


@click.command("report", cls=Command)
@option("--out", type=click.Path(path_type=Path, file_okay=False), default_text="results", help="Folder to write to.")
@option("--near-duplicates", is_flag=True, help="Look for images that show the same: some 50 ms of a core an image.")
@project_option
@json_option
def command(out: Path | None, near_duplicates: bool, folder: Path, as_json: bool) -> None:
    """Write all runs in results/ as one self-contained HTML page, and as Markdown, LaTeX, CSV and Excel."""
    from featcache.api import report
    from featcache.reporting import tables

    done = report(open_project(folder), to=out, near_duplicates=near_duplicates, progress=TERMINAL)
    names = ("html", "markdown", "latex", "csv", "excel")
    if as_json:
        places = {name: str(resolved(getattr(done, name))) for name in names}
        print_json({**places, "runs": [run.name for run in done.runs]})
        return
    for table in tables.per_class(done.runs):
        print_table(table.headers, table.rows, title="recall on test, % (95 %)")
    for name in names:
        say(f"wrote {shown(getattr(done, name))}")
