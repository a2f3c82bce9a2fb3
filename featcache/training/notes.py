"""Tags and notes that people give to runs.

They stand in one file beside the runs, and not in their folders: a run that is shared says nothing of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.core.errors import RunError, UsageError
from featcache.core.files import write_json
from featcache.core.leases import alone_with
from featcache.core.strict_json import read_json

NOTES_FILE = "notes.json"
_LOCK_FOLDER = ".notes"
_TAG = re.compile(r"[\w.-]{1,64}")
_MOST_LETTERS = 10_000


@dataclass(frozen=True)
class Note:
    """What people say of a run."""

    tags: tuple[str, ...] = ()
    text: str = ""


NO_NOTE = Note()


def read_notes(results: Path) -> dict[str, Note]:
    """{name of a run: its note}. Raises RunError for a damaged file."""
    path = results / NOTES_FILE
    try:
        value = read_json(path)
        return {str(name): _parsed(note) for name, note in value.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read: {error}", "Repair it, or remove it: it only holds notes") from error


def annotate(
    results: Path, name: str, *, add: Collection[str] = (), remove: Collection[str] = (), text: str | None = None
) -> Note:
    """Give tags to a run, take some away, and set its note; None keeps the note.

    Raises UsageError for a tag that is none, RunError where the notes cannot be read or written.
    """
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise UsageError(f"the tag {tag!r:.80}: expected up to 64 letters, digits, '.', '-' and '_'")
    if text is not None and len(text) > _MOST_LETTERS:
        raise UsageError(f"a note has up to {_MOST_LETTERS:,} letters, and this has {len(text):,}")
    path = results / NOTES_FILE
    try:
        with alone_with(results / _LOCK_FOLDER):
            notes = read_notes(results)
            before = notes.get(name, NO_NOTE)
            tags = tuple(sorted({*before.tags, *add} - set(remove)))
            notes[name] = Note(tags, before.text if text is None else text)
            write_json(path, {run: asdict(note) for run, note in sorted(notes.items()) if note != NO_NOTE})
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    return notes[name]


def _parsed(value: Mapping[str, Any]) -> Note:
    tags, text = value.get("tags", ()), value.get("text", "")
    if not isinstance(text, str) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("expected tags and a text for each run")
    return Note(tuple(tags), text)
