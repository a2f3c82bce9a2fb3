"""remote: places that caches and runs are exchanged through; what is on them; what a name on one means."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from featcache.core.errors import ProjectError, UsageError, nearest
from featcache.core.files import resolved, write_text
from featcache.core.progress import SILENT, Progress
from featcache.core.project import (
    PROJECT_FILE,
    Project,
    RemoteName,
    RemoteSection,
    explain,
    read_settings,
    with_remote,
    without_remote,
)
from featcache.core.strict_json import strict_toml
from featcache.remotes import PACK_SUFFIX, Remote, open_remote, parse_url, place_of
from featcache.sharing._remote_status import how_far_of
from featcache.sharing.catalog import Entry, Listed, find, listing
from featcache.sharing.cleanup import RemoteVerified, removable, remove, verify_remote
from featcache.sharing.keys import KEYS_FOLDER, TRUST_FILE, config_folder, own_keys, read_trusted
from featcache.sharing.receive import Trust
from featcache.sharing.record import FOLDERS, Kind

USER_FILE = "config.toml"
_ADD = "Add one with 'featcache remote add NAME URL'"


@dataclass(frozen=True)
class Target:
    """A name on a remote. name : "" for the only one there; signed : whether what comes from there must be signed"""

    store: Remote
    name: str
    signed: bool = False


class _UserSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    remotes: dict[RemoteName, RemoteSection] = {}


def remotes_of(project: Project | None) -> dict[str, RemoteSection]:
    """The remotes of the user's configuration and of the project, which counts where both name one."""
    return {**_user_remotes(), **(project.settings.remotes if project else {})}


def _user_remotes() -> dict[str, RemoteSection]:
    folder = config_folder()
    if folder is None or not (file := folder / USER_FILE).is_file():
        return {}
    return _user_settings(file).remotes


def _user_settings(file: Path) -> _UserSettings:
    try:
        return _UserSettings.model_validate(strict_toml(file.read_text("utf-8-sig")))
    except ValidationError as error:  # a ValueError as well
        raise ProjectError(f"{file}: {explain(error)}") from error
    except (OSError, ValueError) as error:
        raise ProjectError(f"{file}: not readable as TOML: {error}") from error


def add_remote(name: str, url: str, *, file: Path, signed: bool = False) -> RemoteSection:
    """Write a remote into featcache.toml or the user's configuration; all else there stays as it is.

    Raises UsageError for a URL or name that cannot be, and for a name that is taken.
    """
    remote = RemoteSection(url=parse_url(url).url, signed=signed)
    text = file.read_text("utf-8-sig") if file.is_file() else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise UsageError(f"remote {name!r:.80}: expected letters, digits, _ and -")
    if name in _remotes_in(file):
        raise UsageError(f"{file}: has a remote {name} already", f"Run 'featcache remote rm {name}' first")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, with_remote(text, name, remote=remote))
    return remote


def remove_remote(name: str, files: Sequence[Path]) -> Path:
    """Take a remote out of the first of the files that has it; nothing on the remote is touched. Returns the file."""
    known: set[str] = set()
    for file in files:
        there = _remotes_in(file)
        known |= set(there)
        if name in there:
            _write(file, without_remote(file.read_text("utf-8-sig"), name))
            return file
    raise UsageError(f"no remote {name!r:.80}: {nearest(name, known) if known else 'none is known'}")


def _remotes_in(file: Path) -> Mapping[str, RemoteSection]:
    if not file.is_file():
        return {}
    if file.name == PROJECT_FILE:
        return read_settings(file).remotes
    return _user_settings(file).remotes


def _write(file: Path, text: str) -> None:
    try:
        write_text(file, text)
    except OSError as error:
        raise ProjectError(f"{file}: cannot be written: {error.strerror}") from error


def open_named(remote: str | None, project: Project | None) -> Target:
    """A whole remote: the name of one, a URL or a pack's path; without, the only one that is known."""
    known = remotes_of(project)
    if remote is None:
        if len(known) != 1:
            there = ", ".join(sorted(known)) or "none"
            raise UsageError(f"which remote? (known: {there})", "Name one with `remote`" if known else _ADD)
        remote = next(iter(known))
    if remote in known:
        return Target(open_remote(known[remote].url), "", _must_be_signed(known[remote].url, project))
    if "://" in remote or remote.endswith(PACK_SUFFIX) or Path(remote).is_absolute():
        return Target(open_remote(remote), "", _must_be_signed(remote, project))
    if not known:
        raise UsageError(f"no remote {remote!r:.80}: none is known", _ADD)
    raise UsageError(f"no remote {remote!r:.80}: {nearest(remote, known)}")


