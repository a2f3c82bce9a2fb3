"""featcache push"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, combined, option
from featcache.cli.hints import in_flags
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, say
from featcache.cli.remote_output import record_as_json
from featcache.cli.settings import given, options
from featcache.core.shown import printable
from featcache.core.units import size
from featcache.sharing import PushOptions

if TYPE_CHECKING:
    from featcache.sharing import Planned, Pushed

sign_options = combined(
    option("--sign", is_flag=True, group="Signature and licence", help="Sign with your only key."),
    option("--key", "key_name", metavar="NAME", group="Signature and licence", help="Sign with this key of yours."),
    options(PushOptions, "licence", "contact", group="Signature and licence"),
)
"""Who answers for what is published, and under which licence: options of push, pack and index."""

privacy_options = options(PushOptions, "private", "pseudonyms", group="Privacy")


def signing_key(sign: bool, key_name: str | None) -> str | None:
    """The key that --sign and --key ask for: its name, "" for the only one, None for no signature."""
    return key_name if key_name is not None else "" if sign else None


def push_options(values: dict[str, Any]) -> PushOptions:
    """The record that the options fill."""
    return PushOptions(sign=signing_key(values["sign"], values["key_name"]), **given(values, PushOptions))


@click.command("push", cls=Command)
@click.argument("names", nargs=-1, metavar="[CACHE|RUN]...")
@sign_options
@privacy_options
@option("--remote", metavar="NAME|URL", default_text="the only remote", help="Remote to push to.")
@options(PushOptions, "replace", "check")
@option("--dry-run", is_flag=True, help="Show what would be pushed where, and send nothing.")
@project_option
@json_option
def command(
    names: tuple[str, ...], remote: str | None, dry_run: bool, folder: Path, as_json: bool, **values: Any
) -> None:
    """Send caches and runs to a remote.

    Only what is missing there is sent, and a cache appears only when all of it is there. CACHE or RUN is a
    name, the beginning of a name, or a folder. The default is the only cache of the project. After an
    interruption, run the same command again to continue.
    """
    from featcache.api import push
    from featcache.sharing import find_pushable

    project, sign = open_project(folder), signing_key(values["sign"], values["key_name"])
    settings = {**given(values, PushOptions), "sign": sign, "dry_run": dry_run}
    done = []
    for meant in [find_pushable(project, name) for name in names or (None,)]:  # all of them, before one is sent
        done.append(push(meant, remote, project=project, progress=TERMINAL, **settings))
        say(_plan(done[-1]) if dry_run else _sentence(done[-1]), as_json)
        for remark in () if dry_run else done[-1].remarks:
            say(f"  {in_flags(printable(remark))}", as_json)
    if as_json:
        print_json([asdict(one) if dry_run else _as_json(one) for one in done])


def _plan(plan: Planned) -> str:
    return f"{plan.name}: {size(plan.bytes)} at most would go to {plan.remote}"


def _sentence(done: Pushed) -> str:
    record = done.entry.record
    if done.reused and not done.sent_files:
        return f"{record.name}: is there already"
    if done.reused:
        return f"{record.name}: is there already; {done.sent_files} files ({size(done.sent_bytes)}) were sent again"
    signed = f", signed by {printable(record.signature.by)}" if record.signature else ""
    return f"{record.name}: pushed to {done.remote}: {done.sent_files} files, {size(done.sent_bytes)}{signed}"


def _as_json(done: Pushed) -> dict[str, Any]:
    return {
        "name": done.entry.record.name,
        **record_as_json(done.entry.record, done.remote),
        "reused": done.reused,
        "sent_files": done.sent_files,
        "sent_bytes": done.sent_bytes,
        "signed": done.entry.record.signature is not None,
        "remarks": [in_flags(remark) for remark in done.remarks],
    }
