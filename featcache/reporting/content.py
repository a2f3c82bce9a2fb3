"""What a report says, whatever it is written in: runs are read once here, and each writer renders the same blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from featcache.core.errors import RunError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.reporting import charts, provenance, tables
from featcache.reporting.blocks import Block, Card, Facts, Gallery, Items, Paragraph, Report, Section, Table
from featcache.reporting.feature_map import feature_map
from featcache.reporting.judging import Difference, Judgement, Mistake, differ, mistakes_of, read_judgement, shared_by
from featcache.reporting.labels import kind_of, labels_of, mode_of
from featcache.reporting.one_run import section_of
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
from featcache.reporting.text import clean, counted, listed, number, percent, with_interval
from featcache.training import Run

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
_MOST_CARDS, _CARD_PX, _POINT_PX = 24, 176, 88
_MOST_COMPARED = 40
_MOST_SECTIONS = 60
_MOST_NAMED = 6


@dataclass
class _Group:
    """Runs of one data set: what compares.

    judgements : of runs whose predictions can be read; differences : of the chosen run from others on test, by name
    """

    number: int
    records: list[RunRecord]
    labels: dict[str, str]
    chosen: RunRecord | None
    judgements: dict[str, Judgement] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    mistakes: dict[str, list[Mistake]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return clean(self.records[0].config.dataset)[:12] or "without a name"

    def place(self, record: RunRecord) -> str:
        """The run's place on the page."""
        return f"run-{self.number}-{self.records.index(record) + 1}"

    def label(self, record: RunRecord) -> str:
        return self.labels[record.name]


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
    groups = [
        _judged(number, members, problems) for number, members in enumerate(by_dataset(records).values(), start=1)
    ]
    sections: list[Section] = []
    note = tables.dataset_note_of(records)
    for group in groups:
        if note:
            text = note if group.number == 1 else f"Data set {group.dataset}"
            blocks = (Paragraph(text, "note"),)
            sections.append(Section(f"Data set {group.dataset}", blocks, id=f"data-set-{group.number}", level=1))
        sections += _of_group(group, project, pictures, problems=problems)
    labels = {name: label for group in groups for name, label in group.labels.items()}
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
    sections.append(Section("How to read this", tuple(Paragraph(text, "quiet") for text in HOW_TO_READ), id="reading"))
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = clean(project.folder.resolve().name) if project else "featcache report"
    return Report(
        title=title or "featcache report",
        about=f"featcache report on {counted(len(runs), 'run')}, {created}",
        sections=tuple(sections),
        measures=tuple(line for group in groups for line in _measures(group)),
        mistakes=tuple(line for group in groups for line in _mistakes(group)),
    )


def _judged(number: int, records: list[RunRecord], problems: list[Problem]) -> _Group:
    """Runs of one data set, what they said of its images, and how they compare with the chosen one."""
    group = _Group(number, records, labels_of(records), best_by_validation(records))
    for record in records:
        try:
            judgement = read_judgement(record)
        except RunError as error:
            problems.append(Problem(record.name, f"{error}; the rest of the run is shown"))
            continue
        group.judgements[record.name] = judgement
        group.mistakes[record.name] = mistakes_of(judgement)
    first = group.judgements.get(group.chosen.name) if group.chosen else None
    for record in records[:_MOST_COMPARED]:
        other = group.judgements.get(record.name)
        if first is None or other is None or record is group.chosen:
            continue
        if found := differ(first, other):
            group.differences[record.name] = found
    return group


def _of_group(
    group: _Group, project: Project | None, pictures: Pictures | None, *, problems: list[Problem]
) -> list[Section]:
    sections = [_answer(group), _runs(group), _recalls(group)]
    optional = (
        _transfer(group),
        _curves(group, problems),
        _wrong(group, pictures),
        _map(group, project, pictures, problems),
    )
    sections += [made for made in optional if made]
    shown = group.records[:_MOST_SECTIONS]
    sections.append(Section("Every run", (), id=f"every-{group.number}"))
    for record in shown:
        folded = record is not group.chosen and len(group.records) > 1
        sections.append(section_of(record, group.label(record), place=group.place(record), folded=folded))
    return sections


# --- the answer ----------------------------------------------------------------------------------


def _answer(group: _Group) -> Section:
    shown = group.chosen or group.records[0]
    test = shown.test
    classes = shown.config.classes
    names = listed([clean(label) for label in classes[:8]] + ([f"{len(classes) - 8:,} more"] if classes[8:] else []))
    unit = "" if test.groups is None else f" of {counted(test.groups, 'group')}"
    asked = (
        f"Asked: which of {len(classes):,} classes ({names}) does an image show? Judged on {counted(test.rows, 'row')}"
        f"{unit} that no training saw."
    )
    blocks: list[Block] = [Paragraph(asked), Paragraph(_found(group, shown), "answer")]
    blocks.append(Paragraph(" ".join([_why_shown(group, shown), *_comparison(group)])))
    blocks.append(Facts(_key_figures(group, shown), large=True))
    if len(classes) <= tables.MOST_CLASSES:
        blocks.append(_answer_table(shown))
    few = [
        f"{clean(label)} ({found.groups})"
        for label, found in test.per_class.items()
        if found.groups is not None and found.groups < tables.FEW
    ]
    if few:
        more = f" and {len(few) - 12} more" if few[12:] else ""
        blocks.append(
            Paragraph(
                f"Few test originals: {', '.join(few[:12])}{more}. With fewer than {tables.FEW} of a class, its "
                "interval says more than its percentage.",
                "note",
            )
        )
    return Section("Answer", tuple(blocks), id=f"answer-{group.number}")


