"""Pascal VOC annotations, with a label file or without: one image a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from featcache.dataset.candidates import Candidate, LeftOut, Source
from featcache.dataset.folders import image_files, is_file, is_images_folder, visible_folders
from featcache.dataset.images import is_image_name
from featcache.dataset.lists import label_lists, labels_of
from featcache.dataset.manifest import Box
from featcache.errors import DatasetError


def from_voc(folder: Path, annotations: list[Path], voc_object: str, margin: float, own: frozenset[Path]) -> Source:
    lists = label_lists(folder, own)
    if len(lists) > 1:
        raise DatasetError(f"{folder}: several label files ({', '.join(p.name for p in lists)}): keep one")
    images = _by_name(path for path in image_files(folder) if not own & {path.resolve(), *path.resolve().parents})
    source = Source("voc", folder, "")
    smears = dict(_read_annotations(source, annotations))
    if lists:
        _pair_with_labels(source, images, smears, lists[0], voc_object, margin)
        source.about = f"Pascal VOC annotations with labels from {lists[0].name}: one image a {voc_object} box"
    else:
        _take_object_names(source, images, smears, margin)
        names = sorted({candidate.label for candidate in source.candidates})
        source.about = f"Pascal VOC annotations without a label file: one image a box ({', '.join(names)})"
    return source


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Images by their bare name, which is all that annotations give. Raises DatasetError where two share one."""
    images: dict[str, Path] = {}
    for path in paths:
        twin = images.setdefault(path.name, path)
        if twin is not path:
            raise DatasetError(f"{twin} and {path} have one name: which of them an annotation means is not said")
    return images


@dataclass(frozen=True)
class _Annotated:
    """One annotation file: the picture it belongs to and its objects (name, box)."""

    picture: str
    objects: list[tuple[str, Box]]


def _read_annotations(source: Source, files: list[Path]) -> Iterator[tuple[str, _Annotated]]:
    for file in files:
        try:
            root = parse(file).getroot()
            picture = Path((root.findtext("filename") or "").strip().replace("\\", "/")).name
            objects = [(_text(item, "name"), _voc_box(item)) for item in root.iter("object")]
        except (ParseError, DefusedXmlException, ValueError, OverflowError, LookupError, OSError) as error:
            source.left_out.append(LeftOut(file.name, f"the annotation cannot be read ({error})"))
            continue
        yield file.stem, _Annotated(picture, objects)


def _text(item: object, name: str) -> str:
    value = item.findtext(name)  # type: ignore[attr-defined]
    if not value or not value.strip():
        raise ValueError(f"no <{name}>")
    return str(value.strip())


def _voc_box(item: object) -> Box:
    """VOC counts pixels from 1 and includes the last one."""
    x_min, y_min, x_max, y_max = (float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    return Box(max(round(x_min) - 1, 0), max(round(y_min) - 1, 0), round(x_max), round(y_max))


def _pair_with_labels(
    source: Source,
    images: dict[str, Path],
    smears: dict[str, _Annotated],
    labels_file: Path,
    voc_object: str,
    margin: float,
) -> None:
    listed = list(labels_of(labels_file))
    boxes_of = {
        stem: [box for name, box in smear.objects if name.lower() == voc_object.lower()]
        for stem, smear in smears.items()
    }
    if not any(boxes_of.values()):
        names = Counter(name for smear in smears.values() for name, _ in smear.objects)
        found = ", ".join(f"{name} ({n})" for name, n in names.most_common())
        raise DatasetError(
            f"{source.folder}: no object is named {voc_object!r}; found {found or 'none'}: name one with --voc-object"
        )
    by_picture = {smear.picture: stem for stem, smear in smears.items()}
    for name, labels in listed:
        picture = _picture_of(images, name)
        stem = Path(name).stem if Path(name).stem in smears else by_picture.get(Path(name).name, "")
        boxes = boxes_of.get(stem, [])
        reason = _why_unpaired(picture, stem, labels, boxes, voc_object)
        if picture is None or reason:
            source.left_out.append(LeftOut(_relative(picture, source) if picture else name, reason))
            continue
        for label, box in zip(labels, boxes, strict=True):
            source.candidates.append(Candidate(_relative(picture, source), label, box=_grown(box, margin)))
    unlisted = set(images.values()) - {_picture_of(images, name) for name, _ in listed}
    for picture in sorted(unlisted):
        source.left_out.append(LeftOut(_relative(picture, source), f"it has no line in {labels_file.name}"))


def _relative(picture: Path, source: Source) -> str:
    return picture.relative_to(source.folder).as_posix()


def _why_unpaired(picture: Path | None, stem: str, labels: list[str], boxes: list[Box], voc_object: str) -> str:
    """Why a smear's labels and boxes do not pair up, or "" where they do."""
    if picture is None:
        return "there is no such image"
    if not labels:
        return "it has no label"
    if not stem:
        return "it has no annotation"
    if len(labels) != len(boxes):
        boxes_text = f"{len(boxes)} {voc_object} box{'' if len(boxes) == 1 else 'es'}"
        return f"{len(labels)} label{'' if len(labels) == 1 else 's'} ({', '.join(labels)}) for {boxes_text}"
    if len(set(labels)) > 1:
        return (
            f"{len(boxes)} {voc_object} boxes with different labels ({', '.join(labels)}): which is which is not said"
        )
    return ""


def _take_object_names(source: Source, images: dict[str, Path], smears: dict[str, _Annotated], margin: float) -> None:
    for stem, smear in smears.items():
        picture = _picture_of(images, smear.picture) or _picture_of(images, stem)
        if picture is None:
            source.left_out.append(LeftOut(stem, "there is no such image"))
            continue
        relative = _relative(picture, source)
        for name, box in dict.fromkeys(smear.objects):
            source.candidates.append(Candidate(relative, name, box=_grown(box, margin)))


def _picture_of(images: dict[str, Path], name: str) -> Path | None:
    bare = Path(name).name
    if bare in images:
        return images[bare]
    return next((path for path in images.values() if path.stem == bare), None)


def _grown(box: Box, margin: float) -> Box:
    by = round(margin * max(box.x_max - box.x_min, box.y_max - box.y_min))
    return Box(max(box.x_min - by, 0), max(box.y_min - by, 0), box.x_max + by, box.y_max + by)


def annotation_files(folder: Path) -> list[Path]:
    """XML files in FOLDER/annotations (any case) or beside the images."""
    subfolders = visible_folders(folder)
    places = [sub for sub in subfolders if sub.name.lower() in ("annotations", "annotation", "xml")]
    if not places and (any(map(is_images_folder, subfolders)) or any(map(is_image_name, folder.iterdir()))):
        places = [folder]
    return sorted(path for place in places for path in place.iterdir() if is_file(path, ".xml"))
