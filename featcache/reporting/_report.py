"""report: every run on one page, and the same for other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import RunError
from featcache.core.files import write_bytes, write_text
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.reporting import charts, content, latex, markdown, page, spreadsheet, vega
from featcache.reporting.blocks import Chart
from featcache.training import runs

HTML_FILE, MARKDOWN_FILE, LATEX_FILE = "report.html", "report.md", "report.tex"
CSV_FILE, EXCEL_FILE = "report.csv", "report.xlsx"


@dataclass(frozen=True)
class Written:
    """Where a report lies, and the runs in it."""

    folder: Path
    runs: list[runs.Run]

    @property
    def html(self) -> Path:
        """The page."""
        return self.folder / HTML_FILE

    @property
    def markdown(self) -> Path:
        """The same as Markdown."""
        return self.folder / MARKDOWN_FILE

    @property
    def latex(self) -> Path:
        """Its tables for a paper."""
        return self.folder / LATEX_FILE

    @property
    def csv(self) -> Path:
        """Its measures, a line each."""
        return self.folder / CSV_FILE

    @property
    def excel(self) -> Path:
        """Its measures, mistakes and tables."""
        return self.folder / EXCEL_FILE


def report(
    results: Path,
    out: Path | None = None,
    *,
    project: Project | None = None,
    near_duplicates: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Write a report over every run in `results`: a page, and Markdown, LaTeX, CSV and Excel beside it.

    project : whose images, caches and dataset.csv are shown with the runs
    near_duplicates : look for images that show the same, which takes some 50 ms of a core an image

    Raises RunError where there is no run, or where `out` cannot be written.
    """
    found, folder = runs.list_runs(results), out or results
    if not found:
        raise RunError(f"{results}: no finished run", "Train one with `featcache.fit_head()`")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # before long work is done for nothing
    made = content.gather(found, project=project, near_duplicates=near_duplicates, progress=progress)
    charted = [block for block in made.blocks() if isinstance(block, Chart)]
    written = Written(folder, found)
    with _writing(folder):
        _write_figures(folder, charted)
        write_text(written.markdown, markdown.render(made))
        write_text(written.latex, latex.render(made))
        write_text(written.csv, spreadsheet.csv(made))
        write_bytes(written.excel, spreadsheet.xlsx(made))
        write_text(written.html, page.render(made))
    return written


def _write_figures(folder: Path, charted: Iterable[Chart]) -> None:
    """The pictures of report.md; those of an earlier report that this one has no more go."""
    light = {**charts.theme(dark=False), "background": "white"}
    names = set()
    for chart in charted:
        names.add(markdown.file_of(chart))
        write_bytes(folder / markdown.file_of(chart), vega.png(chart.spec, light))
    for old in folder.glob("report-*.png"):
        if old.name not in names:
            old.unlink(missing_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{folder}: the report cannot be written: {error.strerror or error}") from error
