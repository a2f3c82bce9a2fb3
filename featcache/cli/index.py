"""featcache index"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command
from featcache.cli.options import json_option, project_option, project_or_none
from featcache.cli.output import print_json, say
from featcache.cli.push import sign_options, signing_key


@click.command("index", cls=Command)
@click.argument("remote", metavar="[FOLDER|REMOTE]", required=False)
@sign_options
@project_option
@json_option
def command(
    remote: str | None,
    sign: bool,
    key_name: str | None,
    licence: str | None,
    contact: str | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Write index.json and index.html into a folder, which makes it a remote on any web server.

    FOLDER is a folder of caches as extract makes them, or a folder that was pushed to. The default is the cache
    folder of the project.
    """
    from featcache.cli.options import open_project
    from featcache.sharing import index

    where = remote if remote is not None else str(open_project(folder).cache_folder)
    done = index(
        where, project_or_none(folder), sign=signing_key(sign, key_name), licence=licence or "", contact=contact or ""
    )
    for one in done.problems:
        say(f"left out: {one.name}: {one.problem}", as_json)
    say(f"{len(done.entries)} caches and runs are listed in index.json and index.html", as_json)
    if as_json:
        names = [entry.record.name for entry in done.entries]
        print_json({"names": names, "left_out": [{"name": one.name, "reason": one.problem} for one in done.problems]})
