"""featcache runs, runs compare, runs tag, runs note, runs rm, runs mlflow"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Group, option
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import percent, print_json, print_table, say
from featcache.cli.tidying import dry_run_option, remove_all, yes_option

if TYPE_CHECKING:
    from featcache.reporting import ListedRun
    from featcache.training import Note, Run

_ORDERS = ("created", "name", "accuracy", "balanced_accuracy", "macro_f1", "loss")


@click.group("runs", cls=Group, invoke_without_command=True)
@option(
    "--kind", metavar="KIND", help="Only runs of this kind: head, scratch, fine-tune, cross-validation or logreg, say."
)
@option("--backbone", metavar="NAME", help="Only runs of this backbone.")
@option("--tag", "tags", multiple=True, metavar="TAG", help="Only runs with this tag; of several options, with all.")
@option(
    "--sort",
    type=click.Choice(_ORDERS),
    default="created",
    show_default=True,
    help="Order: by a measure, the best first.",
)
@project_option
@json_option
@click.pass_context
def command(context: click.Context, /, folder: Path, as_json: bool, **chosen: Any) -> None:
    """List the runs of the project with their measures; compare two, tag, note and remove them.

    Measures are of the test split, and of cross-validations over all images, with their 95 % interval.
    """
    if context.invoked_subcommand is not None:
        return
    from featcache.api import runs

    found = runs(open_project(folder), **chosen)
    if as_json:
        print_json([_as_json(one) for one in found])
    elif not found:
        say("no runs: 'featcache fit-head' trains one")
    else:
        headers = ["run", "accuracy, %", "95 %", "balanced, %", "macro F1, %", "loss", "rows", "epochs", "tags"]
        rows = [[one.name, *_cells(one)] for one in found]
        print_table(headers, rows, least=("loss", "epochs", "macro F1, %", "rows", "balanced, %", "tags"))
        for one in found:
            if one.problem:
                say(f"{one.name}: {one.problem}")
            if one.note.text:
                say(f"{one.name}: {one.note.text}")


@command.command("compare", short_help="Say by how much one run is better than another.")
@click.argument("a", metavar="RUN")
@click.argument("b", metavar="RUN")
@option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True, help="Rows to compare."
)
@project_option
@json_option
def compare(a: str, b: str, split: str, folder: Path, as_json: bool) -> None:
    """Say by how much one run is better than another one on the same images, with a 95 % interval of the difference."""
    from featcache.training import find_run

    results = open_project(folder).results_folder
    one, other = find_run(results, a), find_run(results, b)
    found = one.compare(other, split=split).to_dict("records")
    if as_json:
        print_json({"a": one.name, "b": other.name, "measures": found})
        return
    rows = [
        [line["measure"], *(f"{line[name]:+.3f}" for name in ("difference", "low", "high")), _verdict(line)]
        for line in found
    ]
    print_table([f"{one.name} minus {other.name}", "difference", "low", "high", ""], rows)
    show_differences(one, other, as_json=False)


@command.command("tag", short_help="Give tags to a run, or take them away.")
@click.argument("name", metavar="RUN")
@click.argument("tags", nargs=-1, required=True, metavar="TAG...")
@option("--remove", is_flag=True, help="Take the tags away.")
@project_option
@json_option
def tag(name: str, tags: tuple[str, ...], remove: bool, folder: Path, as_json: bool) -> None:
    """Give tags to a run, or take them away. They stay in this project: `push` does not send them."""
    _annotate(name, folder, as_json, **({"remove": tags} if remove else {"add": tags}))


@command.command("note", short_help="Set the note of a run.")
@click.argument("name", metavar="RUN")
@click.argument("text")
@project_option
@json_option
def note(name: str, text: str, folder: Path, as_json: bool) -> None:
    """Set the note of a run; "" removes it. It stays in this project: `push` does not send it."""
    _annotate(name, folder, as_json, text=text)


@command.command("rm", short_help="Remove runs.")
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@yes_option
@dry_run_option
@project_option
@json_option
def rm(names: tuple[str, ...], yes: bool, dry_run: bool, folder: Path, as_json: bool) -> None:
    """Remove runs, with the models in them."""
    from featcache.cleanup import removable_runs

    remove_all(removable_runs(open_project(folder).results_folder, names), yes, dry_run=dry_run, as_json=as_json)


@command.command("mlflow", short_help="Write runs to MLflow.")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@option(
    "--to", required=True, metavar="ADDRESS", help="An MLflow server (http://HOST:PORT), or an SQLite file (runs.db)."
)
@option("--experiment", default="", metavar="NAME", help="Experiment in MLflow.  [default: the project's folder]")
@option("--with-model", is_flag=True, help="Write the weights too, which can be large.")
@project_option
@json_option
def mlflow(names: tuple[str, ...], folder: Path, as_json: bool, **chosen: Any) -> None:
    """Write runs, all or those named, to MLflow: settings, curves, measures and files.

    A run that is there already is not written again; its note and tags are.
    """
    from featcache.api import log_to_mlflow

    logged = log_to_mlflow(open_project(folder), names=names, progress=TERMINAL, **chosen)
    if as_json:
        print_json([asdict(one) for one in logged])
    else:
        new = sum(one.new for one in logged)
        say(f"{new} {'run' if new == 1 else 'runs'} written, {len(logged) - new} there already")


def show_differences(one: Run, other: Run, *, as_json: bool) -> None:
    """The settings that two runs do not have in common, as a table or as JSON."""
    from featcache.reporting import differences

    found = differences(one, other)
    if as_json:
        fields = [{"field": name, "ours": ours, "theirs": theirs} for name, ours, theirs in found]
        print_json({"a": one.name, "b": other.name, "fields": fields})
    elif found:
        rows = [[name, *("" if value is None else str(value) for value in values)] for name, *values in found]
        print_table(["setting", one.name, other.name], rows, numbers=False)
    else:
        say("their settings are the same")


def _annotate(name: str, folder: Path, as_json: bool, **changes: Any) -> None:
    from featcache.training import annotate, find_run

    results = open_project(folder).results_folder
    run = find_run(results, name)
    made = annotate(results, run.name, **changes)
    if as_json:
        print_json({"run": run.name, **_of_note(made)})
    else:
        say(f"{run.name}: {', '.join(made.tags) or 'no tags'}{': ' if made.text else ''}{made.text}")


def _verdict(line: Mapping[Hashable, Any]) -> str:
    return "not distinguishable" if line["low"] <= 0 <= line["high"] else ""


def _cells(one: ListedRun) -> list[str]:
    loss, n = one.measure("loss"), one.groups
    return [
        percent(one.measure("accuracy"), of=n),
        " to ".join(percent(end, of=n) for end in one.interval) if one.interval else "",
        percent(one.measure("balanced_accuracy"), of=n),
        percent(one.measure("macro_f1"), of=n),
        "" if loss is None else f"{loss:.3f}",
        str(one.rows or ""),
        str(one.epochs or ""),
        ", ".join(one.note.tags),
    ]


def _of_note(note: Note) -> dict[str, Any]:
    return {"tags": list(note.tags), "note": note.text}


def _as_json(one: ListedRun) -> dict[str, Any]:
    from featcache.reporting import MEASURES

    return {
        "name": one.name,
        "path": str(one.folder),
        "status": one.problem or "finished",
        **{name: getattr(one, name) for name in ("kind", "backbone", "cache", "created", "epochs", "rows", "groups")},
        **{name: one.measure(name) for name in MEASURES},
        "accuracy_interval": None if one.interval is None else list(one.interval),
        **_of_note(one.note),
    }
