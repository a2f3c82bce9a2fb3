"""featcache fit-head"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.head_options import asked_cache, cache_option, head_options, kind_option, solver_option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import print_json, print_table, say, say_measures, say_next
from featcache.cli.settings import given

if TYPE_CHECKING:
    from featcache.core.project import Project
    from featcache.training import Fitted, Run


@click.command("fit-head", cls=Command)
@cache_option
@kind_option
@head_options
@solver_option
@option(
    "--device",
    type=click.Choice(["cpu", "gpu", "auto"]),
    default="cpu",
    show_default=True,
    group="Run",
    help="Where the solvers gram and block compute: an accelerator of JAX (gpu), or one if there is one (auto).",
)
@option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, group="Run", help="Train with this many seeds."
)
@option(
    "--more-epochs",
    type=click.IntRange(1),
    group="Run",
    help="Continue the longest run with these settings for this many more epochs.",
)
@option("--resume", metavar="RUN", group="Run", help="Continue this interrupted run with its own settings.")
@option("--again", is_flag=True, group="Run", help="Train again from the start, even if this run exists.")
@option("--tensorboard", is_flag=True, group="Run", help="Write a TensorBoard log into the run's folder.")
@option("--dry-run", is_flag=True, group="Run", help="Say how much memory and time it would take, and train nothing.")
@project_option
@json_option
def command(
    cache: str | None,
    preset: str,
    solver: Any,
    device: Any,
    kind: str,
    seeds: int,
    more_epochs: int | None,
    resume: str | None,
    again: bool,
    tensorboard: bool,
    dry_run: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Train a head on a cache, and write the run into results/.

    The default head is Dense(256, relu), Dropout(0.5), Dense(classes, softmax), trained by SGD. The Gram-space
    solver takes the same steps as Keras, at a cost that does not depend on the number of features. The expected
    memory and time are printed before the training starts. After an interruption, run the same command again to
    continue.
    """
    from featcache.api import fit_head
    from featcache.heads import HeadConfig

    project = open_project(folder)
    done = fit_head(
        project,
        cache=cache if resume is not None else asked_cache(project, cache, as_json=as_json),
        head=kind,
        preset=preset,
        solver=solver,
        device=device,
        seeds=seeds,
        more_epochs=more_epochs or 0,
        resume=resume,
        again=again,
        tensorboard=tensorboard,
        dry_run=dry_run,
        progress=TERMINAL,
        **given(values, HeadConfig),
    )
    if dry_run:
        say(str(done), as_json)
        if as_json:
            print_json(asdict(done))
    elif seeds > 1:
        _say_seeds(done, project, as_json)
    else:
        _say_run(done.fitted, as_json)


def _say_run(done: Fitted, as_json: bool) -> None:
    say(_sentence(done), as_json)
    if as_json:
        print_json({**_as_json(done), "expected": asdict(done.expected) if done.expected else None})
        return
    say_measures(done.run)


def _say_seeds(runs: list[Run], project: Project, as_json: bool) -> None:
    from featcache.heads import spread

    table = spread(runs)
    if as_json:
        print_json({"runs": [_as_json(run.fitted) for run in runs], "summary": table.to_dict("records")})
        return
    for run in runs:
        say(_sentence(run.fitted))
    rows = [[str(line.split), str(line.measure), f"{line.mean:.4f}", f"{line.std:.4f}"] for line in table.itertuples()]
    print_table(["split", "measure", f"mean of {len(runs)}", "std"], rows)
    say_next("report", into=project.folder)


def _sentence(done: Fitted) -> str:
    metrics, config = done.run.metrics, done.run.config
    if done.reused:
        pulled = "" if done.run.is_own else " (pulled, not trained here)"
        return f"{done.run.name}: this run exists already{pulled}; --again trains it again"
    if config["kind"] != "head":
        return f"{done.run.name}: on {done.cache} {config['why']}, {metrics['seconds']:.1f} s"
    is_primal = config["solver"] == "primal"  # its sums are split among the cores
    went_on = f" (continued after epoch {done.resumed_at} of {done.resumed_from})" if done.resumed_at else ""
    asked = config["head"].get("epochs", metrics["epochs"])
    on = " on an accelerator" if config.get("device") == "gpu" else ""
    of_most = f" of at most {asked}" if metrics["epochs"] < asked else ""
    return (
        f"{done.run.name}: {metrics['epochs']} epochs{of_most}{went_on} on {done.cache} by the {config['solver']} "
        f"solver{on} ({config['why']}), {metrics['seconds']:.1f} s, {1000 * metrics['s_per_epoch']:.1f} ms an epoch"
        + (f"; on {config['cores']} cores: on another number the last digits differ" if is_primal else "")
    )


def _as_json(done: Fitted) -> dict[str, Any]:
    metrics, config = done.run.metrics, done.run.config
    return {
        "run": done.run.name,
        "path": str(done.run.folder),
        "cache": done.cache,
        "solver": config["solver"],
        "why": config["why"],
        "epochs": metrics["epochs"],
        "epoch_of_head": metrics.get("epoch_of_head", metrics["epochs"]),
        "seconds": metrics["seconds"],
        "s_per_epoch": metrics["s_per_epoch"],
        "reused": done.reused,
        "resumed_at": done.resumed_at,
        "resumed_from": done.resumed_from,
        **{split: metrics[split] for split in ("train", "val", "test")},
    }
