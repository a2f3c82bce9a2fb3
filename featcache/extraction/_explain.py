"""explain: why a cache has its name, and why it is there or not, field by field; diff: two caches side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import NetworkSpec
from featcache.core.errors import CacheError, UsageError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.core.recipe import ADDED, Augmentation, FeatureSpace, Recipe
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import Plan, plan_extraction
from featcache.sharing import how_far
from featcache.store import (
    MANIFEST_FILE,
    ROWS_FILE,
    Cache,
    DonorIndex,
    are_alike,
    ids_of,
    keys_of,
    list_caches,
    names_of,
    places_in,
    read_keys,
    read_recipe,
)

_PART_LINES = 1 << 18


@dataclass(frozen=True)
class Difference:
    """One field of two recipes that is not the same."""

    field: str
    ours: Any
    theirs: Any


@dataclass(frozen=True)
class Neighbour:
    """Another cache of the same backbone, and why it is not the one that is asked for.

    missing, extra : rows (image, view) that it lacks, and that it has besides
    """

    name: str
    finished: bool
    fields: tuple[Difference, ...]
    missing: int
    extra: int


@dataclass(frozen=True)
class Explanation:
    """What a cache is named by, and what `extract` would have to do.

    state : "hit", "unfinished" or "miss"
    compute, copy : rows that extract would compute, and copy from `sources`; the rest is there
    """

    name: str
    digest: str
    state: str
    fields: Mapping[str, Any]
    images: int
    rows: int
    compute: int
    copy: int
    sources: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


def explain(
    project: Project,
    networks: Sequence[NetworkSpec],
    *,
    options: ExtractOptions | None = None,
    progress: Progress = SILENT,
) -> list[Explanation]:
    """Say what `extract` with these arguments is of and would do, a cache each. Nothing is computed."""
    options = options or ExtractOptions()
    plans = plan_extraction(project, networks, options=options, progress=progress, keep=False)
    return [explain_plan(plan, options) for plan in plans]


def explain_plan(plan: Plan, options: ExtractOptions) -> Explanation:
    """What a plan is of, and what of it is there; rows that other caches on a remote hold are not looked for."""
    state, done = _state(plan)
    compute = copy = 0
    sources: tuple[str, ...] = ()
    if state != "hit":
        parents = (plan.parent, *options.reuse_from)
        reach = DonorIndex(parents, plan.recipe.space, row_shape=plan.cut.feature_shape, first=plan.folder)
        reach.look_for(plan.rows)
        held = [name for row in plan.rows if (name := reach.holder(row))]
        copy = sum(bool(plan.url) or name != plan.name for name in held)
        compute = max(len(plan.rows) - len(held) - done, 0)
        sources = tuple(sorted(set(held) - ({plan.name} if not plan.url else set())))
    return Explanation(
        name=plan.name,
        digest=plan.digest,
        state=state,
        fields=flat(plan.recipe),
        images=len(plan.dataset.images),
        rows=sum(plan.views),
        compute=compute,
        copy=copy,
        sources=sources,
        neighbours=tuple(_neighbours(plan)),
    )


_UNSAID = {
    f"{part}.{item.name}": ADDED[item.name]
    for part, record in (("space", FeatureSpace), ("augmentation", Augmentation))
    for item in fields(record)
    if item.name in ADDED
}
"""Fields that a recipe does not say, and what they are then."""


def _state(plan: Plan) -> tuple[str, int]:
    """Whether a cache is there, and of one that is made on a remote the rows that are there of it."""
    if plan.url:
        there = how_far(plan.url, plan.site)
        return "hit" if there.finished else "unfinished" if there.rows else "miss", there.done
    if (plan.folder / MANIFEST_FILE).is_file():
        return "hit", 0
    return "unfinished" if plan.folder.is_dir() else "miss", 0


def flat(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields by their full names."""
    value = recipe.to_dict()
    return {f"{part}.{name}": field for part in ("space", "augmentation") for name, field in value[part].items()}


def differences(ours: Recipe, theirs: Recipe) -> tuple[Difference, ...]:
    """The fields of two recipes that differ."""
    one, other = ({**_UNSAID, **flat(recipe)} for recipe in (ours, theirs))
    return tuple(Difference(name, one[name], other[name]) for name in one if one[name] != other[name])


