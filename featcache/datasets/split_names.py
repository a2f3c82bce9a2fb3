"""Names that say which split a folder, or a line of a list, belongs to; and names of folds, which are no classes."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORDS = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_SPLIT = re.compile(rf"(?:.*[-_ .])?({_WORDS})(?:[-_ ]?(?:set|data|images|imgs|samples))?", re.IGNORECASE)
_LIKE_A_SPLIT = re.compile(rf"{_SPLIT.pattern}(?:[-_ ]?(?:\d+|[a-z]))?", re.IGNORECASE)
_FOLD = re.compile(r"(?:k?[-_ ]?folds?|cv|splits?|parts?|batch|run)[-_ ]?(?:\d+|[a-e])", re.IGNORECASE)
_ORIGINS = "patient|subject|donor|slide|case|pat|subj|pt|p|id|plate|well|site|centre|center|hospital|lab|scanner|day"
_ORIGIN = re.compile(rf"(?:{_ORIGINS})[-_ ]?(?:id)?[-_ ]?\d+", re.IGNORECASE)


def split_of(name: str) -> str:
    """train, val or test where a name says one ('Training', 'valid', 'test_set'), else ""."""
    found = _SPLIT.fullmatch(name.strip())
    return SPLIT_NAMES[found[1].lower()] if found else ""


def split_of_path(path: str) -> str:
    """The split that one of a path's folders is named for, else ""; "" too where two say different ones."""
    found = {split for part in PurePosixPath(path).parts[:-1] if (split := split_of(part))}
    return found.pop() if len(found) == 1 else ""


def is_like_a_split(folder: Path) -> bool:
    """Whether a folder is hardly a class: named as a split, if not quite ('TestA', 'train_2')."""
    return _LIKE_A_SPLIT.fullmatch(folder.name.strip()) is not None


def is_fold(folder: Path) -> bool:
    """Whether a folder is named as one of several parts of a data set ('fold_0', 'part 2')."""
    return _FOLD.fullmatch(folder.name.strip()) is not None


def is_an_origin(folder: Path) -> bool:
    """Whether a folder is named for where images come from, not for what they show ('patient_001', 'slide 7')."""
    return _ORIGIN.fullmatch(folder.name.strip()) is not None
