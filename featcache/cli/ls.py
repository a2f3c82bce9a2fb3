"""featcache ls"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command
from featcache.cli.options import json_option, open_project, project_option, remote_of, remote_option
from featcache.cli.output import print_json, print_table, say
from featcache.cli.remote_output import list_on_remote
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.store import Listed


@click.command("ls", cls=Command)
@remote_option
@project_option
@json_option
def command(remote: str | None, folder: Path, as_json: bool) -> None:
    """List the caches of the project, with the reason where one is unfinished or damaged.

    With --remote, list the caches and runs on a remote.
    """
    from featcache.store import list_caches

    remote = remote_of(remote, folder)
    if remote is not None:
        list_on_remote(remote, folder, as_json=as_json)
        return
    project = open_project(folder)
    listed = [_as_json(entry) for entry in list_caches(project.cache_folder)]
    if as_json:
        print_json(listed)
    elif not listed:
        say(f"no caches in {project.cache_folder}: 'featcache extract --model NAME' makes one")
    else:
        rows = [
            [e["name"], str(e["rows"] or ""), "x".join(map(str, e["shape"][1:])), e["dtype"]]
            + [e["weights"], *(size(e[n]) if e[n] else "" for n in ("bytes", "gram_bytes")), e["status"]]
            for e in listed
        ]
        print_table(
            ["cache", "rows", "features", "dtype", "weights", "size", "Gram", "status"],
            rows,
            least=("Gram", "weights", "dtype", "size"),
        )


def _as_json(entry: Listed) -> dict[str, Any]:
    from featcache.heads import kernels_folder

    cache = entry.cache
    return {
        "name": entry.folder.name,
        "path": str(entry.folder),
        "status": "finished" if cache else entry.problem,
        "backbone": cache.recipe.space.backbone if cache else "",
        "weights": str(cache.manifest.provenance.get("weights", "")) if cache else "",
        "rows": cache.manifest.rows if cache else 0,
        "shape": list(cache.manifest.array.shape) if cache else [],
        "dtype": cache.manifest.array.dtype if cache else "",
        "bytes": cache.bytes() if cache else 0,
        "gram_bytes": sum(file.stat().st_size for file in kernels_folder(entry.folder).glob("*.npy")),
    }
