"""Leases: which process is at work on what, so that several share the shards of one cache.

A lease is a file `NAME.GENERATION` that says who holds it. Whoever wants what nobody alive holds makes the next
generation; a file system lets only one of them make it, so that two never take over from the same dead one. The
holder of the highest generation writes a new beat into its file every few seconds. Another process calls it dead
when it sees that its process has ended (on the same machine, at once), or when the beat stood still for a while by
the watcher's own clock that only runs forward. No two clocks are compared, and a wall clock that jumps is no matter.

A holder that was only asleep wakes to find a higher generation, or its lease gone, and leaves the work to the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache.core.files import PARTIAL_SUFFIX

BEAT_S = 2.0
DEAD_AFTER_S = 30.0
POLL_S = 0.2


class Leases:
    """The leases in one folder, as one worker sees and holds them.

    The folder is made when a lease is, in a folder that is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._worker = {**_process(os.getpid()), "worker": uuid.uuid4().hex[:12]}
        self._held: dict[str, str] = {}
        self._seen: dict[str, tuple[bytes | str, float]] = {}
        self._lock = threading.Lock()
        self._beats = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def claim(self, name: str) -> bool:
        """Take `name` if nobody alive holds it. Raises OSError where the folder cannot be written."""
        anew = False
        while True:
            last = max(self._generations(anew).get(name, []), default=-1)
            alive = last >= 0 and self._alive(f"{name}.{last}")
            if alive is not None:
                break  # else it was given back meanwhile, and somebody may have begun at 0 again
            anew = True
        file = f"{name}.{last + 1}"
        if alive or not self._make(file):
            return False
        if any(self._alive(f"{name}.{older}") for older in self._generations().get(name, []) if older < last + 1):
            self._remove(file)  # the dead one's folder was removed and made again, all since we looked
            return False
        with self._lock:
            self._held[name] = file
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="featcache-leases", daemon=True)
            self._thread.start()
        return True

    def lost(self, name: str) -> bool:
        """Whether somebody took over what this one had claimed, because it was asleep for so long."""
        file = self._held.get(name)
        return file is not None and file != f"{name}.{max(self._generations().get(name, []), default=-1)}"

    def release(self, name: str) -> None:
        """Give back what was claimed; nothing where it was not."""
        with self._lock:
            file = self._held.pop(name, None)
        if file is not None:
            with contextlib.suppress(OSError):  # gone, or on a disk that is: it counts as dead soon
                self._remove(file)

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold `name`, waiting for others that do."""
        while not self.claim(name):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.release(name)

    def close(self) -> None:
        """Give everything back."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)
        for name in list(self._held):
            self.release(name)

    def others(self) -> list[str]:
        """Names that somebody else, as far as can be seen, holds and is alive."""
        found = {name: f"{name}.{max(generations)}" for name, generations in self._generations().items()}
        return [name for name, file in found.items() if name not in self._held and self._alive(file)]

    def _generations(self, _anew: bool = True) -> dict[str, list[int]]:
        """The generations of each name. anew : False where what was seen a moment ago will do"""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return generations(entry.name for entry in self.folder.iterdir())
        return {}

    def _alive(self, file: str) -> bool | None:
        """Whether the holder of a lease lives; None where it was just given back."""
        try:
            content = (self.folder / file).read_bytes()
        except FileNotFoundError:
            return None
        ended = self._ended(content)
        if ended is not None:
            return not ended
        return self._moves(file, content)

    def _moves(self, holder: str, beat: bytes | str) -> bool:
        """Whether a holder's beat changed within the time after which it counts as dead, by this process's clock."""
        now = time.monotonic()
        seen, since = self._seen.get(holder, (None, now))
        if seen != beat:
            since = now
        self._seen[holder] = (beat, since)
        return now - since < self._dead_after_s()

    def _ended(self, content: bytes) -> bool | None:
        return _has_ended(content)

    def _remove(self, file: str) -> None:
        (self.folder / file).unlink(missing_ok=True)

    def _make(self, name: str) -> bool:
        """Make a lease file as a whole, unless it is there."""
        file, partial = self.folder / name, self.folder / f".{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
        try:
            self.folder.mkdir(exist_ok=True)
            partial.write_bytes(self._content())
            try:
                os.link(partial, file)
            except FileExistsError:
                return False
            except OSError:  # a file system without links: the content follows the name
                try:
                    with file.open("xb") as lease:
                        lease.write(self._content())
                except FileExistsError:
                    return False
        except (FileNotFoundError, FileExistsError):
            if not self.folder.parent.is_dir() or self.folder.is_file():
                raise
            return False  # who finished the cache has just removed its leases
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _content(self) -> bytes:
        return json.dumps({**self._worker, "beat": f"{self._beats:012d}"}).encode()

    def _beat(self) -> None:
        while not self._stopped.wait(self._beat_s()):
            self._beats += 1
            self._write_beat()

    def _beat_s(self) -> float:
        return BEAT_S

    def _dead_after_s(self) -> float:
        return DEAD_AFTER_S

    def _write_beat(self) -> None:
        with self._lock:
            for name in self._held.values():
                with contextlib.suppress(OSError), (self.folder / name).open("r+b") as lease:
                    lease.write(self._content())


def generations(names: Iterable[str]) -> dict[str, list[int]]:
    """The generations of each lease, by the names NAME.GENERATION; other names are passed over."""
    found: dict[str, list[int]] = {}
    for each in names:
        name, _, generation = each.rpartition(".")
        if name and generation.isdecimal() and generation.isascii():
            found.setdefault(name, []).append(int(generation))
    return found


def _process(pid: int) -> dict[str, str | int]:
    """What tells this process from every other one, on a machine that can say so."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path(f"/proc/{pid}/ns/pid").readlink().name
        return {"host": f"{platform.node()} {boot} {namespace}", "pid": pid, "started": _started(pid)}
    except OSError:
        return {"host": "", "pid": pid, "started": ""}


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine started; "" once it has ended. Field 22 of proc(5)'s stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _has_ended(content: bytes) -> bool | None:
    """Whether the process that wrote a lease has ended; None where this machine cannot know."""
    try:
        holder = json.loads(content)
        host, pid, started = str(holder["host"]), int(holder["pid"]), str(holder["started"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not host or host != _process(os.getpid())["host"]:
        return None
    return _started(pid) != started


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says. host : the machine's name; ended : None where another machine holds it"""

    name: str
    host: str
    pid: int
    worker: str
    beat: str
    ended: bool | None


def holders(folder: Path) -> list[Holder]:
    """Who holds the leases in a folder, for people; damaged ones are passed over."""
    found = []
    with contextlib.suppress(OSError):
        for name, numbers in sorted(generations(entry.name for entry in folder.iterdir()).items()):
            with contextlib.suppress(OSError):
                found.append(holder(name, (folder / f"{name}.{max(numbers)}").read_bytes()))
    return [one for one in found if one is not None]


def holder(name: str, content: bytes) -> Holder | None:
    """Who holds a lease, by what its file says; None where it is damaged."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, IndexError):
        told = json.loads(content)
        host = str(told["host"]).split()[0] if told["host"] else "unknown"
        return Holder(name, host, int(told["pid"]), str(told["worker"]), str(told["beat"]), _has_ended(content))
    return None


@contextlib.contextmanager
def alone_with(folder: Path) -> Iterator[None]:
    """Wait until nobody else has a folder, which stands for some work, and have it; afterwards it is gone."""
    leases = Leases(folder)
    try:
        with leases.holding("work"):
            yield
    finally:
        leases.close()
        with contextlib.suppress(OSError):  # others wait in it
            folder.rmdir()
