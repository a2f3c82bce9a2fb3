"""featcache convert"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import find_cache_of, json_option, project_option
from featcache.cli.output import print_json, say, shown
from featcache.core.files import resolved
from featcache.core.units import size


@click.command("convert")
@click.argument("name", required=False, metavar="[CACHE]")
@click.option("--format", "format_", type=click.Choice(["zarr", "hdf5"]), help="Of the new cache; as it is by default.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of its features; as it is by default.")
@click.option("--to", "parent", type=click.Path(path_type=Path, file_okay=False), help="Folder of caches to write to.")
@project_option
@json_option
def command(
    name: str | None, format_: str | None, dtype: str | None, parent: Path | None, folder: Path, as_json: bool
) -> None:
    """Write a cache's rows in another format or dtype, as another cache; the first one stays.

    CACHE is a cache's name, how its name begins, or its folder; without one, the project's only cache.
    """
    from featcache.store import convert

    cache = find_cache_of(folder, name)
    done = convert(cache, format_, dtype=dtype, parent=parent, progress=TERMINAL)  # type: ignore[arg-type]
    made = done.cache
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
        say(f"  {done.faint_rows} rows hold only tiny values, of which float16 keeps few digits: use float32")
    say(f"folder: {shown(resolved(made.folder))}")
