"""featcache demo"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option
from featcache.cli.output import percent, print_json, print_table, say
from featcache.core.files import resolved


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"))
@click.option("--epochs", type=click.IntRange(1), default=200, show_default=True, help="Passes over the training rows.")
@json_option
def command(folder: Path, epochs: int, as_json: bool) -> None:
    """The whole job, offline, in FOLDER: leukocytes, features, a head, a report.

    Leukocytes of four classes are generated, run through EfficientNet-Lite0 with its ImageNet weights, and a
    head is trained on the features.
    """
    from featcache.demo_project import demo
    from featcache.reporting import tables

    say(f"featcache demo in {folder}/", as_json)
    made, extracted, fitted, html = demo(folder, epochs, progress=TERMINAL)
    metrics = fitted.run.metrics
    say(f"images    {len(made.dataset.images)}: {made.about}", as_json)
    say(f"features  {extracted.cache}: {extracted.computed} rows computed, {extracted.reused} were there", as_json)
    say(f"head      {metrics['epochs']} epochs by the {fitted.run.config['solver']} solver", as_json)
    if as_json:
        print_json(
            {"cache": extracted.cache, "run": fitted.run.name, "report": str(resolved(html)), "test": metrics["test"]}
        )
        return
    for table in tables.per_class([fitted.run]):
        print_table(table.headers, table.rows, title="accuracy on test, %")
    say(f"all classes together: {percent(metrics['test']['accuracy'])} % on {metrics['test']['rows']} test images")
    say(f"report: {resolved(html)}")
