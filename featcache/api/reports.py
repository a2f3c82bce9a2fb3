"""All runs: a list, and the report."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from featcache import reporting
from featcache.api.arguments import project_of
from featcache.core.errors import ProjectError
from featcache.core.project import Project, find_project

if TYPE_CHECKING:
    from featcache.training import Run


@dataclass(frozen=True)
class Report:
    """Where a report was written, and the runs in it."""

    markdown: Path
    html: Path
    runs: list[Run]

    def _repr_html_(self) -> str:
        """The page, in a frame: its styles are not the notebook's."""
        page = escape(self.html.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def report(source: Project | str | Path = ".", *, to: str | Path | None = None) -> Report:
    """Write every run as tables, figures, Markdown and one HTML page.

    Parameters
    ----------
    source : a project, or a folder of runs
    to : folder to write to; by default that of the runs

    Raises
    ------
    RunError : there is no run

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.fit_head(cache, epochs=2)
    >>> fc.report().html.name
    'report.html'
    """
    project = project_of(source)
    results = project.results_folder if project else _runs_folder(Path(str(source)))
    markdown, html, runs = reporting.report(results, Path(to) if to is not None else None)
    return Report(markdown, html, runs)


def runs(
    source: Project | str | Path = ".",
    *,
    kind: str | None = None,
    backbone: str | None = None,
    tags: Collection[str] = (),
    sort: str = "created",
) -> list[reporting.ListedRun]:
    """Every run with what it is and how good it is: on its test split, or over all images of a cross-validation.

    Parameters
    ----------
    source : a project, or a folder of runs
    kind, backbone : only runs of this kind ("head", "scratch", ...) and backbone
    tags : only runs that have all of them
    sort : "created" (the oldest first), "name", or a measure (the best first): "accuracy", "balanced_accuracy",
        "macro_f1", "loss"

    Raises
    ------
    UsageError : there is no such order
    RunError : notes.json is damaged. A damaged run is in the list, with its `problem`

    Examples
    --------
    >>> import featcache as fc
    >>> cache = fc.extract(fc.init(per_class=8), "pixels", input_size_px=16)
    >>> run = fc.fit_head(cache, epochs=2)
    >>> [one.name == run.name for one in fc.runs(sort="accuracy")]
    [True]
    """
    project = project_of(source)
    results = project.results_folder if project else _runs_folder(Path(str(source)))
    return reporting.runs(results, kind=kind, backbone=backbone, tags=tags, sort=sort)


def _runs_folder(folder: Path) -> Path:
    with suppress(ProjectError):
        if folder == Path():
            return find_project(folder).results_folder
    return folder
