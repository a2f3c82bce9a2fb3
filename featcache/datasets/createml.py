"""CreateML annotations: a JSON list of pictures with boxes by their middle, as LabelImg writes them."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from featcache.core.errors import DatasetError
from featcache.core.strict_json import read_bounded
from featcache.datasets.annotations import PLACES, Annotated, box_of_points
from featcache.datasets.candidates import UNKNOWN_SIZE, composed
from featcache.images import visible_folders

_MAX_FILE_BYTES = 64 << 20
_START_BYTES = 1 << 16


class _Coordinates(BaseModel):
    x: float
    y: float
    width: float
    height: float


class _Object(BaseModel):
    label: str = ""
    coordinates: _Coordinates | None = None


class _Picture(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    image: str = Field(alias="image", default="")
    imagefilename: str = ""
    annotations: list[_Object] = []


_PICTURES = TypeAdapter(list[_Picture])


def createml_files(folder: Path, own: frozenset[Path]) -> list[Path]:
    """CreateML files right in a folder, or in its folders of images and annotations."""
    places = [folder, *(sub for sub in visible_folders(folder, own) if sub.name.lower() in (*PLACES, "images"))]
    return [path for place in places for path in sorted(place.glob("*.json")) if is_createml(path)]


def is_createml(path: Path) -> bool:
    """Whether a file looks like CreateML's, by its beginning."""
    try:
        with path.open("rb") as file:
            text = file.read(_START_BYTES).lstrip()
    except OSError:
        return False
    return text.startswith(b"[") and b'"annotations"' in text and b'"image' in text


def read_createml(path: Path) -> list[Annotated]:
    """The annotations of a CreateML file, one for each of its pictures. Raises DatasetError where it is none."""
    try:
        read = _PICTURES.validate_python(json.loads(read_bounded(path, _MAX_FILE_BYTES)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DatasetError(f"{path}: cannot be read as CreateML annotations: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as CreateML annotations: {error!s:.300}") from error
    found = []
    for picture in read:
        name = (picture.image or picture.imagefilename).replace("\\", "/")
        annotated = Annotated(path, name, UNKNOWN_SIZE, is_one_of_many=True)
        for item in picture.annotations:
            label, at = composed(item.label.strip()), item.coordinates
            try:
                if not label or at is None:
                    raise ValueError("an object without a box" if label else "an object without a label")
                if not (at.width > 0 and at.height > 0):
                    raise ValueError("a box without width or height")
                xs, ys = (at.x - at.width / 2, at.x + at.width / 2), (at.y - at.height / 2, at.y + at.height / 2)
                annotated.objects.append((label, box_of_points(xs, ys)))
            except (ValueError, OverflowError) as error:
                annotated.odd.append((label, str(error)))
        found.append(annotated)
    return found
