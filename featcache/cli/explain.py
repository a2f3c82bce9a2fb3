"""featcache explain"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command
from featcache.cli.extract_options import extraction_of, extraction_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from featcache.extraction import Explanation, Neighbour

_SHOWN = 6


@click.command("explain", cls=Command)
@extraction_options
@project_option
@json_option
def command(models: tuple[str, ...], folder: Path, as_json: bool, **values: Any) -> None:
    """Explain the name of a cache field by field, and say what extract would do.

    It takes the options of extract, and says which rows are cached and which would be copied or computed.
    """
    from featcache.api import explain

    explained = explain(open_project(folder), models, progress=TERMINAL, **extraction_of(values))
    if as_json:
        objects = [asdict(each) for each in explained]
        print_json(objects[0] if len(objects) == 1 else objects)
        return
    for each in explained:
        _say(each)


def _say(explained: Explanation) -> None:
    print_table(
        ["field", "value"],
        [[name, str(value)] for name, value in explained.fields.items()]
        + [["rows", f"{explained.rows} of {explained.images} images"], ["digest", explained.digest]],
        title=explained.name,
        numbers=False,
    )
    say(work(explained))
    for neighbour in explained.neighbours[:_SHOWN]:
        say(_difference(neighbour))
    if len(explained.neighbours) > _SHOWN:
        say(f"... and {len(explained.neighbours) - _SHOWN} other caches of this backbone (all of them in --json)")


def work(explained: Explanation) -> str:
    """What extract would do, as a sentence."""
    if explained.state == "hit":
        return f"{explained.name}: hit: all {explained.rows} rows are cached, nothing to compute"
    there = explained.rows - explained.compute - explained.copy
    copied = f", {explained.copy} to copy from {', '.join(explained.sources)}" if explained.copy else ""
    return f"{explained.name}: {explained.state}: {explained.compute} rows to compute{copied}, {there} cached"


def _difference(other: Neighbour) -> str:
    parts = [f"{field.field} is {field.theirs} there, {field.ours} here" for field in other.fields]
    if other.missing or other.extra:
        parts.append(f"it lacks {other.missing} of the rows and has {other.extra} others")
    state = "" if other.finished else " (not finished)"
    return f"differs from {other.name}{state}: {'; '.join(parts) or 'another format'}"
