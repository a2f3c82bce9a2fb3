"""Keys: an Ed25519 pair signs what is pushed; a file of public keys with names says whom a pull trusts."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from featcache.core.errors import TrustError, UsageError
from featcache.core.extras import require_extra
from featcache.core.files import create, is_hidden, user_path, write_text
from featcache.sharing.record import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PUBLIC = re.compile(r"[A-Za-z0-9+/]{43}=")
TRUST_FILE = "trusted.keys"
KEYS_FOLDER = "keys"
State = Literal["trusted", "unknown", "unchecked", "none"]


@dataclass(frozen=True)
class Key:
    """A key pair of one's own. public : 32 bytes in base64"""

    name: str
    public: str
    file: Path


@dataclass(frozen=True)
class Signed:
    """Who signed a record. by : the name that the trust file has for the key, else what the signer calls it."""

    state: State
    key: str = ""
    by: str = ""


def config_folder() -> Path | None:
    """Where a user's keys, trusted keys and remotes lie: FEATCACHE_CONFIG, or ~/.config/featcache.

    None where the user has no home folder, so that there are none; nor where others' rights keep it closed.
    """
    chosen = os.environ.get("FEATCACHE_CONFIG")
    folder = Path(chosen) if chosen else user_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    if folder is None or chosen:
        return folder
    try:
        (folder / "featcache" / TRUST_FILE).stat()
    except PermissionError:  # HOME is that of another user
        return None
    except OSError:
        pass
    return folder / "featcache"


def own_config_folder() -> Path:
    """`config_folder`, to write to. UsageError where there is none."""
    folder = config_folder()
    if folder is None:
        raise UsageError("no home folder to keep this in: set HOME, or FEATCACHE_CONFIG to a folder of yours")
    return folder


def new_key(name: str, folder: Path) -> Key:
    """Make a key pair: NAME.key, which only its owner may read, and NAME.pub. UsageError where there is one.

    One of which NAME.pub is missing is what a killed command has left: it gets that.
    """
    _refuse_name(name)
    require_extra("share", "a signature")
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    file, public_file = folder / f"{name}.key", folder / f"{name}.pub"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if file.exists() and not public_file.exists() and not file.stat().st_size:
        file.unlink()  # of a version that wrote it in two steps
    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    if not create(file, data, mode=0o600):
        if public_file.exists():
            raise UsageError(f"{file}: there is a key of that name: choose another name")
        private = _private_in(file)
    key = Key(name, _public_of(private), file)
    write_text(public_file, f"{name} {key.public}\n")
    return key


def own_keys(folder: Path | None) -> list[Key]:
    """The key pairs in a folder, by name. One that cannot be used is left out: see `unusable`."""
    return [found for file in _key_files(folder) if isinstance(found := _read_key(file), Key)]


def unusable(folder: Path | None) -> list[str]:
    """Why some of the key files in a folder cannot be used."""
    return [found for file in _key_files(folder) if isinstance(found := _read_key(file), str)]


def _key_files(folder: Path | None) -> list[Path]:
    return [file for file in sorted(folder.glob("*.key")) if not is_hidden(file)] if folder else []


def _read_key(file: Path) -> Key | str:
    """The key pair of a .key file; why it is none."""
    try:
        if file.with_suffix(".pub").exists():
            return Key(file.stem, read_public(file.with_suffix(".pub"))[1], file)
        return Key(file.stem, _public_of(_private_in(file)), file)
    except (TrustError, UsageError, OSError) as error:
        return str(error)


def read_public(file: Path) -> tuple[str, str]:
    """(name, public key) of a .pub file. UsageError where it is none."""
    try:
        name, public = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: is no public key: expected one line 'NAME KEY'") from error
    return name, _checked(public)


def open_key(name: str, folder: Path | None) -> tuple[Key, Ed25519PrivateKey]:
    """The key pair of that name; "" for the only one.

    Raises UsageError where there is none, TrustError for one that others can read.
    """
    require_extra("share", "a signature")
    files = {file.stem: file for file in _key_files(folder)}
    names = list(files)
    meant = [other for other in names if other == name or (not name and len(names) == 1)]
    if not meant:
        there, hint = ", ".join(names) or "none", "" if names else "Make one with 'featcache key new NAME'"
        wrong = f"no key {name!r:.80} in {folder} (there: {there})" if name else f"which key? There: {there}"
        raise UsageError(wrong, hint)
    file = files[meant[0]]
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise TrustError(f"{file}: others may read it: chmod 600 it, or make a new key and let the old one go")
    private = _private_in(file)
    return Key(meant[0], _public_of(private), file), private