def _neighbours(plan: Plan) -> Iterator[Neighbour]:
    """Other caches of this backbone, those that differ least first."""
    wanted = keys_of(plan.rows)
    found = []
    for entry in list_caches(plan.parent):
        try:
            recipe, keys = read_recipe(entry.folder), read_keys(entry.folder / ROWS_FILE)
        except CacheError:  # ls and verify say what is wrong with it
            continue
        if entry.folder != plan.folder and recipe.space.backbone == plan.recipe.space.backbone:
            common = len(wanted.pairs_with(keys)[0])
            fields = differences(plan.recipe, recipe)
            finished = entry.cache is not None
            found.append(Neighbour(entry.folder.name, finished, fields, len(wanted) - common, len(keys) - common))
    yield from sorted(found, key=lambda n: (len(n.fields), n.missing + n.extra, n.name))


@dataclass(frozen=True)
class Diff:
    """Two caches side by side.

    common : rows that both hold, by what they are of; only_a, only_b : rows of one alone
    relabelled : images of both with another label, split, group or path, by column
    differing, largest : of the common rows, where values were compared: how many differ, and by how much at most
    """

    a: str
    b: str
    fields: tuple[Difference, ...]
    storage: tuple[Difference, ...]
    common: int
    only_a: int
    only_b: int
    relabelled: Mapping[str, int]
    differing: int | None = None
    largest: float | None = None


def diff(a: Cache, b: Cache, *, values: bool = False, progress: Progress = SILENT) -> Diff:
    """Compare recipes, rows and labels of two caches; with `values` also the features of rows that both hold."""
    rows_a, rows_b = _common_rows(a, b)
    changed = _relabelled(a, b)
    one, other = a.manifest.array, b.manifest.array
    storage = [(name, getattr(one, name), getattr(other, name)) for name in ("format", "shape", "dtype")]
    differing = largest = None
    if values:
        differing, largest = _compared(a, b, rows_a, rows_b, progress)
    return Diff(
        a=a.name,
        b=b.name,
        fields=differences(a.recipe, b.recipe),
        storage=tuple(Difference(*item) for item in storage if item[1] != item[2]),
        common=len(rows_a),
        only_a=a.manifest.rows - len(rows_a),
        only_b=b.manifest.rows - len(rows_b),
        relabelled=changed,
        differing=differing,
        largest=largest,
    )


def _common_rows(a: Cache, b: Cache) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that are of the same view of the same image in both, with the same parameters."""
    space = a.recipe.space  # of row_ids that tell of parameters alone, whatever the feature spaces are
    rows_of_a, rows_of_b = a.stored_rows(space), b.stored_rows(space)
    rows_a, rows_b = a.keys.pairs_with(b.keys)
    a.let_go()
    b.let_go()
    names_b, same, start = names_of(rows_of_b), np.zeros(len(rows_a), bool), 0
    for part in rows_of_a.parts():
        first, last = np.searchsorted(rows_a, [start, start + len(part)])
        names_a = ids_of(part.column("row_id"))[rows_a[first:last] - start]
        same[first:last] = are_alike(names_a, names_b[rows_b[first:last]])
        start += len(part)
    return (rows_a, rows_b) if same.all() else (rows_a[same], rows_b[same])


def _relabelled(a: Cache, b: Cache) -> dict[str, int]:
    """How many images of both have another label, split, group or path, by column."""
    places = places_in(a.lines.ids, b.lines.ids)
    a.let_go()
    b.let_go()
    known, found = np.flatnonzero(places >= 0), dict.fromkeys(("label", "split", "group", "path"), 0)
    for name in found:
        ours, theirs = a.texts(name).array, b.texts(name).array
        for start in range(0, len(known), _PART_LINES):
            some = known[start : start + _PART_LINES]
            found[name] += int(np.asarray(ours.take(some) != theirs.take(places[some]), bool).sum())
        del ours, theirs  # before the next ones are read
    return found


def _compared(
    a: Cache, b: Cache, rows_a: NDArray[np.intp], rows_b: NDArray[np.intp], progress: Progress
) -> tuple[int, float]:
    """How many of the paired rows differ, and the largest difference. Raises UsageError for rows of other shapes."""
    if a.features.shape[1:] != b.features.shape[1:]:
        raise UsageError(f"rows of {a.features.shape[1:]} and of {b.features.shape[1:]} cannot be compared")
    differing, largest = 0, 0.0
    with progress.begin("comparing features", len(rows_a)) as advance:
        for place, block in a.features.blocks(rows_a):
            ours = block.reshape(len(block), -1).astype(np.float64)
            theirs = b.features[rows_b[place]].reshape(len(block), -1).astype(np.float64)
            same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
            off = np.where(same, 0.0, np.abs(ours - theirs))
            differing += int((~same).any(axis=1).sum())
            largest = max(largest, float(np.nan_to_num(off, nan=np.inf, posinf=np.inf).max(initial=0.0)))
            advance(len(block))
    return differing, largest
