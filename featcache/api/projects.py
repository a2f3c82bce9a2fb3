"""Projects: make one, open one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache import datasets
from featcache.core.files import resolved
from featcache.core.progress import Progress
from featcache.core.project import Project, find_project
from featcache.core.shown import shown


def init(
    source: str | Path | None = None,
    into: str | Path = ".",
    *,
    margin: float | None = None,
    views: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    per_class: int = datasets.GENERATED_PER_CLASS,
    resplit: bool = False,
    relabel: bool = False,
    offline: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
    **dataset: Any,
) -> Project:
    """Make a project: write featcache.toml and dataset.csv for a folder or list of images.

    Parameters
    ----------
    source : folder of images, or a CSV; None takes the project's own, or generates leukocytes
    into : folder of the project
    margin : room around each box, as a share of its longer side: the same as in `views`
    views : values for [views]: train, val, test, train_rows, ..., resize, interpolation, crop_share, padding, um_per_px
    augmentation : values for [augmentation]: seed, rotation_deg, shift, ...
    per_class : generated cells of each class
    resplit : make new splits, even where the source or dataset.csv has some
    relabel : take the source's labels where dataset.csv was edited
    offline : reach no other machine: images that a list names by address must have been fetched before
    strict : stop at an image that cannot be used
    progress : told how far it is
    **dataset : values for [dataset]: split, split_counts, split_seed, group_pattern, without, roots, voc_object,
        um_per_px (the side of a pixel of these images),
        label_separator or label_columns where an image may have several labels, ...

    Returns
    -------
    Project; its attribute `found` says what the source was taken for, and what was left out

    Raises
    ------
    DatasetError : the images cannot be trained on
    ProjectError : a file is in the way, or a setting is wrong

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> project.found.dataset.counts()["monocyte"]
    {'train': 6, 'val': 1, 'test': 1}
    """
    options = datasets.InitOptions(
        dataset=dataset,
        views={**({} if margin is None else {"margin": margin}), **(views or {})},
        augmentation=augmentation or {},
        per_class=per_class,
        resplit=resplit,
        relabel=relabel,
        offline=offline,
        strict=strict,
    )
    place = Path(source) if source is not None else None
    done = datasets.init(place, resolved(Path(into)), options=options, progress=shown(progress))
    done.project.found = done
    return done.project


def open_project(folder: str | Path = ".") -> Project:
    """The project that a folder lies in.

    Parameters
    ----------
    folder : the project's folder, or one within it

    Raises
    ------
    ProjectError : there is no featcache.toml, or it says something wrong

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> fc.open_project().folder == project.folder
    True
    """
    return find_project(Path(folder))
