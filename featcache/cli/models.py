"""featcache models"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.options import json_option
from featcache.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from featcache.backbones import Backbone, CutLayer


@click.command("models", cls=Command)
@click.argument("name", required=False)
@option("--layers", is_flag=True, help="List the layers of NAME that features can be taken from.")
@option("--offline", is_flag=True, help="List only those whose ImageNet weights are on this machine.")
@option(
    "--input-size", "input_size_px", type=click.IntRange(1), help="Side of the square input in pixels, with --layers."
)
@option("--unsafe", is_flag=True, help="Allow a model file to run its own code, with --layers.")
@json_option
def command(
    name: str | None, layers: bool, offline: bool, input_size_px: int | None, unsafe: bool, as_json: bool
) -> None:
    """List the backbones: input size, features, cost, and where their ImageNet weights are.

    NAME is one of them. With --layers it may also be anything else that extract takes, such as an .onnx file.
    """
    from featcache.api import models

    found = models(name, layers=layers, offline=offline, input_size_px=input_size_px, unsafe=unsafe)
    if layers:
        _print_layers(found, as_json)
    else:
        _print_backbones(found, as_json, whole=name is None and not offline)


def _print_layers(layers: list[CutLayer], as_json: bool) -> None:
    if as_json:
        print_json([{"name": layer.name, "shape": list(layer.output_shape)} for layer in layers])
        return
    print_table(["layer", "features"], [[layer.name, "x".join(map(str, layer.output_shape))] for layer in layers])


def _print_backbones(rows: list[Backbone], as_json: bool, *, whole: bool) -> None:
    from featcache.backbones import PIXELS, available

    found = [(row, available(row)) for row in rows]
    if as_json:
        print_json([_as_json(row, where) for row, where in found])
        return
    headers = ["backbone", "input", "features", "parameters", "operations", "preprocessing", "ImageNet weights"]
    print_table(
        headers, [_cells(row, where) for row, where in found], least=("operations", "preprocessing", "parameters")
    )
    if whole:
        say(f"also: --model {PIXELS} keeps the rendered views as uint8, of any --input-size")


def _cells(row: Backbone, where: str) -> list[str]:
    shape = "x".join(map(str, row.feature_shape))
    cost = [f"{row.parameters / 1e6:.1f} M", f"{row.operations / 1e9:.1f} GFLOP"]
    return [row.name, f"{row.input_size_px} px", shape, *cost, row.preprocessing, where]


def _as_json(row: Backbone, where: str) -> dict[str, Any]:
    from featcache.backbones import STUDY

    return {
        "name": row.name,
        "input_size_px": row.input_size_px,
        "min_size_px": row.min_size_px,
        "feature_shape": list(row.feature_shape),
        "layer": row.layer,
        "preprocessing": row.preprocessing,
        "parameters": row.parameters,
        "operations": row.operations,
        "study": row.name in STUDY,
        "weights_file": row.weights_file,
        "weights": where,
    }
