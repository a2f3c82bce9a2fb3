"""featcache fine-tune"""

from __future__ import annotations

from typing import Any

import click

from featcache.cli.fit_scratch import fit
from featcache.cli.scratch_options import recipe_option, scratch_options


@click.command("fine-tune")
@recipe_option("fine-tune")
@click.option(
    "--from",
    "weights",
    default="imagenet",
    show_default=True,
    metavar="imagenet|PATH",
    help="Pretrained weights to begin with.",
)
@scratch_options
def command(**values: Any) -> None:
    """Train the top and some or all blocks of a pretrained network: fit-scratch --from imagenet, with a fitting recipe.

    Earlier blocks take smaller steps than later ones, and these than the top; frozen layers stay as they are to
    the last bit, the statistics of batch normalisation included.
    """
    fit(**values)
