"""featcache diff"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import find_cache_of, json_option, project_option
from featcache.cli.output import print_json, print_table, say


@click.command("diff", cls=Command)
@click.argument("a")
@click.argument("b")
@option("--values", is_flag=True, help="Also compare the features of the rows that both have.")
@project_option
@json_option
def command(a: str, b: str, values: bool, folder: Path, as_json: bool) -> None:
    """Compare two caches: recipes, rows, labels and, with --values, features.

    A and B are names of caches, beginnings of names, or folders.
    """
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
