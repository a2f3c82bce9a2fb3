"""Splits: whole groups, every class everywhere, and nothing moves that need not."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings, strategies as st

from featcache.core.errors import DatasetError
from featcache.datasets.manifest import SPLITS
from featcache.datasets.splits import DEFAULT_FRACTIONS, Member, small_classes, split_by_counts, split_by_hash

seeds = st.integers(0, 2**32)
fractions = st.tuples(*[st.integers(1, 90)] * 3).map(
    lambda parts: {split: part / sum(parts) for split, part in zip(SPLITS, parts, strict=True)}
)


@st.composite
def one_label_groups(draw: st.DrawFn, least: int = 3, most: int = 40) -> list[Member]:
    """Members of up to four classes; a group has one label and one to three images."""
    members: list[Member] = []
    for label in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        number = draw(st.integers(least, most))
        members += [(f"{label}{group}", label) for group in range(number) for _ in range(draw(st.integers(1, 3)))]
    return members


mixed_groups = st.lists(
    st.tuples(st.integers(0, 25).map(str), st.sampled_from("abc")), min_size=1, max_size=80, unique=False
)


def present(members: list[Member], splits: dict[str, str]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for group, label in members:
        found[label].add(splits[group])
    return found


@settings(deadline=None, max_examples=60)
@given(one_label_groups(), fractions, seeds)
def test_every_group_has_one_split_and_every_class_is_in_each(
    members: list[Member], shares: dict[str, float], seed: int
) -> None:
    splits = split_by_hash(members, shares, seed=seed)
    assert set(splits) == {group for group, _ in members}
    assert all(found == set(SPLITS) for found in present(members, splits).values())


@settings(deadline=None, max_examples=60)
@given(mixed_groups, fractions, seeds)
def test_groups_of_several_classes_are_split_or_refused(
    members: list[Member], shares: dict[str, float], seed: int
) -> None:
    try:
        splits = split_by_hash(members, shares, seed=seed)
    except DatasetError as error:
        assert "without emptying a class's other split" in str(error)
        return
    assert set(splits) == {group for group, _ in members}
    assert all(found == set(SPLITS) for found in present(members, splits).values())


def test_many_groups_of_several_classes_are_split() -> None:
    members = [(str(group), label) for group in range(60) for label in ("abc" if group % 2 else "ab")]
    splits = split_by_hash(members)
    assert all(found == set(SPLITS) for found in present(members, splits).values())


@settings(deadline=None, max_examples=60)
@given(one_label_groups() | mixed_groups, seeds, st.randoms())
def test_the_order_of_the_images_changes_nothing(members: list[Member], seed: int, rng: random.Random) -> None:
    try:
        splits = split_by_hash(members, seed=seed)
    except DatasetError:
        assume(False)
    shuffled = list(members)
    rng.shuffle(shuffled)
    assert split_by_hash(shuffled, seed=seed) == splits


def needed_no_repair(members: list[Member], shares: dict[str, float]) -> bool:
    """Whether the hash alone gives every class half of its share, and one group, of every split.

    The hash alone: a group has the place that it has among thousands, where no class needs repair.
    """
    crowd = [(f"more{number}", label) for label in {label for _, label in members} for number in range(3000)]
    places = split_by_hash([*members, *crowd], shares)
    groups = defaultdict(set)
    for group, label in members:
        groups[label].add(group)
    for own in groups.values():
        have = Counter(places[group] for group in own)
        if any(have[split] < max(shares[split] * len(own) / 2, 1) for split in SPLITS):
            return False
    return True


@settings(deadline=None, max_examples=12)
@given(one_label_groups(20, 60), st.integers(1, 60))
def test_new_groups_move_no_old_one(members: list[Member], new: int) -> None:
    shares = dict(DEFAULT_FRACTIONS)
    grown = members + [(f"new{number}", members[number % len(members)][1]) for number in range(new)]
    assume(needed_no_repair(members, shares) and needed_no_repair(grown, shares))
    before, after = split_by_hash(members, shares), split_by_hash(grown, shares)
    assert {group: after[group] for group in before} == before


def test_new_groups_move_no_old_one_of_a_large_set() -> None:
    members = [(f"{label}{number}", label) for label in "abcd" for number in range(300)]
    grown = [*members, *[(f"later{number}", "abcde"[number % 5]) for number in range(500)]]
    before, after = split_by_hash(members), split_by_hash(grown)
    assert {group: after[group] for group in before} == before


def test_shares_are_near_the_fractions() -> None:
    members = [(str(number), "ab"[number % 2]) for number in range(2000)]
    for shares in (dict(DEFAULT_FRACTIONS), {"train": 0.5, "val": 0.2, "test": 0.3}):
        have = Counter(split_by_hash(members, shares).values())
        for split in SPLITS:
            spread = math.sqrt(2000 * shares[split] * (1 - shares[split]))
            assert abs(have[split] - 2000 * shares[split]) < 4 * spread


def test_another_seed_gives_other_splits() -> None:
    members = [(str(number), "ab"[number % 2]) for number in range(100)]
    different = {tuple(split_by_hash(members, seed=seed).items()) for seed in range(5)}
    assert len(different) == 5
    counts = {"train": 20, "val": 5, "test": 5}
    assert split_by_counts(members, counts, seed=0) != split_by_counts(members, counts, seed=1)


def test_a_larger_training_share_takes_no_test_group() -> None:
    members = [(str(number), "ab"[number % 2]) for number in range(600)]
    one = split_by_hash(members, {"train": 0.6, "val": 0.2, "test": 0.2})
    two = split_by_hash(members, {"train": 0.7, "val": 0.1, "test": 0.2})
    assert {g for g, s in one.items() if s == "test"} == {g for g, s in two.items() if s == "test"}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_class_that_cannot_be_everywhere_is_refused_by_name(groups: int) -> None:
    members = [(f"a{n}", "many") for n in range(9)] + [(f"b{n}", "few") for n in range(groups)]
    with pytest.raises(DatasetError, match="class 'few'"):
        split_by_hash(members)
    assert small_classes(members) == {"few": groups}


def test_small_classes_counts_groups_not_images() -> None:
    assert small_classes([("g", "a")] * 9 + [(str(n), "b") for n in range(3)]) == {"a": 1}


# Counts

PAPER = {"train": 100, "val": 10, "test": 10}


@pytest.mark.parametrize("seed", [0, 1])
def test_counts_are_exact(seed: int) -> None:
    members = [(f"{label}{number}", label) for label in "abcd" for number in range(130)]
    splits = split_by_counts(members, PAPER, seed=seed)
    have = Counter((group[0], split) for group, split in splits.items())
    assert have == {(label, split): PAPER[split] for label in "abcd" for split in SPLITS}
    assert splits == split_by_counts(members[::-1], PAPER, seed=seed)


@settings(deadline=None, max_examples=60)
@given(one_label_groups(1, 30), st.tuples(*[st.integers(1, 12)] * 3), seeds)
def test_counts_are_exact_or_refused(members: list[Member], numbers: tuple[int, int, int], seed: int) -> None:
    counts = dict(zip(SPLITS, numbers, strict=True))
    label_of = dict(members)
    images = Counter(label for _, label in members)
    try:
        splits = split_by_counts(members, counts, seed=seed)
    except DatasetError as error:
        assert "missing in" in str(error)
        alone = all(count == 1 for count in Counter(group for group, _ in members).values())
        assert not alone or any(images[label] < sum(numbers) for label in images)
        return
    have = Counter((label, splits[group]) for group, label in members if group in splits)
    assert have == {(label, split): counts[split] for label in images for split in SPLITS}
    assert set(splits) <= set(label_of)


def test_counts_keep_known_groups_where_they_are() -> None:
    members = [(f"{label}{number}", label) for label in "ab" for number in range(120)]
    before = split_by_counts(members, PAPER)
    grown = [*members, *[(f"{label}new{number}", label) for label in "ab" for number in range(50)]]
    assert split_by_counts(grown, PAPER) != before
    assert split_by_counts(grown, PAPER, known=before) == before
    more = {"train": 120, "val": 20, "test": 20}
    after = split_by_counts(grown, more, known=before)
    assert {group: after[group] for group in before} == before
    assert Counter(after.values()) == {split: 2 * number for split, number in more.items()}


def test_counts_move_known_groups_only_where_they_must() -> None:
    members = [(f"{label}{number}", label) for label in "ab" for number in range(12)]
    before = split_by_counts(members, {"train": 4, "val": 4, "test": 4})
    after = split_by_counts(members, {"train": 10, "val": 1, "test": 1}, known=before)
    assert Counter(after.values()) == {"train": 20, "val": 2, "test": 2}
    assert all(after[group] == "train" for group, split in before.items() if split == "train")


def test_counts_that_cannot_be_met_name_each_class_and_number() -> None:
    members = [(f"a{n}", "a") for n in range(130)] + [(f"b{n}", "b") for n in range(115)]
    with pytest.raises(
        DatasetError, match=r"100/10/10 a class: b: 5 of 100 missing in train \(there are 130 a, 115 b\)"
    ):
        split_by_counts(members, PAPER)


def test_counts_refuse_groups_of_several_classes() -> None:
    with pytest.raises(DatasetError, match="group 'g' holds images of several classes"):
        split_by_counts([("g", "a"), ("g", "b")], PAPER)
