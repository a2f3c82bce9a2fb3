"""featcache plan"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command
from featcache.cli.extract_options import extraction_of, extraction_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say
from featcache.cli.settings import given, options
from featcache.core.units import duration, size
from featcache.planning import PlanOptions

if TYPE_CHECKING:
    from featcache.planning import Planned


@click.command("plan", cls=Command)
@options(PlanOptions, "n_images", "workers", "workers_per_machine", "hours_between_losses", "replaced_s", group="Plan")
@options(PlanOptions, "slow_share", "slow_factor", "sample_s", "trials", "plan_seed", group="Plan")
@options(PlanOptions, "requests_per_s", "bandwidth_mb_s", "latency_ms", "read_images", group="Storage of the plan")
@options(PlanOptions, "price_worker_hour", "price_gb_month", group="Prices, in any currency")
@options(PlanOptions, "price_million_writes", "price_million_reads", group="Prices, in any currency")
@extraction_options
@project_option
@json_option
def command(models: tuple[str, ...], folder: Path, as_json: bool, **values: Any) -> None:
    """Say what a large extraction takes: time, bytes, requests, memory and cost.

    It computes a few images of the project on this machine, throws their features away, and simulates the
    extraction of as many images like them as you ask for, by as many workers like this machine.
    """
    from featcache.api import plan

    project = open_project(folder)
    planned = plan(project, models, progress=TERMINAL, **given(values, PlanOptions), **extraction_of(values))
    if as_json:
        objects = [_as_json(each) for each in planned]
        print_json(objects[0] if len(objects) == 1 else objects)
        return
    for each in planned:
        _say(each)


def _say(planned: Planned) -> None:
    measured = planned.measured
    spread = "" if planned.low_s == planned.high_s else f" ({duration(planned.low_s)} to {duration(planned.high_s)})"
    lines = [
        ["rows", f"{planned.rows:,} of {planned.images:,} images"],
        ["time", duration(planned.seconds) + spread],
        ["computing alone", f"{duration(planned.ideal_s)}; the workers compute {planned.busy:.0%} of the time"],
        ["workers' hours", f"{planned.worker_hours:,.1f}"],
        ["stored", f"{size(planned.bytes)} in {planned.shards:,} files"],
        ["requests", f"{planned.writes:,} writes, {planned.reads:,} reads"],
        ["memory of a worker", size(planned.worker_bytes) if planned.worker_bytes else "unknown"],
        ["lost workers", f"{planned.losses:,.0f}"],
        *([f"cost: {kind}", f"{cost:,.2f}"] for kind, cost in planned.costs.items()),
        [
            "measured here",
            f"{measured.rows} rows, {1 / measured.row_s:.1f} images/s a worker, start in {duration(measured.start_s)}; "
            + measured.engine,
        ],
    ]
    print_table(["what", "how much"], lines, title=planned.model, numbers=False)
    for remark in planned.remarks:
        say(f"note: {remark}")


def _as_json(planned: Planned) -> dict[str, Any]:
    measured = asdict(planned.measured)
    del measured["layouts"]
    return {**asdict(planned), "measured": measured}
