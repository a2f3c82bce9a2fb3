"""featcache extract"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.options import (
    AUGMENTATION_NAMES,
    given,
    given_views,
    json_option,
    open_project,
    project_option,
    strict_option,
    views_options,
)
from featcache.cli.output import print_json, say, say_left_out, track

if TYPE_CHECKING:
    from featcache.pipeline.extract import Extracted


@click.command("extract")
@click.option("--model", "models", multiple=True, required=True, metavar="NAME", help="A backbone (see models).")
@click.option("--weights", default="imagenet", show_default=True, metavar="imagenet|random|PATH", help="Its weights.")
@click.option("--weights-seed", type=click.IntRange(0), default=0, show_default=True, help="For --weights random.")
@click.option("--input-size", "input_size_px", type=click.IntRange(1), help="Side of the input, px.")
@click.option(
    "--preprocess",
    "preprocessing",
    type=click.Choice(["model", "rescale"]),
    default="model",
    show_default=True,
    help="As the network was trained, or plain pixels / 255.",
)
@click.option(
    "--pooling",
    type=click.Choice(["none", "avg", "max"]),
    default="none",
    show_default=True,
    help="Keep one mean or maximum a channel instead of the feature map.",
)
@views_options
@strict_option
@project_option
@json_option
def command(models: tuple[str, ...], folder: Path, as_json: bool, **values: Any) -> None:
    """Run a backbone once over every view of every image and keep its features in cache/.

    A second call computes nothing: a cache is named by all that decides its values. After an interruption
    the same command goes on where it stopped. Several --model make several caches.
    """
    from featcache.backbones import registry
    from featcache.pipeline.extract import ExtractOptions, extract

    names = ("weights", "weights_seed", "input_size_px", "preprocessing", "pooling", "strict")
    options = ExtractOptions(
        views=given_views(values),
        augmentation=given(values, AUGMENTATION_NAMES),
        **{name: values[name] for name in names},
    )
    for model in models:
        registry.get(model)  # a wrong name is said before the first one is computed
    project = open_project(folder)
    results: list[Extracted] = []
    for number, model in enumerate(models):
        done = extract(project, model, options, track)
        results.append(done)
        if number == 0:
            say_left_out(done.left_out, as_json)
        say(_sentence(done), as_json)
    if as_json:
        objects = [_as_json(done) for done in results]
        print_json(objects[0] if len(objects) == 1 else objects)
    else:
        say("next: featcache fit-head")


def _sentence(done: Extracted) -> str:
    if done.damage:
        return f"{done.cache}: was damaged ({done.damage}); {done.computed} of {done.rows} rows computed again"
    if done.computed:
        before = f", {done.reused} were there" if done.reused else ""
        return (
            f"{done.cache}: {done.computed} rows of {done.shape[1:]} computed{before}, "
            f"{done.seconds:.1f} s, {done.images_per_s:.1f} images/s"
        )
    relabelled = "; its labels and splits were brought up to date" if done.relabelled else ""
    return f"{done.cache}: all {done.rows} rows are there, nothing to compute{relabelled}"


def _as_json(done: Extracted) -> dict[str, Any]:
    return {
        "cache": done.cache,
        "path": str(done.path),
        "rows": done.rows,
        "computed": done.computed,
        "reused": done.reused,
        "skipped": done.skipped,
        "seconds": round(done.seconds, 3),
        "images_per_s": round(done.images_per_s, 2),
        "shape": list(done.shape),
        "weights": done.weights,
        "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
    }
