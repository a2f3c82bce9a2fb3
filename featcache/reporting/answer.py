"""The first screen of a report: what was asked, and the answer with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.measures import FEW_GROUPS
from featcache.reporting import tables
from featcache.reporting.blocks import Block, Facts, Paragraph, Section, Table
from featcache.reporting.compared import Group
from featcache.reporting.records import (
    RunRecord,
)
from featcache.reporting.text import clean, counted, listed, percent, with_interval

_MOST_NAMED = 6


def answer(group: Group) -> Section:
    """What was asked, the answer of the run chosen on validation, and how others compare with it."""
    shown = group.chosen or group.records[0]
    test = shown.test
    classes = shown.config.classes
    names = listed([clean(label) for label in classes[:8]] + ([f"{len(classes) - 8:,} more"] if classes[8:] else []))
    unit = "" if test.groups is None else f" of {counted(test.groups, 'group')}"
    asked = f"which of {len(classes):,} classes ({names}) does an image show?"
    if shown.has_several_labels:
        asked = f"which of {len(classes):,} labels ({names}) does an image have? It may have several, or none."
    asked = f"Asked: {asked} Judged on {counted(test.rows, 'row')}{unit} that no training saw."
    blocks: list[Block] = [Paragraph(asked), Paragraph(_found(group, shown), "answer")]
    blocks.append(Paragraph(" ".join([_why_shown(group, shown), *_comparison(group)])))
    blocks.append(Facts(_key_figures(group, shown), large=True))
    if len(classes) <= tables.MOST_CLASSES:
        blocks.append(_answer_table(shown))
    few = [
        f"{clean(label)} ({found.groups})"
        for label, found in test.per_class.items()
        if found.groups is not None and found.groups < FEW_GROUPS
    ]
    if few:
        more = f" and {len(few) - 12} more" if few[12:] else ""
        blocks.append(
            Paragraph(
                f"Few test originals: {', '.join(few[:12])}{more}. With fewer than {FEW_GROUPS} of a class, its "
                "interval says more than its percentage.",
                "note",
            )
        )
    return Section("Answer", tuple(blocks), id=f"answer-{group.number}")


def _found(group: Group, shown: RunRecord) -> str:
    test = shown.test
    accuracy = f"{percent(test.accuracy, test.groups)} %"
    if (span := test.intervals.get("accuracy")) is not None:
        low, high = (percent(value, test.groups) for value in span)
        accuracy += f" (95 % interval: {low} to {high} %)"
    text = f"{group.label(shown)}: accuracy {accuracy}"
    if shown.has_several_labels:
        text = f"{group.label(shown)}: all labels right, and no other, for {accuracy} of the rows"
    if test.majority is not None:
        baseline = percent(test.majority, test.groups)
        text += f"; {_baseline(shown)}: {baseline} %"
    return f"{text}."


def _why_shown(group: Group, shown: RunRecord) -> str:
    val = shown.results.val
    if val is None or not val.rows:
        return "No run has validation rows to choose by; this is the first one."
    if len(group.records) == 1:
        return "It is the only run."
    return f"Chosen by validation {group.records[0].accuracy_is} ({percent(val.accuracy, val.groups)} %)."


def _comparison(group: Group) -> list[str]:
    """How other runs compare with the chosen one, in sentences."""
    told = {"not distinguishable": [], "higher": [], "lower": []}  # type: dict[str, list[str]]
    for name, found in group.differences.items():
        told[found.verdict].append(group.labels[name])
    sentences = []
    if len(told["not distinguishable"]) == len(group.records) - 1 > 1:
        return [f"On test it is not distinguishable from any of the {len(group.records) - 1} other runs."]
    if told["not distinguishable"]:
        sentences.append(f"On test it is not distinguishable from {_some(told['not distinguishable'])}.")
    if told["higher"]:
        sentences.append(f"It is more accurate on test than {_some(told['higher'])}.")
    if told["lower"]:
        sentences.append(f"It is less accurate on test than {_some(told['lower'])}.")
    return sentences


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - _MOST_NAMED
    quoted = [f"“{label}”" for label in labels[:_MOST_NAMED]]
    return listed([*quoted, *([f"{more} more runs" if more > 1 else "one more run"] if more > 0 else [])])


def _key_figures(group: Group, shown: RunRecord) -> tuple[tuple[str, str], ...]:
    test = shown.test
    pairs = (
        ("balanced accuracy", percent(test.balanced_accuracy, test.groups)),
        ("wrong decisions on labels (Hamming loss)", percent(test.hamming_loss, test.groups)),
        ("micro F1", percent(test.micro_f1, test.groups)),
        ("macro F1", percent(test.macro_f1, test.groups) if shown.has_several_labels else ""),
        (_baseline(shown), percent(test.majority, test.groups)),
    )
    counts = (("groups in test", f"{test.groups:,}" if test.groups is not None else ""),)
    return (
        *((name, f"{value} %") for name, value in pairs if value),
        *(pair for pair in counts if pair[1]),
        ("runs", f"{len(group.records):,}"),
    )


def _baseline(shown: RunRecord) -> str:
    """What always naming the same is called."""
    return "always the most frequent combination" if shown.has_several_labels else "majority-class baseline"


def _answer_table(shown: RunRecord) -> Table:
    names = ("recall", "precision") if shown.has_several_labels else ("recall",)
    rows = []
    for label in shown.config.classes:
        found = shown.test.per_class.get(label)
        if found is not None:
            cases = found.groups or found.rows
            shares = (with_interval(getattr(found, name), found.intervals.get(name), cases=cases) for name in names)
            rows.append((clean(label), *shares, f"{cases:,}" if cases is not None else ""))
    title = "Recall of each class on test: how many of its rows are found"
    if shown.has_several_labels:
        title = "Each label on test: how many of its rows are found (recall), and how often it is named rightly"
    first = "label" if shown.has_several_labels else "class"
    headers = (first, *(f"{name}, % (95 %)" for name in names), "test originals")
    return Table(headers, tuple(rows), n_text=1, title=title)
