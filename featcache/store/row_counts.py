"""How many rows of each label are in each split: what `info` shows, and the manifest says, so that no table is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError
from featcache.store.layout import DATASET_FILE
from featcache.store.row_keys import RowKeys, places_in
from featcache.store.tables import Coded, Lines, read_keys, read_lines

_MOST = 10_000
"""Of pairs of label and split that a manifest lists."""


def lines_of(keys: RowKeys, lines: Lines) -> NDArray[np.int32]:
    """For each row the line of its image. CacheError where the dataset copy lacks one."""
    places = places_in(keys.images, lines.ids)
    if (places < 0).any():
        raise CacheError(f"{DATASET_FILE} does not name every image of the cache")
    return places[keys.image]


def count_rows(line: NDArray[np.int32], label: Coded, *, split: Coded) -> dict[str, dict[str, int]]:
    """{label: {split: rows}}, by name; only of pairs that there are. line : for each row"""
    n_splits = len(split.values)
    pair = label.number.astype(np.int64) * n_splits + split.number
    rows = np.bincount(line, minlength=len(pair))
    different, of = np.unique(pair[rows > 0], return_inverse=True)
    found: dict[str, dict[str, int]] = {}
    sums = np.bincount(of, weights=rows[rows > 0]).astype(np.int64)
    named = [
        (label.values[number // n_splits], split.values[number % n_splits], total)
        for number, total in zip(different.tolist(), sums.tolist(), strict=True)
    ]
    for of_label, of_split, total in sorted(named):
        found.setdefault(of_label, {})[of_split] = total
    return found


def counts_in(rows_file: Path, dataset_file: Path) -> dict[str, dict[str, int]] | None:
    """`count_rows` of two tables, for a manifest; None where there are too many labels to be listed there."""
    lines = read_lines(dataset_file)
    return short(count_rows(lines_of(read_keys(rows_file), lines), lines.label, split=lines.split))


def short(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]] | None:
    """Counts that a manifest can list; else None."""
    return counts if sum(map(len, counts.values())) <= _MOST else None
