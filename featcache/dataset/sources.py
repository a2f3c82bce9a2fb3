"""Where labelled images come from: class folders, a CSV, Pascal VOC annotations; recognised by looks."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from featcache.dataset.images import is_image_name
from featcache.dataset.manifest import Box, parse_box, read_csv
from featcache.errors import DatasetError

Layout = Literal["class-folders", "split-folders", "csv", "voc"]
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_HIDDEN = (".", "__")
_PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "category", "target", "class_name")
_GROUP_COLUMNS = ("group", "patient", "patient_id", "slide", "slide_id", "subject")
_SPLIT_COLUMNS = ("split", "set", "subset", "fold")
_EXPECTED = (
    "expected class folders (FOLDER/eosinophil/1.png), split folders (FOLDER/train/eosinophil/1.png), "
    "a CSV with the columns path and label, or Pascal VOC (annotations/*.xml, images/, labels.csv)"
)


@dataclass(frozen=True)
class Candidate:
    """An image that a source names. split and group are "" where the source does not say them."""

    path: str
    label: str
    split: str = ""
    group: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class LeftOut:
    """An image, or a line of a list, that is not used, and why."""

    path: str
    reason: str


@dataclass
class Source:
    """What was found in a folder or list.

    folder : what the candidates' paths start from
    about : one sentence for people: what it was taken for
    """

    layout: Layout
    folder: Path
    about: str
    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find_images(
    place: Path, voc_object: str = "WBC", margin: float = 0.0, ignore: frozenset[Path] = frozenset()
) -> Source:
    """Recognise the layout of a folder (or take a CSV file) and list the images it names.

    voc_object : name of the annotated objects that the labels of a VOC label file belong to
    margin : grows each VOC box by this fraction of its longer side on every side
    ignore : files and folders in `place` that are no source: a project's own

    Raises DatasetError where the place is absent, empty or of no known layout.
    """
    if place.is_file():
        return _from_csv(place)
    if not place.is_dir():
        raise DatasetError(f"{place}: there is no such folder or file")
    own = frozenset(path.resolve() for path in ignore)
    folder = _descend(place, own)
    annotations = _annotation_files(folder)
    if annotations:
        return _from_voc(folder, annotations, voc_object, margin, own)
    subfolders = _visible_folders(folder, own)
    lists = _label_lists(folder, own)
    by_split = {sub: SPLIT_NAMES[sub.name.lower()] for sub in subfolders if sub.name.lower() in SPLIT_NAMES}
    if by_split and any(_visible_folders(sub) for sub in by_split):
        return _from_split_folders(folder, by_split, subfolders, own)
    listed = lists and (len(subfolders) == 1 or any(_is_images_folder(sub) for sub in subfolders))
    if any(_has_images(sub) for sub in subfolders) and not listed:
        return _from_class_folders(folder, subfolders, own)
    if len(lists) == 1:
        return _from_csv(lists[0])
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise DatasetError(f"{place}: several lists with labels ({names}): name one, 'featcache init {lists[0]}'")
    images = sum(1 for path in folder.iterdir() if is_image_name(path))
    found = f"{images} images without a label" if images else "no images"
    raise DatasetError(f"{place}: {found}: {_EXPECTED}")


# Class folders


def _from_class_folders(folder: Path, subfolders: list[Path], own: frozenset[Path]) -> Source:
    source = Source("class-folders", folder, f"class folders: {_names(subfolders)}")
    for sub in subfolders:
        _add_class_folder(source, sub, split="")
    _note_strays(source, folder, own)
    return source


def _from_split_folders(
    folder: Path, by_split: dict[Path, str], subfolders: list[Path], own: frozenset[Path]
) -> Source:
    source = Source("split-folders", folder, "")
    for split_folder, split in by_split.items():
        for sub in _visible_folders(split_folder):
            _add_class_folder(source, sub, split)
        _note_strays(source, split_folder)
    for other in (sub for sub in subfolders if sub not in by_split):
        source.left_out.append(LeftOut(other.name, "a folder beside train, val and test that is none of them"))
    _note_strays(source, folder, own)
    classes = sorted({candidate.label for candidate in source.candidates})
    source.about = f"class folders split already ({_names(by_split)}): {', '.join(classes)}"
    return source


def _add_class_folder(source: Source, class_folder: Path, split: str) -> None:
    before = len(source.candidates)
    for path in _image_files(class_folder):
        relative = path.relative_to(source.folder).as_posix()
        source.candidates.append(Candidate(relative, class_folder.name.strip(), split))
    if len(source.candidates) == before:
        raise DatasetError(f"{class_folder}: a class folder without images: add some, or remove the folder")


def _note_strays(source: Source, folder: Path, own: frozenset[Path] = frozenset()) -> None:
    for path in sorted(folder.iterdir()):
        if path.resolve() not in own and path.is_file() and is_image_name(path):
            source.left_out.append(LeftOut(path.relative_to(source.folder).as_posix(), "it lies in no class folder"))


# A list


def _from_csv(path: Path) -> Source:
    frame = read_csv(path)
    columns = {name.strip().lower(): name for name in map(str, frame.columns)}
    path_column, label_column = _first(columns, _PATH_COLUMNS), _first(columns, _LABEL_COLUMNS)
    if not path_column or not label_column:
        raise DatasetError(
            f"{path}: expected a column path (or {', '.join(_PATH_COLUMNS[1:4])}) and a column label "
            f"(or {', '.join(_LABEL_COLUMNS[1:3])}); found {', '.join(map(str, frame.columns))}"
        )
    split_column, group_column = _first(columns, _SPLIT_COLUMNS), _first(columns, _GROUP_COLUMNS)
    source = Source("csv", path.parent, f"a list, {path.name}: columns {', '.join(map(str, frame.columns))}")
    files: list[Path] = []
    for line, row in zip(frame.index, frame.to_dict("records"), strict=True):
        cells = {str(key).strip().lower(): str(value).strip() for key, value in row.items()}
        where = f"{path}, line {line}"
        name, label = cells[path_column.strip().lower()], cells[label_column.strip().lower()]
        file = _locate(path.parent, name)
        if not label:
            source.left_out.append(LeftOut(name, "it has no label"))
        elif file is None:
            source.left_out.append(LeftOut(name, "there is no such file"))
        else:
            split = _split_name(cells.get((split_column or "").strip().lower(), ""), where)
            group = cells.get((group_column or "").strip().lower(), "")
            source.candidates.append(Candidate("", label, split, group, parse_box(cells, where)))
            files.append(file)
    _name_from_common_folder(source, files)
    return source


def _name_from_common_folder(source: Source, files: list[Path]) -> None:
    """Make the paths of a list relative: to the list's folder, or to the one that holds all images."""
    if not all(file.is_relative_to(source.folder) and ".." not in file.parts for file in files):
        files = [file.resolve() for file in files]
        source.folder = Path(os.path.commonpath([file.parent for file in files]))
    source.candidates = [
        replace(candidate, path=file.relative_to(source.folder).as_posix())
        for candidate, file in zip(source.candidates, files, strict=True)
    ]


