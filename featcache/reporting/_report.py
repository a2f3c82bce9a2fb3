"""report: every run on one page."""

from __future__ import annotations

from pathlib import Path

from featcache.reporting import page
from featcache.training import runs


def report(results: Path, out: Path | None = None) -> tuple[Path, Path, list[runs.Run]]:
    """Write report.md and report.html over every run in `results`; their paths and the runs.

    Raises RunError where there is no run.
    """
    finished = runs.list_runs(results)
    markdown, html = page.write_report(finished, out or results)
    return markdown, html, finished
