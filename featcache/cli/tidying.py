"""What rm and gc share: a list, a question, and the removal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from featcache.cli.command import option
from featcache.cli.output import print_json, print_table, say, shown
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.cleanup import Removable

yes_option = option("-y", "--yes", is_flag=True, help="Remove without asking.")
dry_run_option = option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")


def confirm_removal(n_bytes: int, yes: bool, *, as_json: bool) -> None:
    """Ask. UsageError where nobody can be asked and --yes was not given."""
    from featcache.core.errors import UsageError

    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise UsageError("cannot ask here: add --yes to remove, or --dry-run to see what would be removed")
    click.confirm(f"remove these {size(n_bytes)}?", abort=True)


def remove_all(found: Sequence[Removable], yes: bool, *, dry_run: bool, as_json: bool) -> None:
    """Show what is to go, ask, and remove it. Where nobody can be asked, --yes is needed."""
    from featcache.cleanup import remove

    total, stay = sum(item.bytes for item in found), {}
    if found and not as_json:
        print_table(["to remove", "size", "why"], [[shown(i.path), size(i.bytes), i.why] for i in found], numbers=False)
    if found and not dry_run:
        confirm_removal(total, yes, as_json=as_json)
        for item in found:
            if why := remove(item):
                stay[item.path] = why
                total -= item.bytes
                say(f"{shown(item.path)} stays: {why}", as_json)
    if as_json:
        items = [{"path": str(i.path), "bytes": i.bytes, "why": i.why} for i in found if i.path not in stay]
        print_json({"removed": not dry_run, "bytes": total, "items": items})
    elif not found:
        say("nothing to remove")
    elif not dry_run:
        say(f"removed {size(total)}")
