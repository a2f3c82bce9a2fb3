"""featcache gc"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.tidying import dry_run_option, remove_all, yes_option


@click.command("gc")
@click.option("--unfinished", is_flag=True, help="Also caches that were begun and that nobody is writing now.")
@yes_option
@dry_run_option
@project_option
@json_option
def command(unfinished: bool, yes: bool, dry_run: bool, folder: Path, as_json: bool) -> None:
    """Remove what can go without a feature being lost.

    That is what interrupted commands left behind, also trainings that nobody went on with for an hour; Gram matrices of
    caches that are gone, or of splits that a cache no longer has; and caches all of whose rows another finished one
    holds.
    """
    from featcache.cleanup import find_garbage

    remove_all(find_garbage(open_project(folder), unfinished), yes, dry_run=dry_run, as_json=as_json)
