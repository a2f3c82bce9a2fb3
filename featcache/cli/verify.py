"""featcache verify"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option, remote_option
from featcache.cli.output import print_json, say
from featcache.cli.remote_output import verify_on_remote
from featcache.core.files import resolved
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.extraction import Recomputed
    from featcache.store import Verified


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[CACHE]...")
@click.option("--recompute", "n_rows", type=click.IntRange(1), help="Also compute this many rows again and compare.")
@click.option("--repair", "mend", is_flag=True, help="Make again what is damaged, and nothing else.")
@click.option("--weights", metavar="PATH", help="The weights that the cache was made with, where they are a file.")
@click.option("--seed", type=click.IntRange(0), help="Chooses the rows of --recompute; others every time without it.")
@remote_option
@project_option
@json_option
def command(
    names: tuple[str, ...],
    n_rows: int | None,
    mend: bool,
    weights: str | None,
    seed: int | None,
    remote: str | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Read every byte of caches and check it against their manifests.

    CACHE is a cache's name, how its name begins, or its folder; without one, every finished cache of the project.
    Exit code 1 where something is damaged, and stays so, or where no cache was ever finished.
    """
    from featcache.extraction import recompute, repair, sweep, verify_cache

    if remote is not None:
        if n_rows or mend or weights:
            raise click.UsageError("--remote goes with none of --recompute, --repair, --weights: pull it first")
        verify_on_remote(remote, names, folder=folder, as_json=as_json)
        return
    values, sound = [], True
    for cache_folder in _folders(names, folder):
        found = verify_cache(cache_folder, progress=TERMINAL)
        computed = None
        if mend and not found.sound:
            _say(found, as_json)
            computed = repair(open_project(folder), found, weights=weights, progress=TERMINAL)
            say(f"{found.folder.name}: repaired, {computed} rows computed", as_json)
            found = verify_cache(cache_folder, progress=TERMINAL)
        if mend and found.sound:
            sweep(cache_folder)
        _say(found, as_json)
        again = None
        if n_rows and found.sound:
            again = recompute(open_project(folder), cache_folder, n_rows=n_rows, weights=weights, seed=seed)
            _say_recomputed(found, again, as_json)
        sound &= found.sound and not (again and again.deviating)
        values.append(_as_json(found, again, computed))
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
        say(f"{one.name}: unfinished: the 'extract' that began it finishes it", as_json)
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
        say(f"  'featcache verify {found.folder.name} --repair' makes again what is damaged", as_json)
    for remark in found.remarks:
        say(f"  {remark}", as_json)


def _say_recomputed(found: Verified, again: Recomputed, as_json: bool) -> None:
    n_rows = len(again.rows)
    if again.deviating:
        say(
            f"{found.name}: {len(again.deviating)} of {n_rows} rows computed again are NOT what the cache holds: "
            f"{list(again.deviating[:8])}",
            as_json,
        )
    else:
        most = 100 * again.largest_deviation
        say(f"{found.name}: {n_rows} rows computed again agree; at most {most:.2g} % of the tolerance is used", as_json)


def _as_json(found: Verified, again: Recomputed | None, computed: int | None) -> dict[str, Any]:
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
        "repaired_rows": computed,
        "recomputed": again
        and {
            "rows": list(again.rows),
            "deviating": list(again.deviating),
            "largest_deviation": min(again.largest_deviation, 1e308),
        },
    }
