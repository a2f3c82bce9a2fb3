"""fit-head: train a head on a cache and write its run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.core.errors import HeadError, RunError
from featcache.core.progress import SILENT, Progress
from featcache.core.recipe import digest
from featcache.heads import checkpoint
from featcache.heads.config import PRESETS, Device, HeadConfig, Solver
from featcache.heads.cost import Choice, Expected, expect
from featcache.heads.kernel import features_digest
from featcache.heads.train import SharedInputs, plan_head, train_head
from featcache.reporting import draw, followed
from featcache.store import Cache
from featcache.training import (
    Fitted,
    described,
    explaining_damage,
    measured,
    pooled_rows_of,
    refuse_unfair_splits,
    runs,
    tensorboard as events,
    there_already,
    write_results,
)


def fit_head(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    solver: Solver | Choice = "auto",
    again: bool = False,
    more_epochs: int = 0,
    progress: Progress = SILENT,
    material: SharedInputs | None = None,
    announced: str | None = None,
    tensorboard: bool = False,
    device: Device = "cpu",
) -> Fitted:
    """Train a head on a cache and write its run. A run that is there already is not trained again.

    An interrupted training goes on where its last checkpoint stands, a longer one where a shorter run of the same
    settings ended: to the last bit the same head as without the interruption.

    again : train from the first epoch even so, and put the new run in the old one's place
    more_epochs : as many epochs more than the longest finished run of these settings has
    progress : asked to stop, the state is saved after an epoch and KeyboardInterrupt raised; what comes before the
        epochs is ended at once
    material : shared by several heads on one cache
    announced : note what the training is expected to take, behind these words; None: do not find out
    tensorboard : write a TensorBoard log besides, into the folder of the training and then of the run
    device : where the epochs of the solvers gram and block are computed

    Raises HeadError for what cannot be trained and for a training that diverges, CacheError for a damaged
    cache, RunError where the run cannot be written, UsageError where a log is asked for and cannot be written.
    """
    if tensorboard:
        events.refuse_missing()
    config, choice = planned(cache, results, config=config, solver=solver, more_epochs=more_epochs, device=device)
    course = _course(cache, config, choice)
    identity = _identity(cache, config, choice)
    name = runs.run_name("head", cache.recipe.space.backbone, identity=identity)
    started = time.perf_counter()
    earlier = [] if again else [made / runs.STATE_FILE for made in runs.own_states(results)]
    with runs.training(results, name, config={**identity, "cache_name": cache.name}, again=again) as folder:
        if folder is None:
            return _there_already(cache, results / name, tensorboard)
        with explaining_damage(cache):
            expected = expect(cache, config, choice=choice) if announced is not None else None
            if expected is not None:
                progress.note(f"{announced}{expected}")
            material = material or SharedInputs(cache, progress)
            material.prepare(config, choice.solver)
            with progress.stopping() as stopped:
                with followed(
                    folder, name, epochs=config.epochs, progress=progress, tensorboard=tensorboard
                ) as on_epoch:
                    trained = train_head(
                        cache,
                        config,
                        solver=choice,
                        on_epoch=on_epoch,
                        material=material,
                        saved=folder / runs.STATE_FILE,
                        earlier=earlier,
                        identity=course,
                        stopped=stopped,
                    )
                material = None  # of many rows it is large
                probabilities = trained.head.probabilities(cache)
        with runs.new_run(results, name) as made:
            trained.head.save(made)
            checkpoint.save(made / runs.STATE_FILE, trained.state, best=trained.best, identity=course)
            if tensorboard:
                events.write(made, trained.history)
            write_results(
                made,
                cache,
                config={**identity, "course": course, **described(cache, trained.choice.why)},
                probabilities=probabilities,
                splits=measured(cache, probabilities),
                history=trained.history,
                started=started,
                timing={"epoch_of_head": trained.epoch},
                pooled_rows=pooled_rows_of(cache),
            )
    run = draw(runs.Run(results / name))
    return Fitted(
        run=run,
        cache=cache.name,
        reused=False,
        resumed_at=trained.resumed_at,
        resumed_from=trained.resumed_from,
        expected=expected,
    )


def planned(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    solver: Solver | Choice = "auto",
    more_epochs: int = 0,
    device: Device = "cpu",
) -> tuple[HeadConfig, Choice]:
    """The head with all its epochs, and the solver. Raises HeadError for what cannot be trained."""
    if more_epochs:
        device = plan_head(cache, config, solver=solver, device=device).device
        config, solver = _longer(results, cache, config, solver, more_epochs, device)
    choice = plan_head(cache, config, solver=solver, device=device)
    refuse_unfair_splits(cache)
    return config, choice


def expected(
    cache: Cache,
    results: Path,
    *,
    config: HeadConfig,
    solver: Solver | Choice = "auto",
    more_epochs: int = 0,
    device: Device = "cpu",
) -> Expected:
    """What `fit_head` with these arguments would take; nothing is trained."""
    config, choice = planned(cache, results, config=config, solver=solver, more_epochs=more_epochs, device=device)
    with explaining_damage(cache):
        return expect(cache, config, choice=choice)


def _there_already(cache: Cache, folder: Path, tensorboard: bool) -> Fitted:
    done = there_already(folder, cache)
    if tensorboard and not (folder / events.FOLDER).is_dir():
        try:
            events.write(folder, done.run.epochs)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return done


def _identity(cache: Cache, config: HeadConfig, choice: Choice) -> dict[str, Any]:
    """All that decides a run's result."""
    return {
        "kind": "head",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "head": config.to_dict(),
        "solver": choice.solver,
        **({} if choice.device == "cpu" else {"device": choice.device}),  # sums in another order
    }


