"""What commands print: tables for people, one JSON object for machines, progress on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from featcache.core.shown import printable
from featcache.measures import FEW_GROUPS, decimals

if TYPE_CHECKING:
    from featcache.datasets import LeftOut
    from featcache.training import Run

_LISTED = 8
_WIDE = 160
"""Columns of a table that goes into a file or a pipe."""

_GAP = 2
MOST_CLASSES = 30
"""Classes that a table in the terminal lists."""


def say(message: str, as_json: bool = False) -> None:
    """A line for people: on standard output, or on standard error where that belongs to machines.

    The one printer of messages: names, labels and what servers say come from strangers, and all of it is `printable`.
    """
    click.echo(printable(message), err=as_json)


def print_json(value: Any) -> None:
    """The last thing on standard output: one JSON value on one line, in ASCII, which every pipe carries."""
    click.echo(json.dumps(value, allow_nan=False))


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numbers: bool = True,
    least: Sequence[str] = (),
) -> None:
    """A table on standard output; columns behind the first are aligned right where they hold numbers.

    least : columns that a narrow terminal can do without, the least important first
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # cells are text as it is: [red] and :cat: are names like any other

    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    shown = [[printable(cell) for cell in row] for row in rows]
    kept, dropped = _fitting(headers, shown, console.width, least)
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number in kept:
        justify: Literal["left", "right"] = "right" if number and numbers else "left"
        table.add_column(Text(headers[number]), justify=justify, overflow="fold")
    for row in shown:
        table.add_row(*(Text(row[number]) for number in kept))
    console.print(table)
    if dropped:
        say(f"(hidden in {console.width} columns: {', '.join(dropped)}; --json has all)")


def _fitting(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, least: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Numbers of the columns that fit side by side, as far as `least` allows; and those that do not."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    dropped: list[str] = []
    for name in least:
        kept = [number for number, header in enumerate(headers) if header not in dropped]
        if sum(widths[number] for number in kept) + _GAP * (len(kept) - 1) <= width:
            break
        dropped.append(name)
    return [number for number, header in enumerate(headers) if header not in dropped], dropped


def print_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    """A table of the images of each class and split; of many classes the first."""
    rows = [[label, *map(str, of.values())] for label, of in islice(counts.items(), MOST_CLASSES)]
    if more := len(counts) - len(rows):
        rows.append([f"... and {more:,} more classes", "", "", ""])
    print_table(["class", "train", "val", "test"], rows)


def say_left_out(left_out: Sequence[LeftOut], as_json: bool) -> None:
    """List what was not used, and why."""
    if left_out:
        say(f"left out: {len(left_out)}", as_json)
        for item in left_out[:_LISTED]:
            say(f"  {item.path}: {item.reason}", as_json)
        if len(left_out) > _LISTED:
            say(f"  ... and {len(left_out) - _LISTED} more (all of them in --json)", as_json)


def say_measures(run: Run) -> None:
    """How good a run is: its course in words, a table of each class and split with intervals on test, where it lies."""
    metrics = run.metrics
    splits = ("train", "val", "test")
    if run.course:
        say(run.course)
    classes = run.config["classes"]
    if len(classes) > MOST_CLASSES:
        worst = {label: of["recall"] for label, of in metrics["val"]["per_class"].items()}
        classes = sorted(classes, key=lambda label: 1.0 if worst[label] is None else worst[label])[:MOST_CLASSES]
    rows = [
        _line(label, [metrics[split]["per_class"][label] for split in splits], measure="recall") for label in classes
    ]
    if more := len(run.config["classes"]) - len(classes):
        rows.append([f"... and {more:,} more, better on val", *[""] * 5])
    has_several = bool(run.config.get("label_separator"))
    rows.append(
        _line("exact match" if has_several else "accuracy", [metrics[split] for split in splits], measure="accuracy")
    )
    print_table(["recall, %", *splits, "95 % on test", "test groups"], rows, least=["train", "test groups"])
    counts = {label: of.get("groups") for label, of in metrics["test"]["per_class"].items()}
    few = [label for label, groups in counts.items() if groups is not None and groups < FEW_GROUPS]
    if few:
        named = ", ".join(few[:_LISTED]) + (f" and {len(few) - _LISTED} more" if len(few) > _LISTED else "")
        say(f"fewer than {FEW_GROUPS} groups on test, so wide intervals: {named}; `cross-validate` judges all images")
    if has_several:
        names = {"Hamming loss": "hamming_loss", "micro F1": "micro_f1", "macro F1": "macro_f1"}
        test = metrics["test"]
        of_labels = ", ".join(f"{name} {percent(test[key], of=test['groups']) or '-'} %" for name, key in names.items())
        say(f"on test: {of_labels}")
    baseline = "always the most frequent combination of labels" if has_several else "majority-class baseline"
    say(f"{baseline}: {percent(metrics['test']['majority'], of=metrics['test'].get('groups'))} % on test")
    say(f"run: {shown(run.folder)}")
    say_next("report", into=run.folder)


def _line(name: str, splits: Sequence[Mapping[str, Any]], *, measure: str) -> list[str]:
    """Name, a measure of each split, its interval on the last one, and the groups of that; runs of version 0.1 do not
    know all of them."""
    groups, interval = splits[-1].get("groups"), splits[-1].get("intervals", {}).get(measure)
    between = " to ".join(percent(end, of=groups) for end in interval) if interval else ""
    shares = [percent(one[measure], of=one.get("groups")) for one in splits]
    return [name, *shares, between, "" if groups is None else f"{groups:,}"]


def say_next(verb: str, *arguments: str, into: Path) -> None:
    """Name the command that usually follows, as it works from the current folder.

    into : the project's folder, or one in it
    """
    from featcache.core.files import resolved
    from featcache.core.project import PROJECT_FILE

    into = resolved(into)
    project = next((folder for folder in (into, *into.parents) if (folder / PROJECT_FILE).is_file()), into)
    place = [] if Path.cwd().is_relative_to(project) else ["-C", shown(project)]
    say(f"next: {shlex.join(['featcache', verb, *arguments, *place])}")


def shown(path: Path) -> str:
    """A path for people: from the current folder where it lies in there."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def percent(share: float | None, *, of: int | None = None) -> str:
    """0.9636 -> '96.36'; '' for None

    of : images or groups that it is a share of, or a mean over: with the decimals that they carry, '96' of 40
    """
    return "" if share is None else f"{100 * share:.{2 if of is None else decimals(of)}f}"
