"""featcache check"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option
from featcache.cli.output import print_json, say
from featcache.core.errors import RunError


@click.command("check", cls=Command)
@click.argument("bundle", metavar="FILE.zip", type=click.Path(path_type=Path))
@option("--require-signed", is_flag=True, help="Refuse a bundle that no trusted key has signed.")
@json_option
def command(bundle: Path, require_signed: bool, as_json: bool) -> None:
    """Check that a bundle is as it was made, and that this machine gives the same probabilities."""
    from featcache.deployment import check

    done = check(bundle, require_signed=require_signed, progress=TERMINAL)
    if as_json:
        print_json(done.to_dict())
    else:
        by = {"none": "not signed", "trusted": f"signed by {done.signed_by}, who is trusted here"}
        said = by.get(done.signed, f"signed by {done.signed_by!r}, a key that is not trusted here")
        if done.signed == "unchecked":
            said = f"signed by {done.signed_by!r}, unchecked: cryptography is not installed"
        say(f"{done.run}: every file is as it was made; {said}")
        say(f"  {done.rows} images by {done.runtime}: probabilities differ by {done.largest_difference:.0e} at most")
    if not done.sound:
        raise RunError(
            f"{bundle}: this machine gives other probabilities (largest difference {done.largest_difference:.2g})",
            "Do not use it here; try another version of onnxruntime",
        )
