"""featcache diff"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import find_cache_of, json_option, project_option, project_or_none
from featcache.cli.output import print_json, print_table, say
from featcache.cli.runs import show_differences

if TYPE_CHECKING:
    from featcache.training import Run


@click.command("diff", cls=Command)
@click.argument("a")
@click.argument("b")
@option("--values", is_flag=True, help="Also compare the features of the rows that both have.")
@project_option
@json_option
def command(a: str, b: str, values: bool, folder: Path, as_json: bool) -> None:
    """Compare two caches: recipes, rows, labels and, with --values, features. Or the settings of two runs.

    A and B are names of caches or of runs, beginnings of names, or folders of caches.
    """
    if pair := _runs(folder, a, b):
        show_differences(*pair, as_json=as_json)
        return
    from featcache.extraction import diff

    found = diff(find_cache_of(folder, a), find_cache_of(folder, b), values=values, progress=TERMINAL)
    if as_json:
        largest = None if found.largest is None else min(found.largest, 1e308)  # JSON has no infinity
        print_json({**asdict(found), "largest": largest})
        return
    fields = [*found.storage, *found.fields]
    if fields:
        print_table(["field", found.a, found.b], [[f.field, str(f.ours), str(f.theirs)] for f in fields], numbers=False)
    else:
        say("the recipes are the same")
    say(f"rows: {found.common} in both, {found.only_a} only in {found.a}, {found.only_b} only in {found.b}")
    changed = ", ".join(f"{n_images} another {name}" for name, n_images in found.relabelled.items() if n_images)
    say(f"images of both: {changed or 'labels, splits, groups and paths are the same'}")
    if found.differing is not None:
        say(f"values: {found.differing} of {found.common} rows differ, by {found.largest:.3g} at most")


def _runs(folder: Path, a: str, b: str) -> tuple[Run, Run] | None:
    """The runs that both names mean; None where these are no names of runs."""
    from featcache.core.errors import RunError
    from featcache.training import find_run

    project = project_or_none(folder)
    try:
        return (find_run(project.results_folder, a), find_run(project.results_folder, b)) if project else None
    except RunError:
        return None
