"""featcache cross-validate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.head_options import SWEPT, asked_cache, cache_option, kind_option, swept_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import MOST_CLASSES, percent, print_json, print_table, say, shown
from featcache.cli.settings import given, options
from featcache.heads import HeadConfig, Protocol
from featcache.measures import FEW_GROUPS

if TYPE_CHECKING:
    from featcache.training import Run

_SHOWN = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "hamming_loss": "Hamming loss, %",
    "micro_f1": "micro F1, %",
    "macro_f1": "macro F1, %",
    "weighted_f1": "weighted F1, %",
    "roc_auc": "ROC AUC, %",
    "average_precision": "average precision, %",
    "kappa": "kappa, %",
    "mcc": "MCC, %",
    "calibration_error": "calibration error, %",
}


@click.command("cross-validate", cls=Command)
@cache_option
@kind_option
@options(Protocol, "folds", "repeats", "leave_group_out", "test_on", "judge", group="Folds")
@swept_options
@option(
    "--tune",
    metavar="NAME[,NAME]",
    default="",
    group="Settings to try",
    help="Also choose these by inner folds, among usual values: batch, dropout, epochs, hidden, l2, lr, momentum.",
)
@options(Protocol, "inner_folds", group="Settings to try")
@option(
    "--without-test",
    is_flag=True,
    group="Folds",
    help="Leave out the images of the split test, to choose by the result without having seen them.",
)
@option("--again", is_flag=True, group="Run", help="Begin anew, even if this run exists.")
@project_option
@json_option
def command(
    cache: str | None,
    kind: str,
    preset: str,
    tune: str,
    without_test: bool,
    again: bool,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Judge every image by heads that were not trained on its group.

    The images are divided into folds by group, and each fold is judged by a head that was trained on all others.
    Splits do not matter, but with --without-test. All heads share one Gram matrix. Settings with several values, as in
    --lr 0.001,0.003, are chosen by inner folds of the training images. After an interruption, run the same command
    again to continue.
    """
    from featcache.api import cross_validate
    from featcache.heads import TUNED

    swept = {name: values[name] for name in SWEPT if values[name] is not None}
    tried = {name: TUNED.get(name, ()) for name in map(str.strip, tune.split(",")) if name}
    tried |= {name: of for name, of in swept.items() if len(of) > 1 or name in tried}
    single = {name: of[0] for name, of in swept.items() if name not in tried}
    settings = {name: value for name, value in given(values, HeadConfig).items() if name not in swept}
    project = open_project(folder)
    run = cross_validate(
        project,
        cache=asked_cache(project, cache, as_json=as_json),
        head=kind,
        preset=preset,
        tune=tried,
        without_test=without_test,
        again=again,
        progress=TERMINAL,
        **given(values, Protocol),
        **settings,
        **single,
    )
    if as_json:
        print_json(_as_json(run))
    else:
        _say(run)


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "path": str(run.folder),
        "cache": run.fitted.cache,
        "reused": run.fitted.reused,
        "resumed_at": run.fitted.resumed_at,
        **{name: value for name, value in run.metrics.items() if name != "format"},
    }


def _say(run: Run) -> None:
    found = run.metrics
    again = ": this run exists already; --again begins anew" if run.fitted.reused else ""
    say(
        f"{run.name}{again}: {found['folds']} folds x {found['repeats']} on {run.fitted.cache}, {found['trainings']} "
        f"trainings, {found['seconds']:.1f} s; {found['images']} images of {found['groups']} groups"
    )
    has_several = bool(run.config.get("label_separator"))
    names = {**_SHOWN, "accuracy": "exact match, %"} if has_several else _SHOWN
    measures = [(label, found["measures"][name]) for name, label in names.items() if name in found["measures"]]
    n = found["groups"]
    print_table(["", "mean", "95 %"], [[label, *_percents(of, n)] for label, of in measures])
    classes = sorted(found["per_class"].items(), key=lambda item: item[1].get("recall", {}).get("mean", 1.0))
    rows = [
        [label, str(of["images"]), *_percents(of.get("recall"), n), *_percents(of.get("precision"), n)]
        for label, of in classes[:MOST_CLASSES]
    ]
    if more := len(classes) - len(rows):
        rows.append([f"... and {more:,} more classes, better", "", "", "", "", ""])
    print_table(["class", "images", "recall, %", "95 %", "precision, %", "95 %"], rows)
    few = [label for label, of in classes if of["groups"] < FEW_GROUPS]
    if few:
        say(f"fewer than {FEW_GROUPS} groups, so wide intervals: {', '.join(few[:MOST_CLASSES])}")
    baseline = "always the most frequent combination of labels" if has_several else "majority-class baseline"
    say(f"{baseline}: {percent(found['majority'], of=n)} %")
    say(f"run: {shown(run.folder)}")


def _percents(of: dict[str, float] | None, groups: int) -> list[str]:
    """A mean and its interval; a mean over repeats carries a decimal more than its interval."""
    if of is None:
        return ["", ""]
    return [f"{100 * of['mean']:.1f}", " to ".join(percent(of[end], of=groups) for end in ("low", "high"))]
