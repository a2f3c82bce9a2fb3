"""featcache push"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import Command, json_option, open_project, project_option
from featcache.cli.output import print_json, say
from featcache.cli.remote_output import record_as_json
from featcache.core.shown import printable
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.sharing import Pushed, PushOptions

_WORDS = (
    click.option("--sign", is_flag=True, help="Sign with the only key of `featcache key ls`."),
    click.option("--key", "key_name", metavar="NAME", help="Sign with this key."),
    click.option("--licence", default="", metavar="TEXT", help="Under which it may be used, e.g. CC-BY-4.0."),
    click.option("--contact", default="", metavar="TEXT", help="Whom to ask about it."),
    click.option("--private", is_flag=True, help="Leave out paths and groups' names: ids alone."),
    click.option(
        "--pseudonyms",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="With other image ids, keyed by the secret in FILE, which is made where there is none. Implies --private.",
    ),
)


def words_options(command: Command) -> Command:
    """What push and pack say of what they send."""
    for option in reversed(_WORDS):
        command = option(command)
    return command


def push_options(values: dict[str, Any]) -> PushOptions:
    """The options as the pipeline takes them."""
    from featcache.sharing import PushOptions

    sign, key_name = values.pop("sign"), values.pop("key_name")
    return PushOptions(sign=key_name if key_name is not None else "" if sign else None, **values)


@click.command("push")
@click.argument("names", nargs=-1, metavar="[CACHE|RUN]...")
@click.option("--remote", metavar="NAME|URL", help="Where to.  [default: the only remote]")
@words_options
@click.option("--replace", is_flag=True, help="Let these labels, or this run, count though others are there.")
@click.option("--check", is_flag=True, help="Read what is there already, and mend what is damaged.")
@click.option("--dry-run", is_flag=True, help="Say what would be pushed where, and send nothing.")
@project_option
@json_option
def command(
    names: tuple[str, ...], remote: str | None, dry_run: bool, folder: Path, as_json: bool, **values: Any
) -> None:
    """Send caches and runs to a remote. Only what is missing there is sent; it is there when all of it is.

    CACHE or RUN is a name, how one begins, or a folder; without one, the project's only cache. After an
    interruption the same command goes on. A remote is never written where the key may only read.
    """
    from featcache.remotes import refuse_writing
    from featcache.sharing import find_pushable, open_named, push

    project = open_project(folder)
    options = push_options(values)
    target = open_named(remote, project)
    refuse_writing(target.store)
    folders = [find_pushable(project, name) for name in names or (None,)]
    if dry_run:
        _say_plans(folders, target.store.url, as_json)
        return
    done = []
    for each in folders:
        done.append(push(each, target, options=options, seen_in=project.cache_folder, progress=TERMINAL))
        say(_sentence(done[-1], target.store.url), as_json)
        for remark in done[-1].remarks:
            say(f"  {printable(remark)}", as_json)
    if as_json:
        print_json([_as_json(one, target.store.url) for one in done])


def _say_plans(folders: list[Path], url: str, as_json: bool) -> None:
    from featcache.cleanup import size_of

    for each in folders:
        say(f"{each.name}: {size(size_of(each))} at most would go to {url}", as_json)
    if as_json:
        print_json([{"name": each.name, "bytes": size_of(each), "remote": url} for each in folders])


def _sentence(done: Pushed, url: str) -> str:
    record = done.entry.record
    if done.reused and not done.sent_files:
        return f"{record.name}: is there already"
    if done.reused:
        return f"{record.name}: is there already; {done.sent_files} files ({size(done.sent_bytes)}) were sent again"
    signed = f", signed by {printable(record.signature.by)}" if record.signature else ""
    return f"{record.name}: pushed to {url}: {done.sent_files} files, {size(done.sent_bytes)}{signed}"


def _as_json(done: Pushed, url: str) -> dict[str, Any]:
    return {
        "name": done.entry.record.name,
        **record_as_json(done.entry.record, url),
        "reused": done.reused,
        "sent_files": done.sent_files,
        "sent_bytes": done.sent_bytes,
        "signed": done.entry.record.signature is not None,
        "remarks": list(done.remarks),
    }
