"""featcache demo"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Command, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option
from featcache.cli.output import percent, print_json, print_table, say
from featcache.core.files import resolved


@click.command("demo", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"))
@option(
    "--epochs",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Passes over the training rows of the head.",
)
@json_option
def command(folder: Path, epochs: int, as_json: bool) -> None:
    """Run the whole job offline in FOLDER: generate images, extract features, train a head, write a report.

    The images are leukocytes of four classes. The backbone is EfficientNet-Lite0 with its ImageNet weights.
    """
    from featcache.demo_project import demo
    from featcache.reporting import tables

    say(f"featcache demo in {folder}/", as_json)
    made, extracted, fitted, html = demo(folder, epochs, progress=TERMINAL)
    metrics = fitted.run.metrics
    say(f"images    {len(made.dataset.images)}: {made.about}", as_json)
    say(f"features  {extracted.cache}: {extracted.computed} rows computed, {extracted.reused} cached", as_json)
    say(f"head      {metrics['epochs']} epochs by the {fitted.run.config['solver']} solver", as_json)
    if as_json:
        print_json(
            {"cache": extracted.cache, "run": fitted.run.name, "report": str(resolved(html)), "test": metrics["test"]}
        )
        return
    for table in tables.per_class([fitted.run]):
        print_table(table.headers, table.rows, title="recall on test, %")
    say(f"all classes together: {percent(metrics['test']['accuracy'])} % on {metrics['test']['rows']} test images")
    say(f"report: {resolved(html)}")
