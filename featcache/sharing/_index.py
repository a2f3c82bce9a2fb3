"""index: make a remote of a folder that a plain web server shows."""

from __future__ import annotations

from pathlib import Path

from featcache.core.project import Project
from featcache.remotes import open_remote
from featcache.sharing import keys
from featcache.sharing.commit import Attribution
from featcache.sharing.remote import open_named, remotes_of
from featcache.sharing.web_index import Indexed, write_index


def index(
    where: str, project: Project | None, *, sign: str | None = None, licence: str = "", contact: str = ""
) -> Indexed:
    """Write the index of a folder, or of a remote by its name or URL.

    sign : name of the key that signs the records that are made, "" for the only one, None for no signature
    """
    key = keys.open_key(sign, keys.own_config_folder() / keys.KEYS_FOLDER) if sign is not None else None
    named = "://" in where or (where in remotes_of(project) and not Path(where).is_dir())
    store = open_named(where, project).store if named else open_remote(str(Path(where).absolute()))
    return write_index(store, key, words=Attribution(licence, contact))
