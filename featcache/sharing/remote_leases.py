"""Leases on a remote: as those in a folder, of objects that are created only where there is none.

A lease, once made, never changes. That its holder lives is said by one small object a worker, which is written anew
every few seconds: who watches sees whether it changes, by its own clock alone, so that clocks may differ.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import RemoteDroppedError, RemoteError, RemoteNotFoundError
from featcache.core.interrupts import going_on
from featcache.core.leases import Holder, Leases, generations, holder
from featcache.remotes import Remote, read
from featcache.sharing.transfer import patiently

BEAT_S = 5.0
DEAD_AFTER_S = 90.0
_LOOK_S = 1.0
"""For how long what was listed will do, where a mistake costs only time."""
_BEAT_SUFFIX = ".beat"
_MOST_BYTES = 4096


class RemoteLeases(Leases):
    """See `featcache.core.leases.Leases`. Raises RemoteError where the remote refuses.

    folder : on the remote
    impatient : the same remote for what may fail: a lease that is not given back at the end counts as dead soon
    """

    def __init__(self, store: Remote, folder: str, *, impatient: Remote | None = None) -> None:
        super().__init__(Path(folder))
        self._store, self._impatient, self._prefix = store, impatient or store, f"{folder}/"
        self._is_cut_off = False
        self._there: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._contents: dict[tuple[str, str], bytes] = {}
        self._beats_at = ""

    def close(self) -> None:
        """As of `Leases`; the sign of life goes, too."""
        super().close()
        if self._beats_at:
            self._remove(self._beats_at)

    def holders(self) -> list[Holder]:
        """Who holds the leases, for people. beat : what the sign of life of each says now"""
        found = []
        for name, numbers in sorted(self._generations().items()):
            file = f"{name}.{max(numbers)}"
            told = holder(name, self._content_of(file, self._there[file]) or b"")
            if told is not None:
                found.append(replace(told, beat=repr(self._sign_of_life(told.worker))))
        return found

    def _generations(self, _anew: bool = True) -> dict[str, list[int]]:
        if _anew or time.monotonic() - self._looked_at > _LOOK_S:
            listed = patiently(lambda: self._store.list(self._prefix.rstrip("/")))
            self._there = {item.path.removeprefix(self._prefix): item.md5 for item in listed}
            self._looked_at = time.monotonic()
        return generations(self._there)

    def _alive(self, file: str) -> bool | None:
        tag = self._there.get(file)
        content = None if tag is None else self._content_of(file, tag)
        if content is None:
            return None
        ended = self._ended(content)
        if ended is not None:
            return not ended
        told = holder(file, content)
        if told is None:
            return self._moves(file, content)
        return self._moves(told.worker, self._sign_of_life(told.worker))

    def _sign_of_life(self, worker: str) -> str | bytes:
        """What changes while a worker lives: the tag of its object, or where the remote gives none, what it holds."""
        beats = f"{worker}{_BEAT_SUFFIX}"
        return self._there.get(beats) or self._content_of(beats, "") or b""

    def _content_of(self, file: str, tag: str) -> bytes | None:
        """What an object holds, read once for each of its tags, if it has any; None where it is gone."""
        if not tag or (file, tag) not in self._contents:
            try:
                content = patiently(lambda: read(self._store, f"{self._prefix}{file}", most=_MOST_BYTES))
            except RemoteNotFoundError:
                return None
            if not tag:
                return content
            self._contents[file, tag] = content
        return self._contents[file, tag]

    def _make(self, name: str) -> bool:
        if not self._beats_at:
            self._beats_at = f"{self._worker['worker']}{_BEAT_SUFFIX}"
            self._write_beat()
        content, path = self._content(), f"{self._prefix}{name}"
        if self._store.create(path, content):
            return True
        with suppress(RemoteNotFoundError):  # of a try whose answer was lost it is our own
            return patiently(lambda: read(self._store, path, most=_MOST_BYTES)) == content
        return False

    def _remove(self, file: str) -> None:
        self._there.pop(file, None)
        is_end = self._stopped.is_set()
        if self._is_cut_off and is_end:  # each of many would be waited for
            return
        try:
            with going_on():
                (self._impatient if is_end else self._store).remove(f"{self._prefix}{file}")
        except RemoteError as error:
            self._is_cut_off = isinstance(error, RemoteDroppedError)

    def _write_beat(self) -> None:
        with suppress(RemoteError), going_on():
            self._impatient.put(f"{self._prefix}{self._beats_at}", self._content())

    def _beat_s(self) -> float:
        return BEAT_S

    def _dead_after_s(self) -> float:
        return DEAD_AFTER_S
