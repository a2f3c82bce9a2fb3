"""bundle: one zip file that predicts without the project, the cache and the training images."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache import __version__
from featcache.core.errors import DatasetError, ProjectError, RunError, UsageError
from featcache.core.files import beside, sha256_bytes
from featcache.core.offline import offline as without_network
from featcache.core.progress import Progress
from featcache.core.project import Project, find_project
from featcache.core.shown import shown
from featcache.datasets import LabelledImage, dataset_of
from featcache.deployment._export import checking_pixels, description_of, refuse_missing
from featcache.deployment.card import model_card
from featcache.deployment.formats import write
from featcache.deployment.graph import graph_of
from featcache.deployment.readme import readme
from featcache.doubt import DOUBT_FILE
from featcache.heads import HEAD_FILE, ROWS_FILE, Head
from featcache.images import Item, png_of
from featcache.prediction import (
    BUNDLE_FILE,
    EXPECTED_FILE,
    MODEL_ONNX,
    BundleRecord,
    Entry,
    Predictor,
    item_of,
    open_run,
    recipe_of,
)
from featcache.segmentation import CellCut
from featcache.sharing import keys, own_config_folder
from featcache.training import Run

LABELS_FILE, CARD_FILE, RECIPE_FILE, README_FILE = "labels.json", "model_card.md", "recipe.json", "README.md"
_ROWS = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundled:
    """A bundle that was written.

    Attributes
    ----------
    run : its name
    path : the file
    classes : labels, in the order of the outputs
    files : names in the bundle
    rows : how many images it holds, with their probabilities
    made_up : whether these are made-up images, and none of the project
    signed_by : name of the key; "" where it is not signed
    bytes : of the file
    """

    run: str
    path: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    rows: int
    made_up: bool
    signed_by: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON."""
        return {**self.__dict__, "path": str(self.path.resolve()), "classes": [*self.classes], "files": [*self.files]}


