"""featcache gc"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.tidying import dry_run_option, remove_all, yes_option


@click.command("gc", cls=Command)
@option("--unfinished", is_flag=True, help="Also remove unfinished caches that no process is writing.")
@yes_option
@dry_run_option
@project_option
@json_option
def command(unfinished: bool, yes: bool, dry_run: bool, folder: Path, as_json: bool) -> None:
    """Remove what is no longer needed.

    That is: leftovers of interrupted commands, including trainings that nobody continued for an hour; Gram
    matrices of caches or splits that no longer exist; and caches whose rows are all in another finished cache.
    """
    from featcache.cleanup import find_garbage

    remove_all(find_garbage(open_project(folder), unfinished), yes, dry_run=dry_run, as_json=as_json)
