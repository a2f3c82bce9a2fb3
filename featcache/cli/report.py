"""featcache report"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say, shown
from featcache.core.files import resolved


@click.command("report", cls=Command)
@option("--out", type=click.Path(path_type=Path, file_okay=False), default_text="results", help="Folder to write to.")
@project_option
@json_option
def command(out: Path | None, folder: Path, as_json: bool) -> None:
    """Write all runs in results/ as tables, figures, Markdown and one self-contained HTML page."""
    from featcache.api import report
    from featcache.reporting import tables

    done = report(open_project(folder), to=out)
    if as_json:
        places = {"markdown": str(resolved(done.markdown)), "html": str(resolved(done.html))}
        print_json({**places, "runs": [run.name for run in done.runs]})
        return
    for table in tables.per_class(done.runs):
        print_table(table.headers, table.rows, title="recall on test, %")
    say(f"wrote {shown(done.markdown)}")
    say(f"wrote {shown(done.html)}")
