"""Fitted segmenters that cut cells out: of a file that is asked for, or of the copy that caches and runs keep of it.

A recipe names a fitted segmenter by a digest. A copy is compared with it before it is used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from featcache.core.errors import ArgumentsError, DatasetError, WeightsError
from featcache.core.files import resolved
from featcache.core.progress import SILENT, Progress
from featcache.core.project import PROJECT_FILE, SEGMENTS, Project, ViewsSection
from featcache.extraction.opening import network_of
from featcache.segmentation import COLOURS, CellCut, PixelSegmenter, SegmenterFile

_NAMED = ("imagenet", "random")


def with_fitted(
    views: ViewsSection, said: Collection[str], *, folder: Path, known: SegmenterFile | None = None
) -> tuple[ViewsSection, SegmenterFile | None]:
    """[views] in which a fitted segmenter has its name in recipes instead of its file's, and what is in the file.

    said : settings that were given for this call: their paths start from the current folder, those of others from
        `folder`
    known : what is in the file, where another process has read it

    Raises DatasetError for a file that is no segmenter.
    """
    starts = {name: Path() if name in said else folder for name in ("segment", "segment_weights")}
    if views.segment in SEGMENTS:
        if "segment_weights" in said:
            raise ArgumentsError("`segment_weights` is for a fitted segmenter: name its file with `segment`")
        return views, None
    fitted = known or SegmenterFile.read(starts["segment"] / views.segment)
    changes = {"segment": fitted.method}
    if views.segment_weights:
        changes["segment_weights"] = str(resolved(starts["segment_weights"] / views.segment_weights))
    return views.model_copy(update=changes), fitted


def opened_segmenter(
    known: SegmenterFile, *, weights: Sequence[str | None] = (None,), progress: Progress = SILENT
) -> PixelSegmenter:
    """A fitted segmenter with its network.

    weights : files in which the network's weights may be, tried in turn; None for where they came from

    Raises BackboneError or WeightsError where the network cannot be had, DatasetError where it does not fit.
    """
    failed: list[WeightsError] = []
    for source in dict.fromkeys(weights):
        try:
            cut, opened = network_of(
                known.space, {"weights": known.weights}, weights=source, batch_rows=1, progress=progress
            )
        except WeightsError as error:
            failed.append(error)
            continue
        shape = cut.feature_shape
        if len(shape) != 3 or shape[2] + COLOURS != len(known.classifier.mean):
            raise DatasetError(
                f"the fitted segmenter {known.digest[:16]}..: its classifier does not fit its network, whose maps are "
                f"{shape}"
            )
        return PixelSegmenter(known, opened())
    raise failed[0]


def cutting(
    known: SegmenterFile | None,
    segmentation: str,
    *,
    where: str,
    weights: Sequence[str | None] = (),
    progress: Progress = SILENT,
) -> PixelSegmenter | None:
    """The fitted segmenter that cuts out cells as the `segmentation` of a recipe says; None where another one does.

    known : it, or a copy, or None where nobody has one
    where : the copy is, for people
    weights : files in which its network's weights may be, before where they came from

    Raises DatasetError where it is needed and not known, or is another one; BackboneError or WeightsError where its
    network cannot be had.
    """
    wanted = CellCut.fitted_of(segmentation)
    if not wanted:
        return None
    if known is None:
        raise DatasetError(
            f"{where}: its cells are cut out by the fitted segmenter {wanted[:16]}.., and no copy of that is there",
            f"Name its file under [views] in {PROJECT_FILE}: segment = 'FILE'",
        )
    known.refuse_other(segmentation, where=where)
    files = [source for source in weights if source and source not in _NAMED]
    try:
        return opened_segmenter(known, weights=[*files, None], progress=progress)
    except WeightsError as error:
        raise WeightsError(
            f"the network of the fitted segmenter {wanted[:16]}..: {error.message}",
            f"Name the file of its weights under [views] in {PROJECT_FILE}: segment_weights = 'FILE'",
        ) from error


def cutting_again(
    project: Project | None,
    segmentation: str,
    *,
    copy: SegmenterFile | None,
    where: str,
    weights: str | None,
    progress: Progress = SILENT,
) -> PixelSegmenter | None:
    """As `cutting`, of a cache or run that there is: by the copy that it keeps, else by what its project names.

    weights : of its own network: that of the segmenter may be the same
    """
    files: list[str | None] = [weights]
    known = copy
    if project is not None and CellCut.fitted_of(segmentation):
        views = project.settings.views
        if known is None:
            views, known = with_fitted(views, (), folder=project.folder)
            if known is not None and known.digest != CellCut.fitted_of(segmentation):
                known = None
        if views.segment_weights:
            files.insert(0, str(resolved(project.folder / views.segment_weights)))
    return cutting(known, segmentation, where=where, weights=files, progress=progress)
