"""Moving files: several at a time, tried again where a remote drops them, and each checked while it streams in."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from featcache.core.errors import RemoteDroppedError, RemoteError
from featcache.core.files import PARTIAL_SUFFIX
from featcache.core.interrupts import ending_with
from featcache.remotes import BLOCK_BYTES, NoRangesError, PausedError, Remote, StalledError
from featcache.store import FileEntry, writing

THREADS = 8
_TRIES = 3
_PAUSE_S = 0.2
_MOST_PAUSE_S = 60
"""As long as a server may ask us to wait; who asks for more is busy for today."""
Work = TypeVar("Work")
Advance = Callable[[int], object]
Stopped = Callable[[], bool]


class DamagedError(RemoteError):
    """What arrived is not what was promised."""


def at_once(work: Callable[[Work], object], items: Iterable[Work], *, stopped: Stopped = lambda: False) -> None:
    """Do `work` for each of the items, some at a time. The first error ends it, once what is in hand is done.

    stopped : when it says so, calls to remotes end at once and KeyboardInterrupt is raised; what arrived is kept
    """

    def one(item: Work) -> None:
        if stopped():
            raise KeyboardInterrupt
        work(item)

    interrupted = threading.Event()
    with (
        ending_with(lambda: interrupted.is_set() or stopped()),
        ThreadPoolExecutor(THREADS, "featcache-share") as pool,
    ):
        running = [pool.submit(one, item) for item in items]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except KeyboardInterrupt:
            interrupted.set()
            raise
        finally:
            for future in running:
                future.cancel()


def patiently(action: Callable[[], Work]) -> Work:
    """Do something on a remote; once or twice again where it drops the connection or sends damaged bytes."""
    for attempt in range(_TRIES - 1):
        try:
            return action()
        except StalledError:
            raise
        except (RemoteDroppedError, DamagedError) as error:
            asked_s = error.after_s if isinstance(error, PausedError) else 0
            if asked_s > _MOST_PAUSE_S:
                raise
            time.sleep(max(float(asked_s), _PAUSE_S * 2**attempt))
    return action()


def entry_of(store: Remote, path: str, *, most: int) -> FileEntry:
    """Size and digest of an object as it is on the remote; of one longer than `most` bytes, as far as it was read."""

    def once() -> FileEntry:
        digest, length = hashlib.sha256(), 0
        with store.open(path) as blocks:
            for block in blocks:
                digest.update(block)
                length += len(block)
                if length > most:
                    break
        return FileEntry(bytes=length, sha256=digest.hexdigest())

    return patiently(once)


def fetch(store: Remote, path: str, *, entry: FileEntry, target: Path, advance: Advance = lambda _: None) -> None:
    """Get one object into a file, which appears only when its bytes have the digest.

    What an attempt before has got of it stays beside and is gone on with. Raises RemoteError, DamagedError for
    other bytes than were promised, OSError where the file cannot be written.
    """
    if _is(target, entry):
        advance(entry.bytes)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")

    def once() -> None:
        try:
            _fetch_once(store, path, entry, part)
        except NoRangesError:  # what came before cannot be gone on with from here
            part.unlink()
            _fetch_once(store, path, entry, part)

    patiently(once)
    part.replace(target)
    advance(entry.bytes)


def _is(file: Path, entry: FileEntry) -> bool:
    """Whether an earlier try has got a file; its bytes are read again, since a power cut may have come between."""
    if not file.is_file() or file.stat().st_size != entry.bytes:
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == entry.sha256


def _fetch_once(store: Remote, path: str, entry: FileEntry, part: Path) -> None:
    """Get an object, or what is missing of it, into `part`, and see that it has its digest."""
    digest = hashlib.sha256()
    with part.open("ab" if store.ranges else "wb") as file:
        length = file.tell()
        if 0 < length < entry.bytes:
            with part.open("rb") as before:
                while had := before.read(BLOCK_BYTES):
                    digest.update(had)
        elif length:
            length = 0
            file.truncate(0)
        with store.open(path, length, stop=entry.bytes if length else None) as blocks:
            for block in blocks:
                length += len(block)
                if length > entry.bytes:
                    break
                digest.update(block)
                with writing(part.parent):  # a full disk here is no fault of the remote
                    file.write(block)
    if length < entry.bytes:
        raise RemoteDroppedError(f"{store.url}/{path}: expected {entry.bytes} bytes, got {length}: try again")
    if length > entry.bytes or digest.hexdigest() != entry.sha256:
        part.unlink()
        found = f"SHA-256 {digest.hexdigest()[:16]}.." if length == entry.bytes else f"more than {entry.bytes} bytes"
        raise DamagedError(
            f"{store.url}/{path}: expected SHA-256 {entry.sha256[:16]}.., found {found}: it was damaged or "
            "replaced there, and is not used",
            "The owner of the original repairs it with `featcache.push(check=True)`",
        )
