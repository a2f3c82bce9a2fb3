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
from featcache.core.errors import ProjectError, RunError
from featcache.core.progress import Progress
from featcache.core.project import Project, find_project
from featcache.core.shown import shown
from featcache.training import find_run, list_runs

if TYPE_CHECKING:
    from featcache.training import Run


@dataclass(frozen=True)
class Report:
    """Where a report was written, and the runs in it.

    html : the page; markdown : the same text with figures beside it; latex : its tables for a paper; csv : its
        measures, a line each; excel : measures, mistakes and tables as a workbook
    """

    markdown: Path
    html: Path
    latex: Path
    csv: Path
    excel: Path
    runs: list[Run]

    def _repr_html_(self) -> str:
        """The page, in a frame: its styles are not the notebook's."""
        page = escape(self.html.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def report(
    source: Project | str | Path = ".",
    *,
    to: str | Path | None = None,
    near_duplicates: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write every run as one HTML page with tables, figures and pictures; and as Markdown, LaTeX, CSV and Excel.

    Of a project, the page shows mistakes as pictures, a map of the features, and the splits of its images. Of a folder
    of runs alone it shows what the runs say.

    Parameters
    ----------
    source : a project, or a folder of runs
    to : folder to write to; by default that of the runs
    near_duplicates : look for images that show the same, which takes some 50 ms of a core an image
    progress : told how far it is

    Raises
    ------
    RunError : there is no run, or the folder cannot be written

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
    done = reporting.report(
        results,
        Path(to) if to is not None else None,
        project=project,
        near_duplicates=near_duplicates,
        progress=shown(progress),
    )
    return Report(done.markdown, done.html, done.latex, done.csv, done.excel, done.runs)


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


def log_to_mlflow(
    source: Project | str | Path = ".",
    *,
    to: str,
    names: Collection[str] = (),
    experiment: str = "",
    with_model: bool = False,
    progress: Progress | None = None,
) -> list[reporting.LoggedRun]:
    """Write runs to MLflow: settings as parameters, curves and measures as metrics, and their files.

    A run that is there already is not written again; its note and tags are.

    Parameters
    ----------
    source : a project, or a folder of runs
    to : an MLflow server (http://HOST:PORT), or an SQLite file (runs.db)
    names : only these runs, each a name or how it begins; () for all
    experiment : MLflow's experiment; by default the name of the project's folder
    with_model : the weights too, which can be large
    progress : told how far it is

    Raises
    ------
    MissingPackageError : MLflow is not installed
    UsageError : `to` is no address of MLflow
    RunError : there is no such run, a run is damaged, or MLflow cannot be reached
    """
    project = project_of(source)
    results = project.results_folder if project else _runs_folder(Path(str(source)))
    chosen = [find_run(results, name) for name in names] or list_runs(results)
    if not chosen:
        raise RunError(f"{results}: no runs", "Train one: featcache fit-head")
    return reporting.log_to_mlflow(
        results,
        chosen,
        to=to,
        experiment=experiment or results.absolute().parent.name,
        with_model=with_model,
        progress=shown(progress),
    )


def _runs_folder(folder: Path) -> Path:
    with suppress(ProjectError):
        if folder == Path():
            return find_project(folder).results_folder
    return folder
