"""featcache.toml: where a project's images, caches and runs lie, and which views it asks for."""

from __future__ import annotations

import csv
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featcache.core.errors import ArgumentsError, ProjectError
from featcache.core.files import resolved, write_text
from featcache.core.recipe import (
    EDGE,
    FILL_MODES,
    LOW_PRECISIONS,
    UM_PER_PX,
    Augmentation,
    FillMode,
    Interpolation,
    Resize,
)
from featcache.core.strict_json import strict_toml

PROJECT_FILE = "featcache.toml"
DATASET_FILE = "dataset.csv"
CACHE_FOLDER = "cache"
LARGEST_WHITE = 65_535
"""Value of white that says the same as none: the largest of 16 bits."""
SEGMENTS = ("none", "stain", "colour", "given")
"""Ways to find the white cell in an image that need no file."""

_Fraction = Annotated[float, Field(ge=0, le=0.5)]
_Share = Annotated[float, Field(gt=0, le=1e9)]
_Count = Annotated[int, Field(ge=1)]
_Rows = _Count | dict[str, _Count]
RootName = Annotated[str, Field(pattern=r"^[\w-][\w.-]{0,63}$")]


def colour_of(padding: str) -> str:
    """A colour as recipes spell it, #rrggbb; "edge" stays. Raises ValueError for what is none."""
    from PIL import ImageColor

    if padding == EDGE:
        return EDGE
    try:
        red, green, blue, *alpha = ImageColor.getrgb(padding)
    except ValueError:
        alpha = [0]
    if alpha:
        raise ValueError(f"{padding!r:.80} is no colour: expected a name such as white, #rrggbb, or {EDGE}")
    return f"#{red:02x}{green:02x}{blue:02x}"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a character that no name of a file can have")
        return value


def _um_per_px(value: float) -> float:
    """A side of a pixel, or 0. Raises ValueError for one that no pixel has."""
    if value and value < UM_PER_PX[0]:
        raise ValueError(f"{value:g} µm: expected 0, or {UM_PER_PX[0]:g} to {UM_PER_PX[1]:g} µm")
    return value


