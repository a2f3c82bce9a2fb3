"""featcache fit-scratch"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import open_project
from featcache.cli.output import print_json, say, say_measures
from featcache.cli.scratch_options import scratch_options
from featcache.cli.settings import given
from featcache.core.project import ViewsSection
from featcache.core.units import duration

if TYPE_CHECKING:
    from featcache.networks import Expected
    from featcache.training import Fitted


@click.command("fit-scratch", cls=Command)
@scratch_options("modern")
@option(
    "--from",
    "weights",
    default="random",
    show_default=True,
    metavar="random|imagenet|PATH",
    group="Network",
    help="Weights to start from. All but random mean fine-tuning.",
)
def command(**values: Any) -> None:
    """Train a whole network from random weights on the views of the project, to compare it with a head.

    The views are rendered once, into a cache of pixels. After an interruption, run the same command again to
    continue from the last checkpoint. 'featcache report' shows the run beside those of heads.
    """
    from featcache.api import fit_scratch

    fit(fit_scratch, **values)


def fit(verb: Callable[..., Any], *, dry_run: bool, folder: Path, as_json: bool, **values: Any) -> None:
    """Train, and say what came of it: for both commands."""
    views = given(values, ViewsSection)
    settings = {name: value for name, value in values.items() if value is not None and name not in views}
    done = verb(open_project(folder), views=views, dry_run=dry_run, progress=TERMINAL, **settings)
    if dry_run:
        _say_expected(done, as_json)
    else:
        _say_run(done.fitted, as_json)


def _say_run(done: Fitted, as_json: bool) -> None:
    say(_sentence(done), as_json)
    if as_json:
        print_json(_as_json(done))
        return
    say_measures(done.run)


def _say_expected(expected: Expected, as_json: bool) -> None:
    say(
        f"{expected.rows} rows and {expected.updates} updates an epoch, {expected.trained_weights:,} of "
        f"{expected.weights:,} weights trained; about {duration(expected.seconds)} for {expected.epochs} epochs, "
        "besides validation",
        as_json,
    )
    if as_json:
        print_json(asdict(expected))


def _sentence(done: Fitted) -> str:
    metrics, config = done.run.metrics, done.run.config
    if done.reused:
        pulled = "" if done.run.is_own else " (pulled, not trained here)"
        return f"{done.run.name}: this run exists already{pulled}; --again trains it again"
    went_on = f" (continued after epoch {done.resumed_at} of {done.resumed_from})" if done.resumed_at else ""
    shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in metrics["shares_s"].items())
    return (
        f"{done.run.name}: {metrics['epochs']} epochs{went_on} by {config['solver']}, {metrics['seconds']:.1f} s, "
        f"{metrics['images_per_s']:.1f} images/s\n  {shares}; model of epoch {metrics['epoch_of_model']}"
    )


def _as_json(done: Fitted) -> dict[str, Any]:
    metrics, config = done.run.metrics, done.run.config
    names = ("epochs", "epoch_of_model", "seconds", "s_per_epoch", "images_per_s", "shares_s", "train", "val", "test")
    return {
        "run": done.run.name,
        "path": str(done.run.folder),
        "cache": done.cache,
        "solver": config["solver"],
        "reused": done.reused,
        "resumed_at": done.resumed_at,
        "resumed_from": done.resumed_from,
        **{name: metrics[name] for name in names},
    }
