"""demo: the whole job on generated leukocytes."""

from __future__ import annotations

from pathlib import Path

from featcache.dataset.manifest import read_dataset
from featcache.heads.config import HeadConfig
from featcache.pipeline.extract import Extracted, extract
from featcache.pipeline.fit_head import Fitted, fit_head, report
from featcache.pipeline.init import Initialised, InitOptions, init
from featcache.pipeline.progress import Track, silent
from featcache.project import PROJECT_FILE, find_project
from featcache.store.cache import open_cache


def demo(folder: Path, epochs: int, track: Track = silent) -> tuple[Initialised, Extracted, Fitted, Path]:
    """The whole job on generated leukocytes: init, extract, fit-head, report. What is done already is kept."""
    if (folder / PROJECT_FILE).is_file():
        project = find_project(folder)
        dataset = read_dataset(project.dataset_file, project.images_folder)
        made = Initialised(project, dataset, "class-folders", "the generated leukocytes of an earlier demo", (), ())
    else:
        made = init(None, folder, InitOptions(), track)
    extracted = extract(made.project, "efficientnet-lite0", track=track)
    cache = open_cache(extracted.path)
    fitted = fit_head(cache, made.project.results_folder, HeadConfig(epochs=epochs), track=track)
    _, html, _ = report(made.project.results_folder)
    return made, extracted, fitted, html