def _private_in(file: Path) -> Ed25519PrivateKey:
    """The private key in a file. TrustError where it is none."""
    require_extra("share", "a signature")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = forms.load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError, OSError, UnsupportedAlgorithm) as error:
        raise TrustError(f"{file}: is no private key: remove it, and make another one") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise TrustError(f"{file}: expected an Ed25519 key", "Make one with 'featcache key new NAME'")
    return private


class Signable(Protocol):
    """A record that can be signed: of a remote, or of a bundle."""

    @property
    def name(self) -> str: ...
    @property
    def signature(self) -> Signature | None: ...
    def message(self) -> bytes:
        """What the signature is over."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """The same with other fields."""


Made = TypeVar("Made", bound=Signable)


def sign(record: Made, key: tuple[Key, Ed25519PrivateKey]) -> Made:
    """The record with a signature over all the rest of it."""
    value = base64.b64encode(key[1].sign(record.message())).decode()
    return record.model_copy(update={"signature": Signature(key=key[0].public, by=key[0].name, value=value)})


def check_signature(record: Signable, trusted: Mapping[str, str], *, require: bool = False) -> Signed:
    """Who signed a record. Raises TrustError for a signature that does not fit.

    trusted : {public key: name}
    require : raise it too where nobody has signed who is trusted
    """
    signature = record.signature
    if signature is None:
        if require:
            raise TrustError(f"{record.name}: is not signed", "Ask its owner to sign it")
        return Signed("none")
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        if require:
            require_extra("share", "a signature")
        return Signed("unchecked", signature.key, signature.by)
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.key))
    try:
        public.verify(base64.b64decode(signature.value), record.message())
    except InvalidSignature as error:
        raise TrustError(
            f"{record.name}: its signature does not fit: the record was changed after {signature.by!r:.80} signed it. "
            "Nothing was taken; ask whoever pushed it"
        ) from error
    if signature.key in trusted:
        return Signed("trusted", signature.key, trusted[signature.key])
    if require:
        raise TrustError(
            f"{record.name}: signed with the key {signature.key} ({signature.by!r:.80}), which is not trusted here",
            "Compare the key with its owner, then run 'featcache key trust NAME KEY'",
        )
    return Signed("unknown", signature.key, signature.by)


def read_trusted(file: Path | None) -> dict[str, str]:
    """{public key: name} of a trust file; none where there is no such file. TrustError for a line that is none."""
    if file is None or not file.is_file():
        return {}
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        parts = line.partition("#")[0].split()
        if parts and (len(parts) != 2 or not _PUBLIC.fullmatch(parts[1])):
            raise TrustError(f"{file}, line {number}: expected 'NAME KEY', KEY of 44 characters")
        if parts:
            found[parts[1]] = parts[0]
    return found


def trust(name: str, public: str, *, file: Path) -> None:
    """Take a public key into a trust file. UsageError where the name or the key is taken."""
    _refuse_name(name)
    trusted = read_trusted(file)
    if trusted.get(_checked(public)) == name:
        return
    if public in trusted:
        raise UsageError(f"{file}: has that key already, as {trusted[public]}")
    if name in trusted.values():
        raise UsageError(
            f"{file}: {name} has another key there", f"If it changed, run 'featcache key distrust {name}' first"
        )
    _write_trusted(file, {**trusted, public: name})


def distrust(name: str, file: Path) -> None:
    """Take a key out of a trust file. UsageError where there is none of that name."""
    trusted = read_trusted(file)
    if name not in trusted.values():
        raise UsageError(f"{file}: no key {name!r:.80} (there: {', '.join(sorted(trusted.values())) or 'none'})")
    _write_trusted(file, {public: other for public, other in trusted.items() if other != name})


def _write_trusted(file: Path, trusted: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(file, "".join(f"{name} {public}\n" for public, name in trusted.items()))


def _public_of(private: Ed25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def _checked(public: str) -> str:
    if not _PUBLIC.fullmatch(public):
        raise UsageError(f"{len(public)} characters: expected a public key of 44", "'featcache key ls' shows yours")
    return public


def _refuse_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"key name {name!r:.80}: expected letters, digits and ._@-")
