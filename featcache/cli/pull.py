"""featcache pull"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option, project_or_none
from featcache.cli.output import print_json, say, shown
from featcache.cli.remote_output import record_as_json, signature_in_words
from featcache.cli.settings import given, options
from featcache.core.files import resolved
from featcache.core.shown import printable
from featcache.core.units import size
from featcache.sharing import Part

if TYPE_CHECKING:
    from featcache.sharing import Pulled


@click.command("pull", cls=Command)
@click.argument("name", metavar="REMOTE/NAME")
@options(Part, "splits", "classes", "images", "pooling", "dtype", group="Part of a cache")
@option("--require-signed", is_flag=True, group="Trust", help="Accept only what a trusted key has signed.")
@option(
    "--trust",
    "trusted",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    group="Trust",
    default_text="the keys that 'featcache key ls' lists",
    help="File of trusted keys.",
)
@option("--allow-older", is_flag=True, group="Trust", help="Accept an older version than the remote had before.")
@option("--remote", metavar="NAME|URL", help="Remote that has NAME.")
@option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    default_text="the project's folders",
    help="Folder to write into.",
)
@project_option
@json_option
def command(
    name: str,
    remote: str | None,
    to: Path | None,
    require_signed: bool,
    trusted: Path | None,
    allow_older: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Get a cache, a part of a cache, or a run from a remote: whole and checked, or not at all.

    REMOTE is a name that 'featcache remote ls' lists, a URL or a pack (FILE.zip, here or behind a URL). NAME is
    a name on it, or the beginning of one. With options of a part, only these rows are fetched, into a cache of
    their own. After an interruption, run the same command again to continue.
    """
    from featcache.api import pull

    part = given(values, Part)
    done = pull(
        name,
        remote=remote,
        project=project_or_none(folder) if to else open_project(folder),
        to=to,
        split=part.pop("splits", ()),
        require_signed=require_signed,
        trusted=trusted,
        allow_older=allow_older,
        progress=TERMINAL,
        **part,
    ).pulled
    say(_sentence(done), as_json)
    for line in (signature_in_words(done.signed), *done.remarks):
        say(f"  {line}", as_json)
    if as_json:
        print_json(
            {
                "name": done.name,
                "path": str(resolved(done.folder)),
                **record_as_json(done.record, done.remote),
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
