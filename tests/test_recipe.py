"""Recipes: one digest for one meaning, another for every other; nothing odd gets in from outside."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from featcache.core.recipe import (
    Augmentation,
    FeatureSpace,
    Recipe,
    WeightsSource,
    cache_digest,
    cache_name,
    canonical_json,
    digest,
    row_id,
)

SPACE = FeatureSpace("vgg16", "block5_pool", 224, "caffe", "none", "ab" * 32, rendering=1)
RECIPE = Recipe(SPACE)


def test_digests_are_what_they_were() -> None:
    """Caches on disk are named by these: a change here makes every cache of every user stale."""
    assert SPACE.digest == "c98b349f9b50c86556d522fe8108bcd188cb39eed3bd35a77e916adc6de4401c"
    assert RECIPE.digest == "f815fa67b061b421b989a4491d66361ec3dfd9334db4bcbc6addb764899701d0"
    assert (
        cache_digest(RECIPE, [("aa", 0), ("aa", 1), ("bb", 0)])
        == "e51fd5d82d8424f8d72ddc4a13dff0cd6fb1d98d2e82ff6ec35c8d70285f130a"
    )
    assert (
        row_id(SPACE, "aa", parameters={"shift": 0.5, "flip": True})
        == "2cc908f824a4a4a8f0d7297ab65820e522008417a3246b1204dc743b2c769a34"
    )
    assert cache_name("vgg16", "0123456789abcdef") == "vgg16-01234567"


def test_precision_is_left_out_where_it_is_what_it_always_was() -> None:
    low = Recipe(replace(SPACE, precision="bfloat16"))
    assert "precision" not in RECIPE.to_dict()["space"]
    assert low.to_dict()["space"] == {**RECIPE.to_dict()["space"], "precision": "bfloat16"}
    assert Recipe.from_dict(low.to_dict()) == low
    assert low.digest == "a0039f75ee6e252b97a07cee3f54a97ca68d15e584abeab4d951a4509b62c5bc"
    written = RECIPE.to_dict()
    written["space"]["precision"] = "float32"  # one spelling for one recipe
    with pytest.raises(ValueError, match="round trip"):
        Recipe.from_dict(written)


def test_resize_is_left_out_where_it_is_what_it_always_was() -> None:
    padded = Recipe(replace(SPACE, resize="pad"))
    assert "resize" not in RECIPE.to_dict()["space"]
    assert padded.to_dict()["space"] == {**RECIPE.to_dict()["space"], "resize": "pad"}
    assert Recipe.from_dict(padded.to_dict()) == padded
    assert padded.digest != RECIPE.digest


def test_digest_is_sha256_of_the_canonical_json() -> None:
    text = json.dumps(RECIPE.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert RECIPE.digest == hashlib.sha256(text.encode()).hexdigest()


def test_floats_may_be_given_as_whole_numbers() -> None:
    whole = Augmentation(rotation_deg=20, shift=0, hue_deg=6, contrast=0)
    written = Augmentation(rotation_deg=20.0, shift=0.0, hue_deg=6.0, contrast=-0.0)
    assert Recipe(SPACE, whole).digest == Recipe(SPACE, written).digest
    assert Recipe(SPACE, Augmentation(fill_modes=["wrap"])) == Recipe(SPACE, Augmentation(fill_modes=("wrap",)))  # type: ignore[arg-type]


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return tuple(reversed(value))
    return value + 1


@pytest.mark.parametrize("name", [item.name for item in fields(FeatureSpace)])
def test_every_field_of_the_feature_space_changes_the_digests(name: str) -> None:
    changed = replace(SPACE, **{name: other(getattr(SPACE, name))})
    assert changed.digest != SPACE.digest
    assert Recipe(changed).digest != RECIPE.digest
    assert row_id(changed, "aa", parameters={}) != row_id(SPACE, "aa", parameters={})


@pytest.mark.parametrize("name", [item.name for item in fields(Augmentation)])
def test_every_field_of_the_augmentation_changes_the_digest(name: str) -> None:
    plain = Augmentation()
    assert Recipe(SPACE, replace(plain, **{name: other(getattr(plain, name))})).digest != RECIPE.digest


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9)), max_size=8, unique=True), st.randoms())
def test_cache_digest_takes_rows_in_any_order(rows: list[tuple[str, int]], rng: random.Random) -> None:
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert cache_digest(RECIPE, rows) == cache_digest(RECIPE, shuffled) == cache_digest(RECIPE, iter(rows))
    assert cache_digest(RECIPE, rows) != cache_digest(RECIPE, [*rows, ("more", 77)])


def test_row_id_depends_on_image_parameters_and_space_only() -> None:
    one = row_id(SPACE, "aa", parameters={"a": 1.0, "b": 2.0})
    assert one == row_id(SPACE, "aa", parameters={"b": 2.0, "a": 1.0})
    assert (
        len(
            {
                one,
                row_id(SPACE, "bb", parameters={"a": 1.0, "b": 2.0}),
                row_id(SPACE, "aa", parameters={"a": 1.0, "b": 2.5}),
            }
        )
        == 3
    )


@given(
    st.builds(
        Augmentation,
        seed=st.integers(0, 2**63 - 1),
        rotation_deg=st.floats(0, 180),
        shift=st.floats(0, 0.5),
        horizontal_flip=st.booleans(),
        saturation=st.floats(0, 1) | st.integers(0, 1),
        fill_modes=st.lists(st.sampled_from(["constant", "wrap"]), min_size=1, max_size=3),
        fill_value=st.integers(0, 255),
    )
)
def test_a_recipe_survives_json(augmentation: Augmentation) -> None:
    recipe = Recipe(SPACE, augmentation)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_from_dict_takes_keys_in_any_order() -> None:
    value = RECIPE.to_dict()
    backwards = {key: value[key] for key in reversed(value)}
    backwards["space"] = dict(reversed(value["space"].items()))
    assert Recipe.from_dict(backwards) == RECIPE


WRONG: dict[str, list[Any]] = {
    "str": [None, 5, ["a"], True, "\ud800"],
    "int": [None, "5", 1.0, True, [1], float("nan")],
    "bool": [None, 0, 1, "true"],
    "float": [None, "1.0", True, float("nan"), float("inf"), 10**400, [0.1], {}],
    "tuple[FillMode, ...]": [None, "wrap", ["bogus"], [None], 7, {"wrap": 1}],
}
WRONG_CELLS = [
    (section, item.name, wrong)
    for section, record in (("space", FeatureSpace), ("augmentation", Augmentation))
    for item in fields(record)
    for wrong in WRONG[str(item.type)]
]


@pytest.mark.parametrize(("section", "name", "wrong"), WRONG_CELLS, ids=lambda value: f"{value!r:.20}")
def test_from_dict_refuses_values_of_the_wrong_kind(section: str, name: str, wrong: Any) -> None:
    value = RECIPE.to_dict()
    value[section] = {**value[section], name: wrong}
    with pytest.raises((ValueError, TypeError)):
        Recipe.from_dict(value)


def test_from_dict_refuses_missing_extra_and_newer() -> None:
    good = RECIPE.to_dict()
    assert Recipe.from_dict(good) == RECIPE
    bad: list[Any] = [{}, [], None, "recipe", 5, {"format": 1}]
    for section in ("space", "augmentation"):
        for name in good[section]:
            value = copy.deepcopy(good)
            del value[section][name]
            bad.append(value)
        value = copy.deepcopy(good)
        value[section]["extra"] = 1
        bad += [value, {**good, section: None}, {**good, section: []}, {**good, section: "x"}]
        bad.append({key: item for key, item in good.items() if key != section})
    bad += [{**good, "format": number} for number in (0, 2, "1", 1.0, True, None, [1])]
    bad += [{**good, "extra": 1}, {key: item for key, item in good.items() if key != "format"}]
    for value in bad:
        with pytest.raises((ValueError, TypeError)):
            Recipe.from_dict(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values, json_values)
def test_from_dict_of_any_json_is_refused_politely(one: Any, two: Any, three: Any) -> None:
    for value in (one, {"format": 1, "space": two, "augmentation": three}, {**RECIPE.to_dict(), "space": two}):
        with pytest.raises((ValueError, TypeError)):
            Recipe.from_dict(value)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 1.5, None, True], "a": "ä→\n"}) == '{"a":"ä→\\n","b":[1,1.5,null,true]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    for number in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [number]})
    with pytest.raises(TypeError):
        canonical_json({"a": {1, 2}})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (WeightsSource.of("imagenet"), "imagenet"),
        (WeightsSource.of("random", 4), "random-4"),
        (WeightsSource.of(Path("a/b/c.h5"), 4), "c.h5"),
        (WeightsSource(""), ""),
    ],
)
def test_where_weights_come_from_is_read_from_its_text(source: WeightsSource, text: str) -> None:
    assert str(source) == text
    assert WeightsSource.read(text) == source


@pytest.mark.parametrize("text", ["random-", "random-x", "random--1", "Random-4", "random-4 ", "random-" + "9" * 19])
def test_what_is_no_seed_is_a_files_name(text: str) -> None:
    assert WeightsSource.read(text).kind == "file"
