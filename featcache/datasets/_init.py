"""init: look at images, write featcache.toml and dataset.csv."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.core.errors import ArgumentsError, DatasetError, ProjectError
from featcache.core.files import resolved
from featcache.core.locks import TakenError, folder_beside, holding
from featcache.core.offline import offline
from featcache.core.progress import SILENT, Progress
from featcache.core.project import (
    DATASET_FILE,
    LARGEST_WHITE,
    PROJECT_FILE,
    SEGMENTS,
    DatasetSection,
    ImageFolders,
    Project,
    Settings,
    changed,
    changed_views,
    init_call,
    read_settings,
    refuse_two_margins,
    shown,
    write_project,
)
from featcache.datasets._check_dataset import PAIRS_FILE, compared, on_two_sides
from featcache.datasets._preview import SHEET_FILE
from featcache.datasets.build import Built, SplitRule, build
from featcache.datasets.candidates import LeftOut, Source
from featcache.datasets.current import stop_if_strict
from featcache.datasets.label_lists import DEFAULT_SEPARATOR, rewritten
from featcache.datasets.manifest import SPLITS, Dataset, LabelledImage, dataset_of, write_dataset
from featcache.datasets.masks import is_root_of_masks
from featcache.datasets.options import InitOptions
from featcache.datasets.sources import find_images
from featcache.datasets.unpacking import UNPACKED_FOLDER
from featcache.images import STAMPS_FILE, said_of_white
from featcache.segmentation import SegmenterFile
from featcache.synthetic import is_generated, write_cells

GENERATED_FOLDER = "leukocytes"
_MOST_FIELDS = 1000
_SQUARE = {"resize", "interpolation", "crop_share", "padding", "as_trained"}
"""Settings of how images become square."""


@dataclass(frozen=True)
class Initialised:
    """What `init` found and wrote."""

    project: Project
    dataset: Dataset
    layout: str
    about: str
    left_out: Sequence[LeftOut]
    remarks: Sequence[str]


def init(
    place: Path | None, into: Path, *, options: InitOptions | None = None, progress: Progress = SILENT
) -> Initialised:
    """Write featcache.toml and dataset.csv into the folder `into`.

    Over a project that is there already, the images are read again: those known keep their split and
    group, settings stay unless `options` changes them.

    place : folder of images, or a CSV; None takes the project's own, or generates leukocytes into `into`

    Raises DatasetError for images that cannot be trained on, ProjectError where a file is in the way; nothing is
    written then.
    """
    options = _with_recorded_roots(options or InitOptions(), into)
    options = _with_recorded_masks(options, place)
    options = _with_recorded_segmenter(options, into)
    _settings(Settings(), options)  # a wrong option is said before anything is touched
    with offline(options.offline), _alone_in(into):
        return _init(place, into, options, progress)


def _init(place: Path | None, into: Path, options: InitOptions, progress: Progress) -> Initialised:
    before = _project_before(into)
    settings = _settings(before.settings if before else Settings(), options)
    about = ""
    if place is None and before:
        place = into / settings.dataset.source
    elif place is None and settings.dataset.label_separator:
        raise DatasetError("an image of generated cells has one label", "Name a list of images")
    elif place is None:
        place, about = _generate(into, settings, options, progress)
        settings = _split_by_counts(settings, options)
    own = Project(into, settings)
    ignore = frozenset(
        {
            own.cache_folder,
            own.results_folder,
            own.dataset_file,
            into / SHEET_FILE,
            into / PAIRS_FILE,
            into / UNPACKED_FOLDER,
        }
    )
    roots = {name: str(root) for name, root in own.images.roots.items()}
    asked = settings.dataset.model_copy(update={"roots": roots})
    source = find_images(place, asked, ignore=ignore, unpack_into=into)
    if roots and not source.roots:
        raise DatasetError(f"{place}: `roots` are for a list of images, and this holds {source.about}", "Name a list")
    if asked.label_separator and source.layout != "csv":
        raise DatasetError(
            f"{place}: `label_separator` and `label_columns` are for a list of images, and this holds {source.about}",
            "Leave them out, or name a list",
        )
    kept = _renamed(_kept(before, settings), before, source)
    kept = _without_sizes_of_all(kept, before)
    relabel = options.relabel
    if before is not None and before.settings.dataset.label_columns != asked.label_columns:
        relabel = True
        source.remarks.append("the labels are of other columns than before: they take the place of all in dataset.csv")
    with progress.begin("checking images", len({candidate.path for candidate in source.candidates})) as advance:
        stamps = own.cache_folder / STAMPS_FILE
        rule = _rule(asked, options.resplit)
        built = build(
            source,
            rule,
            without=asked.without,
            kept=kept,
            stamps=stamps,
            on_file=lambda: advance(1),
            relabel=relabel,
            label_separator=asked.label_separator,
            um_per_px=asked.um_per_px,
        )
    stop_if_strict(built.left_out, options.strict)
    settings, on_shapes = _with_shapes(settings, options, built, is_new=before is None)
    settings = _with_white(settings, options, built, is_new=before is None)
    on_white = said_of_white(settings.views.white, built.white)
    shared = _said_of_pairs(built, source.images, into, white=settings.views.white, progress=progress)
    project = _write_project(into, settings, place, source.images, built)
    dataset = Dataset(built.images, project.images, label_separator=asked.label_separator, white=settings.views.white)
    return Initialised(
        project=project,
        dataset=dataset,
        layout=source.layout,
        about=about or source.about,
        left_out=built.left_out,
        remarks=(*built.remarks, *on_white, *on_shapes, *shared),
    )


def _with_shapes(
    settings: Settings, options: InitOptions, built: Built, *, is_new: bool
) -> tuple[Settings, Sequence[str]]:
    """The settings with what the images' shapes ask for, and what is to be said of it.

    A new project leaves it to the network's library how images become square, and else keeps their aspect ratio. Where
    all are square, stretching does that, under the names that caches of such images always had. What is asked for, or
    stands in featcache.toml, stays.
    """
    n, total = built.not_square, len(built.images)
    said = _SQUARE & set(options.views)
    if is_new and not said:
        changes = {"as_trained": True, "resize": "pad" if n else "stretch"}
        settings = settings.model_copy(update={"views": changed(settings.views, changes)})
        remark = f"{n} of {total} images are not square: they keep their shape, padded (`resize='pad'`)"
        return settings, [remark] if n and not settings.views.um_per_px else []
    if n and not said and settings.views.as_trained and settings.views.resize == "stretch":
        return settings, [f"{n} of {total} images are not square and are stretched: `resize='pad'` keeps their shape"]
    return settings, []


def _without_sizes_of_all(kept: Sequence[LabelledImage], before: Project | None) -> tuple[LabelledImage, ...]:
    """Images without the side of a pixel that was said of all: what is left was edited, and stays."""
    of_all = before.settings.dataset.um_per_px if before else 0.0
    return tuple(replace(image, um_per_px=0.0) if image.um_per_px == of_all else image for image in kept)


def _with_white(settings: Settings, options: InitOptions, built: Built, *, is_new: bool) -> Settings:
    """The settings of a new project with the value of white that its files seem to have.

    Raises ArgumentsError where an image is brighter than the white that was asked for.
    """
    if is_new and "white" not in options.views:
        return settings.model_copy(update={"views": changed(settings.views, {"white": built.white})})
    if settings.views.white and built.brightest > settings.views.white:
        raise ArgumentsError(
            f"`white={settings.views.white}`, and the brightest value of the images is {built.brightest:,}",
            f"Set `white={built.white or LARGEST_WHITE}`",
        )
    return settings


def _said_of_pairs(built: Built, folder: ImageFolders, into: Path, *, white: int, progress: Progress) -> list[str]:
    """A remark on fields that show the same pixels, and stand in different groups; of very many, nobody looks."""
    large = set(built.fields)
    fields = [image for image in built.images if image.path in large]
    if not 2 <= len({image.path for image in fields}) <= _MOST_FIELDS:
        return []
    pairs = compared(fields, folder, mirrored=False, white=white, progress=progress)  # a microscope mirrors no field
    if not pairs:
        return []
    here = resolved(into) == Path.cwd()
    call = "`featcache.check_dataset(fix=True)`"
    call = call if here else f"`featcache.check_dataset(project={shown(into)!r}, fix=True)`"
    count, across = len(pairs), len(on_two_sides(fields, pairs))
    said = f"{count} pairs of images show" if count > 1 else f"{pairs[0].a} and {pairs[0].b} show"
    torn = f", {across} of them in two splits" if count > 1 and across else ", in two splits" if across else ""
    return [f"{said} the same pixels{torn}: {call} joins such images into one group"]


@contextmanager
def _alone_in(into: Path) -> Iterator[None]:
    """Keep another `init` out of a folder meanwhile; a folder that was made for it goes again if nothing came of it."""
    made = [folder for folder in (into, *into.parents) if not folder.exists()]
    try:
        with ExitStack() as stack:
            with _writing(into):
                into.mkdir(parents=True, exist_ok=True)
                stack.enter_context(holding(into))
            yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _with_recorded_roots(options: InitOptions, into: Path) -> InitOptions:
    """Options whose relative roots start from the project, as in featcache.toml, and not from the current folder."""
    roots = options.dataset.get("roots")
    if not isinstance(roots, Mapping):
        return options
    recorded = dict(roots)
    for name, root in roots.items():
        if isinstance(root, (str, Path)):
            recorded[name] = str(root) if Path(root).is_absolute() else _relative(Path(root), into)
    return replace(options, dataset={**options.dataset, "roots": recorded})


def _with_recorded_masks(options: InitOptions, place: Path | None) -> InitOptions:
    """Options whose folder of masks, where it lies outside of the source, is found from every current folder."""
    masks = options.dataset.get("masks")
    if not isinstance(masks, (str, Path)) or not masks:
        return options
    inside = place is None or ((place if place.is_dir() else place.parent) / masks).is_dir()
    name = str(masks) if inside or not Path(masks).is_dir() else str(resolved(Path(masks)))
    return replace(options, dataset={**options.dataset, "masks": name})


def _with_recorded_segmenter(options: InitOptions, into: Path) -> InitOptions:
    """Options whose fitted segmenter and its weights start from the project, as in featcache.toml.

    Raises DatasetError for a file that is no segmenter.
    """
    views = dict(options.views)
    segment = views.get("segment")
    if isinstance(segment, (str, Path)) and str(segment) not in SEGMENTS and Path(segment).suffix:
        SegmenterFile.read(Path(segment))
    else:
        segment = None
    for name, value in (("segment", segment), ("segment_weights", views.get("segment_weights"))):
        if isinstance(value, (str, Path)):
            views[name] = str(value) if Path(value).is_absolute() else _relative(Path(value), into)
    return replace(options, views=views)


def _project_before(into: Path) -> Project | None:
    """The project that lies in `into` already, if only its settings; None where there is none."""
    file, dataset_file = into / PROJECT_FILE, into / DATASET_FILE
    if file.is_file():
        return Project(into, read_settings(file))
    if dataset_file.exists():
        raise ProjectError(
            f"{dataset_file} is here without {PROJECT_FILE}, so init did not write it",
            f"Rename it, and give it as the list to read: {init_call('LIST.csv', into=into)}",
        )
    return None


def _kept(before: Project | None, settings: Settings) -> tuple[LabelledImage, ...]:
    """The images of the earlier dataset.csv; without their groups where another pattern makes the groups now.

    Their labels are written with the separator of now.
    """
    if before is None or not before.dataset_file.exists():
        return ()
    images = dataset_of(before).images
    earlier, now = (of.dataset.label_separator for of in (before.settings, settings))
    if earlier != now:
        images = tuple(replace(image, label=rewritten(image.label, earlier, separator=now)) for image in images)
    earlier_groups, groups = (
        (of.dataset.group_pattern, of.dataset.group_from, of.dataset.label_from) for of in (before.settings, settings)
    )
    if earlier_groups == groups:
        return images
    return tuple(replace(image, group="") for image in images)


def _renamed(kept: tuple[LabelledImage, ...], before: Project | None, source: Source) -> tuple[LabelledImage, ...]:
    """The images with the paths that the source gives to their files now, where these start from other folders."""
    if before is None or (
        source.images.roots == before.images.roots and resolved(source.folder) == resolved(before.images_folder)
    ):
        return kept
    paths = {resolved(source.images / path): path for path in {candidate.path for candidate in source.candidates}}
    return tuple(replace(image, path=paths.get(resolved(before.images / image.path), image.path)) for image in kept)


def _settings(settings: Settings, options: InitOptions) -> Settings:
    replaced: dict[str, Any] = {}  # what is asked for takes the place of the other way in featcache.toml
    if "split" in options.dataset:
        replaced["split_counts"] = None
    if "label_column" in options.dataset:
        replaced["label_columns"] = ()
    dataset = changed(settings.dataset, {**replaced, **options.dataset})
    dataset = changed(dataset, {"roots": {**settings.dataset.roots, **dataset.roots}})
    if dataset.label_columns and not dataset.label_separator:
        dataset = changed(dataset, {"label_separator": DEFAULT_SEPARATOR})
    _refuse_contradictions(dataset, options)
    views = changed_views(settings.views, options.views)
    if _SQUARE & set(options.views) and "as_trained" not in options.views:
        views = changed(views, {"as_trained": False})  # what is asked for holds for every network
    refuse_two_margins(dataset, views)
    augmentation = changed(settings.augmentation, options.augmentation)
    changes = {"dataset": dataset, "views": views, "augmentation": augmentation}
    return settings.model_copy(update=changes)


def _refuse_contradictions(dataset: DatasetSection, options: InitOptions) -> None:
    """Raise ArgumentsError for what makes no sense where an image may have several labels."""
    separator = dataset.label_separator
    if {"label_column", "label_columns"} <= set(options.dataset):
        raise ArgumentsError("`label_column` and `label_columns` exclude each other: give one of them")
    if separator and dataset.split_counts:
        raise ArgumentsError("`split_counts` are images of each class, and an image with several labels is of several")
    for name in dataset.label_columns:
        if separator in name:
            raise ArgumentsError(f"the column {name!r:.80} has {separator!r} in it: set another `label_separator`")


def _rule(asked: DatasetSection, resplit: bool) -> SplitRule:
    shares = {split: share / sum(asked.split) for split, share in zip(SPLITS, asked.split, strict=True)}
    counts = dict(zip(SPLITS, asked.split_counts, strict=True)) if asked.split_counts else None
    return SplitRule(shares, counts, asked.split_seed, resplit, asked.group_pattern)


def _generate(into: Path, settings: Settings, options: InitOptions, progress: Progress) -> tuple[Path, str]:
    """Draw the generated leukocytes, unless they are there: of an `init` that was stopped after it drew them."""
    folder, seed = into / GENERATED_FOLDER, settings.augmentation.seed
    about = f"generated leukocytes, {options.per_class} of each class, in {GENERATED_FOLDER}/"
    if folder.exists() and not is_generated(folder, options.per_class, seed=seed):
        raise ProjectError(f"{folder} is already here", f"{init_call(shown(folder), into=into)} takes it as it is")
    if not folder.exists():
        with progress.begin("drawing leukocytes", 1) as advance, _writing(into):
            with folder_beside(folder) as partial:
                write_cells(partial, options.per_class, seed=seed)
            advance(1)
    return folder, about


def _split_by_counts(settings: Settings, options: InitOptions) -> Settings:
    """Equal counts a class, since nobody adds images to a generated set; unless another split is asked for."""
    if {"split", "split_counts"} & set(options.dataset):
        return settings
    part = max(options.per_class * 3 // 16, 1)
    counts = (options.per_class - 2 * part, part, part)
    return settings.model_copy(update={"dataset": changed(settings.dataset, {"split_counts": counts})})


def _write_project(into: Path, settings: Settings, source: Path, images: ImageFolders, built: Built) -> Project:
    with _writing(into):
        roots = {
            name: settings.dataset.roots.get(name, _relative(root, into) if is_root_of_masks(name) else str(root))
            for name, root in images.roots.items()
        }
        places = {"source": _relative(source, into), "images": _relative(images.folder, into), "roots": roots}
        settings = settings.model_copy(update={"dataset": changed(settings.dataset, places)})
        is_new = not (into / PROJECT_FILE).exists()
        if is_new:  # else the settings come last: until then another run of the same command changes the same things
            write_project(into, settings)
        write_dataset(into / DATASET_FILE, built.images)
        if not is_new:
            write_project(into, settings)
    return Project(into, settings)


@contextmanager
def _writing(into: Path) -> Iterator[None]:
    try:
        yield
    except TakenError as error:
        raise ProjectError(f"{into}: another init is at work in it: run this one again when it is done") from error
    except OSError as error:
        raise ProjectError(f"{into}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise ProjectError(f"{into}: {error.object!r:.200} cannot be written as UTF-8: rename it") from error


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(resolved(path), resolved(start))).as_posix()
