"""featcache info"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command
from featcache.cli.options import find_cache_of, json_option, project_option, remote_of, remote_option
from featcache.cli.output import print_json, print_table, say, shown
from featcache.cli.remote_output import info_on_remote
from featcache.core.files import resolved
from featcache.core.units import size


@click.command("info", cls=Command)
@click.argument("name", required=False, metavar="[CACHE]")
@remote_option
@project_option
@json_option
def command(name: str | None, remote: str | None, folder: Path, as_json: bool) -> None:
    """Show a cache: its recipe, its rows, its files and how it was made.

    CACHE is the name of a cache, the beginning of its name, or its folder. The default is the only cache of the
    project.
    """
    remote = remote_of(remote, folder, names=[name] if name else [])
    if remote is not None:
        info_on_remote(remote, name, folder=folder, as_json=as_json)
        return
    cache = find_cache_of(folder, name)
    manifest = cache.manifest
    if as_json:
        said = manifest.model_dump(mode="json")
        print_json({**said, "path": str(resolved(cache.folder)), "recipe": cache.recipe.to_dict()})
        return
    space, made = cache.recipe.space, manifest.provenance
    tokens = "" if space.tokens == "none" else f", tokens {space.tokens}"
    print_table(
        ["cache", cache.name],
        [
            ["digest", manifest.digest],
            ["backbone", f"{space.backbone}, cut at {space.layer}, pooling {space.pooling}{tokens}"],
            ["weights", f"{made.get('weights', '') or 'none'}, sha256 {space.weights_digest[:16]}.."],
            ["input", f"{space.square.removesuffix(', stretch')}, preprocessing {space.preprocessing}"],
            ["features", f"{manifest.array.layout.shape} {manifest.array.dtype}"],
            ["size", f"{size(cache.bytes())} in {len(manifest.files)} files"],
            ["made", f"{made.get('created', '')}, {made.get('engine', '')}, {made.get('seconds', '')} s"],
        ],
        numbers=False,
    )
    counts = cache.row_counts()
    splits = [split for split in ("train", "val", "test") if any(split in of for of in counts.values())]
    rows = [[label, *(str(of.get(split, 0)) for split in splits)] for label, of in counts.items()]
    print_table(["rows", *splits], rows)
    say(f"folder: {shown(resolved(cache.folder))}")
