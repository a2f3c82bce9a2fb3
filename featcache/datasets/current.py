"""The data set of a project as it is now, and a look at its views."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import DatasetError, ProjectError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import ImageFolders, Project, init_call
from featcache.datasets.boxes import clipped
from featcache.datasets.build import default_group
from featcache.datasets.candidates import LeftOut
from featcache.datasets.manifest import Dataset, LabelledImage, dataset_of, write_dataset
from featcache.images import STAMPS_FILE, ImageFile, image_id_of, scan


def current_dataset(
    project: Project, strict: bool = False, *, progress: Progress = SILENT, check_bytes: bool = False, keep: bool = True
) -> tuple[Dataset, list[LeftOut]]:
    """The images of dataset.csv that can be used now, named by the bytes they have now.

    An image whose bytes changed since it was listed gets its new id, in dataset.csv too. A file that is
    gone or does not decode is left out, with the reason; `strict` stops instead. Files that look unchanged
    by size and times are taken for unchanged, unless `check_bytes` asks to read them.
    Without `keep` dataset.csv stays as it is.
    """
    listed = dataset_of(project)
    named = [replace(image, path=_as_on_disk(listed.folder, image.path)) for image in listed.images]
    paths = dict.fromkeys(path for image in named for path in (image.path, image.mask) if path)
    project.images.refuse_missing(paths)
    with progress.begin("checking images", len(paths)) as advance:
        files = scan(
            listed.folder,
            paths,
            stamps=project.cache_folder / STAMPS_FILE,
            on_file=lambda: advance(1),
            every=check_bytes,
        )
    images, left_out, lines = [], [], []
    for image in named:
        file, mask = files[image.path], files[image.mask] if image.mask else None
        box = (
            clipped(image.box, file.width_px, height_px=file.height_px) if image.box and not file.problem else image.box
        )
        problem = file.problem or file.problem_with(listed.white)
        if problem or (image.box and box != image.box):
            reason = problem or f"the box reaches out of the image ({file.width_px}x{file.height_px} px)"
            left_out.append(LeftOut(image.path, reason))
            lines.append(image)
        elif mask and (reason := _problem_of_mask(mask, file)):
            left_out.append(LeftOut(image.path, f"its mask, {image.mask}: {reason}"))
            lines.append(image)
        else:
            mask_sha256 = mask.sha256 if mask else ""
            image_id = image_id_of(file.identity, box, mask_sha256=mask_sha256, um_per_px=image.um_per_px)
            images.append(_with_id(image, image_id, file.sha256))
            lines.append(images[-1])
    stop_if_strict(left_out, strict)
    if not images:
        raise DatasetError(f"{project.dataset_file}: no usable image: {left_out[0].path}: {left_out[0].reason}")
    _refuse_twins(project, images)
    if keep and lines != list(listed.images):
        try:
            write_dataset(project.dataset_file, lines)
        except OSError as error:
            raise ProjectError(f"{project.dataset_file}: cannot be written: {error.strerror or error}") from error
    sizes = {path: file.size for path, file in files.items() if file.um_per_px or file.um_problem}
    return replace(listed, images=tuple(images), sizes=sizes), left_out


def _as_on_disk(folder: Path | ImageFolders, path: str) -> str:
    """A path in the Unicode form that the disk has: of a project that came from another system, say."""
    if path.isascii() or (folder / path).exists():
        return path
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if (folder / form).exists()), path)


def stop_if_strict(left_out: Sequence[LeftOut], strict: bool) -> None:
    """Raise DatasetError naming the first of the images left out, where `strict` asks for that."""
    if strict and left_out:
        listed = "; ".join(f"{item.path}: {item.reason}" for item in left_out[:5])
        raise DatasetError(f"{len(left_out)} images cannot be used (`strict`): {listed}")


def _problem_of_mask(mask: ImageFile, file: ImageFile) -> str:
    if mask.problem or (mask.width_px, mask.height_px) == (file.width_px, file.height_px):
        return mask.problem
    return f"{mask.width_px}x{mask.height_px} pixels, and the picture has {file.width_px}x{file.height_px}"


def _with_id(image: LabelledImage, image_id: str, file_sha256: str) -> LabelledImage:
    group = image.group or default_group(file_sha256)
    return replace(image, group=group, image_id=image_id)


def _refuse_twins(project: Project, images: Sequence[LabelledImage]) -> None:
    by_id: dict[str, LabelledImage] = {}
    for image in images:
        twin = by_id.setdefault(image.image_id, image)
        if twin is not image:
            raise DatasetError(
                f"{project.dataset_file}: {twin.path} ({twin.label}, {twin.split}) and {image.path} ({image.label}, "
                f"{image.split}) have the same bytes",
                f"Remove one, or run {init_call(into=project.folder)} again",
            )
