"""Options of the commands that take labelled images of another laboratory."""

from __future__ import annotations

import click

from featcache.cli.command import combined, option
from featcache.cli.settings import options
from featcache.core.project import DatasetSection

_GROUP = "How SOURCE is read"


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """LABEL=CLASS, each as a pair; an empty class stands for none of the run's."""
    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (label, equals, _) in zip(values, pairs, strict=True) if not (label and equals)]:
        raise click.BadParameter(f"{wrong[0]!r}: expected LABEL=CLASS", ctx=context, param=parameter)
    return {label: of_run for label, _, of_run in pairs}


mapping_option = option(
    "--map",
    "mapping",
    multiple=True,
    metavar="LABEL=CLASS",
    callback=_pairs,
    help="Which class of the run a label stands for; LABEL= for none of them. Repeatable.",
)
labelled_source_options = combined(
    options(
        DatasetSection,
        *("class_level", "without", "label_from", "group_from", "group_pattern"),
        *("path_column", "label_column", "group_column", "masks", "mask_column"),
        *("box_columns", "margin", "voc_object", "um_per_px"),
        group=_GROUP,
    ),
)
"""How a source of labelled images is read."""
