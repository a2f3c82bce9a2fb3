"""What was seen on remotes before: an older record than that is a step back, whoever takes it.

`.remotes.json` beside the caches may be deleted; then nothing is known of before.
"""

from __future__ import annotations

from pathlib import Path

from featcache.core.errors import RemoteError
from featcache.core.files import write_json
from featcache.core.strict_json import read_json
from featcache.remotes import place_of
from featcache.sharing.catalog import Entry

SEEN_FILE = ".remotes.json"


def refuse_older(parent: Path, url: str, *, entry: Entry, allow: bool = False) -> None:
    """Raise RemoteError where a remote now has an older record under a name than it had before, or changed one."""
    known = _read(parent)
    generation, sha256 = known.get(_key(place_of(url), entry)) or known.get(_key(url, entry)) or (0, "")
    now = entry.record.generation
    if allow or now > generation or (now == generation and entry.sha256 == sha256):
        return
    what = f"generation {now}, and had {generation} before" if now < generation else "another record in the same place"
    raise RemoteError(
        f"{url}: {entry.record.name}: has {what}: somebody restored an older state, or removed it and pushed again",
        "Ask the owner of the remote, or set `allow_older=True` to accept it",
    )


def remember(parent: Path, url: str, *, entry: Entry) -> None:
    """Note the record that was taken. What cannot be written is not remembered."""
    known = {**_read(parent), _key(place_of(url), entry): (entry.record.generation, entry.sha256)}
    try:
        write_json(parent / SEEN_FILE, known)
    except OSError:
        return


def _key(place: str, entry: Entry) -> str:
    """A place has one key, whatever its spelling; before, each spelling had its own."""
    return f"{place} {entry.record.kind} {entry.record.name}"


def _read(parent: Path) -> dict[str, tuple[int, str]]:
    try:
        value = read_json(parent / SEEN_FILE)
        return {str(key): (int(generation), str(sha256)) for key, (generation, sha256) in value.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
