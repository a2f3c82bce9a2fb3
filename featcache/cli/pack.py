"""featcache pack"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, say, shown
from featcache.cli.push import privacy_options, push_options, sign_options
from featcache.core.files import resolved
from featcache.core.units import size


@click.command("pack", cls=Command)
@click.argument("names", nargs=-1, metavar="[CACHE|RUN]...")
@option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default_text="NAME.zip",
    help="File to write.",
)
@sign_options
@privacy_options
@project_option
@json_option
def command(names: tuple[str, ...], to: Path | None, folder: Path, as_json: bool, **values: Any) -> None:
    """Write caches and runs into one zip file, which 'featcache pull FILE.zip' reads.

    Nothing in the file is compressed again, so that parts of a pack behind a URL can be read without fetching
    all of it.
    """
    from featcache.sharing import find_pushable, pack

    project = open_project(folder)
    options = push_options(values)
    folders = [find_pushable(project, name) for name in names or (None,)]
    done = pack(folders, to or Path(f"{folders[0].name}.zip"), options=options, progress=TERMINAL)
    say(f"{shown(resolved(done.file))}: {', '.join(done.names)}, {size(done.bytes)}", as_json)
    if as_json:
        print_json({"path": str(resolved(done.file)), "names": list(done.names), "bytes": done.bytes})
