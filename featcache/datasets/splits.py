"""Splits: which groups are trained on, which validate, which test. Always whole groups.

By hash: a group's place follows from its name alone, so adding images moves none that were there.
By counts: so many images a class for each split, the groups taken in hash order.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from featcache.core.errors import DatasetError
from featcache.datasets.manifest import SPLITS

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.70, "val": 0.15, "test": 0.15}
Member = tuple[str, str]
"""(group, label) of one image; of several labels once for each; "" of an image with none of them."""


def split_by_hash(
    members: Sequence[Member], fractions: Mapping[str, float] = DEFAULT_FRACTIONS, *, seed: int = 0
) -> dict[str, str]:
    """Split of each group, by a hash of its name: {group: split}.

    The hash gives a class its shares only on average. Where it leaves a class less than half of its share
    of a split (which happens to small classes), the class's groups with the least hash for that split
    move there. Large classes need no repair, so adding images moves none of theirs.

    Raises DatasetError for a class that cannot be in every split.
    """
    splits = {group: _place(_unit(seed, "split", group), fractions) for group, _ in members}
    groups_of = _groups_by_label(members)
    for label, groups in sorted(groups_of.items()):
        share = {split: fractions[split] * len(groups) for split in SPLITS}
        for split in ("test", "val", "train"):
            while (have := sum(splits[group] == split for group in groups)) < max(share[split] / 2, 1):
                group = _to_move(groups, split, share=share, splits=splits, groups_of=groups_of, seed=seed)
                if group is None and not have:
                    raise DatasetError(
                        f"class {label!r}: no group can move to {split!r} without emptying a class's other split: "
                        "give it more groups, or a split column of your own"
                    )
                if group is None:
                    break
                splits[group] = split
    return splits


def small_classes(members: Sequence[Member]) -> dict[str, int]:
    """Classes with too few groups to be in every split, and how many groups they have."""
    return {label: len(groups) for label, groups in _groups_by_label(members).items() if len(groups) < len(SPLITS)}


def split_by_counts(
    members: Sequence[Member], counts: Mapping[str, int], *, seed: int = 0, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Split of each group so that every class has `counts[split]` images in each: {group: split}.

    Groups are taken in hash order while they fit; what is left over is in no split. Those that `known` puts
    into a split are taken for it first, and for another one last.

    Raises DatasetError naming each class that cannot give that many.
    """
    size: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in members:
        size[group][label] += 1
    mixed = [group for group, labels in size.items() if len(labels) > 1]
    if mixed:
        raise DatasetError(
            f"group {mixed[0]!r} holds images of several classes, so a fixed count per class is not possible",
            "Leave out `split_counts`",
        )
    splits: dict[str, str] = {}
    short = []
    for label, groups in sorted(_groups_by_label(members).items()):
        waiting = sorted(groups, key=lambda group: _unit(seed, "split", group))
        for split in ("test", "val", "train"):
            missing = counts[split]
            for group in _known_first(waiting, split, known or {}):
                if group not in splits and size[group][label] <= missing:
                    splits[group] = split
                    missing -= size[group][label]
            if missing:
                short.append(f"{label}: {missing} of {counts[split]} missing in {split}")
    if short:
        have = Counter(label for _, label in members)
        raise DatasetError(
            f"not enough images for {'/'.join(str(counts[s]) for s in SPLITS)} a class: {'; '.join(short)} "
            f"(there are {', '.join(f'{n} {label}' for label, n in sorted(have.items()))})"
        )
    return splits


def _known_first(groups: Sequence[str], split: str, known: Mapping[str, str]) -> list[str]:
    """`groups` in their order, but those known to be in `split` first, and those known in another last."""
    return sorted(groups, key=lambda group: 0 if known.get(group) == split else 1 + (group in known))


def _groups_by_label(members: Sequence[Member]) -> dict[str, set[str]]:
    groups = defaultdict(set)
    for group, label in members:
        if label:
            groups[label].add(group)
    return dict(groups)


def _to_move(
    groups: set[str],
    split: str,
    share: Mapping[str, float],
    splits: Mapping[str, str],
    groups_of: Mapping[str, set[str]],
    seed: int,
) -> str | None:
    """The group that moves to `split`: of the splits with most above their share, the one of least hash."""
    have = Counter(splits[group] for group in groups)
    for donor in sorted(SPLITS, key=lambda name: share[name] - have[name]):
        movable = [g for g in groups if donor != split and splits[g] == donor and _can_move(g, splits, groups_of)]
        if movable:
            return min(movable, key=lambda group: _unit(seed, split, group))
    return None


def _can_move(group: str, splits: Mapping[str, str], groups_of: Mapping[str, set[str]]) -> bool:
    """Whether every class of the group keeps another group in the split it would leave."""
    return all(
        any(other != group and splits[other] == splits[group] for other in groups)
        for groups in groups_of.values()
        if group in groups
    )


def _place(unit: float, fractions: Mapping[str, float]) -> str:
    """Test first, then val, so that raising the training fraction never moves a test group."""
    if unit < fractions["test"]:
        return "test"
    return "val" if unit < fractions["test"] + fractions["val"] else "train"


def _unit(seed: int, purpose: str, group: str) -> float:
    """A number in [0, 1) that only the arguments decide."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
