"""featcache pull"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option, project_or_none
from featcache.cli.output import print_json, say, shown
from featcache.cli.remote_output import record_as_json, signature_in_words
from featcache.core.files import resolved
from featcache.core.shown import printable
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.sharing import Pulled


@click.command("pull")
@click.argument("name", metavar="REMOTE/NAME")
@click.option(
    "--split", "splits", multiple=True, type=click.Choice(["train", "val", "test"]), help="Rows of this split."
)
@click.option("--class", "classes", multiple=True, metavar="LABEL", help="Rows of this class.")
@click.option("--image", "images", multiple=True, metavar="ID|PATH", help="Rows of this image.")
@click.option("--pooling", type=click.Choice(["avg", "max"]), help="One mean or maximum a channel instead of the map.")
@click.option("--dtype", type=click.Choice(["float16"]), help="Half as large.")
@click.option("--remote", metavar="NAME|URL", help="Of which NAME is the name.")
@click.option("--to", "parent", type=click.Path(path_type=Path, file_okay=False), help="Folder to put it into.")
@click.option("--require-signed", is_flag=True, help="Take it only if a key that is trusted here has signed it.")
@click.option(
    "--trust",
    "trusted",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="File of trusted keys, instead of that of `featcache key trust NAME KEY`.",
)
@click.option("--allow-older", is_flag=True, help="Though the remote had a later one before.")
@project_option
@json_option
def command(
    name: str,
    splits: tuple[str, ...],
    classes: tuple[str, ...],
    images: tuple[str, ...],
    pooling: str | None,
    dtype: str | None,
    remote: str | None,
    parent: Path | None,
    require_signed: bool,
    trusted: Path | None,
    allow_older: bool,
    folder: Path,
    as_json: bool,
) -> None:
    """Get a cache or a run: whole and checked, or not at all.

    REMOTE is a name of `featcache remote ls`, a URL or a pack (FILE.zip, also behind a URL); NAME a name there, or how
    one begins. With --split, --class, --image, --pooling or --dtype it is a cache of its own, of those rows,
    and only what holds them is fetched. What arrived whole before an interruption is kept: the same command goes on.
    """
    from featcache.sharing import Part, pull, resolve, trust_of

    project = project_or_none(folder) if parent else open_project(folder)
    target = resolve(name, project, remote=remote)
    part = Part(splits, classes, images, pooling=pooling or "", dtype=dtype or "")
    caches = parent or open_project(folder).cache_folder
    results = parent or open_project(folder).results_folder
    trust = trust_of(target, require_signed, allow_older=allow_older, file=trusted)
    done = pull(target, caches, results=results, part=part, trust=trust, progress=TERMINAL)
    say(_sentence(done), as_json)
    for line in (signature_in_words(done.signed), *done.remarks):
        say(f"  {line}", as_json)
    if as_json:
        print_json(
            {
                "name": done.name,
                "path": str(resolved(done.folder)),
                **record_as_json(done.record, target.store.url),
                "of": done.record.name,
                "reused": done.reused,
                "fetched_bytes": done.fetched_bytes,
                "signed": done.signed.state,
                "signed_by": done.signed.by,
                "key": done.signed.key,
                "remarks": list(done.remarks),
            }
        )
    else:
        say(f"folder: {shown(resolved(done.folder))}")


def _sentence(done: Pulled) -> str:
    if done.reused:
        return f"{done.name}: is here already"
    words = "".join(f", {printable(word)}" for word in (done.record.licence, done.record.contact) if word)
    if done.name != done.record.name:
        return f"{done.name}: part of {done.record.name}, {size(done.fetched_bytes)} fetched{words}"
    return f"{done.name}: pulled, {size(done.fetched_bytes)}{words}"
