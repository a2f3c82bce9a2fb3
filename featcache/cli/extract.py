"""featcache extract"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import (
    extraction_of,
    extraction_options,
    json_option,
    model_option,
    open_project,
    project_option,
)
from featcache.cli.output import print_json, say, say_left_out, track

if TYPE_CHECKING:
    from featcache.pipeline.extract import Extracted
    from featcache.pipeline.plan import ExtractOptions
    from featcache.project import Project


@click.command("extract")
@model_option
@extraction_options
@click.option("--dry-run", is_flag=True, help="Say what would be computed and copied, and compute nothing.")
@project_option
@json_option
def command(models: tuple[str, ...], dry_run: bool, folder: Path, as_json: bool, **values: Any) -> None:
    """Run a backbone once over every view of every image and keep its features in cache/.

    A second call computes nothing: a cache is named by all that decides its values. After an interruption
    the same command goes on where it stopped; run at the same time several times, they share the work. Rows
    that another cache holds are copied. Several --model make several caches.
    """
    from featcache.backbones import registry
    from featcache.cli.interrupts import finishing_in_hand
    from featcache.pipeline.extract import extract

    options = extraction_of(values)
    for model in models:
        registry.get(model)  # a wrong name is said before the first one is computed
    project = open_project(folder)
    if dry_run:
        _say_plans(project, models, options, as_json)
        return
    results: list[Extracted] = []
    for number, model in enumerate(models):
        done = extract(project, model, options, track, finishing_in_hand)
        results.append(done)
        if number == 0:
            say_left_out(done.left_out, as_json)
        say(_sentence(done), as_json)
        if done.faint_rows:
            say(
                f"  {done.faint_rows} rows hold only tiny values, of which float16 keeps few digits: use float32",
                as_json,
            )
    if as_json:
        objects = [_as_json(done) for done in results]
        print_json(objects[0] if len(objects) == 1 else objects)
    else:
        say("next: featcache fit-head")


def _say_plans(project: Project, models: tuple[str, ...], options: ExtractOptions, as_json: bool) -> None:
    from featcache.cli.explain import work
    from featcache.pipeline.explain import explain

    plans = [explain(project, model, options, track) for model in models]
    names = ("name", "state", "rows", "compute", "copy", "sources")
    if as_json:
        objects = [{name: getattr(plan, name) for name in names} for plan in plans]
        print_json(objects[0] if len(objects) == 1 else objects)
        return
    for plan in plans:
        say(work(plan))


def _sentence(done: Extracted) -> str:
    if done.damage:
        return f"{done.cache}: was damaged ({done.damage}); {done.computed} of {done.rows} rows computed again"
    there = done.reused - done.copied
    parts = [f"{done.copied} copied from {', '.join(done.sources)}"] if done.copied else []
    parts += [f"{there} were there"] if there else []
    if done.computed:
        before = "".join(f", {part}" for part in parts)
        return (
            f"{done.cache}: {done.computed} rows of {done.shape[1:]} computed{before}, "
            f"{done.seconds:.1f} s, {done.images_per_s:.1f} images/s"
        )
    if done.copied:
        return f"{done.cache}: all {done.rows} rows: {', '.join(parts)}, nothing to compute, {done.seconds:.1f} s"
    relabelled = "; its labels and splits were brought up to date" if done.relabelled else ""
    return f"{done.cache}: all {done.rows} rows are there, nothing to compute{relabelled}"


def _as_json(done: Extracted) -> dict[str, Any]:
    return {
        "cache": done.cache,
        "path": str(done.path),
        "rows": done.rows,
        "computed": done.computed,
        "reused": done.reused,
        "copied": done.copied,
        "copied_from": list(done.sources),
        "format": done.format,
        "dtype": done.dtype,
        "skipped": done.skipped,
        "seconds": round(done.seconds, 3),
        "images_per_s": round(done.images_per_s, 2),
        "shape": list(done.shape),
        "weights": done.weights,
        "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
    }
