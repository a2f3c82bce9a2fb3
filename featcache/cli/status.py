"""featcache status"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from featcache.store import Standing


@click.command("status", cls=Command)
@project_option
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Show how far the caches of the project are, and which processes on which machines are at work on them.

    Any machine that sees the folder of caches can ask.
    """
    from featcache.api import status

    project = open_project(folder)
    found = status(project)
    if as_json:
        print_json([_as_json(each) for each in found])
    elif not found:
        say(f"no caches in {project.cache_folder}: 'featcache extract --model NAME' makes one")
    else:
        rows = [[each.cache, f"{each.done} of {each.rows}", _state(each), _workers(each)] for each in found]
        print_table(["cache", "rows", "state", "workers"], rows)


def _state(each: Standing) -> str:
    if each.finished:
        return "finished"
    return "at work" if any(worker.alive for worker in each.workers) else "unfinished"


def _workers(each: Standing) -> str:
    return ", ".join(
        f"{worker.host} {worker.pid}" + ("" if worker.alive else " (no sign of life)") for worker in each.workers
    )


def _as_json(each: Standing) -> dict[str, Any]:
    return {
        "cache": each.cache,
        "path": str(each.path),
        "rows": each.rows,
        "done": each.done,
        "finished": each.finished,
        "workers": [
            {"host": one.host, "pid": one.pid, "shards": list(one.shards), "alive": one.alive} for one in each.workers
        ],
    }
