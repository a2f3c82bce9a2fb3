"""demo: the whole job on generated leukocytes."""

from __future__ import annotations

from pathlib import Path

from featcache.backbones import NetworkSpec, require_keras
from featcache.core.errors import ProjectError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import DATASET_FILE, PROJECT_FILE, find_project
from featcache.datasets import GENERATED_FOLDER, GENERATED_PER_CLASS, Initialised, InitOptions, dataset_of, init
from featcache.extraction import Extracted, extract
from featcache.heads import HeadConfig, fit_head
from featcache.reporting import report
from featcache.store import open_cache
from featcache.training import Fitted

_PART = GENERATED_PER_CLASS * 3 // 16
_SPLIT = {"split_counts": (GENERATED_PER_CLASS - 2 * _PART, _PART, _PART)}


def demo(folder: Path, epochs: int, *, progress: Progress = SILENT) -> tuple[Initialised, Extracted, Fitted, Path]:
    """The whole job on generated leukocytes: init, extract, fit-head, report. What is done already is kept."""
    require_keras()
    made = _made_before(folder) or init(
        _drawn_before(folder), folder, options=InitOptions(dataset=_SPLIT), progress=progress
    )
    (extracted,) = extract(made.project, [NetworkSpec("efficientnet-lite0")], progress=progress)
    cache = open_cache(extracted.path)
    fitted = fit_head(cache, made.project.results_folder, config=HeadConfig(epochs=epochs), progress=progress)
    written = report(made.project.results_folder, project=made.project, progress=progress)
    return made, extracted, fitted, written.html


def _made_before(folder: Path) -> Initialised | None:
    """The project of an earlier demo, as it is. Raises ProjectError for a project of other images."""
    if not (folder / PROJECT_FILE).is_file():
        return None
    project = find_project(folder)
    if project.settings.dataset.source != GENERATED_FOLDER:
        raise ProjectError(f"{folder}: holds a project of other images", "Name a new folder: 'featcache demo FOLDER'")
    if not (folder / DATASET_FILE).exists():
        return None
    dataset = dataset_of(project)
    return Initialised(
        project=project,
        dataset=dataset,
        layout="class-folders",
        about="the generated leukocytes of an earlier demo",
        left_out=(),
        remarks=(),
    )


def _drawn_before(folder: Path) -> Path | None:
    """The leukocytes that a demo drew before it was interrupted."""
    drawn = folder / GENERATED_FOLDER
    return drawn if drawn.is_dir() else None
