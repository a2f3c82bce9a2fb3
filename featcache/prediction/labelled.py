"""Labelled images of another laboratory: read as `init` reads them, and matched with the classes of a run."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featcache.core.errors import RunError, UsageError, nearest
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, DatasetSection, Project, changed, find_project
from featcache.datasets import Dataset, LeftOut, dataset_of, labelled_images
from featcache.prediction.bundle import Bundle
from featcache.training import PREDICTIONS_FILE, Run


def match_labels(labels: set[str], classes: Sequence[str], *, mapping: Mapping[str, str]) -> dict[str, str]:
    """{label: the class of the same name, or of `mapping`; "" where there is none}.

    Raises UsageError for a label or class in `mapping` that there is not.
    """
    for theirs, ours in mapping.items():
        if theirs not in labels:
            raise UsageError(f"`mapping`: {theirs!r:.80} is no label there: {nearest(theirs, sorted(labels))}")
        if ours and ours not in classes:
            raise UsageError(f"`mapping`: {ours!r:.80} is no class of the run: {nearest(ours, classes)}")
    by_name: dict[str, list[str]] = {}
    for one in classes:
        by_name.setdefault(_plain(one), []).append(one)
    found = {}
    for label in sorted(labels):
        alike = by_name.get(_plain(label), [])
        found[label] = mapping.get(label, label if label in classes else alike[0] if len(alike) == 1 else "")
    return found


def _plain(label: str) -> str:
    """A label without what people write now so, now so."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKC", label).casefold() if letter.isalnum())
    return letters.removesuffix("s") if len(letters) > 3 else letters


def labelled_source(
    on: Project | str | Path, dataset: Mapping[str, Any], *, margin: float, unpack_into: Path, progress: Progress
) -> tuple[Dataset, list[LeftOut], tuple[str, ...]]:
    """The labelled images of a project, or of what `init` reads; archives are unpacked below `unpack_into`.

    margin : that the run's recipe leaves around boxes

    Raises UsageError where the source is read in a way that makes no sense with that.
    """
    if margin and dataset.get("margin"):
        raise UsageError(f"the run leaves a margin of {margin:g} around boxes itself: leave out `margin`")
    if not isinstance(on, Project) and (Path(on) / PROJECT_FILE).is_file():
        on = find_project(Path(on))
    if isinstance(on, Project):
        if dataset:
            raise UsageError(f"{on.folder}: is a project, which says itself how it is read: leave out {min(dataset)!r}")
        read = dataset_of(on)
        return Dataset(tuple(image for image in read.images if image.label), read.folder, white=read.white), [], ()
    section = changed(DatasetSection(), dataset)
    with progress.begin("checking images", 0) as advance:
        data, built = labelled_images(Path(on), section, unpack_into=unpack_into, on_file=lambda: advance(1))
    return data, list(built.left_out), tuple(built.remarks)


def seen_by(trained: Run | Bundle) -> set[str]:
    """The ids of the images that a run was trained on, adapted with or chosen by; of a bundle nobody knows."""
    if not isinstance(trained, Run):
        return set()
    adapted = trained.config.get("adapted")
    few = set(adapted.get("images", ())) if isinstance(adapted, Mapping) else set()
    path = trained.folder / PREDICTIONS_FILE
    if not path.is_file():
        return few
    try:
        frame = pd.read_csv(path, usecols=["image_id", "split"], dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    return few | set(frame["image_id"][frame["split"].isin(["train", "val"])])


def text_of(on: Project | str | Path) -> str:
    """What a source is called in config.json."""
    return str(on.folder if isinstance(on, Project) else on)
