"""featcache run"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.hints import in_flags
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option
from featcache.cli.output import print_json, print_table, say, shown
from featcache.core.units import duration, size

if TYPE_CHECKING:
    from featcache.study import Study, StudyPlan


def _pairs(_: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, each."""
    for value in values:
        if not value.partition("=")[0].strip() or "=" not in value:
            raise click.BadParameter(f"{value!r}: expected KEY=VALUE", param=param)
    return {value.partition("=")[0].strip(): value.partition("=")[2] for value in values}


@click.command("run", cls=Command)
@click.argument("recipe")
@option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default_text="a folder with the recipe's name, here",
    help="Folder of the study.",
)
@option(
    "--only",
    multiple=True,
    metavar="STEP",
    help="Do only these steps and what they need: a step's name, or a part of it, such as head or vgg16; * stands for "
    "any characters. Repeatable.",
)
@option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="Use another value for a key of the recipe, such as dataset.source=cells/ or heads.100.epochs=3. Repeatable.",
)
@option("--dry-run", is_flag=True, help="Say which steps are done, and what the others take; do nothing.")
@json_option
def command(
    recipe: str, into: Path | None, only: tuple[str, ...], changes: dict[str, str], dry_run: bool, as_json: bool
) -> None:
    """Do a whole study: RECIPE is a TOML file, or the name of a recipe of featcache.

    A recipe lists data sets, networks, heads, whole networks, cross-validations and ensembles. featcache has
    leukocytes-study, a published comparison, and leukocytes-best, the best of several networks. What is there already
    is not done again: after an interruption, run the same command again to continue. A step that fails leaves the
    others untouched, and the command ends with exit code 1.
    """
    from featcache.study import run_study

    done = run_study(recipe, into=into, only=only, changes=changes, dry_run=dry_run, progress=TERMINAL)
    if dry_run:
        _say_plan(done, as_json)
        return
    _say_study(done, as_json)
    if not done.is_whole:
        raise click.exceptions.Exit(1)


def _say_plan(plan: StudyPlan, as_json: bool) -> None:
    if as_json:
        steps = [asdict(step) for step in plan.steps]
        totals = {"seconds": plan.seconds, "bytes": plan.bytes, "unknown": plan.unknown}
        print_json({"recipe": plan.name, "folder": str(plan.folder), "steps": steps, **totals})
        return
    rows = [
        [
            step.id,
            step.state,
            "" if step.state == "there" else "unknown" if step.seconds is None else duration(step.seconds),
            "" if step.state == "there" else "unknown" if step.bytes is None else size(step.bytes),
            in_flags(step.note),
        ]
        for step in plan.steps
    ]
    print_table(["step", "state", "time", "bytes", ""], rows, numbers=False)
    left = [step for step in plan.steps if step.state != "there" and step.kind != "report"]
    if not left:
        say("all steps are done")
        return
    unknown = sum(step.seconds is None for step in left)
    more = f", and {unknown} of unknown time" if unknown else ""
    say(f"{len(left)} to do: about {duration(plan.seconds)} in all{more}; about {size(plan.bytes)} before compression")


def _say_study(study: Study, as_json: bool) -> None:
    counts = {state: sum(step.state == state for step in study.steps) for state in ("made", "there", "failed")}
    say(
        f"{study.name}: {counts['made']} done, {counts['there']} there already"
        + (f", {counts['failed']} not done" if counts["failed"] else ""),
        as_json,
    )
    for name, reason in study.failed.items():
        waiting = sum(step.because_of == name for step in study.steps)
        more = f" ({waiting} {'step needs' if waiting == 1 else 'steps need'} it)" if waiting else ""
        say(f"not done: {name}: {in_flags(reason)}{more}", as_json)
    if study.report is not None and not as_json:
        say(f"wrote {shown(study.report.markdown)}")
        say(f"wrote {shown(study.report.html)}")
    if as_json:
        print_json(_as_json(study))


def _as_json(study: Study) -> dict[str, Any]:
    report = study.report
    return {
        "recipe": study.name,
        "folder": str(study.folder),
        "steps": [
            {
                "id": step.id,
                "kind": step.kind,
                "state": step.state,
                "seconds": round(step.seconds, 3),
                "cache": step.cache,
                "runs": [run.name for run in step.runs],
                "reason": step.reason,
                "because_of": step.because_of,
            }
            for step in study.steps
        ],
        "report": {"markdown": str(report.markdown), "html": str(report.html)} if report else None,
    }
