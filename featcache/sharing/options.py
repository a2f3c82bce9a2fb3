"""What to push and what to pull, as records. They import little: the command line makes its options from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featcache.core.settings import setting


@dataclass(frozen=True)
class PushOptions:
    """How to push.

    Attributes
    ----------
    sign : name of the key to sign with; "" for the only key, None for no signature
    """

    sign: str | None = None
    licence: str = setting("", "Licence of the data, for example CC-BY-4.0.")
    contact: str = setting("", "Person or address to ask about the data.")
    private: bool = setting(False, "Leave out paths and group names, and keep image ids only.")
    pseudonyms: Path | None = setting(
        None, "Replace image ids as well, by pseudonyms made with the secret in this file (created if missing)."
    )
    replace: bool = setting(False, "Replace other labels, or another run, of the same name on the remote.")
    check: bool = setting(False, "Read what is already there, and repair what is damaged.")


@dataclass(frozen=True)
class Part:
    """Which rows of a cache to pull, and in which form. The default is all rows, unchanged.

    Attributes
    ----------
    row_ids : names of rows, for code that knows them
    """

    splits: Sequence[Literal["train", "val", "test"]] = setting((), "Pull the rows of this split.")
    classes: Sequence[str] = setting((), "Pull the rows of this class.")
    images: Sequence[str] = setting((), "Pull the rows of this image: its path, or how its id begins.")
    row_ids: frozenset[str] | None = None
    pooling: Literal["", "avg", "max"] = setting(
        "", "Pull the mean or maximum of each channel instead of the feature map."
    )
    dtype: Literal["", "float16"] = setting("", "Pull the features as float16, which is half as large.")

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the cache, unchanged."""
        return self == Part()
