"""featcache index"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.options import json_option, project_option, project_or_none
from featcache.cli.output import print_json, say


@click.command("index")
@click.argument("remote", metavar="[FOLDER|REMOTE]", required=False)
@click.option("--sign", is_flag=True, help="Sign the records that are made, with the only key of `featcache key ls`.")
@click.option("--key", "key_name", metavar="NAME", help="Sign them with this key.")
@click.option("--licence", default="", metavar="TEXT", help="Under which the caches may be used.")
@click.option("--contact", default="", metavar="TEXT", help="Whom to ask about them.")
@project_option
@json_option
def command(
    remote: str | None, sign: bool, key_name: str | None, licence: str, contact: str, folder: Path, as_json: bool
) -> None:
    """Write index.json and index.html into a folder or remote, so that a plain web server that shows it is a remote.

    FOLDER may be a folder of caches as `extract` makes them (by default this project's), or what was pushed to.
    """
    from featcache.cli.options import open_project
    from featcache.sharing import index

    where = remote if remote is not None else str(open_project(folder).cache_folder)
    done = index(
        where,
        project_or_none(folder),
        sign=key_name if key_name is not None else "" if sign else None,
        licence=licence,
        contact=contact,
    )
    for one in done.problems:
        say(f"left out: {one.name}: {one.problem}", as_json)
    say(f"{len(done.entries)} caches and runs are listed in index.json and index.html", as_json)
    if as_json:
        names = [entry.record.name for entry in done.entries]
        print_json({"names": names, "left_out": [{"name": one.name, "reason": one.problem} for one in done.problems]})