def _found(group: _Group, shown: RunRecord) -> str:
    test = shown.test
    accuracy = f"{percent(test.accuracy, test.groups)} %"
    if (span := test.intervals.get("accuracy")) is not None:
        low, high = (percent(value, test.groups) for value in span)
        accuracy += f" (95 % interval: {low} to {high} %)"
    text = f"{group.label(shown)}: accuracy {accuracy}"
    if test.majority is not None:
        baseline = percent(test.majority, test.groups)
        text += f"; majority-class baseline: {baseline} %"
    return f"{text}."


def _why_shown(group: _Group, shown: RunRecord) -> str:
    val = shown.results.val
    if val is None or not val.rows:
        return "No run has validation rows to choose by; this is the first one."
    if len(group.records) == 1:
        return "It is the only run."
    return f"Chosen by validation accuracy ({percent(val.accuracy, val.groups)} %)."


def _comparison(group: _Group) -> list[str]:
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


def _key_figures(group: _Group, shown: RunRecord) -> tuple[tuple[str, str], ...]:
    test = shown.test
    pairs = (
        ("balanced accuracy", percent(test.balanced_accuracy, test.groups)),
        ("majority-class baseline", percent(test.majority, test.groups)),
    )
    counts = (("groups in test", f"{test.groups:,}" if test.groups is not None else ""),)
    return (
        *((name, f"{value} %") for name, value in pairs if value),
        *(pair for pair in counts if pair[1]),
        ("runs", f"{len(group.records):,}"),
    )


def _answer_table(shown: RunRecord) -> Table:
    rows = []
    for label in shown.config.classes:
        found = shown.test.per_class.get(label)
        if found is not None:
            cases = found.groups or found.rows
            recall = with_interval(found.recall, found.intervals.get("recall"), cases=cases)
            rows.append((clean(label), recall, f"{cases:,}" if cases is not None else ""))
    title = "Recall of each class on test: how many of its rows are found"
    return Table(("class", "recall, % (95 %)", "test originals"), tuple(rows), n_text=1, title=title)


# --- runs ----------------------------------------------------------------------------------------


def _runs(group: _Group) -> Section:
    blocks: list[Block] = [charts.accuracies(group.records, group.labels, number=group.number)]
    links = {record.name: f"#{group.place(record)}" for record in group.records[:_MOST_SECTIONS]}
    for kind, members in tables.by_kind(group.records).items():
        title = f"{kind.capitalize()}: {counted(len(members), 'run')}, measured on test unless said"
        blocks.append(tables.summary(members, group.labels, title=title, links=links))
    if group.differences and group.chosen is not None:
        rows = tuple(
            (group.labels[name], found.text, found.verdict_of_first) for name, found in group.differences.items()
        )
        title = f"Accuracy on test of “{group.label(group.chosen)}” minus that of others, in points, on the same images"
        blocks.append(
            Table(("other run", "difference (95 %)", "the first is"), rows, n_text=1, n_text_last=1, title=title)
        )
    return Section("Runs", tuple(blocks), id=f"runs-{group.number}")


def _recalls(group: _Group) -> Section:
    blocks: list[Block] = [
        tables.recalls(members, group.labels, title=f"Recall on test, % (95 %): {mode}")
        for mode, members in tables.by_mode(group.records).items()
    ]
    return Section("Recall of each class", tuple(blocks), id=f"recall-{group.number}")


def _transfer(group: _Group) -> Section | None:
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


def _curves(group: _Group, problems: list[Problem]) -> Section | None:
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
    blocks: list[Block] = list(charts.curves(shown, about=about, number=group.number))
    if more:
        blocks.append(Paragraph(f"The curves of {counted(len(more), 'more run')} are left out.", "quiet"))
    return Section("Curves", tuple(blocks), id=f"curves-{group.number}")


# --- mistakes and the map ------------------------------------------------------------------------


