"""Published sets of blood cells, by how their folders are laid out; their names become the usual names of classes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from featcache.datasets.candidates import Candidate, LeftOut, Source
from featcache.images import look, visible_folders

_PBC = {
    **{name: name for name in ("basophil", "eosinophil", "erythroblast", "lymphocyte", "monocyte", "neutrophil")},
    "ig": "immature granulocyte",
    "platelet": "platelet",
}
_LISC = {
    **{"baso": "basophil", "eosi": "eosinophil", "lymp": "lymphocyte", "mono": "monocyte", "neut": "neutrophil"},
    "mixt": "",
}
_RAABIN = {name: name for name in ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")}
_RAABIN_SPLITS = {"train": "train", "testa": "test"}
_ALL_IDB = re.compile(r"Im\d{3}_([01])", re.IGNORECASE)
_ALL_IDB_NAMES = {"0": "healthy", "1": "lymphoblast"}


def published(folder: Path, own: frozenset[Path]) -> Source | None:
    """The images of a published set that the folder is laid out as, with the usual names of classes; else None.

    PBC (Acevedo and others), Raabin-WBC's cropped cells, LISC, ALL-IDB.
    """
    subfolders = visible_folders(folder, own)
    names = {sub.name.lower(): sub for sub in subfolders}
    if set(names) == set(_PBC):
        return _of_classes(Source("pbc", folder, "PBC (Acevedo)"), names, _PBC, own)
    if len(set(names) & set(_LISC)) >= 4 and set(names) <= set(_LISC):
        return _of_classes(Source("lisc", folder, "LISC"), names, _LISC, own)
    if {"train", "testa"} <= set(names) <= {"train", "testa", "testb"}:
        return _raabin(folder, names, own)
    return _all_idb(folder, own)


def _of_classes(source: Source, names: dict[str, Path], classes: dict[str, str], own: frozenset[Path]) -> Source:
    for name, sub in names.items():
        _add(source, sub, classes[name], split="", own=own)
    return _described(source)


def _add(source: Source, folder: Path, label: str, *, split: str, own: frozenset[Path]) -> None:
    for path, reason in look(folder, own):
        if reason or not label:
            source.leave_out(path, reason or f"its folder, {folder.name}, holds cells of several classes")
        else:
            relative = path.relative_to(source.folder).as_posix()
            source.candidates.append(Candidate(relative, label, split))


def _raabin(folder: Path, names: dict[str, Path], own: frozenset[Path]) -> Source | None:
    """Train and TestA are of one microscope and camera; TestB is of another, and a set of its own."""
    inner = {sub.name.lower() for part in names.values() for sub in visible_folders(part, own)}
    if not inner or not inner <= set(_RAABIN):
        return None
    source = Source("raabin", folder, "Raabin-WBC")
    for name, split_folder in names.items():
        for sub in visible_folders(split_folder, own):
            _add(source, sub, _RAABIN[sub.name.lower()], split=_RAABIN_SPLITS.get(name, "other"), own=own)
    kept = [one for one in source.candidates if one.split != "other"]
    if others := len(source.candidates) - len(kept):
        reason = f"{others} images of another microscope: evaluate a run on them"
        source.left_out.append(LeftOut(names["testb"].name, reason))
    return _described(replace(source, candidates=kept))


def _all_idb(folder: Path, own: frozenset[Path]) -> Source | None:
    """Every picture is named Im and a number, then _1 where it shows a lymphoblast (or a patient: ALL-IDB1), or _0."""
    found = list(look(folder, own))
    named = [(path, _ALL_IDB.fullmatch(path.stem)) for path, reason in found if not reason]
    if not named or not all(match for _, match in named):
        return None
    source = Source("all-idb", folder, "ALL-IDB")
    for path, reason in found:
        if reason:
            source.leave_out(path, reason)
    source.candidates = [
        Candidate(path.relative_to(folder).as_posix(), _ALL_IDB_NAMES[match[1]]) for path, match in named if match
    ]
    return _described(source)


def _described(source: Source) -> Source:
    source.about += f": {', '.join(sorted({one.label for one in source.candidates}))}"
    source.remarks.append("the set does not say which images are of one patient: each image is its own group")
    return source
