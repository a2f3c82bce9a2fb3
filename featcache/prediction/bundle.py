"""A bundle: one zip file with all that a trained run needs to predict, and what shows that it does so rightly.

bundle.json names every file with its size and SHA-256, and may be signed. Files are stored, not packed, so that none
takes more memory than the bundle has bytes. Nothing in it is code.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featcache.backbones import import_openvino, onnx_session
from featcache.core.errors import MissingPackageError, RunError, refuse_shortage
from featcache.core.extras import install_line, is_installed
from featcache.core.files import sha256_bytes
from featcache.core.recipe import Recipe, canonical_json
from featcache.core.strict_json import MAX_TEXT_BYTES, strict_json
from featcache.doubt import DOUBT_FILE, Doubt
from featcache.heads import HEAD_FILE, ROWS_FILE, TrainedHead, load_head
from featcache.sharing import Signature

BUNDLE_FILE, MODEL_ONNX, EXPECTED_FILE = "bundle.json", "model.onnx", "check/expected.json"
SUFFIX = ".zip"
BUNDLE_FORMAT = 1
_BATCH_ROWS = 16
_ZIP_DAMAGE = (OSError, zipfile.BadZipFile, ValueError, LookupError, RuntimeError, EOFError, MemoryError)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entry(_Part):
    """A file of a bundle: its size and SHA-256."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BundleRecord(_Part):
    """bundle.json.

    name : of the run
    is_whole : whether it is a whole network, and no head on features
    dtype : that features are rounded to
    row_shape : of one row of features
    recipe : as of `Recipe.to_dict`
    """

    format: Literal[1] = 1
    kind: Literal["bundle"] = "bundle"
    name: Annotated[str, Field(min_length=1, max_length=300)]
    created: str
    featcache: str
    classes: Annotated[list[str], Field(min_length=2)]
    is_whole: bool
    dtype: Literal["float16", "float32", "uint8"]
    row_shape: list[int]
    recipe: dict[str, Any]
    files: dict[str, Entry]
    signature: Signature | None = None

    def message(self) -> bytes:
        """What a signature is over."""
        return b"featcache bundle\n" + canonical_json(self.model_dump(mode="json", exclude={"signature"})).encode()


