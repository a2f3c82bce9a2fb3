"""One run's part of a report: what it is, how good it is, and what it takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from featcache.core.errors import RunError
from featcache.reporting import charts, figures, tables
from featcache.reporting.blocks import OF_ONE_RUN, Block, Facts, Image, Items, Paragraph, Section
from featcache.reporting.judging import confused_most
from featcache.reporting.labels import WORDS, kind_of
from featcache.reporting.records import Measures, RunRecord
from featcache.reporting.text import clean, counted, number, plain

_MOST_NAMED = 30
_MOST_IN_TABLE = 12
"""Classes of a confusion matrix that is a table; larger ones are pictures."""


def section_of(record: RunRecord, label: str, *, place: str, folded: bool) -> Section:
    """A run's section."""
    blocks: list[Block] = [tables.classes_of(record)]
    blocks.append(_confusion(record))
    confused = tuple(clean(sentence) for sentence in confused_most(record))
    if confused:
        blocks += [Paragraph("Most confused on test:"), Items(confused)]
    found = record.results.calibration
    chart = charts.calibration(found, place) if found else None
    if chart:
        blocks.append(chart)
    with suppress(RunError):  # a damaged history is in the list of what could not be read
        if record.run.course:
            blocks.append(Paragraph(f"Its training: {record.run.course}."))
    blocks += [tables.splits_of(record), Facts(facts(record))]
    return Section(label, tuple(blocks), id=place, level=OF_ONE_RUN, folded=folded)


def _confusion(record: RunRecord) -> Block:
    classes = record.config.classes
    if record.has_several_labels:
        return tables.of_each_label(record)
    if len(classes) <= _MOST_IN_TABLE:
        return tables.confusion(record)
    data = figures.confusion_matrix(record.test.confusion, classes)
    right = sum(row[place] for place, row in enumerate(record.test.confusion))
    alt = f"Confusion matrix of {record.name} on test: {right:,} of {record.test.rows:,} rows right"
    return image_of(f"confusion-{record.name}.png", data, alt=alt)


def image_of(name: str, data: bytes, *, alt: str) -> Image:
    """A PNG image with the size that its header gives. Raises RunError for anything else."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        raise RunError(f"{name}: not a PNG image")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    return Image(name, data, (width, height), alt)


def facts(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """What a run is, as (name, value) pairs; what its kind does not have is left out."""
    config, results = record.config, record.results
    space = config.recipe.get("space")
    space = space if isinstance(space, dict) else {}
    input_ = [f"{plain(space['input_size_px'])} px" if "input_size_px" in space else ""]
    said = ("preprocessing", "layer", "pooling", "tokens", "segmentation")
    input_ += [f"{key} {plain(space[key])}" for key in said if key in space]
    seconds = f"{number(results.seconds)} s"
    if results.s_per_epoch is not None and not record.is_classical:
        seconds += f", {number(results.s_per_epoch)} s an epoch"
    solver = plain(config.solver or "")
    pairs = (
        ("run", record.name),
        ("trained", kind_of(record)),
        ("backbone", plain(config.backbone)),
        ("weights", plain(config.weights or "")),
        ("input", ", ".join(part for part in input_ if part)),
        ("cache", plain(config.cache_name or "")),
        ("head", _layers(record)),
        ("optimizer", optimizer_of(record)),
        ("solver", f"{solver} ({plain(config.why)})" if solver and config.why else solver),
        ("cores", _cores(record)),
        ("classes", _some(config.classes)),
        ("data", "; ".join(_size(name, split) for name, split in record.splits.items())),
        ("data set", clean(config.dataset)[:12]),
        ("time", seconds),
        ("created", clean(config.created).replace("T", " ").replace("+00:00", " UTC")),
    )
    return tuple((name, value) for name, value in pairs if value)


def _cores(record: RunRecord) -> str:
    if record.config.cores is None or record.is_classical:
        return ""
    by_keras = record.config.solver not in ("gram", "block")
    return f"{record.config.cores}" + ("; on another number the last digits differ" if by_keras else "")


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED:,} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(clean(label) for label in labels[:_MOST_NAMED]) + more


def _size(name: str, split: Measures) -> str:
    groups = "" if split.groups is None else f" of {counted(split.groups, 'group')}"
    return f"{name} {counted(split.rows, 'row')}{groups}"


def _layers(record: RunRecord) -> str:
    head = record.config.head
    hidden = head.get("hidden")
    if not isinstance(hidden, list):
        return ""
    dropout = f", Dropout({plain(head['dropout'])})" if head.get("dropout") else ""
    layers = [f"Dense({plain(units)}, ReLU){dropout}" for units in hidden]
    output = plain(head.get("output") or "softmax")
    return ", ".join([*layers, f"Dense({len(record.config.classes)}, {output})"])


def optimizer_of(record: RunRecord) -> str:
    """Every setting in use that layers do not show; the study's words for those that it names."""
    settings = {**record.config.head, **record.config.training}
    settings = {name: value for name, value in settings.items() if name not in ("hidden", "dropout", "kind")}
    unused = {
        *(("step_epochs", "step_factor") if settings.get("schedule", "step") != "step" else ()),
        *(("weight_decay",) if settings.get("optimizer") in ("sgd", "adam", "rmsprop") and record.config.head else ()),
    }
    used = {
        name: value
        for name, value in settings.items()
        if name not in unused and (name == "seed" or value not in (0, None, "none", False, []))
    }
    first = [clean(used.pop("optimizer")).upper()] if "optimizer" in used else ["SGD"] if "lr" in used else []
    return ", ".join([*first, *(f"{WORDS.get(key, _words(key))} {plain(value)}" for key, value in used.items())])


def _words(name: str) -> str:
    return clean(name).replace("_", " ")
