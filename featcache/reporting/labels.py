"""What runs are called in a report: by what differs between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.reporting.records import RunRecord
from featcache.reporting.text import clean, counted, plain, shorten

_KINDS = {"head": "head", "scratch": "from scratch", "fine-tune": "fine-tuned"}
WORDS = {"lr": "learning rate", "scale": "feature scale", "dtype": "arithmetic", "input_size_px": "input, px"}
_LAST = ("seed", "weights_digest", "name")
_UNTOLD = ("backbone", "parameters", "output", "rendering", "rendering_version")
_MOST_TOLD, _LONGEST = 3, 60


def kind_of(record: RunRecord) -> str:
    """What was trained, in words: head, from scratch, fine-tuned, or the name of a classical head."""
    return _KINDS.get(record.kind, record.kind)


def mode_of(record: RunRecord) -> str:
    """Runs of one mode compare in one table: head, 100 epochs."""
    if record.is_classical:
        return kind_of(record)
    return f"{kind_of(record)}, {counted(epochs_of(record), 'epoch')}"


def epochs_of(record: RunRecord) -> int:
    """Epochs that were asked for, where that is known; else those that were trained."""
    asked = {**record.config.head, **record.config.training}.get("epochs")
    return asked if isinstance(asked, int) and not isinstance(asked, bool) else record.results.epochs


def labels_of(records: Sequence[RunRecord]) -> dict[str, str]:
    """{name: label}: network and kind, then what tells it from runs of the same network and kind; all differ."""
    families: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        families[clean(record.config.backbone), kind_of(record)].append(record)
    found: dict[str, str] = {}
    for (backbone, kind), members in families.items():
        told = [_told(member) for member in members]
        names = sorted({name for one in told for name in one}, key=lambda name: (name in _LAST, name != "epochs"))
        differing = [name for name in names if len({plain(one.get(name)) for one in told}) > 1][:_MOST_TOLD]
        for member, one in zip(members, told, strict=True):
            more = [_phrase(name, one[name]) for name in differing if one.get(name) not in (None, "")]
            found[member.name] = shorten(", ".join([backbone, kind, *more]), _LONGEST)
    return _unique(found)


def _unique(labels: Mapping[str, str]) -> dict[str, str]:
    """Of equal ones, the end of the run's name is added."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for name, label in labels.items():
        by_label[label].append(name)
    return {
        name: label if len(by_label[label]) == 1 else f"{label} ({shorten(name, 24)})" for name, label in labels.items()
    }


def _told(record: RunRecord) -> dict[str, Any]:
    """All settings of a run by name."""
    space = record.config.recipe.get("space")
    found = {**(space if isinstance(space, dict) else {}), **record.config.head, **record.config.training}
    found |= {"weights": record.config.weights, "solver": record.config.solver}
    if not record.is_classical:
        found["epochs"] = epochs_of(record)
    return {name: value for name, value in found.items() if name not in _UNTOLD and value is not None}


def _phrase(name: str, value: Any) -> str:
    if name == "epochs":
        return counted(value, "epoch") if isinstance(value, int) else plain(value)
    if name in ("weights", "preprocessing", "solver", "optimizer", "schedule"):
        return shorten(plain(value), 20)
    return f"{WORDS.get(name, clean(name).replace('_', ' '))} {shorten(plain(value), 20)}"
