"""featcache convert"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import find_cache_of, json_option, project_option
from featcache.cli.output import print_json, say, shown
from featcache.cli.settings import options
from featcache.core.files import resolved
from featcache.core.project import StorageSection
from featcache.core.units import size


@click.command("convert", cls=Command)
@click.argument("name", required=False, metavar="[CACHE]")
@options(StorageSection, "format", default_text="unchanged")
@option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default_text="unchanged",
    help="Type of the stored features.",
)
@option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default_text="the cache folder of the project",
    help="Folder of caches to write to.",
)
@project_option
@json_option
def command(name: str | None, to: Path | None, folder: Path, as_json: bool, **values: Any) -> None:
    """Copy a cache into another format or dtype. The original is kept.

    CACHE is the name of a cache, the beginning of its name, or its folder. The default is the only cache of the
    project.
    """
    from featcache.api import convert

    cache = find_cache_of(folder, name)
    made = convert(cache, to=to, progress=TERMINAL, **values)
    done = made.converted
    if as_json:
        print_json(
            {
                "cache": made.name,
                "path": str(resolved(made.folder)),
                "source": done.source,
                "reused": done.reused,
                "format": made.manifest.array.format,
                "dtype": str(made.features.dtype),
                "rows": made.manifest.rows,
                "bytes": made.bytes(),
                "source_bytes": cache.bytes(),
                "faint_rows": done.faint_rows,
            }
        )
        return
    verb = "is there already" if done.reused else f"written from {done.source}"
    say(f"{made.name}: {verb}; {made.manifest.rows} rows, {size(made.bytes())} ({size(cache.bytes())} before)")
    if done.faint_rows:
        say(f"  {done.faint_rows} rows hold only tiny values, which float16 stores with few digits: use float32")
    say(f"folder: {shown(resolved(made.folder))}")
