"""Sweeps in a folder of runs, as a report shows them."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from featcache.core.errors import RunError
from featcache.core.files import visible_folders
from featcache.core.strict_json import MAX_TEXT_BYTES, read_bounded, read_json
from featcache.reporting import charts
from featcache.reporting.blocks import Block, Paragraph, Table
from featcache.reporting.records import Problem
from featcache.reporting.text import clean, counted, number, plain

SWEEP_FILE, HEADS_FILE = "sweep.json", "heads.csv"
"""As `featcache.heads.sweep` writes them."""
_MOST_ROWS = 30


def sweeps_of(folders: Collection[Path], problems: list[Problem]) -> tuple[Block, ...]:
    """What each sweep found; those that cannot be read are added to `problems`."""
    blocks: list[Block] = []
    for folder in (folder for parent in sorted(folders) for folder in visible_folders(parent)):
        if not (folder / SWEEP_FILE).is_file():
            continue
        try:
            blocks += _sweep(folder)
        except (RunError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = str(error).replace(f"{folder}/", "")
            problems.append(Problem(clean(folder.name), f"is no whole sweep: {clean(reason)}"))
    return tuple(blocks)


def _sweep(folder: Path) -> list[Block]:
    about = read_json(folder / SWEEP_FILE)
    table = pd.read_csv(io.BytesIO(read_bounded(folder / HEADS_FILE, MAX_TEXT_BYTES)))
    measure = str(about["head"]["monitor"])
    if table.empty or not all(pd.api.types.is_numeric_dtype(table[name]) for name in (measure, "spread", "epoch")):
        raise RunError(f"{HEADS_FILE}: no numbers in {measure}")
    if not np.isfinite(table[measure]).any():
        raise RunError(f"{HEADS_FILE}: no combination has a {measure}")
    fields = [name for name in table.columns if name not in (measure, "spread", "epoch", "diverged")]
    rows = tuple(
        (
            *(plain(line[name]) for name in fields),
            number(float(line[measure]), 4) if np.isfinite(line[measure]) else "diverged",
            number(float(line["spread"]), 2) if np.isfinite(line["spread"]) else "",
            f"{int(line['epoch']):,}",
        )
        for line in table.head(_MOST_ROWS).to_dict("records")
    )
    name, winner = clean(folder.name), clean(about.get("winner", ""))
    headers = (*(clean(field) for field in fields), f"{clean(measure)}, mean", "standard deviation", "best epoch")
    said = (
        f"{name} on {clean(about.get('cache', ''))}: {counted(len(table), 'combination')} with "
        f"{counted(int(about.get('seeds', 1)), 'seed')} each, chosen by {clean(measure)}; only the winner, {winner}, "
        "was measured on test."
    )
    return [
        Paragraph(said),
        charts.sweep(table, measure, name=name),
        Table(headers, rows, n_text=0, title=f"Combinations of {name}, the best first"),
    ]
