"""Options of the commands that train heads, and what they make of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from featcache.cli.command import combined, option
from featcache.cli.output import say
from featcache.cli.settings import options
from featcache.heads import PRESETS, HeadConfig

if TYPE_CHECKING:
    from featcache.core.project import Project

SWEPT = ("epochs", "hidden", "dropout", "lr", "l2", "momentum", "batch")
"""The settings that a sweep varies."""

_GROUPS = {
    "Head": ("hidden", "activation", "dropout", "output", "scale"),
    "Optimizer": (
        *("epochs", "batch", "optimizer", "lr", "schedule", "decay", "step_epochs", "step_factor", "momentum"),
        *("nesterov", "weight_decay", "l1", "l2", "label_smoothing", "class_weights"),
    ),
    "Stopping": ("monitor", "patience", "restore_best", "val_every"),
    "Run": ("seed", "dtype"),
}
_START = "Cache and head"

cache_option = option(
    "--cache",
    metavar="NAME",
    group=_START,
    default_text="the newest",
    help="Cache to train on: its name, how its name begins, or REMOTE/NAME.",
)
preset_option = option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    group=_START,
    help="Settings to start from: the default ones, or those of the published study.",
)
solver_option = option(
    "--solver",
    type=click.Choice(["auto", "gram", "block", "primal"]),
    default="auto",
    show_default=True,
    group="Run",
    help="Solver: Gram space, blocks (many rows), Keras (primal), or the fastest of them (auto).",
)
kind_option = option(
    "--head",
    "kind",
    type=click.Choice(["dense", "logreg", "linear-svm", "rbf-svm", "knn", "mlp"]),
    default="dense",
    show_default=True,
    group=_START,
    help="Kind of head: dense layers as set below, or a classifier of scikit-learn to compare with.",
)
head_options = combined(
    preset_option, *(options(HeadConfig, *names, group=group, presets=PRESETS) for group, names in _GROUPS.items())
)
"""Every setting of a head."""

swept_options = combined(
    preset_option,
    options(HeadConfig, *SWEPT, group="Settings to try", presets=PRESETS, several=True),
    *(
        options(HeadConfig, *(name for name in names if name not in SWEPT), group=group, presets=PRESETS)
        for group, names in _GROUPS.items()
    ),
)
"""Every setting of a head; those that a sweep varies take several values."""


def asked_cache(project: Project, name: str | None, *, as_json: bool) -> str | None:
    """The name of the cache: as it was given; of several, a person at a terminal is asked."""
    if name is None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        from featcache.heads import candidates

        caches = candidates(project)
        if len(caches) > 1:
            for number, cache in enumerate(caches, start=1):
                say(f"{number}  {cache.name}  {cache.features.shape}")
            return caches[click.prompt("which cache", type=click.IntRange(1, len(caches)), default=1) - 1].name
    return name
