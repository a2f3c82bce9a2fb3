"""What a report says of where its numbers come from: images, costs, versions, digests, commands, and methods."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featcache.core.errors import FeatcacheError
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.datasets import SPLITS, LabelledImage, compared, current_dataset, labels_in, on_two_sides
from featcache.reporting import tables
from featcache.reporting.blocks import Block, Facts, Items, Paragraph, Section, Table
from featcache.reporting.commands import command_of
from featcache.reporting.labels import epochs_of, kind_of
from featcache.reporting.one_run import optimizer_of
from featcache.reporting.records import RunRecord
from featcache.reporting.text import NONE_OF_THEM, clean, counted, listed, number, plain, with_interval
from featcache.store import Manifest, read_manifest

_MOST_LISTED = 30
_SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test", "": "no split"}


def manifests_of(records: Sequence[RunRecord], project: Project | None) -> dict[str, Manifest]:
    """{name: manifest} of the runs' caches that are still there and the same."""
    found = {}
    for record in records if project else ():
        name = record.config.cache_name or ""
        if not name or Path(name).name != name or name in found or project is None:
            continue
        with suppress(FeatcacheError, OSError):
            manifest = read_manifest(project.cache_folder / name)
            if manifest.digest == record.config.cache:
                found[name] = manifest
    return found


# --- costs ---------------------------------------------------------------------------------------


def costs(
    records: Sequence[RunRecord], labels: Mapping[str, str], *, manifests: Mapping[str, Manifest]
) -> Section | None:
    """What extraction and training took, and what the caches saved."""
    blocks: list[Block] = [tables.times(records, labels)]
    rows, saved, spent = [], 0.0, 0.0
    heads = [record for record in records if record.config.kind == "head"]
    for name, manifest in manifests.items():
        uses = [record for record in heads if record.config.cache_name == name]
        ledger = _ledger(manifest, uses)
        if not uses:
            continue
        rows.append((clean(name), *ledger.cells, str(len(uses)), number(ledger.trainings)))
        if ledger.saved is not None:
            saved, spent = saved + ledger.saved, spent + ledger.seconds + ledger.trainings
    if rows:
        headers = (
            "cache",
            "rows computed",
            "rows copied",
            "extraction, s",
            "passes saved",
            "runs",
            "their training, s",
        )
        blocks.append(Table(headers, tuple(rows), n_text=1, title="What the caches took, and what they were used for"))
    if saved:
        blocks.append(
            Paragraph(
                f"Extraction and training of heads took {_hours(spent)}. Without the caches, each epoch would have run "
                f"the network over every training and validation row: some {_hours(saved)} more at the speed of the "
                "extraction. A pass is one image through a network."
            )
        )
    return Section("Time and cost", tuple(blocks), id="cost")


@dataclass(frozen=True)
class _Ledger:
    cells: tuple[str, ...]
    seconds: float
    trainings: float
    saved: float | None


def _ledger(manifest: Manifest, uses: Sequence[RunRecord]) -> _Ledger:
    made = manifest.provenance
    computed, copied, seconds = (_at_least_0(made.get(key)) for key in ("rows_computed", "rows_copied", "seconds"))
    passes = sum(
        (1 if record.is_classical else record.results.epochs)
        * sum(split.rows for name, split in record.splits.items() if name != "test")
        for record in uses
    ) - int(computed)
    saved = max(passes, 0) * seconds / computed if computed else None
    cells = (f"{int(computed):,}", f"{int(copied):,}", number(seconds), f"{max(passes, 0):,}")
    return _Ledger(cells, seconds, sum(record.results.seconds for record in uses), saved)