def _wrong(group: _Group, pictures: Pictures | None) -> Section | None:
    shown = group.chosen or group.records[0]
    if shown.name not in group.mistakes:
        return None
    wrong = group.mistakes[shown.name]
    title, place = "Mistakes", f"mistakes-{group.number}"
    if not wrong:
        return Section(title, (Paragraph(f"“{group.label(shown)}” makes none on the plain test images."),), id=place)
    others = [{mistake.image_id for mistake in found} for name, found in group.mistakes.items() if name != shown.name]
    cards = []
    for mistake in wrong[:_MOST_CARDS]:
        jpeg = pictures.jpeg(mistake.image_id, _CARD_PX) if pictures else None
        why = "" if jpeg or pictures is None else pictures.missing.get(mistake.image_id, "")
        cards.append(_card(mistake, jpeg, why=why, same=shared_by(mistake, others), others=len(others)))
    many = f"{len(wrong):,} plain test images" if len(wrong) > 1 else "one plain test image"
    said = f"“{group.label(shown)}” is wrong on {many}. The most confident mistakes come first."
    if len(wrong) > _MOST_CARDS:
        said += f" The first {_MOST_CARDS} are shown; report.xlsx lists all of them."
    blocks: list[Block] = [Paragraph(said)]
    if pictures is None:
        blocks.append(Paragraph("Without the project of these images, there are no pictures of them.", "quiet"))
    blocks.append(Gallery("Mistakes on test, the most confident first", tuple(cards)))
    return Section(title, tuple(blocks), id=place)


def _card(mistake: Mistake, jpeg: bytes | None, *, why: str, same: int, others: int) -> Card:
    label, predicted = clean(mistake.label), clean(mistake.predicted)
    lines = [
        ("is", label),
        ("predicted", f"{predicted}, {100 * mistake.confidence:.0f} %"),
        ("file", clean(mistake.path)),
    ]
    if others:
        lines.append(("also wrong", f"{same} of {counted(others, 'other run')}"))
    if why:
        lines.append(("no picture", clean(why)))
    return Card(jpeg, f"{label}, predicted as {predicted}: {clean(mistake.path)}", tuple(lines))


def _map(group: _Group, project: Project | None, pictures: Pictures | None, problems: list[Problem]) -> Section | None:
    heads = [record for record in group.records if record.config.kind == "head" and record.name in group.judgements]
    shown = group.chosen if group.chosen in heads else best_by_validation(heads)
    if shown is None or project is None:
        return None
    try:
        found = feature_map(shown, group.judgements[shown.name], project=project)
    except RunError as error:
        problems.append(Problem(shown.name, str(error).replace(str(project.folder), "the project")))
        return None
    small = {}
    for image_id in found.rows["image_id"] if pictures else ():
        if pictures and (jpeg := pictures.jpeg(image_id, _POINT_PX)):
            small[image_id] = jpeg
    said = (
        f"Features of {clean(shown.config.cache_name)}, averaged over places, of {len(found.rows):,} plain images"
        + (f" of {found.of:,}" if found.is_sample else "")
        + ". Images with like features lie close to each other. "
        + ("Point at one, or tap it, to see it." if small else "")
    )
    return Section(
        "Map of the features",
        (
            Paragraph(said),
            *(charts.of_features(found, method, pictures=small, number=group.number) for method in found.places),
        ),
        id=f"map-{group.number}",
    )


# --- all runs ------------------------------------------------------------------------------------


def _of_all(crossed: Sequence[CrossValidation], runs: Sequence[Run], problems: list[Problem]) -> list[Section]:
    sections = []
    if table := tables.cross_validations_of(crossed):
        sections.append(Section("Cross-validations", (table,), id="cross-validations"))
    if swept := sweeps_of({run.folder.parent for run in runs}, problems):
        sections.append(Section("Sweeps", swept, id="sweeps"))
    return sections


def _measures(group: _Group) -> list[Mapping[str, Any]]:
    """A line for each measure of each split of each run: numbers as they are, for other programs."""
    lines: list[Mapping[str, Any]] = []
    for record in group.records:
        about = {
            "run": record.name,
            "label": group.label(record),
            "kind": kind_of(record),
            "network": clean(record.config.backbone),
            "mode": mode_of(record),
            "data_set": clean(record.config.dataset),
        }
        for name, split in record.splits.items():
            of_all = {
                key: getattr(split, key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "loss", "majority")
            }
            parts: list[tuple[str, Any, int | None, int | None]] = [("", split, split.rows, split.groups)]
            parts += [(label, found, found.rows, found.groups) for label, found in split.per_class.items()]
            for label, found, rows, groups in parts:
                values = (
                    of_all
                    if not label
                    else {key: getattr(found, key) for key in ("recall", "precision", "specificity", "f1")}
                )
                for measure, value in values.items():
                    if value is None:
                        continue
                    low, high = found.intervals.get(measure, (None, None))
                    counts = {"rows": rows, "groups": groups}
                    told = {"split": name, "class": label, "measure": measure, "value": value, "low": low, "high": high}
                    lines.append({**about, **told, **counts})
    return lines


def _mistakes(group: _Group) -> list[Mapping[str, Any]]:
    return [
        {
            "run": name,
            "label": group.labels[name],
            "path": mistake.path,
            "true": mistake.label,
            "predicted": mistake.predicted,
            "confidence": mistake.confidence,
        }
        for name, found in group.mistakes.items()
        for mistake in found
    ]