@dataclass(frozen=True)
class Bundle:
    """A bundle whose list of files was read; each file is compared with its digest when it is read."""

    path: Path
    record: BundleRecord

    @classmethod
    def read(cls, path: Path) -> Self:
        """The bundle in a file. Raises RunError for one that is none, was cut short, or holds what it does not name."""
        with _explained(path), zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("a file stands in it twice")
            if BUNDLE_FILE not in members:
                raise ValueError(f"it has no {BUNDLE_FILE}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ValueError("its files are compressed")
            if sum(member.file_size for member in members.values()) > path.stat().st_size:
                raise ValueError("it says to hold more than it has bytes")
            if members[BUNDLE_FILE].file_size > MAX_TEXT_BYTES:
                raise ValueError(f"{BUNDLE_FILE} is too large")
            value = strict_json(archive.read(BUNDLE_FILE))
            if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > BUNDLE_FORMAT:
                raise ValueError(f"it is of format {value['format']}: update featcache")
            record = BundleRecord.model_validate(value)
            if set(members) != {*record.files, BUNDLE_FILE}:
                raise ValueError(f"it does not hold the files that {BUNDLE_FILE} names")
        return cls(path, record)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.record.name

    def data(self, name: str) -> bytes:
        """A file of the bundle. Raises RunError where it is not there, or not what bundle.json says."""
        with _explained(self.path), zipfile.ZipFile(self.path) as archive:
            data = archive.read(name)
            entry = self.record.files[name]
            if len(data) != entry.bytes or sha256_bytes(data) != entry.sha256:
                raise ValueError(f"{name} was changed after the bundle was made")
        return data

    @cached_property
    def head_and_doubt(self) -> tuple[TrainedHead, Doubt | None]:
        """The head, and what the run kept of its validation images."""
        with tempfile.TemporaryDirectory(prefix="featcache-") as name:
            folder = Path(name)
            for file in (HEAD_FILE, ROWS_FILE, DOUBT_FILE):
                if file in self.record.files:
                    (folder / file).write_bytes(self.data(file))
            head = load_head(folder, in_memory=True)
            doubt = Doubt.load(folder)
        if head.classes != tuple(self.record.classes) or list(head.row_shape) != self.record.row_shape:
            raise RunError(f"{self.path}: {HEAD_FILE} is of other classes or features than {BUNDLE_FILE} says")
        return head, doubt

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the features. Raises RunError where there is none."""
        with _explained(self.path):
            return Recipe.from_dict(self.record.recipe)

    def engine(self) -> OnnxEngine:
        """What runs its model. Raises MissingPackageError where no runtime for ONNX models is installed."""
        shape, size_px = tuple(self.record.row_shape), self.recipe.space.input_size_px
        return OnnxEngine(self.data(MODEL_ONNX), row_shape=shape, size_px=size_px, where=str(self.path))


class OnnxEngine:
    """The model of a bundle, run by onnxruntime, or by OpenVINO where that is not installed."""

    calls_at_once = 1

    def __init__(self, model: bytes, *, row_shape: tuple[int, ...], size_px: int, where: str) -> None:
        self.batch_rows = _BATCH_ROWS
        self.feature_shapes: Sequence[tuple[int, ...]] = (row_shape,)
        self._shape = (size_px, size_px, 3)
        try:
            self.name, self._compute = _session(model)
        except MissingPackageError:
            raise
        except Exception as error:  # each runtime has classes of its own
            refuse_shortage(error, where)
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"{where}: {MODEL_ONNX} cannot be opened: {reason}", "Get the bundle again") from error

    def resized(self, batch_rows: int) -> Self:
        """The same model, so many rows at a time."""
        other = copy(self)
        other.batch_rows = batch_rows
        return other

    def features(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        """Features of images (n, s, s, 3), uint8, RGB, of any number: [(n, *row_shape)]."""
        return [self.outputs(pixels, "features")]

    def outputs(self, pixels: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
        """The output of that name, "probabilities" or "features", for images (n, s, s, 3)."""
        parts = []
        for start in range(0, len(pixels), self.batch_rows):
            part = pixels[start : start + self.batch_rows]
            rows = np.zeros((self.batch_rows, *self._shape), np.uint8)
            rows[: len(part)] = part
            parts.append(np.asarray(self._compute(rows, name)[: len(part)], np.float32))
        return np.concatenate(parts)


def _session(model: bytes) -> tuple[str, Any]:
    """The name of a runtime that is installed, and what computes an output by its name."""
    if is_installed("onnxruntime"):
        session = onnx_session(model)
        return "onnxruntime", lambda rows, name: session.run([name], {"pixels": rows})[0]
    if is_installed("openvino"):
        openvino = import_openvino()
        core = openvino.Core()
        read = core.read_model(io.BytesIO(model))
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return "openvino", lambda rows, name: compiled({"pixels": rows})[name]
    raise MissingPackageError(f"a bundle requires onnxruntime or openvino: {install_line('export')}")


def is_bundle(run: Any) -> bool:
    """Whether a run is named by the file of a bundle."""
    return isinstance(run, (str, Path)) and Path(run).suffix == SUFFIX and not Path(run).is_dir()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What is wrong with a bundle becomes RunError."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{path}: there is no such bundle") from error
    except (*_ZIP_DAMAGE, ValidationError) as error:
        if isinstance(error, (RunError, MissingPackageError)):
            raise
        refuse_shortage(error, path)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"{path}: cannot be read: {reason}", "Get the bundle again from where it came") from error


def expected_of(bundle: Bundle) -> list[Mapping[str, Any]]:
    """The rows of check/expected.json: {file, path, label, probabilities}. Raises RunError where it is none."""
    with _explained(bundle.path):
        value = strict_json(bundle.data(EXPECTED_FILE))
        rows = value["rows"] if isinstance(value, dict) else None
        classes = set(bundle.record.classes)
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{EXPECTED_FILE} has no rows")
        for row in rows:
            if not (isinstance(row, dict) and row.get("file") in bundle.record.files):
                raise ValueError(f"{EXPECTED_FILE}: a row names a file that is not there")
            if not isinstance(row.get("probabilities"), dict) or set(row["probabilities"]) != classes:
                raise ValueError(f"{EXPECTED_FILE}: a row has other classes than the bundle")
    return rows
