"""What a report says, whatever it is written in: runs are read once here, and each writer renders the same blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean

from featcache.core.errors import RunError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.reporting import charts, provenance, tables
from featcache.reporting.answer import answer
from featcache.reporting.blocks import Block, Items, Paragraph, Report, Section, Table
from featcache.reporting.compared import Group, judged
from featcache.reporting.elsewhere import elsewhere
from featcache.reporting.judging import differ
from featcache.reporting.labels import mode_of
from featcache.reporting.measured import measures_of, mistakes_in
from featcache.reporting.one_run import section_of
from featcache.reporting.pictured import map_of, mistakes
from featcache.reporting.pictures import Pictures
from featcache.reporting.records import (
    CrossValidation,
    Problem,
    RunRecord,
    best_by_validation,
    by_dataset,
    read_cross_validations,
    read_history,
    read_records,
)
from featcache.reporting.sweeps import sweeps_of
from featcache.reporting.text import clean, counted, number, percent, with_interval
from featcache.training import EVALUATION, Run

HOW_TO_READ = (
    "Accuracy is the share of a split's rows that got their class; recall is the same of one class. A row is one view "
    "of one image. Loss is the mean cross-entropy in nats. An empty cell: the run does not know the class, or the "
    "split has no row of it.",
    "Intervals (95 %) are over groups (all views of one original, one patient or one slide), since rows of one group "
    "are not independent. Percentages have the decimals that the number of groups carries: of 60, one is 1.7 %.",
    "The majority-class baseline is the accuracy of always naming the most frequent class. Balanced accuracy is the "
    "mean recall of the classes, and does not gain from frequent ones.",
    "The run shown first is chosen by validation accuracy, never by test: the best of many on test flatters itself. "
    "Two runs differ only if the interval of their difference, on the same test images, leaves out zero; else they are "
    "not distinguishable. Each comparison is made by itself: of twenty runs that are equally good, one will seem "
    "different.",
    "Curves of training are measured during the epoch with dropout on, so they may run below validation; the tables' "
    "measures of training are of the finished model, without dropout. Long curves show the lowest and the highest "
    "value of each stretch.",
    "Confidence is the probability of the named class. It is calibrated if what is said with 80 % is right in 80 of "
    "100 cases; the expected calibration error is the mean gap.",
)
OF_SEVERAL_LABELS = (
    "Where an image may have several labels, each label is told by itself, and named where its probability is above "
    "one half. Exact match is the share of rows that got all of their labels and no other. Hamming loss is the share "
    "of all decisions, one for each row and label, that are wrong. Micro F1 is that of all these decisions together, "
    "macro F1 the mean of the labels. Loss is the mean binary cross-entropy in nats. The baseline is the exact match "
    "of always naming the most frequent combination of labels."
)
_MOST_SECTIONS = 60


def gather(
    runs: Sequence[Run],
    *,
    project: Project | None = None,
    near_duplicates: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Read runs and say what a report says of them. What cannot be read is listed, with the reason."""
    crossed, others, damaged = read_cross_validations(runs)
    records, problems = read_records(others)
    problems += damaged
    pictures = Pictures.of(project)
    evaluations = [record for record in records if record.config.kind == EVALUATION]
    records = [record for record in records if record.config.kind != EVALUATION]
    groups = [
        judged(number, members, problems=problems)
        for number, members in enumerate(by_dataset(records).values(), start=1)
    ]
    sections: list[Section] = []
    note = tables.dataset_note_of(records)
    for group in groups:
        if note:
            blocks = (Paragraph(note, "note"),) if group.number == 1 else ()
            sections.append(Section(f"Data set {group.dataset}", blocks, id=f"data-set-{group.number}", level=1))
        sections += _of_group(group, project, pictures, problems=problems)
    labels = {name: label for group in groups for name, label in group.labels.items()}
    sections += elsewhere(evaluations, {record.name: record for record in records}, labels=labels)
    sections += _of_all(crossed, runs, problems)
    manifests = provenance.manifests_of(records, project)
    if records:
        made = provenance.costs(records, labels, manifests=manifests)
        sections += [made] if made else []
    if project is not None:
        sections.append(provenance.images(project, near_duplicates=near_duplicates, progress=progress))
    if records:
        chosen = groups[0].chosen or records[0]
        sections.append(provenance.provenance(records, labels, manifests=manifests, chosen=chosen))
    if problems:
        leads, reasons = (tuple(getattr(problem, name) for problem in problems) for name in ("name", "reason"))
        sections.append(Section("Not readable", (Items(reasons, leads),), id="problems"))
    several = any(record.has_several_labels for record in records)
    told = (*HOW_TO_READ, OF_SEVERAL_LABELS) if several else HOW_TO_READ
    sections.append(Section("How to read this", tuple(Paragraph(text, "quiet") for text in told), id="reading"))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = clean(project.folder.resolve().name) if project else "featcache report"
    return Report(
        title=title or "featcache report",
        about=f"featcache report on {counted(len(runs), 'run')}, {created}",
        sections=tuple(sections),
        measures=tuple(line for group in groups for line in measures_of(group)),
        mistakes=tuple(line for group in groups for line in mistakes_in(group)),
    )


def _of_group(
    group: Group, project: Project | None, pictures: Pictures | None, *, problems: list[Problem]
) -> list[Section]:
    sections = [answer(group), _runs(group), _recalls(group)]
    optional = (
        _transfer(group),
        _curves(group, problems),
        mistakes(group, pictures),
        map_of(group, project, pictures=pictures, problems=problems),
    )
    sections += [made for made in optional if made]
    shown = group.records[:_MOST_SECTIONS]
    sections.append(Section("Every run", (), id=f"every-{group.number}"))
    for record in shown:
        folded = record is not group.chosen and len(group.records) > 1
        sections.append(section_of(record, group.label(record), place=group.place(record), folded=folded))
    return sections


