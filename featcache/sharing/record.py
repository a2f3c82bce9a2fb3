"""The commit record of a push: a small JSON object, created last, that names every other object by digest.

    caches/NAME/00000001.json              the record; a later one (relabelled, signed, ...) has the next number
    caches/NAME/ROOT/features.zarr/...     what decides a value; ROOT is a digest of these files
    caches/NAME/ROOT/labels-.../           manifest.json and dataset.parquet, which a relabelling replaces
    runs/NAME/00000001.json, runs/NAME/ROOT/...

Without a record nothing is there. Two pushes of one cache whose rows lie in another order have roots of their own, and
only one of them gets the record.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featcache.core.errors import RemoteError
from featcache.core.project import explain
from featcache.core.recipe import canonical_json
from featcache.core.strict_json import strict_json
from featcache.store import DATASET_FILE, MANIFEST_FILE, FileEntry, Sha256
from featcache.training import PULLED_FILE

RECORD_FORMAT = 1
MAX_RECORD_BYTES = 1 << 20
CHUNKS_FILE = "chunks.json"
RUN_FILE = PULLED_FILE
Kind = Literal["cache", "run"]
FOLDERS: dict[Kind, str] = {"cache": "caches", "run": "runs"}
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
_SHOWN_CHARS = 500
_Text = Annotated[str, Field(max_length=200)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Signature(_Record):
    """An Ed25519 signature over all the rest of the record. by : what the signer calls the key"""

    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    by: _Text
    value: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Record(_Record):
    """What is on a remote under one name.

    digest : of the cache (recipe and rows); of a run, that of its list of files
    generation : 1, 2, ...; the highest one counts
    manifest : of manifest.json, or of a run's files.json
    root, labels : folders on the remote; the second holds the manifest and dataset.parquet
    chunks : of chunks.json in `root`, which has a digest for every chunk; None where parts cannot be checked
    about : what listings show: backbone, rows and so on; checked when it is pulled
    licence, contact : words of whoever pushed it
    private : whether paths and groups were left out
    """

    format: int
    kind: Kind
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    digest: Sha256
    generation: Annotated[int, Field(ge=1, lt=10**8)]
    manifest: FileEntry
    root: str
    labels: str
    chunks: FileEntry | None
    about: dict[str, Any]
    licence: _Text
    contact: _Text
    private: bool
    pushed: _Text
    signature: Signature | None = None

    @field_validator("root", "labels")
    @classmethod
    def _inside(cls, folder: str) -> str:
        if not all(_SAFE.fullmatch(part) for part in folder.split("/")):
            raise ValueError(f"the folder {folder!r:.80} leads out of the remote")
        return folder

    @property
    def path(self) -> str:
        """Where the record lies."""
        return record_path(self.kind, self.name, generation=self.generation)

    @property
    def manifest_path(self) -> str:
        """Where the manifest lies."""
        return self.path_of(MANIFEST_FILE if self.kind == "cache" else RUN_FILE)

    def path_of(self, name: str) -> str:
        """Where a file of the cache or run lies."""
        return f"{self.labels if name in (MANIFEST_FILE, DATASET_FILE, RUN_FILE) else self.root}/{name}"

    def message(self) -> bytes:
        """What a signature is over."""
        value = self.model_dump(mode="json", exclude={"signature"})
        return b"featcache record\n" + canonical_json(value).encode()

    def text(self) -> bytes:
        """The record as it lies on the remote."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """The record in `data`. Raises RemoteError where it is none of this version."""
        try:
            value = strict_json(data.decode("utf-8"))
            version = value.get("format") if isinstance(value, dict) else None
            if isinstance(version, int) and version > RECORD_FORMAT:
                raise RemoteError(
                    f"{where}: format {version} is newer than this featcache ({RECORD_FORMAT}): update featcache"
                )
            if version != RECORD_FORMAT:
                raise ValueError(f"no record of format {RECORD_FORMAT}")
            record = cls.model_validate(value)
            record.message()
        except RemoteError:
            raise
        except ValidationError as error:
            raise RemoteError(f"{where}: is no sound record: {explain(error)[:_SHOWN_CHARS]}") from error
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"{where}: is no sound record: {str(error)[:_SHOWN_CHARS]}") from error
        if record.path != PurePosixPath(where).as_posix()[-len(record.path) :]:
            raise RemoteError(f"{where}: is the record of {record.name}, generation {record.generation}: it was moved")
        return record


def record_path(kind: Kind, name: str, *, generation: int) -> str:
    """Where a record lies on a remote."""
    return f"{FOLDERS[kind]}/{name}/{generation:08d}.json"
