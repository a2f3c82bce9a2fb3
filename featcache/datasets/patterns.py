"""Labels and groups from images' paths, by a pattern such as '{group}/{label}_*'."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featcache.core.errors import ArgumentsError, DatasetError
from featcache.datasets.candidates import Candidate, LeftOut, Source, composed
from featcache.datasets.split_names import split_of
from featcache.images import look

_PART = re.compile(r"\{(\w+)\}|(\*\*/)|(\*\*)|(\*)|(\?)|([^{}*?]+)|(.)", re.DOTALL)
_SHOWN = 3


def compiled(pattern: str, names: Sequence[str]) -> re.Pattern[str]:
    """A pattern as a regular expression over a path without its ending.

    {name} is some text of one folder or file name, as short as can be; * any such text, ** any folders, ? one letter.

    Raises ArgumentsError for another name in braces than `names`, for one twice, and where the first is missing.
    """
    text, seen = "", []
    for found in _PART.finditer(pattern.replace("\\", "/")):
        name, folders, anything, some, one, plain, odd = found.groups()
        if name is not None:
            if name not in names or name in seen:
                raise ArgumentsError(
                    f"the pattern {pattern!r:.200}: {{{name}}} {'stands twice' if name in seen else 'is unknown'}: "
                    f"expected {', '.join(f'{{{one}}}' for one in names)}"
                )
            seen.append(name)
            text += rf"(?P<{name}>[^/]+?)"
        elif odd is not None:
            raise ArgumentsError(f"the pattern {pattern!r:.200}: a single {odd}: expected {{{names[0]}}}")
        else:
            usual = (folders and r"(?:[^/]+/)*", anything and r".*", some and r"[^/]*", one and r"[^/]")
            text += next((part for part in usual if part), re.escape(composed(plain or "")))
    if names[0] not in seen:
        raise ArgumentsError(f"the pattern {pattern!r:.200} does not say where the {names[0]} is: write {{{names[0]}}}")
    return re.compile(text)


def from_pattern(folder: Path, pattern: str, *, own: frozenset[Path]) -> Source:
    """All images below a folder whose path fits the pattern; the others are left out.

    Raises DatasetError where none fits, with paths that do not.
    """
    matcher = compiled(pattern, ("label", "group", "split"))
    source, other = Source("pattern", folder, ""), []
    for path, reason in look(folder, own):
        relative = path.relative_to(folder)
        found = None if reason else _match(matcher, relative.as_posix())
        if reason:
            source.leave_out(path, reason)
        elif found is None:
            other.append(relative.as_posix())
            source.leave_out(path, f"its path does not fit {pattern!r:.200}")
        else:
            said = found.groupdict()
            split = split_of(said.get("split") or "")
            if said.get("split") and not split:
                source.leave_out(path, f"its split, {said['split']!r:.80}, is none of train, val and test")
                continue
            label, group = composed(said["label"].strip()), composed((said.get("group") or "").strip())
            if not label:
                source.leave_out(path, "its label is blank")
                continue
            source.candidates.append(Candidate(relative.as_posix(), label, split, group))
    if not source.candidates:
        some = ", ".join(other[:_SHOWN]) or "there are no images"
        raise DatasetError(f"{folder}: no image's path fits {pattern!r:.200}: {some}")
    counts = Counter(one.label for one in source.candidates)
    first = source.candidates[0]
    group = f" of the group {first.group}" if first.group else ""
    source.about = (
        f"{len(source.candidates)} of {len(source.candidates) + len(other)} images by the pattern {pattern!r:.200}, "
        f"such as {first.path}: {first.label}{group}; {', '.join(sorted(counts))}"
    )
    return source


def with_groups(source: Source, pattern: str) -> Source:
    """The same with the group that each path says; images whose path does not fit are left out.

    A group that the source itself says stays. Raises DatasetError where no path fits.
    """
    matcher = compiled(pattern, ("group",))
    grouped, other = [], []
    for one in source.candidates:
        found = None if one.group else _match(matcher, one.path)
        if one.group or found is not None:
            grouped.append(one if found is None else replace(one, group=composed(found["group"])))
        else:
            other.append(one.path)
    if not grouped:
        raise DatasetError(f"{source.folder}: no image's path fits {pattern!r:.200}: {', '.join(other[:_SHOWN])}")
    source.candidates = grouped
    source.left_out += [LeftOut(path, f"its path does not fit {pattern!r:.200}") for path in other]
    first = grouped[0]
    source.remarks.append(
        f"{len({one.group for one in grouped})} groups by the pattern {pattern!r:.200}, such as {first.path}: "
        f"{first.group}"
    )
    return source


def _match(matcher: re.Pattern[str], path: str) -> re.Match[str] | None:
    """A path fits with its ending or without."""
    path = composed(path)
    stem = path.rpartition(".")[0] or path
    return matcher.fullmatch(stem) or matcher.fullmatch(path)
