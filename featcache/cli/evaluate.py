"""featcache evaluate"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.hints import in_flags
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, project_option, project_or_none, tta_option, weights_option
from featcache.cli.output import percent, print_json, print_table, say, say_left_out, shown
from featcache.cli.settings import given, options
from featcache.core.project import DatasetSection
from featcache.extraction import ExtractOptions

if TYPE_CHECKING:
    from featcache.prediction import Evaluated

_READ = (
    "class_level",
    "without",
    "label_from",
    "group_from",
    "group_pattern",
    "masks",
    "path_column",
    "label_column",
    "group_column",
)
_BOXES = ("box_columns", "margin", "voc_object")


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """LABEL=CLASS, each as a pair; an empty class stands for none of the run's."""
    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (label, equals, _) in zip(values, pairs, strict=True) if not (label and equals)]:
        raise click.BadParameter(f"{wrong[0]!r}: expected LABEL=CLASS", ctx=context, param=parameter)
    return {label: of_run for label, _, of_run in pairs}


@click.command("evaluate", cls=Command)
@click.argument("run", metavar="RUN")
@option("--on", required=True, metavar="SOURCE", help="Folder or list of labelled images, or a project.")
@option(
    "--map",
    "mapping",
    multiple=True,
    metavar="LABEL=CLASS",
    callback=_pairs,
    help="Which class of the run a label stands for; LABEL= for none of them. Repeatable.",
)
@weights_option
@tta_option
@options(DatasetSection, *_READ, group="How SOURCE is read")
@options(DatasetSection, *_BOXES, group="How SOURCE is read")
@options(ExtractOptions, "engine", "batch_rows", "offline", "strict")
@option("--again", is_flag=True, help="Evaluate again, even if this evaluation exists.")
@project_option
@json_option
def command(
    run: str,
    on: str,
    mapping: dict[str, str],
    weights: str | None,
    tta: int,
    again: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Say how good a trained run is on other labelled images, such as those of another laboratory.

    SOURCE is what `init` reads. Its labels are matched with the classes of the run by name. Images of classes that the
    run does not know are counted apart. The evaluation is a run in results/, and the report shows it.
    """
    from featcache.prediction import evaluate

    done = evaluate(
        run,
        on,
        mapping=mapping,
        project=project_or_none(folder),
        weights=weights,
        tta=tta,
        again=again,
        progress=TERMINAL,
        **given(values, DatasetSection),
        **given(values, ExtractOptions),
    )
    for remark in done.remarks:
        say(in_flags(remark), as_json)
    say_left_out(done.left_out, as_json)
    if as_json:
        print_json(_as_json(done))
    else:
        _say(done)


def _as_json(done: Evaluated) -> dict[str, Any]:
    return {
        "run": done.run.name,
        "path": str(done.run.folder),
        "of": done.run.config["run"],
        "on": done.run.config["on"],
        "reused": done.reused,
        "mapping": dict(done.mapping),
        "measures": dict(done.measures),
        "unknown": dict(done.unknown),
        "unlike": done.unlike,
        "left_out": [{"path": item.path, "reason": item.reason} for item in done.left_out],
    }


def _say(done: Evaluated) -> None:
    found = done.measures
    if done.reused:
        say("this evaluation exists already; --again makes it anew")
    renamed = [f"{theirs} is {ours}" for theirs, ours in done.mapping.items() if ours not in ("", theirs)]
    if renamed:
        say(f"labels: {', '.join(renamed)}")
    rows = [
        [label, f"{of['groups']:,}", *_percents(of, "recall", of["groups"]), *_percents(of, "precision", of["groups"])]
        for label, of in found["per_class"].items()
        if of["rows"]
    ]
    for name, label in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")):
        rows.append([label, f"{found['groups']:,}", *_percents(found, name, found["groups"]), "", ""])
    print_table(["", "groups", "recall, %", "95 %", "precision, %", "95 %"], rows, least=["precision, %"])
    absent = [label for label, of in found["per_class"].items() if not of["rows"]]
    if absent:
        say(f"not there: {', '.join(absent)}; the balanced accuracy is over the others")
    for label, of in done.unknown.items():
        what = f"{of['rows']} {'image' if of['rows'] == 1 else 'images'} of {label}, which the run does not know"
        unlike = f"; {of['unlike']} of them unlike the training images" if of["unlike"] is not None else ""
        say(f"{what}, were named {', '.join(f'{count} {name}' for name, count in of['named'].items())}{unlike}")
    if done.unlike:
        say(f"{percent(done.unlike, of=found['rows'])} % of the judged images are unlike the training images")
    say(f"majority-class baseline: {percent(found['majority'], of=found['groups'])} %")
    say(f"run: {shown(done.run.folder)}")


def _percents(of: Mapping[str, Any], name: str, groups: int) -> list[str]:
    """A measure and its interval."""
    if of[name] is None:
        return ["", ""]
    between = of["intervals"].get(name)
    return [
        percent(of[name], of=groups),
        " to ".join(percent(end, of=groups) for end in between) if between else "",
    ]
