"""featcache rm"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.options import json_option, open_project, project_option, remote_of, remote_option
from featcache.cli.remote_output import remove_on_remote
from featcache.cli.tidying import dry_run_option, remove_all, yes_option


@click.command("rm", cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="CACHE...")
@option("--force", is_flag=True, help="Remove a cache even if a process seems to be writing it.")
@remote_option
@yes_option
@dry_run_option
@project_option
@json_option
def command(
    names: tuple[str, ...], force: bool, remote: str | None, yes: bool, dry_run: bool, folder: Path, as_json: bool
) -> None:
    """Remove caches of the project, finished or not.

    CACHE is a name or the beginning of one. With --remote, remove caches and runs on a remote, if your access
    rights allow it.
    """
    remote = remote_of(remote, folder)
    if remote is not None:
        remove_on_remote(remote, names, folder=folder, force=force, yes=yes, dry_run=dry_run, as_json=as_json)
        return
    from featcache.cleanup import find_removable

    found = find_removable(open_project(folder).cache_folder, names, force=force)
    remove_all(found, yes, dry_run=dry_run, as_json=as_json)