# --- runs ----------------------------------------------------------------------------------------


def _runs(group: Group) -> Section:
    blocks: list[Block] = [charts.accuracies(group.records, group.labels, number=group.number)]
    links = {record.name: f"#{group.place(record)}" for record in group.records[:_MOST_SECTIONS]}
    for kind, members in tables.by_kind(group.records).items():
        title = f"{kind.capitalize()}: {counted(len(members), 'run')}, measured on test unless said"
        blocks.append(tables.summary(members, group.labels, title=title, links=links))
    if group.differences and group.chosen is not None:
        rows = tuple(
            (group.labels[name], found.text, found.verdict_of_first) for name, found in group.differences.items()
        )
        title = f"{group.chosen.accuracy_is.capitalize()} on test of “{group.label(group.chosen)}” minus that of others"
        title += ", in points, on the same images"
        blocks.append(
            Table(("other run", "difference (95 %)", "the first is"), rows, n_text=1, n_text_last=1, title=title)
        )
    return Section("Runs", tuple(blocks), id=f"runs-{group.number}")


def _recalls(group: Group) -> Section:
    blocks: list[Block] = [
        tables.recalls(members, group.labels, title=f"Recall on test, % (95 %): {mode}")
        for mode, members in tables.by_mode(group.records).items()
    ]
    return Section("Recall of each class", tuple(blocks), id=f"recall-{group.number}")


def _transfer(group: Group) -> Section | None:
    """Heads and fine-tuned networks against the same networks trained from scratch."""
    rows = []
    pairs: dict[str, list[tuple[RunRecord, RunRecord]]] = {}
    networks: dict[str, list[RunRecord]] = {}
    for record in group.records:
        networks.setdefault(clean(record.config.backbone), []).append(record)
    for network, members in networks.items():
        scratch = best_by_validation([record for record in members if record.config.kind == "scratch"])
        for kind, runs in tables.by_kind([record for record in members if record.config.kind != "scratch"]).items():
            best = best_by_validation(runs)
            if scratch is None or best is None:
                continue
            sides = [group.judgements.get(record.name) for record in (best, scratch)]
            found = differ(sides[0], sides[1]) if sides[0] and sides[1] else None
            accuracies = (
                with_interval(one.test.accuracy, one.test.intervals.get("accuracy"), cases=one.test.groups)
                for one in (best, scratch)
            )
            losses = (number(one.test.loss) for one in (best, scratch))
            compared = (found.text, found.verdict_of_first) if found else ("", "")
            rows.append((network, kind, *accuracies, *losses, *compared))
            pairs.setdefault(kind, []).append((best, scratch))
    if not rows:
        return None
    headers = (
        "network",
        "transfer by",
        "transfer, % (95 %)",
        "scratch, % (95 %)",
        "loss of transfer",
        "loss of scratch",
        "difference (95 %)",
        "transfer is",
    )
    title = "Accuracy on test; of several runs of a network, the one with the highest validation accuracy"
    table = Table(headers, tuple(rows), n_text=2, n_text_last=1, title=title, foot=_means(pairs))
    return Section("Transfer against scratch", (table,), id=f"transfer-{group.number}")


def _means(pairs: Mapping[str, Sequence[tuple[RunRecord, RunRecord]]]) -> tuple[tuple[str, ...], ...]:
    """Means over networks of the same kind of transfer, and of scratch."""
    lines = []
    for kind, found in pairs.items():
        if len(found) < 2:
            continue
        cases = min(record.test.groups or 0 for pair in found for record in pair)
        sides = [[pair[side].test for pair in found] for side in (0, 1)]
        accuracies = (percent(fmean(one.accuracy for one in side), cases) for side in sides)
        losses = (number(tables.mean_of([one.loss for one in side])) for side in sides)
        lines.append((f"mean of {len(found)} networks", kind, *accuracies, *losses, "", ""))
    return tuple(lines)


def _curves(group: Group, problems: list[Problem]) -> Section | None:
    histories = {}
    for record in group.records:
        if record.is_classical:
            continue  # no epochs, no curves
        try:
            histories[group.label(record)] = read_history(record.run)
        except RunError as error:
            problems.append(Problem(record.name, f"{error}; left out of the curves"))
    if not histories:
        return None
    more = list(histories)[charts.MOST_LINES :]
    shown = {label: histories[label] for label in list(histories)[: charts.MOST_LINES]}
    about = {group.label(record): (clean(record.config.backbone), mode_of(record)) for record in group.records}
    accuracy_is = group.records[0].accuracy_is
    blocks: list[Block] = list(charts.curves(shown, about=about, accuracy_is=accuracy_is, number=group.number))
    if more:
        blocks.append(Paragraph(f"The curves of {counted(len(more), 'more run')} are left out.", "quiet"))
    return Section("Curves", tuple(blocks), id=f"curves-{group.number}")


# --- all runs ------------------------------------------------------------------------------------


def _of_all(crossed: Sequence[CrossValidation], runs: Sequence[Run], problems: list[Problem]) -> list[Section]:
    sections = []
    if table := tables.cross_validations_of(crossed):
        sections.append(Section("Cross-validations", (table,), id="cross-validations"))
    if swept := sweeps_of({run.folder.parent for run in runs}, problems):
        sections.append(Section("Sweeps", swept, id="sweeps"))
    return sections
