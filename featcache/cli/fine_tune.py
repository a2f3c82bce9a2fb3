"""featcache fine-tune"""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.command import Command, option
from featcache.cli.fit_scratch import fit
from featcache.cli.scratch_options import scratch_options


@click.command("fine-tune", cls=Command)
@scratch_options("fine-tune")
@option(
    "--from",
    "weights",
    default="imagenet",
    show_default=True,
    metavar="imagenet|PATH",
    group="Network",
    help="Pretrained weights to start from.",
)
def command(**values: Any) -> None:
    """Train the top and some or all blocks of a pretrained network.

    This is fit-scratch with pretrained weights and a recipe for fine-tuning: earlier blocks take smaller steps
    than later ones. Frozen layers do not change at all, including the statistics of batch normalisation.
    """
    from featcache.api import fine_tune

    fit(fine_tune, **values)
