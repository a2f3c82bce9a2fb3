"""featcache extract"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.extract_options import extraction_of, extraction_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, say, say_left_out, say_next
from featcache.cli.settings import options
from featcache.core.units import duration, size
from featcache.extraction import ExtractOptions

if TYPE_CHECKING:
    from featcache.extraction import Estimate, Extracted


_STAGES = ("open", "decode", "render", "wait", "compute", "write")


@click.command("extract", cls=Command)
@extraction_options
@options(ExtractOptions, "cluster", group="Engine")
@option(
    "--cache-folder",
    metavar="FOLDER|URL",
    default_text="as in featcache.toml",
    help="Folder of caches, or a remote that several machines can extract into: s3://BUCKET/PREFIX.",
    group="Storage (default: as in featcache.toml)",
)
@option("--dry-run", is_flag=True, help="Say what would be computed and copied, and how long it takes.")
@project_option
@json_option
def command(
    models: tuple[str, ...], cache_folder: str | None, dry_run: bool, folder: Path, as_json: bool, **values: Any
) -> None:
    """Run a backbone once over all views of all images, and keep the features in cache/.

    The name of a cache follows from everything that decides its values, so a second call computes nothing.
    After an interruption, run the same command again to continue. Several processes may run it at the same
    time; they share the work. Rows that another cache has, here or on a remote, are copied. Several --model or
    --layer options make several caches in one pass.
    """
    from featcache.api import extract

    project = open_project(folder)
    found = extract(
        project, models, cache_folder=cache_folder, dry_run=dry_run, progress=TERMINAL, **extraction_of(values)
    )
    if dry_run:
        _say_estimates(found, as_json)
        return
    made = [cache.extracted for cache in found]
    say_left_out(made[0].left_out, as_json)
    for done in made:
        say(_sentence(done), as_json)
        if done.faint_rows:
            say(
                f"  {done.faint_rows} rows hold only tiny values, which float16 stores with few digits: use float32",
                as_json,
            )
    if any(done.computed for done in made):
        say(_where_the_time_went(made), as_json)
    if as_json:
        objects = [_as_json(done) for done in made]
        print_json(objects[0] if len(objects) == 1 else objects)
    elif any(done.dtype != "uint8" for done in made):
        elsewhere = ["--cache", str(made[0].url or made[0].path)] if cache_folder else []
        say_next("fit-head", *elsewhere, into=project.folder)


def _where_the_time_went(made: list[Extracted]) -> str:
    """How much time each stage took, and which one the others waited for."""
    engines = dict.fromkeys(done.engine for done in made if done.engine)
    parts = ", ".join(f"{stage} {getattr(made[0].shares, stage):.1f} s" for stage in _STAGES)
    return f"  {'; '.join(engines)}\n  {parts}, of {made[0].pass_s:.1f} s; the bottleneck: {made[0].bottleneck}"


def _say_estimates(estimates: list[Estimate], as_json: bool) -> None:
    from featcache.cli.explain import work

    names = ("name", "state", "rows", "compute", "copy", "sources")
    if as_json:
        objects = [
            {name: getattr(each.explained, name) for name in names}
            | {"bytes": each.bytes, "seconds": round(each.seconds, 3), "engine": each.engine}
            for each in estimates
        ]
        print_json(objects[0] if len(objects) == 1 else objects)
        return
    for each in estimates:
        say(work(each.explained))
        if each.explained.compute:
            say(f"  {size(each.bytes)} before compression, about {duration(each.seconds)} by {each.engine}")


def _sentence(done: Extracted) -> str:
    if done.damage:
        return f"{done.cache}: was damaged ({done.damage}); {done.computed} of {done.rows} rows computed again"
    there = done.reused - done.copied
    parts = [f"{done.copied} copied from {', '.join(done.sources)}"] if done.copied else []
    parts += [f"{there} already cached"] if there else []
    if done.computed:
        before = "".join(f", {part}" for part in parts)
        return (
            f"{done.cache}: {done.computed} rows of {done.shape[1:]} computed{before}, "
            f"{done.seconds:.1f} s, {done.images_per_s:.1f} images/s"
        )
    if done.pulled_from:
        return f"{done.cache}: all {done.rows} rows pulled from a remote, nothing to compute, {done.seconds:.1f} s"
    if done.copied:
        return f"{done.cache}: all {done.rows} rows: {', '.join(parts)}, nothing to compute, {done.seconds:.1f} s"
    relabelled = "; its labels and splits are updated" if done.relabelled else ""
    return f"{done.cache}: all {done.rows} rows are cached, nothing to compute{relabelled}"


def _as_json(done: Extracted) -> dict[str, Any]:
    return {
        "cache": done.cache,
        "path": done.url or str(done.path),
        "rows": done.rows,
        "computed": done.computed,
        "reused": done.reused,
        "copied": done.copied,
        "copied_from": list(done.sources),
        "pulled_from": done.pulled_from,
        "format": done.format,
        "dtype": done.dtype,
        "skipped": done.skipped,
        "seconds": round(done.seconds, 3),
        "images_per_s": round(done.images_per_s, 2),
        "shape": list(done.shape),
        "weights": done.weights,
        "engine": done.engine,
        "shares_s": {stage: round(getattr(done.shares, stage), 3) for stage in _STAGES},
        "bottleneck": done.bottleneck if done.computed else "",
        "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
    }
