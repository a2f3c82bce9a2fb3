"""The numbers of a report, a line each, for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.reporting.compared import Group
from featcache.reporting.labels import kind_of, mode_of
from featcache.reporting.text import clean


def measures_of(group: Group) -> list[Mapping[str, Any]]:
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
        of_class = ["recall", "precision", "specificity", "f1"]
        of_class += ["roc_auc", "average_precision"] if record.has_several_labels else []
        for name, split in record.splits.items():
            of_all = {
                key: getattr(split, key)
                for key in ("accuracy", "balanced_accuracy", "hamming_loss", "micro_f1", "macro_f1", "loss", "majority")
            }
            parts: list[tuple[str, Any, int | None, int | None]] = [("", split, split.rows, split.groups)]
            parts += [(label, found, found.rows, found.groups) for label, found in split.per_class.items()]
            for label, found, rows, groups in parts:
                values = of_all if not label else {key: getattr(found, key) for key in of_class}
                for measure, value in values.items():
                    if value is None:
                        continue
                    low, high = found.intervals.get(measure, (None, None))
                    counts = {"rows": rows, "groups": groups}
                    told = {"split": name, "class": label, "measure": measure, "value": value, "low": low, "high": high}
                    lines.append({**about, **told, **counts})
    return lines


def mistakes_in(group: Group) -> list[Mapping[str, Any]]:
    """A line for each mistake of each run on plain test images."""
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
