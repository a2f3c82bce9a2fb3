"""featcache verify"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option, project_or_none, remote_of, remote_option
from featcache.cli.output import print_json, say
from featcache.cli.remote_output import verify_on_remote
from featcache.core.files import resolved
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.extraction import Checked, Recomputed
    from featcache.store import Verified


@click.command("verify", cls=Command)
@click.argument("names", nargs=-1, metavar="[CACHE]...")
@option("--recompute", "n_rows", type=click.IntRange(1), help="Also compute this many rows again, and compare.")
@option("--repair", is_flag=True, help="Repair what is damaged: copy it or compute it again.")
@option("--weights", metavar="PATH", help="Weights file that the cache was made with, if they are in a file.")
@option(
    "--seed", type=click.IntRange(0), help="Seed that chooses the rows of --recompute (default: a new one each time)."
)
@remote_option
@project_option
@json_option
def command(
    names: tuple[str, ...],
    n_rows: int | None,
    repair: bool,
    weights: str | None,
    seed: int | None,
    remote: str | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Check every byte of caches against their manifests.

    CACHE is the name of a cache, the beginning of its name, or its folder. The default is every finished cache
    of the project. The exit code is 1 if a cache is damaged and not repaired, or if there are only unfinished
    caches.
    """
    from featcache.api import verify

    remote = remote_of(remote, folder, names=names)
    if remote is not None:
        if n_rows or repair or weights:
            raise click.UsageError(
                "caches on a remote take no --recompute, --repair or --weights: pull the cache first"
            )
        verify_on_remote(remote, names, folder=folder, as_json=as_json)
        return
    values, sound = [], True
    for cache_folder in _folders(names, folder):
        found = verify(
            cache_folder,
            repair=repair,
            recompute=n_rows or 0,
            weights=weights,
            seed=seed,
            project=project_or_none(folder) if repair or n_rows else None,
            progress=TERMINAL,
        )
        if found.damage:
            _say(found.damage, as_json)
            say(f"{found.folder.name}: repaired, {found.repaired_rows} rows computed", as_json)
        _say(found, as_json)
        if found.recomputed:
            _say_recomputed(found.name, found.recomputed, as_json)
        sound &= found.sound and not (found.recomputed and found.recomputed.deviating)
        values.append(_as_json(found))
    if not values:
        sound = _say_none(folder, as_json)
    if as_json:
        print_json(values[0] if len(values) == 1 and names else values)
    if not sound:
        raise click.exceptions.Exit(1)


def _say_none(folder: Path, as_json: bool) -> bool:
    """Say that there are no finished caches. False where some were begun, which is not as it should be."""
    from featcache.store import cache_folders

    begun = cache_folders(open_project(folder).cache_folder)
    for one in begun:
        say(f"{one.name}: unfinished: run the extract command that began it again", as_json)
    say("no finished caches: 'featcache extract --model NAME' makes one", as_json)
    return not begun


def _folders(names: tuple[str, ...], folder: Path) -> list[Path]:
    """Finished caches, damaged ones too; what a name means is decided by the folder's name, which no damage changes."""
    from featcache.store import cache_folder, finished_folders

    def meant(name: str) -> Path:
        path = Path(name)
        is_path = len(path.parts) > 1
        with suppress(OSError):  # a name too long for a file
            is_path |= any((path / file).is_file() for file in ("recipe.json", "manifest.json"))
        return path if is_path else cache_folder(open_project(folder).cache_folder, name)

    return [meant(name) for name in names] if names else finished_folders(open_project(folder).cache_folder)


def _say(found: Verified, as_json: bool) -> None:
    if found.sound:
        say(f"{found.name}: sound: {found.files} files, {size(found.bytes)}, {found.rows} rows", as_json)
    else:
        say(f"{found.name}: DAMAGED", as_json)
        for problem in found.problems:
            say(f"  {problem.file}: {problem.what}" if problem.file else f"  {problem.what}", as_json)
        say(f"  'featcache verify {found.folder.name} --repair' repairs it", as_json)
    for remark in found.remarks:
        say(f"  {remark}", as_json)


def _say_recomputed(name: str, again: Recomputed, as_json: bool) -> None:
    n_rows = len(again.rows)
    if again.deviating:
        say(
            f"{name}: {len(again.deviating)} of {n_rows} rows computed again DIFFER from the cache: "
            f"{list(again.deviating[:8])}",
            as_json,
        )
    else:
        most = 100 * again.largest_deviation
        say(f"{name}: {n_rows} rows computed again agree: at most {most:.2g} % of the tolerance is used", as_json)


def _as_json(found: Checked) -> dict[str, Any]:
    again = found.recomputed
    return {
        "cache": found.name,
        "path": str(resolved(found.folder)),
        "sound": found.sound,
        "files": found.files,
        "bytes": found.bytes,
        "rows": found.rows,
        "problems": [{"file": problem.file, "problem": problem.what} for problem in found.problems],
        "damaged_shards": list(found.damaged_shards),
        "remarks": list(found.remarks),
        "repaired_rows": found.repaired_rows,
        "recomputed": again
        and {
            "rows": list(again.rows),
            "deviating": list(again.deviating),
            "largest_deviation": min(again.largest_deviation, 1e308),
        },
    }
