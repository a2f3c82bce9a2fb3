"""segment: by a classical segmenter, or by a fitted one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from featcache.core.errors import UsageError
from featcache.core.files import resolved
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import PROJECT_FILE, find_project
from featcache.core.shown import shown
from featcache.extraction import opened_segmenter
from featcache.pixelwise.instance_models import LIBRARIES, opened_model
from featcache.pixelwise.known_labels import labels_of_pictures
from featcache.segmentation import (
    SEGMENTERS,
    Background,
    SegmentedFolder,
    Segmenter,
    SegmenterFile,
    SegmentOptions,
    segment_folder,
)


def segment(
    source: str | Path,
    out: str | Path,
    *,
    method: str | Path = "stain",
    job: Literal["auto", "smear", "cell"] = "auto",
    red_cell_px: float | None = None,
    background: Background = "keep",
    margin: float = 0.1,
    white: int | None = None,
    labels: str | Path | None = None,
    weights: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> SegmentedFolder:
    """Find the white cells in pictures, and cut them out.

    Writes into `out`: masks/ (0 background, 128 cytoplasm, 255 nucleus, at the size of the picture), crops/, overlays/
    to look at, cells.csv, left_out.csv, and crops.csv, which `init` reads: its group is the original picture.
    What was made with the same settings is kept: an interrupted call continues.

    Parameters
    ----------
    source : folder of pictures, at any depth, or one picture; or a project
    out : folder to write to; new, empty, or written by `segment` with the same settings
    method : how nuclei are told from all else: "stain" (deconvolution and a threshold), "colour" (clustering), or a
        file that `fit_segmenter` wrote; or "cellpose" or "stardist", whose models outline the cells that "stain" finds
    job : what a picture shows: "smear", or one "cell" in the middle; "auto" looks how large the cells are
    red_cell_px : diameter of a red cell in pixels; None measures it in each picture
    background : what surrounds a cell in its crop: "keep", "white", "black", "mean" or "transparent"
    margin : room around a cell in its crop, as a share of the cell's longer side
    white : value of white in pictures of more than 8 bits that do not say it; None takes that of a project, or finds it
        from all pictures
    labels : a project, or what `init` reads, with labels of boxes in these pictures: a cell gets the label of the box
        that it overlaps best, by an IoU of at least 0.5, and none where there is no such box. By default `source`
        itself, if it has annotations or a list
    weights : file of the weights of a fitted segmenter's network, where they are in one; the file of a model of
        cellpose, or the folder of one of StarDist. Nothing is downloaded
    offline : contact no other machine
    progress : told how far it is

    Raises
    ------
    DatasetError : there is no picture, `method` is no file of a segmenter, or `labels` holds no labels
    BackboneError : the network of a fitted segmenter cannot be had
    ProjectError : `out` holds something else, or cannot be written

    Examples
    --------
    >>> import featcache as fc
    >>> from pathlib import Path
    >>> from featcache.synthetic import generate
    >>> generate(Path("smears"), 1, smears=2)
    >>> done = fc.segment("smears/images", "cells", background="white")
    >>> done.images
    2
    """
    segmenter: Segmenter | None = None
    name = str(method)
    if name in LIBRARIES:
        segmenter, name = opened_model(name, None if weights is None else Path(weights))
    elif name not in SEGMENTERS:
        file = Path(method)
        if not file.exists() and not file.suffix:
            raise UsageError(
                f"`method={name!s:.80}`: expected {', '.join((*SEGMENTERS, *LIBRARIES))}, or the file of a "
                "fitted segmenter"
            )
        fitted = SegmenterFile.read(file)
        with without_network(offline):
            segmenter = opened_segmenter(fitted, weights=(weights,), progress=shown(progress))
        name = fitted.method
    elif weights is not None:
        raise UsageError("`weights` is for a fitted segmenter, cellpose or stardist: `method` names another")
    told, place = shown(progress), Path(source)
    project = find_project(place) if (place / PROJECT_FILE).is_file() else None
    if project is not None and white is None:
        white = project.settings.views.white
    options = SegmentOptions(name, job, red_cell_px, background, margin, white)
    known = labels_of_pictures(
        place, labels=Path(labels) if labels is not None else None, out=resolved(Path(out)), progress=told
    )
    place = project.images_folder if project is not None else place
    return segment_folder(place, out, options=options, segmenter=segmenter, labels=known, progress=progress)
