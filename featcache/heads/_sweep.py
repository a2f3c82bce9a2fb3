"""Many heads on one cache: several seeds of one head, and sweeps over settings with the winner chosen on validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featcache.core.errors import HeadError
from featcache.core.files import write_json, write_text
from featcache.core.progress import SILENT, Progress
from featcache.core.project import refuse_unwritable
from featcache.core.recipe import digest
from featcache.heads._fit_head import fit_head
from featcache.heads.config import Device, HeadConfig, Solver
from featcache.heads.cost import Choice
from featcache.heads.train import SharedInputs, plan_head, train_course
from featcache.reporting import figures
from featcache.store import Cache
from featcache.training import Epoch, Fitted, best_of, runs

SWEPT = ("lr", "hidden", "dropout", "l2", "momentum", "epochs", "batch")
HEADS_FILE = "heads.csv"
SWEEP_FILE = "sweep.json"


def grid(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of each field."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def random_points(space: Mapping[str, Sequence[Any]], n: int, *, seed: int) -> list[dict[str, Any]]:
    """`n` combinations drawn from the grid without repetition, the same for a seed; all where there are fewer."""
    points = grid(space)
    order = np.random.default_rng(seed).permutation(len(points))[:n]
    return [points[index] for index in sorted(order)]


@dataclass(frozen=True)
class Swept:
    """What `sweep` did.

    table : one line a combination, best first: the swept fields, mean and spread of the monitor over seeds, its epoch,
        and how many of the seeds diverged; where any did there is no mean (NaN), and it comes last
    winner : the run of the best combination, the only one whose test rows were looked at
    """

    folder: Path
    table: pd.DataFrame
    winner: Fitted


def sweep(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    points: Sequence[Mapping[str, Any]],
    seeds: int = 1,
    solver: Solver = "auto",
    progress: Progress = SILENT,
) -> Swept:
    """Train a head for each of `points` (fields of `config` changed) and seed, on one Gram matrix; keep the best.

    Each head is judged by the best value that `config.monitor` had in its course. A combination whose training diverges
    is listed as such. Raises HeadError where all do, RunError where the folder cannot be written.
    """
    if not any(points):
        raise HeadError("nothing to sweep over", "Give several values of a setting, such as `lr=(0.001, 0.003)`")
    refuse_unwritable(results)
    configs = [replace(config, **point) for point in points]
    choices = [plan_head(cache, head, solver=solver) for head in configs]  # before a Gram matrix takes its memory
    material = SharedInputs(cache, progress)
    for head, choice in zip(configs, choices, strict=True):  # what no head can be trained on is no divergence
        material.prepare(head, choice.solver)
    lines = []
    with (
        progress.stopping() as stopped,
        progress.begin(f"sweeping over {len(points)} x {seeds} heads", len(points) * seeds) as advance,
    ):
        for point, head, choice in zip(points, configs, choices, strict=True):
            found = []
            for seed in range(config.seed, config.seed + seeds):
                found.append(_best(replace(head, seed=seed), choice, material, stopped))
                advance(1)
            lines.append({**point, **_line(found, config.monitor)})
    rises = config.monitor.endswith("accuracy")
    table = pd.DataFrame(lines)
    order = np.argsort(table[config.monitor].to_numpy() * (-1 if rises else 1), kind="stable")  # NaN comes last
    table = table.iloc[order].reset_index(drop=True)
    if not np.isfinite(table[config.monitor].iloc[0]):
        raise HeadError("every combination diverged: try smaller learning rates")
    chosen, choice = replace(configs[order[0]], restore_best=True), choices[order[0]]
    winner = fit_head(cache, results, config=chosen, solver=choice, progress=progress, material=material)
    folder = _write(cache, results, config=config, points=points, seeds=seeds, table=table, winner=winner)
    return Swept(folder, table, winner)


def _best(config: HeadConfig, choice: Choice, material: SharedInputs, stopped: Callable[[], bool]) -> Epoch | None:
    """The epoch of a head's course with the best value of the monitor; None where the training diverges."""
    try:
        history = train_course(material, config, solver=choice.solver, stopped=stopped)
    except HeadError:
        return None
    return history[best_of(history, config.monitor) - 1]


def _line(found: Sequence[Epoch | None], monitor: str) -> dict[str, Any]:
    """What the table says of one combination, given the best epoch of each seed."""
    best = [entry for entry in found if entry is not None]
    diverged = len(found) - len(best)
    if diverged:
        return {monitor: float("nan"), "spread": float("nan"), "epoch": 0, "diverged": diverged}
    values = [getattr(entry, monitor) for entry in best]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    epoch = int(np.median([entry.epoch for entry in best]))
    return {monitor: float(np.mean(values)), "spread": spread, "epoch": epoch, "diverged": 0}


def _write(
    cache: Cache,
    results: Path,
    config: HeadConfig,
    points: Sequence[Mapping[str, Any]],
    seeds: int,
    table: pd.DataFrame,
    winner: Fitted,
) -> Path:
    described = {
        "cache": cache.name,
        "head": config.to_dict(),
        "points": [dict(point) for point in points],
        "seeds": seeds,
    }
    described = {**described, "cache_digest": cache.manifest.digest, "dataset": cache.manifest.dataset_digest}
    name = f"sweep-{cache.recipe.space.backbone}-{digest(described)[:8]}"
    with runs.new_run(results, name) as folder:
        write_text(folder / HEADS_FILE, runs.csv_of(table))
        write_json(folder / SWEEP_FILE, {**described, "winner": winner.run.name})
        figures.write_sweep(table, config.monitor, path=folder / figures.SWEEP_FIGURE)
    return results / name


@dataclass(frozen=True)
class Seeds:
    """Runs of one head with several seeds: mean and standard deviation of each split's accuracy and loss."""

    fitted: Sequence[Fitted]
    table: pd.DataFrame


def fit_seeds(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    seeds: int,
    solver: Solver = "auto",
    again: bool = False,
    progress: Progress = SILENT,
    announced: str | None = None,
    tensorboard: bool = False,
    device: Device = "cpu",
) -> Seeds:
    """`fit_head` with `seeds` seeds from config.seed on, on one Gram matrix; the first is announced."""
    choice, material = plan_head(cache, config, solver=solver, device=device), SharedInputs(cache, progress)
    fitted: list[Fitted] = []
    for seed in range(config.seed, config.seed + seeds):
        told = None if any(not one.reused for one in fitted) else announced
        one = replace(config, seed=seed)
        fitted.append(
            fit_head(
                cache,
                results,
                config=one,
                solver=choice,
                again=again,
                more_epochs=0,
                progress=progress,
                material=material,
                announced=told,
                tensorboard=tensorboard,
            )
        )
    return Seeds(fitted, spread([done.run for done in fitted]))


def spread(trained: Sequence[runs.Run]) -> pd.DataFrame:
    """Mean and standard deviation of each measure over runs that differ in their seed: split, measure, mean, std."""
    lines = []
    for split in ("train", "val", "test"):
        second = "balanced_accuracy" if "balanced_accuracy" in trained[0].metrics[split] else "hamming_loss"
        for measure in ("accuracy", second, "loss"):
            values = [run.metrics[split][measure] for run in trained]
            mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if len(trained) > 1 else 0.0
            lines.append({"split": split, "measure": measure, "mean": mean, "std": deviation})
    return pd.DataFrame(lines)