class DatasetSection(_Section):
    """[dataset]: what `init` reads and how; and the folders that the paths in dataset.csv start from.

    source, images and roots are relative to the folder of featcache.toml.
    """

    source: str = "."
    images: str = "."
    roots: dict[RootName, str] = Field(
        default={}, description="Folder whose images a list names, and the name that their paths begin with."
    )
    split: tuple[_Share, _Share, _Share] = Field(
        default=(70, 15, 15), description="Proportions of train, val and test."
    )
    split_counts: tuple[_Count, _Count, _Count] | None = Field(
        default=None, description="Images of each class in train, val and test, instead of proportions."
    )
    split_seed: int = Field(default=0, ge=0, description="Seed of the splits.")
    group_pattern: str = Field(default="", description="Regular expression that finds the group in an image's path.")
    label_from: str = Field(
        default="",
        max_length=500,
        description="Where an image's path says its label (and group, split): '{group}/*/{label}_*'.",
    )
    group_from: str = Field(
        default="", max_length=500, description="Where an image's path says its group: '**/{group}_*'."
    )
    masks: str = Field(default="", description="Folder with a mask of each image's cells: the box of each is cut out.")
    mask_column: str = Field(
        default="", description="Column of a CSV file with a mask of each image's cells ('none' ignores them)."
    )
    without: tuple[str, ...] = Field(default=(), description="Leave out this class.")
    voc_object: str = Field(default="WBC", description="Annotated object that a Pascal VOC label file labels.")
    margin: float = Field(
        default=0.0, ge=0, le=5, description="Enlarge each box as it is read, by this share of its longer side."
    )
    um_per_px: float = Field(
        default=0.0,
        ge=0,
        le=UM_PER_PX[1],
        description="Side of a pixel of these images in micrometres, instead of what files say; 0: as they say.",
    )
    class_level: int = Field(
        default=0, ge=0, le=20, description="Level of folders that names the classes (1 = the top one, 0 = find out)."
    )
    path_column: str = Field(default="", description="Column of a CSV file with the images' paths.")
    label_column: str = Field(default="", description="Column of a CSV file with the labels.")
    label_separator: str = Field(
        default="",
        max_length=1,
        description="Several labels an image: the character between them in the label column, such as ';'.",
    )
    label_columns: tuple[str, ...] = Field(
        default=(),
        description="Several labels an image: columns of a CSV file with 0 and 1, one for each label.",
    )
    group_column: str = Field(default="", description="Column of a CSV file with the groups ('none' ignores them).")
    split_column: str = Field(default="", description="Column of a CSV file with the splits ('none' ignores them).")
    box_columns: tuple[str, ...] = Field(
        default=(),
        description="Columns of a CSV file with the boxes: left, top, right, bottom, or left, top, width, height "
        "('none' ignores them).",
    )

    @field_validator("um_per_px")
    @classmethod
    def _is_a_size(cls, value: float) -> float:
        return _um_per_px(value)

    @field_validator("label_separator")
    @classmethod
    def _separates(cls, separator: str) -> str:
        if separator.isalnum() or separator.isspace() or separator in ("_", '"', "'"):
            raise ValueError(f"{separator!r} may be a part of a label: expected a character such as ';'")
        return separator

    @field_validator("group_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class ViewsSection(_Section):
    """[views]: how many views each image gets, or how many rows each split gets in total.

    A total is spread evenly over the classes, then over the images of a class. It may be given for each class instead.
    """

    train: int = Field(default=4, ge=1, le=100_000, description="Views of each train image, the plain one included.")
    val: int = Field(default=1, ge=1, le=100_000, description="Views of each val image.")
    test: int = Field(default=1, ge=1, le=100_000, description="Views of each test image.")
    train_rows: _Rows | None = Field(
        default=None,
        description="Total rows of train, spread evenly over classes; or a table with the rows of each.",
    )
    val_rows: _Rows | None = Field(default=None, description="Total rows of val, or those of each class.")
    test_rows: _Rows | None = Field(default=None, description="Total rows of test, or those of each class.")
    as_trained: bool = Field(
        default=False,
        description="Make images square as the network's library does (timm, torchvision, Hugging Face).",
    )
    resize: Resize = Field(
        default="stretch", description="How images and boxes become square. pad and crop keep their shape."
    )
    interpolation: Interpolation = Field(
        default="area-bicubic",
        description="Filter of the resizing: those of Pillow, or areas to shrink and bicubic to grow.",
    )
    crop_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the resized image that a centre crop keeps, with resize crop."
    )
    padding: str = Field(
        default="black", max_length=40, description="What stands beside a padded image: a colour, #rrggbb, or edge."
    )
    margin: float = Field(
        default=0.0, ge=0, le=2, description="Room around each box, as a share of its longer side, mirrored at borders."
    )
    white: int = Field(
        default=0,
        ge=0,
        le=LARGEST_WHITE,
        description="Value of white in images of more than 8 bits that do not say it, such as 4095; 0: the largest of "
        "their type.",
    )
    um_per_px: float = Field(
        default=0.0,
        ge=0,
        le=UM_PER_PX[1],
        description="Show all images and boxes at one magnification, a pixel of the view this many micrometres wide; "
        "0: fit them into the square.",
    )
    segment: str = Field(
        default="none",
        description="Find the white cell in each image or box, and cut it out: by stain, by colour, by the masks that "
        "are given with the images, or by the file of a segmenter that fit-segmenter made.",
    )
    segment_weights: str | None = Field(
        default=None, description="Weights of the fitted segmenter's network, if they are in a file."
    )
    background: Literal["keep", "white", "black", "mean"] = Field(
        default="keep", description="What surrounds a cell that is cut out."
    )
    cell_margin: float = Field(
        default=0.1, ge=0, le=2, description="Room around a cell that is cut out, as a share of its longer side."
    )

    normalise: Literal["none", "reinhard", "macenko"] = Field(
        default="none", description="Bring the colours of every image to one appearance (stain normalisation)."
    )
    balance: bool = Field(
        default=False, description="Give rare classes more views, so that all have as many train rows as the largest."
    )

    @field_validator("um_per_px")
    @classmethod
    def _is_a_size(cls, value: float) -> float:
        return _um_per_px(value)

    @field_validator("padding")
    @classmethod
    def _is_a_colour(cls, padding: str) -> str:
        colour_of(padding)
        return padding

    @field_validator("segment", "segment_weights", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("segment")
    @classmethod
    def _is_a_way(cls, segment: str) -> str:
        if segment not in SEGMENTS and not Path(segment).suffix:
            raise ValueError(f"expected {', '.join(SEGMENTS)}, or the file of a fitted segmenter (.npz)")
        return segment

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        for name, needed in (("padding", "pad"), ("crop_share", "crop")):
            is_default = getattr(self, name) == type(self).model_fields[name].default
            if not is_default and self.resize != needed and not (self.um_per_px and name == "padding"):
                raise ValueError(f"`{name}` is for `resize='{needed}'`, not for `resize='{self.resize}'`")
        if self.margin and self.segment != "none":
            raise ValueError("`margin` is room around boxes: around cells that are found, set `cell_margin`")
        for name in ("margin", "crop_share"):
            if self.um_per_px and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` and `um_per_px` exclude each other: such a view is a window of one size")
        return self

    def views_per_image(self, split: str) -> int:
        """Views an image of `split` gets where no total is asked for."""
        return int(getattr(self, split))

    def total_rows(self, split: str) -> int | dict[str, int] | None:
        """Rows that `split` gets in total, or those of each class; None where views an image decide."""
        total: int | dict[str, int] | None = getattr(self, f"{split}_rows")
        return total


class AugmentationSection(_Section):
    """[augmentation]: the fields of `featcache.core.recipe.Augmentation`, with their bounds."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the augmentation.")
    rotation_deg: float = Field(default=20.0, ge=0, le=180, description="Largest rotation in degrees.")
    shift: _Fraction = Field(default=0.10, description="Largest shift along each axis, as a fraction of the side.")
    horizontal_flip: bool = Field(default=True, description="Mirror half of the views left to right.")
    vertical_flip: bool = Field(default=True, description="Mirror half of the views top to bottom.")
    brightness: _Fraction = Field(default=0.10, description="Largest relative change of the brightness.")
    contrast: _Fraction = Field(default=0.15, description="Largest relative change of the contrast.")
    saturation: float = Field(default=0.20, ge=0, le=1, description="Largest relative change of the saturation.")
    hue_deg: float = Field(default=6.0, ge=0, le=180, description="Largest change of the hue in degrees.")
    fill_modes: tuple[FillMode, ...] = Field(
        default=FILL_MODES,
        min_length=1,
        description="Ways to fill points outside the image; each view draws one.",
    )
    fill_value: int = Field(default=0, ge=0, le=255, description="Grey level of the fill mode constant.")

    zoom: _Fraction = Field(default=0.0, description="Largest relative change of the size.")
    stain: _Fraction = Field(default=0.0, description="Largest relative change of each stain: haematoxylin, eosin.")
    blur: float = Field(
        default=0.0, ge=0, le=0.05, description="Largest deviation of a Gaussian blur, as a fraction of the side."
    )
    noise: _Fraction = Field(default=0.0, description="Largest deviation of noise, as a fraction of full white.")

    def record(self) -> Augmentation:
        """The same as the frozen record that recipes hold."""
        return Augmentation(**self.model_dump())


class StorageSection(_Section):
    """[storage]: how the features of a cache are stored."""

    format: Literal["zarr", "hdf5"] = Field(default="zarr", description="Format of the cache: Zarr, or one HDF5 file.")
    dtype: Literal["auto", "float32", "float16"] = Field(
        default="auto",
        description="Type of the stored features; auto is float16 where the network computes in less than float32.",
    )

    def dtype_of(self, precision: str) -> str:
        """The type of features that a network computes in `precision`."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if precision in LOW_PRECISIONS else "float32"


class FoldersSection(_Section):
    """[folders]: where caches and runs are kept, relative to featcache.toml.

    cache : or the URL of a remote that they are made on: s3://BUCKET/PREFIX
    """

    cache: str = CACHE_FOLDER
    results: str = "results"


class RemoteSection(_Section):
    """[remotes.NAME]: where caches and runs are exchanged.

    url : never with credentials in it
    signed : whether pulls from there must be signed by a key that is trusted here
    """

    url: str = Field(min_length=1, max_length=2000)
    signed: bool = False


RemoteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Section = TypeVar("Section", DatasetSection, ViewsSection, AugmentationSection, StorageSection)


class Settings(_Section):
    """A whole featcache.toml."""

    dataset: DatasetSection = DatasetSection()
    views: ViewsSection = ViewsSection()
    augmentation: AugmentationSection = AugmentationSection()
    storage: StorageSection = StorageSection()
    folders: FoldersSection = FoldersSection()
    remotes: dict[RemoteName, RemoteSection] = {}

    @model_validator(mode="after")
    def _folders_differ(self) -> Settings:
        if self.folders.cache == self.folders.results:
            raise ValueError("folders.cache and folders.results must be two folders")
        return self

    @model_validator(mode="after")
    def _one_margin(self) -> Settings:
        refuse_two_margins(self.dataset, self.views)
        return self


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of a project lie: in one folder, or in several that have names.

    `folders / "north/1.png"` is 1.png in the root north, if there is one; else north/1.png in `folder`.
    """

    folder: Path
    roots: Mapping[str, Path] = field(default_factory=dict)

    def __truediv__(self, path: str) -> Path:
        folder, rest = self.parted(path)
        return folder / rest

    def parted(self, path: str) -> tuple[Path, str]:
        """The folder that a path starts from, and the rest of the path."""
        name, _, rest = path.partition("/")
        return (self.roots[name], rest) if rest and name in self.roots else (self.folder, path)

    def refuse_missing(self, paths: Iterable[str] | None = None) -> None:
        """Raise ProjectError for a root that is not there, and that one of the paths (all: None) lies in."""
        used = set(self.roots) if paths is None else {path.partition("/")[0] for path in paths}
        for name in sorted(used & set(self.roots)):
            if not self.roots[name].is_dir():
                raise ProjectError(
                    f"the root {name!r} of the images, {self.roots[name]}: there is no such folder",
                    f"Connect its disk, or write where it is now under [dataset.roots] in {PROJECT_FILE}",
                )


class Project:
    """A folder with featcache.toml, and the paths that follow from it.

    found : what `init` found and wrote, where it just did
    """

    found: Any = None

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    def __repr__(self) -> str:
        return f"Project({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The folder, and how many images dataset.csv lists: a line for each class, a column for each split."""
        text = self.dataset_file.read_text(encoding="utf-8") if self.dataset_file.is_file() else ""
        lines = list(csv.DictReader(text.splitlines()))
        separator = self.settings.dataset.label_separator
        counts = Counter(
            (label.strip(), line.get("split", ""))
            for line in lines
            for label in (set(line.get("label", "").split(separator)) if separator else [line.get("label", "")])
        )
        splits = dict.fromkeys(("train", "val", "test")) | dict.fromkeys(sorted({split for _, split in counts}))
        table = [
            ["", *(split or "no split" for split in splits)],
            *(
                [label or "no label", *(str(counts[label, split]) for split in splits)]
                for label in sorted({label for label, _ in counts})
            ),
        ]
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in table)
        return f"<b>{escape(str(self.folder))}</b><table>{rows}</table>"

    @property
    def dataset_file(self) -> Path:
        """dataset.csv"""
        return self.folder / DATASET_FILE

    @property
    def images_folder(self) -> Path:
        """The folder that the paths in dataset.csv start from, but for those in `roots`."""
        return self.folder / self.settings.dataset.images

    @property
    def images(self) -> ImageFolders:
        """Finds the images that the paths in dataset.csv name: in `images_folder`, or in roots elsewhere."""
        roots = self.settings.dataset.roots
        return ImageFolders(self.images_folder, {name: self.folder / root for name, root in roots.items()})

    @property
    def cache_folder(self) -> Path:
        """Where this project's caches lie; of those on a remote, what is kept of them on this machine."""
        return self.folder / (CACHE_FOLDER if self.cache_url else self.settings.folders.cache)

    @property
    def cache_url(self) -> str:
        """The remote that this project's caches are made on; "" where they are made in `cache_folder`."""
        cache = self.settings.folders.cache
        return cache if "://" in cache else ""

    def with_cache_folder(self, where: str | Path) -> Project:
        """The same project with its caches elsewhere: in another folder, or on a remote.

        where : a folder, or the URL of a remote
        """
        cache = str(where) if "://" in str(where) else str(resolved(Path(where)))
        folders = self.settings.folders.model_copy(update={"cache": cache})
        return Project(self.folder, self.settings.model_copy(update={"folders": folders}))

    @property
    def results_folder(self) -> Path:
        """Where this project's runs lie."""
        return self.folder / self.settings.folders.results


def shown(path: Path) -> str:
    """A path as a person at the prompt would write it: from the current folder where it lies in there."""
    path, here = resolved(path), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def init_call(*arguments: str, into: Path, resplit: bool = False) -> str:
    """A call of `featcache.init` for a hint; `into` is left out where it is the current folder."""
    words = [repr(argument) for argument in arguments]
    words += ["resplit=True"] if resplit else []
    words += [f"into={shown(into)!r}"] if resolved(into) != Path.cwd() else []
    return f"`featcache.init({', '.join(words)})`"


def changed(section: Section, changes: Mapping[str, Any]) -> Section:
    """A section with some values changed and checked. Raises ProjectError naming what is wrong."""
    try:
        return type(section).model_validate({**section.model_dump(), **changes})
    except ValidationError as error:
        raise ProjectError(explain(error)) from error


def changed_views(views: ViewsSection, changes: Mapping[str, Any]) -> ViewsSection:
    """[views] with some values changed: views of each image replace a total in featcache.toml, and exclude another."""
    replaced: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        if split in changes:
            total = f"{split}_rows"
            if changes.get(total) is not None:
                raise ArgumentsError(f"`{split}` and `{total}` exclude each other: give one of them")
            replaced[total] = None
    if changes.get("um_per_px"):
        if "resize" in changes:
            raise ArgumentsError(
                "`resize` and `um_per_px` exclude each other: views at one magnification are windows of one size",
                "Leave out one of them",
            )
        replaced |= {name: ViewsSection.model_fields[name].default for name in ("crop_share", "margin")}
    elif "resize" in changes:
        replaced["um_per_px"] = 0.0
    if "resize" in changes:  # what only another way to make a square needs goes with it
        needs = {"padding": "pad", "crop_share": "crop"}
        replaced |= {name: ViewsSection().model_dump()[name] for name, way in needs.items() if changes["resize"] != way}
    return changed(views, {**replaced, **changes})


def found_everywhere(views: Mapping[str, Any]) -> dict[str, Any]:
    """Values for [views] with files named so that they are found from every folder."""
    segment, weights = views.get("segment"), views.get("segment_weights")
    files = {"segment": None if segment in SEGMENTS else segment, "segment_weights": weights}
    return {**views, **{name: str(resolved(Path(file))) for name, file in files.items() if file}}


def refuse_two_margins(dataset: DatasetSection, views: ViewsSection) -> None:
    """Raise ProjectError where boxes that were enlarged when they were read would get a margin besides."""
    if dataset.margin and views.margin:
        raise ProjectError(
            f"boxes have been enlarged by {dataset.margin:g} when they were read ([dataset] margin in {PROJECT_FILE}): "
            f"a `margin` of {views.margin:g} would come on top",
            "Leave it out, or write margin = 0.0 under [dataset] and run `featcache.init()`",
        )


def refuse_unwritable(folder: Path) -> None:
    """Say before long work, not behind it, that its result cannot be kept in `folder`: ProjectError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ProjectError(
            f"{folder}: cannot be written ({error.strerror})",
            f"Make it writable, or name another folder under [folders] in {PROJECT_FILE}",
        ) from error


def find_project(start: Path) -> Project:
    """The project whose featcache.toml lies in `start` or in the nearest folder above it.

    Raises ProjectError where there is none, or where it says something impossible.
    """
    start = resolved(start)
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return Project(folder, read_settings(folder / PROJECT_FILE))
    raise ProjectError(
        f"no {PROJECT_FILE} in {start} or above it",
        "Run `featcache.init(FOLDER)` with the folder of your images, or `featcache.init()` for generated ones",
    )


def read_settings(path: Path) -> Settings:
    """Parse and check featcache.toml. Raises ProjectError naming each wrong key."""
    try:
        values = strict_toml(path.read_text(encoding="utf-8-sig"))
        return Settings.model_validate(values)
    except ValidationError as error:  # a ValueError as well
        raise ProjectError(f"{path}: {explain(error)}") from error
    except ValueError as error:
        raise ProjectError(f"{path}: not readable as TOML: {error}") from error
    except OSError as error:
        raise ProjectError(f"{path}: cannot be read: {error.strerror}") from error


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: each wrong key, what is wrong with it, what was found."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "the whole"
        is_secret = item["type"] in ("missing", "extra_forbidden") or "remotes" in item["loc"]  # or may hold one
        is_whole = isinstance(item["input"], Mapping) and item["type"] == "value_error"  # what is wrong is said
        if is_whole:
            parts.append(item["msg"].removeprefix("Value error, "))
            continue
        found = "" if is_secret else f", found {item['input']!r:.80}"
        parts.append(f"{key}: {item['msg']}{found}")
    return "; ".join(parts)


def write_project(folder: Path, settings: Settings) -> None:
    """Write featcache.toml with a word on every section."""
    import tomlkit

    comments = {
        "dataset": "what 'init' reads; the paths in dataset.csv start from the folder 'images'",
        "views": "views an image; or train_rows = 4394 and so on: rows in total, spread evenly over classes",
        "augmentation": "how views 1, 2, ... differ from view 0, the plain one; the study's values",
        "storage": "of new caches: format zarr or hdf5, dtype auto, float32 or float16",
        "folders": "where caches and runs are kept",
    }
    sections = settings.model_dump(exclude_none=True)
    remotes = sections.pop("remotes")
    if not sections["dataset"]["roots"]:
        del sections["dataset"]["roots"]
    document = tomlkit.document()
    document.add(tomlkit.comment("featcache: what 'extract', 'fit-head' and 'report' take from this folder."))
    for name, values in sections.items():
        document.add(tomlkit.nl())
        document[name] = tomlkit.item(values)
        document[name].comment(comments[name])
    text = tomlkit.dumps(document)
    for name, values in remotes.items():
        text = with_remote(text, name, remote=RemoteSection(**values))
    write_text(folder / PROJECT_FILE, text)


def with_remote(text: str, name: str, *, remote: RemoteSection) -> str:
    """The text of a TOML file with a remote added; all else stays as it is, comments and all."""
    import tomlkit

    document = tomlkit.parse(text)
    document.setdefault("remotes", tomlkit.table(is_super_table=True))[name] = remote.model_dump()
    return tomlkit.dumps(document)


def without_remote(text: str, name: str) -> str:
    """The text of a TOML file without a remote that it has."""
    import tomlkit

    document = tomlkit.parse(text)
    del document["remotes"][name]
    if not document["remotes"]:
        del document["remotes"]
    return tomlkit.dumps(document)