def _must_be_signed(url: str, project: Project | None) -> bool:
    """Whether somebody asked for signatures of that place, under whatever name and in whatever spelling."""
    named = [*_user_remotes().values(), *(project.settings.remotes.values() if project else ())]
    asked = [place_of(remote.url) for remote in named if remote.signed]
    return place_of(url) in asked


def is_remote(spec: str, project: Project | None) -> bool:
    """Whether a text means something on a remote: REMOTE/NAME, URL/NAME or a pack."""
    beginning = spec.partition("/")[0]
    return "://" in spec or f"{PACK_SUFFIX}/" in f"{spec}/" or ("/" in spec and beginning in remotes_of(project))


def resolve(spec: str, project: Project | None, *, remote: str | None = None) -> Target:
    """What REMOTE/NAME, URL/NAME, PACK or PACK/NAME means; with `remote` given, a name on that one.

    Raises UsageError where it means nothing.
    """
    if remote is not None or ("/" not in spec and not spec.endswith(PACK_SUFFIX)):
        target = open_named(remote, project)
        return Target(target.store, spec, target.signed)
    pack, inside, name = f"{spec}/".rpartition(f"{PACK_SUFFIX}/")
    if inside:
        target = open_named(str(_there(pack + PACK_SUFFIX)), project)
        return Target(target.store, name.strip("/"), target.signed)
    place, _, name = spec.rstrip("/").rpartition("/")
    target = open_named(place, project)
    return Target(target.store, name, target.signed)


def _there(pack: str) -> str | Path:
    return pack if "://" in pack else resolved(Path(pack))


def trusted_keys(file: Path | None = None) -> dict[str, str]:
    """{public key: name} of the keys that are trusted here, our own among them. file : by default the user's"""
    folder = config_folder()
    own = {key.public: key.name for key in own_keys(folder / KEYS_FOLDER if folder else None)}
    return {**own, **read_trusted(file or (folder / TRUST_FILE if folder else None))}


def trust_of(target: Target, require: bool = False, *, allow_older: bool = False, file: Path | None = None) -> Trust:
    """Whom to believe. file : of trusted keys; by default the user's"""
    return Trust(trusted_keys(file), require or target.signed, allow_older)


def list_remote(store: Remote) -> list[Listed]:
    """Every cache, then every run on a remote."""
    return [*listing(store, "cache"), *listing(store, "run")]


def find_remote(target: Target) -> Entry:
    """The record that a target means."""
    return find(target.store, target.name)


def verify_on_remote(store: Remote, entry: Entry, *, progress: Progress = SILENT) -> RemoteVerified:
    """Read every byte that a record names."""
    total = entry.record.about.get("bytes")
    with (
        tempfile.TemporaryDirectory() as work,
        progress.begin(f"verifying {entry.record.name}", _whole(total)) as advance,
    ):
        return verify_remote(store, entry, work=Path(work), advance=advance)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class RemoteRemovable:
    """What is to be removed from a remote."""

    kind: Kind
    name: str
    objects: int
    bytes: int


def find_removable(store: Remote, names: Sequence[str], *, force: bool = False) -> list[RemoteRemovable]:
    """What is under these names; also what is left of pushes that were never finished, by its whole name.

    Raises UsageError for a cache that a process seems to be making there, but with `force`.
    """
    found = []
    for name in names:
        kinds: list[Kind] = [kind for kind in FOLDERS if name in store.folders(FOLDERS[kind])]
        whole = name
        if not kinds:
            record = find(store, name).record
            kinds, whole = [record.kind], record.name
        for kind in kinds:
            if kind == "cache" and not force:
                _refuse_at_work(store, whole)
            objects = removable(store, kind, name=whole)
            found.append(RemoteRemovable(kind, whole, len(objects), sum(objects.values())))
    return found


def _refuse_at_work(store: Remote, name: str) -> None:
    working = [worker for worker in how_far_of(store, name).workers if worker.alive]
    if working:
        who = ", ".join(f"process {worker.pid} on {worker.host}" for worker in working)
        raise UsageError(f"{store.url}: {name}: {who} is making it", "Stop it first, or set `force=True`")


def remove_from_remote(store: Remote, found: RemoteRemovable, *, progress: Progress = SILENT) -> None:
    """Remove it."""
    with progress.begin(f"removing {found.name}", found.bytes) as advance:
        remove(store, found.kind, name=found.name, on_removed=advance)
