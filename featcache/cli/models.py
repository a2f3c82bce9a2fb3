"""featcache models"""

from __future__ import annotations

import click

from featcache.cli.options import json_option
from featcache.cli.output import print_json, print_table


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """The backbones: input size, features, parameters, and whether their ImageNet weights are on this machine."""
    from featcache.backbones.imagenet import available
    from featcache.backbones.registry import BACKBONES

    if as_json:
        print_json(
            [
                {
                    "name": b.name,
                    "input_size_px": b.input_size_px,
                    "min_size_px": b.min_size_px,
                    "feature_shape": list(b.feature_shape),
                    "layer": b.layer,
                    "preprocessing": b.preprocessing,
                    "parameters": b.parameters,
                    "weights_file": b.weights_file,
                    "weights": available(b),
                }
                for b in BACKBONES.values()
            ]
        )
        return
    rows = [
        [b.name, f"{b.input_size_px} px", "x".join(map(str, b.feature_shape)), f"{b.parameters / 1e6:.1f} M"]
        + [b.preprocessing, available(b)]
        for b in BACKBONES.values()
    ]
    print_table(["backbone", "input", "features", "parameters", "preprocessing", "ImageNet weights"], rows)
