"""What commands print: tables for people, one JSON object for machines, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from featcache.dataset.candidates import LeftOut
    from featcache.pipeline.progress import Advance
    from featcache.runs import Run

_LISTED = 8


def say(message: str, as_json: bool = False) -> None:
    """A line for people: on standard output, or on standard error where that belongs to machines."""
    click.echo(message, err=as_json)


def print_json(value: Any) -> None:
    """The last thing on standard output: one JSON value on one line, in ASCII, which every pipe carries."""
    click.echo(json.dumps(value, allow_nan=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", numbers: bool = True) -> None:
    """A table on standard output; columns behind the first are aligned right where they hold numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # cells are text as it is: [red] and :cat: are names like any other

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if number and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def printable(text: str) -> str:
    """Text of a stranger without what would steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


@contextmanager
def track(description: str, total: int) -> Iterator[Advance]:
    """A progress bar on standard error that goes when it is done; nothing where that is no terminal."""
    with bar() as progress:
        if progress is None:
            yield lambda steps: None
            return
        task = progress.add_task(description, total=total, note="")
        yield lambda steps: progress.advance(task, steps)


@contextmanager
def bar() -> Iterator[Progress | None]:
    """rich's progress bar with room for a note, on standard error; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    named, noted = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), noted)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def say_left_out(left_out: Sequence[LeftOut], as_json: bool) -> None:
    """List what was not used, and why."""
    if left_out:
        say(f"left out: {len(left_out)}", as_json)
        for item in left_out[:_LISTED]:
            say(f"  {item.path}: {item.reason}", as_json)
        if len(left_out) > _LISTED:
            say(f"  ... and {len(left_out) - _LISTED} more (all of them in --json)", as_json)


def say_measures(run: Run) -> None:
    """How good a run is: a table of each class and split, the interval on test, and where it lies."""
    metrics = run.metrics
    rows = [
        [label, *(percent(metrics[split]["per_class"][label]) for split in ("train", "val", "test"))]
        for label in run.config["classes"]
    ]
    rows.append(["all", *(percent(metrics[split]["accuracy"]) for split in ("train", "val", "test"))])
    print_table(["accuracy, %", "train", "val", "test"], rows)
    low, high = metrics["test"]["accuracy_interval"]
    say(
        f"test: {percent(low)} to {percent(high)} % with 95 % confidence (over {metrics['test']['groups']} groups); "
        f"the most frequent class alone gives {percent(metrics['test']['majority'])} %"
    )
    say(f"run: {shown(run.folder)}")
    say_next("report", into=run.folder)


def say_next(verb: str, *arguments: str, into: Path) -> None:
    """Name the command that usually follows, as it works from the current folder.

    into : the project's folder, or one in it
    """
    from featcache.project import PROJECT_FILE, command

    into = into.resolve()
    project = next((folder for folder in (into, *into.parents) if (folder / PROJECT_FILE).is_file()), into)
    say(f"next: {command(verb, *arguments, into=project)}")


def shown(path: Path) -> str:
    """A path for people: from the current folder where it lies in there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def size(n_bytes: int) -> str:
    """1536 -> '1.5 KB'"""
    amount = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """0.034 -> '0.03 s', 3.4 -> '3.4 s', 90 -> '90 s', 400 -> '7 min', 9000 -> '2.5 h'"""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percent(share: float | None) -> str:
    """0.9636 -> '96.36'; '' for None"""
    return "" if share is None else f"{100 * share:.2f}"
