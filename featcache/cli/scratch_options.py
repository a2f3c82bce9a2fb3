"""Options of the commands that train whole networks."""

from __future__ import annotations

from typing import Any

import click

from featcache.backbones import NetworkSpec
from featcache.cli.command import Decorator, combined, option
from featcache.cli.extract_options import views_options
from featcache.cli.options import KERAS_MODEL_HELP, json_option, project_option
from featcache.cli.settings import FLAGS, options
from featcache.networks import RECIPES, ScratchConfig, ScratchOptions

_GROUPS = {
    "Network": ("top", "hidden", "dropout", "stochastic_depth"),
    "Optimizer": (
        *("epochs", "batch", "accumulate", "optimizer", "lr", "schedule", "decay", "warmup_epochs", "momentum"),
        *("nesterov", "weight_decay", "l1", "l2", "clip_norm", "label_smoothing", "class_weights"),
    ),
    "Stopping": ("monitor", "patience", "restore_best", "val_every"),
    "Fine-tuning": (
        *("train_blocks", "batchnorm", "batchnorm_momentum", "base_rate", "rate_decay", "unfreeze_epochs"),
    ),
    "Views": ("augment",),
    "Run": ("precision", "deterministic", "seed"),
}
_FLAGS = {**FLAGS, "restore_best": "--restore-best/--keep-last"}


def scratch_options(recipe: str) -> Decorator[Any]:
    """The network, every setting of its training, the views, and what to do with the run; from the recipe `recipe`."""
    presets = {recipe: RECIPES[recipe], **RECIPES}
    return combined(
        option(
            "--recipe",
            type=click.Choice(list(RECIPES)),
            default=recipe,
            show_default=True,
            group="Network",
            help="Settings to start from: the published study's, modern ones, or those for fine-tuning.",
        ),
        option("--model", required=True, metavar="NAME", group="Network", help=f"{KERAS_MODEL_HELP}."),
        options(NetworkSpec, "input_size_px", "preprocessing", "unsafe", group="Network"),
        *(
            options(ScratchConfig, *names, group=group, presets=presets, flags=_FLAGS)
            for group, names in _GROUPS.items()
        ),
        views_options(group="Views", default_text="as in featcache.toml"),
        options(ScratchOptions, "head", "devices", group="Run"),
        option("--again", is_flag=True, group="Run", help="Train again from the start, even if this run exists."),
        option("--dry-run", is_flag=True, group="Run", help="Say how long it would take, and train nothing."),
        project_option,
        json_option,
    )