def _course(cache: Cache, config: HeadConfig, choice: Choice) -> str:
    """Digest of all that decides each epoch: a shorter training of the same course is the beginning of a longer one."""
    identity = _identity(cache, config, choice)
    free = {"patience"} if config.schedule == "cosine" else {"patience", "epochs"}
    identity["features"] = features_digest(cache)  # another engine's differ in the last bits
    return digest({**identity, "head": {name: value for name, value in identity["head"].items() if name not in free}})


def _longer(
    results: Path, cache: Cache, config: HeadConfig, solver: Solver | Choice, more_epochs: int, device: Device
) -> tuple[HeadConfig, Solver | Choice]:
    """The head with so many epochs more than the longest finished run of its settings, and that run's solver.

    All of them are trained: patience does not end them. Where it is not said how a training ends, that run's last
    epoch was kept, or its best.
    """
    if config.schedule == "cosine":
        raise HeadError("a cosine schedule ends with its last epoch", "Set `epochs` instead of `more_epochs`")
    if isinstance(solver, Choice):
        possible: Sequence[Solver] = [solver.solver]
        device = solver.device
    else:
        possible = ("gram", "block", "primal") if solver == "auto" else [solver]
    usual = PRESETS["default"]
    says_nothing = (config.patience, config.restore_best) == (usual.patience, usual.restore_best)
    heads = [config, replace(config, restore_best=False)] if says_nothing else [config]
    courses = {
        _course(cache, head, Choice(one, "", device if one != "primal" else "cpu")): (one, head)
        for one in possible
        for head in heads
    }
    found: list[tuple[int, tuple[Solver, HeadConfig]]] = []
    for run in (runs.Run(folder) for folder in runs.own_states(results) if runs.is_finished(folder)):
        with suppress(RunError, KeyError, TypeError, ValueError):  # a damaged run is none to go on from
            if (course := run.config.get("course")) in courses:
                found.append((int(run.metrics["epochs"]), courses[course]))
    if not found:
        raise HeadError(
            f"{cache.name}: no finished run with these settings was trained here, so there is none to continue",
            "Leave out `more_epochs`",
        )
    epochs, (by, head) = max(found, key=lambda pair: pair[0])
    longer = replace(head, epochs=epochs + more_epochs, patience=0)  # they are asked for, and trained in full
    return longer, solver if isinstance(solver, Choice) else by
