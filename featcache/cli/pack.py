"""featcache pack"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, say, shown
from featcache.cli.push import push_options, words_options
from featcache.core.files import resolved
from featcache.core.units import size


@click.command("pack")
@click.argument("names", nargs=-1, metavar="[CACHE|RUN]...")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="[default: NAME.zip]")
@words_options
@project_option
@json_option
def command(names: tuple[str, ...], file: Path | None, folder: Path, as_json: bool, **values: Any) -> None:
    """Write caches and runs into one zip file, from which `featcache pull FILE.zip` gets them.

    Nothing in it is compressed again, so that a pack behind a URL can be read in parts without fetching all of it.
    """
    from featcache.sharing import find_pushable, pack

    project = open_project(folder)
    options = push_options(values)
    folders = [find_pushable(project, name) for name in names or (None,)]
    done = pack(folders, file or Path(f"{folders[0].name}.zip"), options=options, progress=TERMINAL)
    say(f"{shown(resolved(done.file))}: {', '.join(done.names)}, {size(done.bytes)}", as_json)
    if as_json:
        print_json({"path": str(resolved(done.file)), "names": list(done.names), "bytes": done.bytes})
