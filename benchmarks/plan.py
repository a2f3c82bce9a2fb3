"""`featcache plan` against real extractions, and what it says of up to 10^9 images and 10^3 workers.

python benchmarks/plan.py [--images 6000] [--part small] [--part scale]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import print_machine
from scale import made_project

import featcache as fc
from featcache.planning import Planned, PlanOptions
from featcache.planning.simulate import simulate

MODEL = {"model": "mobilenetv2", "weights": "random", "pooling": "avg"}
FLEETS: dict[str, dict[str, float]] = {
    "nothing happens": {},
    "a worker is lost each 10 h": {"hours_between_losses": 10.0},
    "one in twenty is three times as slow": {"slow_share": 0.05, "slow_factor": 3.0},
    "the storage takes 500 requests/s": {"requests_per_s": 500.0},
    "the storage takes 100 MB/s": {"bandwidth_mb_s": 100.0},
    "all of these": {
        "hours_between_losses": 10.0,
        "slow_share": 0.05,
        "slow_factor": 3.0,
        "requests_per_s": 500.0,
        "bandwidth_mb_s": 100.0,
    },
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6000, help="of the small runs")
    parser.add_argument("--part", action="append", choices=["small", "scale"])
    asked = parser.parse_args()
    parts = asked.part or ["small", "scale"]
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        made = made_project(Path(folder), asked.images)
        project = fc.init(made / "images", into=made, views={"train": 1})
        if "small" in parts:
            against_real_runs(project, asked.images)
        if "scale" in parts:
            at_scale(project)


def against_real_runs(project: fc.Project, n_images: int) -> None:
    """The seconds that were planned, and those that the same extraction took."""
    print("\n| workers | planned | took | planned / took |\n|---|---|---|---|")
    for cluster, workers in (("local:1", 1), ("local:2", 2)):
        (planned,) = fc.plan(project, **MODEL, n_images=n_images, workers=workers, workers_per_machine=workers)
        shutil.rmtree(project.cache_folder, ignore_errors=True)
        began = time.perf_counter()
        fc.extract(project, **MODEL, cluster=cluster)
        took = time.perf_counter() - began
        print(f"| {cluster} | {planned.seconds:.1f} s | {took:.1f} s | {planned.seconds / took:.2f} |")


def at_scale(project: fc.Project) -> None:
    """What is planned for more and more images and workers, by what is measured once."""
    (measured,) = fc.plan(project, **MODEL, n_images=1000)
    print(f"\none worker: {1 / measured.measured.row_s:.0f} images/s, start {measured.measured.start_s:.0f} s")
    print("\n| images | workers | what happens | time | by one alone / workers | busy | lost | requests |")
    print("|---|---|---|---|---|---|---|---|")
    for n_images, workers in ((10**6, 10), (10**7, 100), (10**8, 1000), (10**9, 1000)):
        for named, fleet in FLEETS.items():
            row(planned_for(measured, n_images, workers=workers, **fleet), workers=workers, named=named)
    exact_against_coarse(measured)


def planned_for(measured: Planned, n_images: int, *, workers: int, **fleet: float) -> Planned:
    """A plan from what was measured before."""
    from featcache.planning._plan import planned_of

    options = PlanOptions(n_images=n_images, workers=workers, **fleet)  # type: ignore[arg-type]
    return planned_of(measured.model, measured.measured, options=options)


def row(planned: Planned, *, workers: int, named: str) -> None:
    """A line of the table."""
    print(
        f"| {planned.images:.0e} | {workers} | {named} | {planned.seconds / 3600:.2f} h | "
        f"{planned.ideal_s / 3600:.2f} h | {planned.busy:.0%} | {planned.losses:.0f} | "
        f"{planned.writes + planned.reads:.2e} |"
    )


def exact_against_coarse(measured: Planned) -> None:
    """Where there are very many shards, several are simulated as one: what that changes."""
    from featcache.planning._plan import fleet_of, work_of

    options = PlanOptions(n_images=10**8, workers=1000, hours_between_losses=10.0, slow_share=0.05)
    work, fleet = work_of(measured.measured, options), fleet_of(measured.measured, options)
    fleet = replace(fleet, start_s=60.0)
    seconds = [_mean([simulate(work, fleet, seed=n, most_units=most).seconds for n in range(5)]) for most in _MOST]
    print(f"\n10^8 images, {_MOST[0]:.0e} shards at most and all of them: {seconds[0]:.0f} s and {seconds[1]:.0f} s")


_MOST = (200_000, 10**9)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    main()
