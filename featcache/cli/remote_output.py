"""What --remote of ls, info, verify and rm does: the same on a remote, in tables for people and JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import project_or_none
from featcache.cli.output import print_json, print_table, say
from featcache.cli.tidying import confirm_removal
from featcache.core.errors import TrustError
from featcache.core.extras import install_line
from featcache.core.shown import printable
from featcache.core.units import size

if TYPE_CHECKING:
    from featcache.sharing import Listed, Record, Signed


def list_on_remote(remote: str, folder: Path, *, as_json: bool) -> None:
    """Every cache and run of a remote."""
    from featcache.sharing import list_remote, open_named, trust_of

    target = open_named(remote, project_or_none(folder))
    store, trusted = target.store, trust_of(target).trusted
    listed = list_remote(store)
    if as_json:
        print_json([_as_json(one, trusted) for one in listed])
    elif not listed:
        say(f"{store.url} is empty: 'featcache push' sends something to it")
    else:
        print_table(
            ["name", "rows", "features", "dtype", "size", "licence", "signed by", "status"],
            [_row(one, trusted) for one in listed],
            least=("licence", "dtype", "features"),
        )


def _row(listed: Listed, trusted: Mapping[str, str]) -> list[str]:
    if listed.entry is None:
        return [listed.name, "", "", "", "", "", "", listed.problem]
    record = listed.entry.record
    about = record.about
    shape = about.get("shape")
    features = "x".join(str(side) for side in shape[1:]) if isinstance(shape, list) else ""
    middle = [str(about.get("rows", "")), features, str(about.get("dtype", "")), _size(about)]
    state, by = _signer(record, trusted)
    said = {"none": "", "trusted": by, "false": "NOT by " + by}.get(state, f"{by}, {state}")
    return [record.name, *middle, record.licence, said, record.kind]


def _signer(record: Record, trusted: Mapping[str, str]) -> tuple[str, str]:
    """What a signature is worth ("false" where it does not fit), and whose it is, or pretends to be."""
    from featcache.sharing import check_signature

    try:
        signed = check_signature(record, trusted)
    except TrustError:
        return "false", record.signature.by if record.signature else ""
    return signed.state, signed.by


def _size(about: dict[str, Any]) -> str:
    n_bytes = about.get("bytes")
    return size(n_bytes) if isinstance(n_bytes, int) else ""


def _as_json(listed: Listed, trusted: Mapping[str, str]) -> dict[str, Any]:
    record = listed.entry.record.model_dump(mode="json") if listed.entry else None
    signed = _signer(listed.entry.record, trusted)[0] if listed.entry else "none"
    return {"kind": listed.kind, "name": listed.name, "problem": listed.problem, "record": record, "signed": signed}


def info_on_remote(remote: str, name: str | None, *, folder: Path, as_json: bool) -> None:
    """The record of a cache or run on a remote, and who signed it."""
    from featcache.sharing import check_signature, find_remote, resolve, trust_of

    target = resolve(name or "", project_or_none(folder), remote=remote)
    record = find_remote(target).record
    signed = check_signature(record, trust_of(target).trusted)
    if as_json:
        print_json({**record.model_dump(mode="json"), "remote": target.store.url, "signed": asdict(signed)})
        return
    rows = [[str(key), ", ".join(map(str, v)) if isinstance(v, list) else str(v)] for key, v in record.about.items()]
    said = [["licence", record.licence], ["contact", record.contact], ["pushed", record.pushed]]
    place = [
        ["digest", record.digest],
        ["generation", str(record.generation)],
        ["signature", signature_in_words(signed)],
    ]
    print_table([record.kind, record.name], [*place, *said, *rows], numbers=False)
    say(f"remote: {target.store.url}/{record.root}")


def signature_in_words(signed: Signed) -> str:
    """Who signed, and whether that is anybody who is trusted here."""
    by = printable(signed.by)
    return {
        "none": "not signed",
        "unchecked": f"signed by {by!r}, not checked: {install_line('share')}",
        "unknown": f"signed by {by!r} with the key {signed.key}, which is not trusted here",
        "trusted": f"signed by {by}, who is trusted here",
    }[signed.state]


def verify_on_remote(remote: str, names: Sequence[str], *, folder: Path, as_json: bool) -> None:
    """Read every byte of caches and runs on a remote. Exit code 1 where something is damaged."""
    from featcache.sharing import Target, find_remote, list_remote, open_named, verify_on_remote as verify

    store = open_named(remote, project_or_none(folder)).store
    entries = [find_remote(Target(store, name)) for name in names]
    problems = []
    if not names:
        listed = list_remote(store)
        entries = [one.entry for one in listed if one.entry is not None]
        problems = [one for one in listed if one.entry is None]
    values: list[dict[str, Any]] = []
    for entry in entries:
        found = verify(store, entry, progress=TERMINAL)
        values.append({**asdict(found), "sound": found.sound})
        if found.sound:
            say(f"{found.name}: sound: {found.files} files, {size(found.bytes)}", as_json)
            continue
        say(f"{found.name}: DAMAGED", as_json)
        for problem in found.problems:
            say(f"  {problem.file}: {problem.what}" if problem.file else f"  {problem.what}", as_json)
        say(f"  'featcache push {found.name} --check' by the owner of the original repairs it", as_json)
    for one in problems:
        say(f"{one.name}: {one.problem}", as_json)
        values.append({"name": one.name, "sound": False, "problems": [{"file": "", "what": one.problem}]})
    if not values:
        say(f"nothing is on {store.url}", as_json)
    if as_json:
        print_json(values)
    if not all(value["sound"] for value in values):
        raise click.exceptions.Exit(1)


def remove_on_remote(
    remote: str, names: Sequence[str], *, folder: Path, force: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Show what is to go, ask, and remove it."""
    from featcache.sharing import find_removable, open_named, remove_from_remote

    store = open_named(remote, project_or_none(folder)).store
    found = find_removable(store, names, force=force)
    total = sum(item.bytes for item in found)
    if not as_json:
        rows = [
            [f"{store.url}/{item.name}", size(item.bytes), f"{item.kind}, {item.objects} objects"] for item in found
        ]
        print_table(["to remove", "size", "what"], rows, numbers=False)
    if not dry_run:
        confirm_removal(total, yes, as_json=as_json)
        for item in found:
            remove_from_remote(store, item, progress=TERMINAL)
    if as_json:
        items = [{"path": item.name, "bytes": item.bytes, "why": item.kind} for item in found]
        print_json({"removed": not dry_run, "bytes": total, "items": items})
    elif not dry_run:
        say(f"removed {size(total)}")


def record_as_json(record: Record, url: str) -> dict[str, Any]:
    """What push and pull say of a record to machines."""
    return {
        "kind": record.kind,
        "remote": url,
        "generation": record.generation,
        "licence": record.licence,
        "contact": record.contact,
        "private": record.private,
    }
