"""featcache fit-head"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import percent, print_json, print_table, say, shown, track

if TYPE_CHECKING:
    from featcache.pipeline.fit_head import Fitted
    from featcache.project import Project
    from featcache.store.cache import Cache

_FIELDS = ("dropout", "lr", "decay", "batch", "epochs", "scale", "class_weights", "seed", "dtype")


@click.command("fit-head")
@click.option("--cache", "cache_name", metavar="NAME", help="A cache's name or how it begins.  [default: the newest]")
@click.option(
    "--preset",
    type=click.Choice(["default", "study"]),
    default="default",
    show_default=True,
    help="Settings to start from: ours, or those of the published study.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training rows.  [default: 100]")
@click.option("--hidden", metavar="UNITS[,UNITS...]", help="Units of the hidden layers; 0 for none.  [default: 256]")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Behind each hidden layer.  [default: 0.5]")
@click.option("--lr", type=float, help="Learning rate of SGD.  [default: 0.001; study: 1e-5]")
@click.option("--decay", type=float, help="Inverse-time decay an update.  [default: 0; study: 0.001]")
@click.option("--batch", type=click.IntRange(1), help="Rows an update.  [default: 16]")
@click.option("--scale", type=click.Choice(["auto", "none"]), help="Scale features to one norm.  [default: auto]")
@click.option("--class-weights", type=click.Choice(["balanced", "none"]), help="Of the loss.  [default: balanced]")
@click.option("--seed", type=click.IntRange(0), help="Of weights, order and dropout.  [default: 0]")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Of the arithmetic.  [default: float32]")
@click.option(
    "--solver",
    type=click.Choice(["auto", "gram", "primal"]),
    default="auto",
    show_default=True,
    help="Gram space, Keras (primal), or whichever takes fewer operations.",
)
@click.option("--again", is_flag=True, help="Train even if this very run is there already.")
@project_option
@json_option
def command(
    cache_name: str | None, preset: str, solver: Any, again: bool, folder: Path, as_json: bool, **values: Any
) -> None:
    """Train a head on a cache and write its run into results/.

    Dense(256, relu), Dropout(0.5), Dense(classes, softmax) by plain SGD, in Gram space where that is
    faster: the same steps, at a cost that does not grow with the number of features. --preset study takes
    the published study's settings.
    """
    from featcache.heads.config import from_preset
    from featcache.pipeline.fit_head import fit_head, refuse_stale

    config = from_preset(preset, hidden=_units(values["hidden"]), **{name: values[name] for name in _FIELDS})
    project = open_project(folder)
    cache = _cache(project, cache_name, as_json)
    if cache.folder.parent.resolve() == project.cache_folder.resolve():
        refuse_stale(project, cache)
    done = fit_head(cache, project.results_folder, config, solver, again, track)
    say(_sentence(done), as_json)
    if as_json:
        print_json(_as_json(done))
        return
    metrics = done.run.metrics
    rows = [
        [label, *(percent(metrics[split]["per_class"][label]) for split in ("train", "val", "test"))]
        for label in done.run.config["classes"]
    ]
    rows.append(["all", *(percent(metrics[split]["accuracy"]) for split in ("train", "val", "test"))])
    print_table(["accuracy, %", "train", "val", "test"], rows)
    low, high = metrics["test"]["accuracy_interval"]
    say(
        f"test: {percent(low)} to {percent(high)} % with 95 % confidence (over {metrics['test']['groups']} groups); "
        f"the most frequent class alone gives {percent(metrics['test']['majority'])} %"
    )
    say(f"run: {shown(done.run.folder)}")
    say("next: featcache report")


def _cache(project: Project, name: str | None, as_json: bool) -> Cache:
    """The cache that is named; else the only one; else the one chosen from a list, or the newest and a word."""
    from featcache.store.catalog import find_cache, list_caches

    caches = [entry.cache for entry in list_caches(project.cache_folder) if entry.cache is not None]
    if name is not None or len(caches) < 2:
        return find_cache(project.cache_folder, name)
    caches.sort(key=_made_at, reverse=True)
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        for number, cache in enumerate(caches, start=1):
            say(f"{number}  {cache.name}  {cache.features.shape}")
        return caches[click.prompt("which cache", type=click.IntRange(1, len(caches)), default=1) - 1]
    others = ", ".join(cache.name for cache in caches[1:])
    say(f"took {caches[0].name}, the newest of {len(caches)} caches; --cache names another ({others})", as_json)
    return caches[0]


def _made_at(cache: Cache) -> tuple[str, int]:
    """When a cache was finished: by its own word, in seconds; then by its manifest's time."""
    created = str(cache.manifest.provenance.get("created", ""))
    return created, (cache.folder / "manifest.json").stat().st_mtime_ns


def _units(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        units = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers like 256 or 256,64", param_hint="--hidden") from None
    return () if units == (0,) else units


def _sentence(done: Fitted) -> str:
    metrics, config = done.run.metrics, done.run.config
    if done.reused:
        return f"{done.run.name}: this very run is there already; --again trains it anew"
    return (
        f"{done.run.name}: {metrics['epochs']} epochs on {done.cache} by the {config['solver']} solver "
        f"({config['why']}), {metrics['seconds']:.1f} s, {1000 * metrics['s_per_epoch']:.1f} ms an epoch"
    )


def _as_json(done: Fitted) -> dict[str, Any]:
    metrics, config = done.run.metrics, done.run.config
    return {
        "run": done.run.name,
        "path": str(done.run.folder),
        "cache": done.cache,
        "solver": config["solver"],
        "why": config["why"],
        "epochs": metrics["epochs"],
        "seconds": metrics["seconds"],
        "s_per_epoch": metrics["s_per_epoch"],
        "reused": done.reused,
        **{split: metrics[split] for split in ("train", "val", "test")},
    }
