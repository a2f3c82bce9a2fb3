"""plan: the simulation against closed forms and a simulator of another kind; what the command says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

import featcache as fc
from featcache.core.errors import FeatcacheError
from featcache.extraction import Measured
from featcache.planning import PlanOptions
from featcache.planning._plan import planned_of, work_of
from featcache.planning.simulate import Course, Fleet, Work, simulate
from featcache.store.layout import Layout

WORK = Work(n_rows=10_000, unit_rows=100, row_s=0.5)
MEASURED = Measured(
    rows=100,
    rows_per_image=2.0,
    image_bytes=50_000.0,
    layouts=(Layout(200, (1280,), "float32", 256, 256),),
    row_bytes=4000.0,
    client_s=3.0,
    start_s=10.0,
    look_s=1e-5,
    row_s=0.01,
    task_s=0.2,
    peak_bytes=1 << 30,
    table_bytes=500.0,
    engine="openvino",
)


@pytest.mark.parametrize("workers", [1, 3, 7, 100, 250])
def test_without_disturbance_it_is_what_one_counts_by_hand(workers: int) -> None:
    course = simulate(WORK, Fleet(workers, start_s=20.0))
    rounds = math.ceil(100 / workers)
    assert course.seconds == pytest.approx(20 + rounds * 50)
    assert course.busy == pytest.approx(10_000 * 0.5 / (course.seconds * workers))
    assert course.losses == 0


def test_a_short_last_shard_takes_less() -> None:
    work = Work(n_rows=250, unit_rows=100, row_s=1.0)
    assert simulate(work, Fleet(1)).seconds == pytest.approx(250)
    assert simulate(work, Fleet(3)).seconds == pytest.approx(100)


def test_each_task_has_its_own_cost() -> None:
    work = Work(n_rows=1000, unit_rows=100, row_s=0.1, task_units=4, task_s=3.0)
    assert simulate(work, Fleet(1)).seconds == pytest.approx(100 + 3 * 3)  # 4 + 4 + 2 shards


def test_a_slow_worker_is_waited_for() -> None:
    """Of 4 shards two workers do 1 and 3: the slow one takes 300 s for its first."""
    work = Work(n_rows=400, unit_rows=100, row_s=1.0)
    course = simulate(work, Fleet(2, slow_share=0.5, slow_factor=3.0))
    assert course.seconds == pytest.approx(300)
    assert course.busy == pytest.approx(1.0)


@pytest.mark.parametrize(("asked", "per_second"), [("requests", 2.0), ("bytes", 4000.0)])
def test_a_storage_that_is_too_slow_decides(asked: str, per_second: float) -> None:
    """100 shards of 4 requests and 8000 bytes each take 200 s, however many write them."""
    work = Work(n_rows=10_000, unit_rows=100, row_s=0.01, unit_writes=4.0, unit_written_bytes=8000.0)
    limit = {f"{asked}_per_s": per_second}
    course = simulate(work, Fleet(50, **limit))
    assert course.seconds == pytest.approx(200, rel=0.02)
    assert course.writes == pytest.approx(400)


def test_reading_goes_beside_computing() -> None:
    work = Work(n_rows=1000, unit_rows=100, row_s=0.1, unit_reads=100.0, unit_read_bytes=1e6)
    assert simulate(work, Fleet(1, bytes_per_s=1e6)).seconds == pytest.approx(100)
    assert simulate(work, Fleet(1, bytes_per_s=1e5)).seconds == pytest.approx(100, rel=0.01)
    assert simulate(work, Fleet(1, bytes_per_s=5e4)).seconds == pytest.approx(200, rel=0.01)
    assert simulate(work, Fleet(1)).reads == pytest.approx(1000)


def step_by_step(work: Work, fleet: Fleet, seed: int, step_s: float = 0.5) -> float:
    """The same, by small steps of time and nothing else: who has what, and for how long yet."""
    generator = np.random.default_rng(seed)
    left = math.ceil(work.n_rows / work.unit_rows)
    back: list[float] = []
    until = np.full(fleet.workers, fleet.start_s)
    has = np.zeros(fleet.workers, bool)
    now, done, total = 0.0, 0, left
    risk = -math.expm1(-step_s / fleet.loss_s)
    while done < total:
        now += step_s
        for worker in np.flatnonzero(until <= now):
            if has[worker]:
                done, has[worker] = done + 1, False
            ready = [when for when in back if when <= now]
            if left or ready:
                if left:
                    left -= 1
                else:
                    back.remove(ready[0])
                has[worker], until[worker] = True, now + work.unit_rows * work.row_s
        alive = now >= fleet.start_s
        lost = np.flatnonzero(alive & (generator.random(fleet.workers) < risk) & (until - now < fleet.replaced_s))
        for worker in lost:
            if has[worker]:
                back.append(now + fleet.dead_s)
                has[worker] = False
            until[worker] = now + fleet.replaced_s + fleet.start_s
    return now


def test_losses_cost_what_a_simulation_by_small_steps_says() -> None:
    work = Work(n_rows=40_000, unit_rows=100, row_s=0.3)
    fleet = Fleet(8, start_s=10.0, loss_s=600.0, replaced_s=60.0, dead_s=30.0)
    ours = np.mean([simulate(work, fleet, seed=seed).seconds for seed in range(40)])
    theirs = np.mean([step_by_step(work, fleet, seed) for seed in range(12)])
    undisturbed = simulate(work, Fleet(8, start_s=10.0)).seconds
    assert ours > 1.1 * undisturbed
    assert ours == pytest.approx(theirs, rel=0.03)


def test_all_is_done_whatever_happens() -> None:
    """Each shard is written once: no more, since a lost one was not; and no less."""
    work = Work(n_rows=12_345, unit_rows=100, row_s=0.5, unit_writes=1.0)
    for seed in range(20):
        fleet = Fleet(9, start_s=5.0, loss_s=200.0, replaced_s=20.0, slow_share=0.3, slow_factor=4.0, latency_s=0.1)
        course = simulate(work, fleet, seed=seed)
        assert course.losses > 0
        assert course.writes == pytest.approx(123.45)
        assert 0 < course.busy < 1
        assert course == simulate(work, fleet, seed=seed)


def test_shards_that_are_simulated_together_take_as_long() -> None:
    work = Work(n_rows=2_000_000, unit_rows=100, row_s=0.1, task_units=8, task_s=1.0, unit_writes=4.0)
    fleet = Fleet(40, start_s=30.0, loss_s=4000.0, replaced_s=60.0, slow_share=0.1, slow_factor=2.0)

    def mean(most_units: int) -> Course:
        courses = [simulate(work, fleet, seed=seed, most_units=most_units) for seed in range(4)]
        return Course(*np.mean([[c.seconds, c.writes, c.reads, c.losses, c.busy] for c in courses], axis=0))

    exact, coarse = mean(10**9), mean(4000)
    assert coarse.seconds == pytest.approx(exact.seconds, rel=0.02)
    assert coarse.writes == pytest.approx(exact.writes, rel=0.01)
    assert coarse.losses == pytest.approx(exact.losses, rel=0.2)


def test_figures_follow_from_what_was_measured() -> None:
    options = PlanOptions(
        n_images=1_000_000, workers=10, price_worker_hour=2.0, price_gb_month=0.5, price_million_writes=5.0
    )
    planned = planned_of("net", MEASURED, options=options)
    assert planned.rows == 2_000_000
    assert planned.shards == math.ceil(2_000_000 / 256)
    assert planned.bytes == 8_000_000_000
    assert planned.ideal_s == pytest.approx(2000)
    assert planned.ideal_s < planned.seconds < 1.1 * planned.ideal_s + 100
    assert planned.low_s == planned.high_s == pytest.approx(planned.seconds)
    assert planned.worker_bytes == (1 << 30) + 1_000_000_000
    assert planned.costs["workers"] == pytest.approx(2 * planned.worker_hours)
    assert planned.costs["storage for a month"] == pytest.approx(4)
    assert planned.costs["requests"] == pytest.approx(planned.writes * 5e-6)
    assert planned.remarks == []


def test_without_prices_there_is_no_cost() -> None:
    assert planned_of("net", MEASURED, options=PlanOptions()).costs == {}


def test_what_stands_in_the_way_is_said() -> None:
    def remarks(**options: float) -> str:
        return " ".join(planned_of("net", MEASURED, options=PlanOptions(**options)).remarks)  # type: ignore[arg-type]

    assert "of memory, since it lists all rows" in remarks(n_images=10**9, workers=1000)
    assert "looks at all images before it begins, which takes 17 min" in remarks(n_images=10**8, workers=10_000)
    assert "workers get a shard" in remarks(n_images=1000, workers=100)
    assert "storage answers too slowly" in remarks(n_images=10**6, workers=100, requests_per_s=5.0)
    assert "an uneven end" in remarks(n_images=100_000, workers=500)


def test_runs_of_shards_are_those_of_a_cluster() -> None:
    few = work_of(MEASURED, PlanOptions(n_images=10_000, workers=4))
    many = work_of(MEASURED, PlanOptions(n_images=10**7, workers=4))
    assert (few.task_units, many.task_units) == (math.ceil(math.ceil(20_000 / 256) / 16), 16)


def test_a_billion_images_are_planned_soon() -> None:
    options = PlanOptions(n_images=10**9, workers=1000, hours_between_losses=10, slow_share=0.05, trials=1)
    planned = planned_of("net", MEASURED, options=options)
    assert planned.seconds > planned.ideal_s
    assert planned.losses > 1


def test_plan_measures_and_keeps_nothing(project: Path, run: Run) -> None:
    before = sorted(file for file in project.rglob("*") if file.is_file())
    told = run(
        *("plan", "--model", "mobilenetv2", "--weights", "random", "--input-size", "64", "--json"),
        *("--images", "5000", "--workers", "3"),
        *("--sample-s", "0.2", "--hours-between-losses", "0.1", "--price-gb-month", "1"),
        cwd=project,
    ).value
    assert told["images"] == 5000
    assert told["rows"] == pytest.approx(15_000, rel=0.2)  # 4 views of train images, 1 of the others
    assert told["low_s"] <= told["seconds"] <= told["high_s"]
    assert told["bytes"] > 0
    assert told["costs"]["storage for a month"] == pytest.approx(told["bytes"] / 1e9)
    assert told["measured"]["rows"] > 0
    after = sorted(file for file in project.rglob("*") if file.is_file())
    assert after == before


def test_the_table(project: Path, run: Run) -> None:
    said = run(
        *("plan", "--model", "pixels", "--input-size", "32", "--images", "1000000"),
        *("--sample-s", "0.2", "--workers-per-machine", "2", "--workers", "2"),
        cwd=project,
    ).out
    assert "of 1,000,000 images" in said
    assert "requests" in said
    assert "cost" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--images", "0"), "x>=1"),
        (("--workers", "-1"), "x>=1"),
        (("--slow-share", "2"), "0<=x<=1"),
        (("--hours-between-losses", "0"), "x>0"),
    ],
)
def test_odd_numbers_are_refused(project: Path, run: Run, arguments: tuple[str, str], says: str) -> None:
    done = run("plan", "--model", "pixels", *arguments, cwd=project)
    assert done.code == 2
    assert says in done.error


def test_from_python_unknown_settings_are_refused(project: Path) -> None:
    with pytest.raises(FeatcacheError, match="no setting 'n_workers'"):
        fc.plan(fc.open_project(project), "pixels", n_workers=3)