def _at_least_0(value: Any) -> float:
    return max(float(value), 0.0) if isinstance(value, int | float) else 0.0


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{number(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- images --------------------------------------------------------------------------------------


def images(project: Project, *, near_duplicates: bool, progress: Progress) -> Section:
    """Splits, groups, left-out images and near-duplicates of the data set as it is now."""
    try:
        dataset, skipped = current_dataset(project, progress=progress, keep=False)
    except FeatcacheError as error:
        return Section("Images", (Paragraph(_without(project, str(error)), "note"),), id="images")
    used = dataset.images
    labelled = [(label, image) for image in used for label in _labels_of(image, dataset.label_separator)]
    counts = Counter((label, image.split) for label, image in labelled)
    groups: dict[tuple[str, str], set[str]] = {}
    for label, image in labelled:
        groups.setdefault((label, image.split), set()).add(image.group)
    splits = [*SPLITS, *([""] if any(split == "" for _, split in counts) else [])]
    rows = tuple(
        (clean(label) or "no label", *(_cell(counts[label, split], groups.get((label, split))) for split in splits))
        for label in sorted({label for label, _ in counts})
    )
    headers = ("class", *(_SPLIT_NAMES[split] for split in splits))
    table = Table(headers, rows, n_text=1, title="Images of each class and split; in brackets their groups")
    blocks: list[Block] = [table]
    left_out = [f"{clean(one.path)}: {clean(one.reason)}" for one in skipped]
    if left_out:
        blocks += [Paragraph(f"{counted(len(left_out), 'image')} left out:"), Items(_bounded(left_out))]
    else:
        blocks.append(Paragraph("No image of dataset.csv is left out."))
    if not near_duplicates:
        blocks.append(
            Paragraph(
                "Near-duplicates were not looked for; “featcache dataset check” finds them, and so does a report that "
                "is asked to."
            )
        )
    elif found := compared(used, project.images, progress=progress):
        across = {(pair.a, pair.b) for pair in on_two_sides(used, found)}
        pairs = [
            f"{clean(pair.a)} and {clean(pair.b)}: {100 * pair.share:.0f} % of the pixels"
            + (", on two sides of a split" if (pair.a, pair.b) in across else "")
            for pair in found
        ]
        if across:
            many = counted(len(across), "pair")
            text = f"{many} of images that show the same stand on two sides of a split: measures may be too good."
            text += " “featcache dataset check” can join such images into one group."
            blocks.append(Paragraph(text, "note"))
        many = counted(len(pairs), "pair")
        blocks += [Paragraph(f"{many} of images in different groups that show the same:"), Items(_bounded(pairs))]
    else:
        blocks.append(Paragraph("No two images of different groups show the same pixels."))
    return Section("Images", tuple(blocks), id="images")


def _labels_of(image: LabelledImage, separator: str) -> tuple[str, ...]:
    """What an image counts for: each of its labels, that it has none of them, or "" where nobody labelled it."""
    if not separator or not image.label:
        return (image.label,)
    return labels_in(image.label, separator) or (NONE_OF_THEM,)


def _cell(count: int, groups: set[str] | None) -> str:
    return f"{count:,} ({len(groups):,})" if groups else "0"


def _bounded(lines: Sequence[str]) -> tuple[str, ...]:
    more = len(lines) - _MOST_LISTED
    return (*lines[:_MOST_LISTED], *([f"and {more:,} more"] if more > 0 else []))


def _without(project: Project, text: str) -> str:
    """Text without the project's own folder: a report is sent to others."""
    return clean(text.replace(f"{project.folder}/", "").replace(str(project.folder), "the project"))


# --- provenance ----------------------------------------------------------------------------------


def provenance(
    records: Sequence[RunRecord],
    labels: Mapping[str, str],
    *,
    manifests: Mapping[str, Manifest],
    chosen: RunRecord | None,
) -> Section:
    """Methods to paste, commands, versions and digests."""
    blocks: list[Block] = []
    if chosen is not None:
        blocks += [Paragraph("Methods, to paste:"), Paragraph(methods(chosen), "copy")]
    rows = tuple(
        (
            labels[record.name],
            record.name,
            clean(record.config.weights or ""),
            _weights_digest(record),
            clean(record.config.cache or "")[:16],
            clean(record.config.dataset)[:16],
            clean(record.config.created).replace("T", " ")[:19],
        )
        for record in records
    )
    headers = ("run", "folder", "weights", "digest of weights", "digest of cache", "digest of data set", "created")
    blocks.append(Table(headers, rows, n_text=7, title="Weights and digests (SHA-256, their beginnings)"))
    commands = tuple((labels[record.name], _command(record)) for record in records)
    blocks.append(Table(("run", "command"), commands, n_text=2, title="Commands, with every setting"))
    versions = [(clean(name), _environment(manifest)) for name, manifest in manifests.items()]
    blocks.append(Facts((("this report", _here()), *((f"cache {name}", text) for name, text in versions if text))))
    return Section("How this was made", tuple(blocks), id="provenance")


def _command(record: RunRecord) -> str:
    try:
        return command_of(record)
    except (KeyError, TypeError, ValueError):
        return ""


def _weights_digest(record: RunRecord) -> str:
    space = record.config.recipe.get("space")
    return clean(space.get("weights_digest", ""))[:16] if isinstance(space, Mapping) else ""


def _environment(manifest: Manifest) -> str:
    made = manifest.provenance.get("environment")
    packages = made.get("packages") if isinstance(made, Mapping) else None
    if not isinstance(made, Mapping) or not isinstance(packages, Mapping):
        return ""
    engine = clean(manifest.provenance.get("engine", ""))
    named = ", ".join(f"{clean(name)} {clean(of)}" for name, of in packages.items())
    return f"{engine + ', ' if engine else ''}Python {clean(made.get('python', ''))}, {named}"


def _here() -> str:
    named = [f"Python {platform.python_version()}"]
    for package in ("featcache", "numpy", "scikit-learn", "pandas", "vl-convert-python"):
        with suppress(PackageNotFoundError):
            named.append(f"{package} {version(package)}")
    return ", ".join(named)


def methods(record: RunRecord) -> str:
    """How a run was made and judged, as a paragraph of a paper."""
    config, test = record.config, record.test
    space = config.recipe.get("space")
    space = space if isinstance(space, Mapping) else {}
    classes = listed([clean(label) for label in config.classes[:12]])
    sizes = listed([_split_size(name, split.rows, split.groups) for name, split in record.splits.items()])
    size = (
        f"{plain(space['input_size_px'])} x {plain(space['input_size_px'])} pixels" if "input_size_px" in space else ""
    )
    digest = _weights_digest(record)
    network = f"{plain(config.backbone)} ({plain(config.weights or 'no weights')}"
    network += f"; SHA-256 of the weights {digest}…)" if digest else ")"
    of = f"Images of {counted(len(config.classes), 'class', many='classes')} ({classes})"
    if record.has_several_labels:
        of = f"Images with any number of {len(config.classes)} labels ({classes})"
    parts = [
        f"{of} were divided into {sizes}; images of one group never stood in two of these splits.",
    ]
    if config.kind == "head":
        parts.append(
            f"Features were computed once by the frozen network {network}"
            + (f" from images of {size}" if size else "")
            + (f" with the preprocessing {plain(space['preprocessing'])}" if "preprocessing" in space else "")
            + "."
        )
        what = "A classical head" if record.is_classical else "A head"
        trained = f"{what} ({kind_of(record)}: {optimizer_of(record)}) was trained on them"
    else:
        how = "from random weights" if config.kind == "scratch" else "from pretrained weights"
        trained = f"The network {network} was trained {how} ({optimizer_of(record)})"
    epochs = "" if record.is_classical else f" for {counted(record.results.epochs, 'epoch')}"
    if not record.is_classical and record.results.epochs != epochs_of(record):
        epochs += f" of at most {epochs_of(record):,}"
    parts.append(f"{trained}{epochs}.")
    accuracy = with_interval(test.accuracy, test.intervals.get("accuracy"), cases=test.groups)
    found = f"accuracy was {accuracy} %"
    if record.has_several_labels:
        found = f"all labels were right, and no other was named, for {accuracy} % of the rows"
    parts.append(
        f"On test, {found}. Intervals (95 %) are over groups: Wilson's score interval for as many "
        "independent cases as have the standard error found by leaving out groups. Runs were compared on the same "
        "draws of groups."
    )
    parts.append(f"All computations were made with {_here()}.")
    return " ".join(parts)


def _split_size(name: str, rows: int, groups: int | None) -> str:
    return f"{name} ({counted(rows, 'row')}" + (f" of {counted(groups, 'group')})" if groups is not None else ")")