def _split_name(name: str, where: str) -> str:
    if name and name.lower() not in SPLIT_NAMES:
        raise DatasetError(f"{where}: split {name!r}: expected train, val or test")
    return SPLIT_NAMES.get(name.lower(), "")


def _first(columns: dict[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _locate(folder: Path, name: str) -> Path | None:
    """The file that a list means: from the list's folder, or in an images folder beside it."""
    name = name.replace("\\", "/")
    if not name:
        return None
    places = [folder, *(sub for sub in _visible_folders(folder) if _is_images_folder(sub))]
    found = (Path(os.path.normpath(place / name)) for place in places)
    try:
        return next((file for file in found if file.is_file()), None)
    except OSError:  # a name that no file can have
        return None


# Pascal VOC


def _from_voc(folder: Path, annotations: list[Path], voc_object: str, margin: float, own: frozenset[Path]) -> Source:
    lists = _label_lists(folder, own)
    if len(lists) > 1:
        raise DatasetError(f"{folder}: several label files ({', '.join(p.name for p in lists)}): keep one")
    images = _by_name(path for path in _image_files(folder) if not own & {path.resolve(), *path.resolve().parents})
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
    listed = list(_labels_of(labels_file))
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
            source.left_out.append(LeftOut(name, reason))
            continue
        relative = picture.relative_to(source.folder).as_posix()
        for label, box in zip(labels, boxes, strict=True):
            source.candidates.append(Candidate(relative, label, box=_grown(box, margin)))


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
        relative = picture.relative_to(source.folder).as_posix()
        for name, box in dict.fromkeys(smear.objects):
            source.candidates.append(Candidate(relative, name, box=_grown(box, margin)))


def _labels_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Lines of a label file: an image's name and the labels of its cells ("a, b": two cells)."""
    frame = read_csv(path)
    columns = {name.strip().lower(): name for name in map(str, frame.columns)}
    path_column, label_column = _first(columns, _PATH_COLUMNS) or "", _first(columns, _LABEL_COLUMNS) or ""
    for _, row in frame.iterrows():
        labels = [label.strip() for label in re.split(r"[,;|]", str(row[label_column]))]
        yield str(row[path_column]).strip(), [label for label in labels if label]


def _picture_of(images: dict[str, Path], name: str) -> Path | None:
    bare = Path(name).name
    if bare in images:
        return images[bare]
    return next((path for path in images.values() if path.stem == bare), None)


def _grown(box: Box, margin: float) -> Box:
    by = round(margin * max(box.x_max - box.x_min, box.y_max - box.y_min))
    return Box(max(box.x_min - by, 0), max(box.y_min - by, 0), box.x_max + by, box.y_max + by)


# Looking at folders


def _annotation_files(folder: Path) -> list[Path]:
    """XML files in FOLDER/annotations (any case) or beside the images."""
    subfolders = _visible_folders(folder)
    places = [sub for sub in subfolders if sub.name.lower() in ("annotations", "annotation", "xml")]
    if not places and (any(map(_is_images_folder, subfolders)) or any(map(is_image_name, folder.iterdir()))):
        places = [folder]
    return sorted(path for place in places for path in place.iterdir() if _is_file(path, ".xml"))


def _label_lists(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """CSV files in `folder` with a path and a label column."""
    found = []
    for path in sorted(folder.iterdir()):
        if not _is_file(path, ".csv") or path.resolve() in own:
            continue
        columns = {name.strip().lower(): name for name in _header(path)}
        if _first(columns, _PATH_COLUMNS) and _first(columns, _LABEL_COLUMNS):
            found.append(path)
    return found


def _header(path: Path) -> list[str]:
    """The first line of a CSV with anything in it; an unreadable one has none."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16).decode("utf-8-sig", "replace")
        return next(filter(any, csv.reader(io.StringIO(start, newline=""), skipinitialspace=True)), [])
    except (OSError, csv.Error):
        return []


def _descend(folder: Path, own: frozenset[Path]) -> Path:
    """Past folders that hold nothing but one other folder with folders of images in it."""
    subfolders = _visible_folders(folder, own)
    files = [
        path
        for path in folder.iterdir()
        if (is_image_name(path) or _is_file(path, ".csv")) and path.resolve() not in own
    ]
    if len(subfolders) == 1 and not files and _visible_folders(subfolders[0]):
        return _descend(subfolders[0], own)
    return folder


def _visible_folders(folder: Path, own: frozenset[Path] = frozenset()) -> list[Path]:
    """Subfolders that are neither hidden nor among `own` (resolved paths)."""
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_HIDDEN))
    return sorted(path for path in folders if path.resolve() not in own)


def _is_file(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not path.name.startswith(_HIDDEN) and path.is_file()


def _is_images_folder(folder: Path) -> bool:
    return folder.name.lower() in ("images", "image", "imgs", "jpegimages", "pictures", "data")


def _image_files(folder: Path) -> list[Path]:
    """Images at any depth, past hidden folders such as .ipynb_checkpoints and __MACOSX."""
    return sorted(path for path in _named_as_images(folder) if path.is_file())


def _has_images(folder: Path) -> bool:
    return any(True for _ in _named_as_images(folder))


def _named_as_images(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inner = path.relative_to(folder).parts[:-1]
        if is_image_name(path) and not any(part.startswith(_HIDDEN) for part in inner):
            yield path


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