def bundle(
    run: Run | str | Path,
    *,
    out: str | Path | None = None,
    images: bool = True,
    sign: str | None = None,
    licence: str = "",
    contact: str = "",
    weights: str | None = None,
    project: Project | None = None,
    offline: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Bundled:
    """Write a run as one zip file that predicts without its project, cache and training images.

    It holds the model as ONNX, the head, what is known of its doubt, the recipe, labels, a model card, and eight images
    with their probabilities, which `check` computes again.

    Parameters
    ----------
    run : a run, its folder, or its name in the project
    out : file to write; by default the name of the run and ".zip", in the current folder
    images : whether the eight images are test images of the project; else they are made up
    sign : name of the key to sign with; "" for the only one, None for no signature
    licence, contact : for the model card
    weights, project, offline : as of `predict`
    again : replace a file that is there already
    progress : told how far it is

    Returns
    -------
    Bundled: `path`, `classes`, `files`

    Raises
    ------
    BackboneError : ONNX cannot take the network; its layer is named
    RunError : there is no such run, it is damaged, or the file cannot be written
    WeightsError, HeadError : as of `predict`
    MissingPackageError : a package that ONNX needs is not installed
    UsageError, TrustError : there is no such key, or others can read it

    Examples
    --------
    >>> import featcache as fc
    >>> project = fc.init(per_class=8)
    >>> run = fc.fit_head(fc.extract(project, "pixels", input_size_px=16), epochs=2)
    >>> made = fc.bundle(run, out="cells.zip")
    >>> fc.check("cells.zip").sound
    True
    """
    progress = shown(progress)
    found = open_run(run, project)
    path = Path(out) if out is not None else Path(f"{found.name}.zip")
    if path.suffix != ".zip":
        raise UsageError(f"{path}: expected a name that ends with .zip")
    if CellCut.fitted_of(recipe_of(found).space.segmentation):
        raise UsageError(
            f"{found.name}: its cells are cut out by a fitted segmenter, whose network a bundle has no place for",
            "Share the run itself with `featcache.push(RUN, REMOTE)`, or train one with `segment='stain'`",
        )
    if path.exists() and not again:
        raise UsageError(f"{path}: exists already", "Name another one with `out`, or set `again=True`")
    key = keys.open_key(sign, own_config_folder() / keys.KEYS_FOLDER) if sign is not None else None
    refuse_missing("onnx")
    with without_network(offline):
        predictor = Predictor.of(found, weights=weights, progress=progress)
        chosen = _test_images(found, project) if images else []
        names, pixels = _rendered(predictor, chosen)
        with progress.begin(f"exporting {found.name}", 1) as advance:
            files = {MODEL_ONNX: _onnx(found, weights, offline), **_head_files(found, predictor)}
            advance(1)
    p = predictor.probabilities_and_distances(predictor.engine.features(pixels)[0])[:, :-1]
    if not np.isfinite(p).all():
        raise RunError(f"{found.name}: its probabilities are not finite: the model is damaged", "Train the run again")
    classes, space = predictor.head.classes, predictor.recipe.space
    described = description_of(found)
    files |= _checked(pixels, names, p, classes)
    files |= {
        LABELS_FILE: _json(described),
        RECIPE_FILE: _json(predictor.recipe.to_dict()),
        CARD_FILE: model_card(found, licence=licence, contact=contact).encode(),
        README_FILE: readme(found.name, space, several_labels=predictor.head.has_several_labels).encode(),
    }
    record = BundleRecord(
        name=found.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        featcache=__version__,
        classes=list(classes),
        is_whole=predictor.is_whole,
        dtype=str(predictor.dtype),  # type: ignore[arg-type]
        row_shape=list(predictor.head.row_shape),
        recipe=predictor.recipe.to_dict(),
        files={name: Entry(bytes=len(data), sha256=sha256_bytes(data)) for name, data in files.items()},
    )
    if key is not None:
        record = keys.sign(record, key)
    _write(path, {BUNDLE_FILE: _json(record.model_dump(mode="json")), **files})
    return Bundled(
        run=found.name,
        path=path,
        classes=classes,
        files=(BUNDLE_FILE, *files),
        rows=len(pixels),
        made_up=not chosen,
        signed_by=key[0].name if key else "",
        bytes=path.stat().st_size,
    )


def _onnx(run: Run, weights: str | None, offline: bool) -> bytes:
    """The model as ONNX, with its features as a second output."""
    model = graph_of(run, weights=weights, offline=offline, with_features=True)
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        path = Path(folder) / MODEL_ONNX
        write("onnx", model, path=path, description=json.dumps(description_of(run), ensure_ascii=False))
        return path.read_bytes()


def _head_files(run: Run, predictor: Predictor) -> dict[str, bytes]:
    """The head; of a whole network what follows its last feature map. And doubt.npz, where the run has it."""
    files = {}
    if isinstance(predictor.head, Head):
        with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
            replace(predictor.head, classes=predictor.head.classes).save(Path(folder))
            files[HEAD_FILE] = (Path(folder) / HEAD_FILE).read_bytes()
    else:
        files = {name: (run.folder / name).read_bytes() for name in (HEAD_FILE, ROWS_FILE)}
    if (run.folder / DOUBT_FILE).is_file():
        files[DOUBT_FILE] = (run.folder / DOUBT_FILE).read_bytes()
    return files


def _test_images(run: Run, project: Project | None) -> list[tuple[LabelledImage, Item]]:
    """Up to eight test images of the run's project, of all classes in turn; none where they are not at hand."""
    try:
        project = project or find_project(run.folder.parent)
        dataset = dataset_of(project)
    except (ProjectError, DatasetError):
        return []
    of_class: dict[str, list[LabelledImage]] = {}
    for image in dataset.images:
        if image.split == "test" and image.label and (dataset.folder / image.path).is_file():
            of_class.setdefault(image.label, []).append(image)
    in_turn = chain.from_iterable(zip_longest(*of_class.values()))
    chosen = [image for image in in_turn if image is not None][:_ROWS]
    return [(image, item_of(image, dataset)) for image in chosen]


def _rendered(
    predictor: Predictor, chosen: Sequence[tuple[LabelledImage, Item]]
) -> tuple[list[dict[str, str]], NDArray[np.uint8]]:
    """What images are called, and their pixels as the network gets them; made-up ones where none can be used."""
    rendering, names, rows = predictor.rendering(), [], []
    for image, item in chosen:
        if views := rendering(item).views:
            names.append({"path": image.path, "label": image.label})
            rows.append(views[0])
    if not rows:
        pixels = checking_pixels(rendering.size_px)
        return [{"path": f"made-up image {number + 1}", "label": ""} for number in range(len(pixels))], pixels
    return names, np.stack(rows)


def _checked(
    pixels: NDArray[np.uint8], names: Sequence[dict[str, str]], p: NDArray[np.floating[Any]], classes: Sequence[str]
) -> dict[str, bytes]:
    """The images as PNG, and what the run says of them."""
    files, rows = {}, []
    for number, (image, name, row) in enumerate(zip(pixels, names, p.tolist(), strict=True)):
        file = f"check/{number + 1}.png"
        files[file] = png_of(image)
        rows.append({"file": file, **name, "probabilities": dict(zip(classes, row, strict=True))})
    return {**files, EXPECTED_FILE: _json({"rows": rows})}


def _write(path: Path, files: dict[str, bytes]) -> None:
    try:
        with beside(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
