"""The JSON Schemas in docs/schema: of this very version, and true of real caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from featcache.store import schema
from tests.test_store_contract import dataset, fake_features, make_cache

SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files_are_those_of_this_version(tmp_path: Path) -> None:
    schema.write(tmp_path)
    for file in ("recipe.schema.json", "manifest.schema.json"):
        assert (SCHEMAS / file).read_bytes() == (tmp_path / file).read_bytes(), (
            "python -m featcache.store.schema docs/schema"
        )


@pytest.mark.parametrize("name", ["recipe", "manifest"])
def test_a_real_cache_is_valid_and_a_changed_one_is_not(tmp_path: Path, name: str) -> None:
    cache = make_cache(tmp_path, dataset(12), fake_features(12, (2, 2, 3)))
    described = read(SCHEMAS / f"{name}.schema.json")
    validator = jsonschema.Draft202012Validator(described)
    validator.check_schema(described)
    value = read(cache.folder / f"{name}.json")
    validator.validate(value)
    for field in value:
        assert not validator.is_valid({key: value[key] for key in value if key != field}), field
    assert not validator.is_valid({**value, "more": 1})
    assert not validator.is_valid({**value, "format": 99})


@pytest.mark.parametrize(
    ("part", "field", "wrong"),
    [
        ("space", "dtype", 1),
        ("space", "input_size_px", "32"),
        ("augmentation", "fill_modes", ["mirror"]),
        ("augmentation", "seed", 1.5),
    ],
)
def test_a_recipe_with_a_wrong_value_is_not_valid(tmp_path: Path, part: str, field: str, wrong: object) -> None:
    value = read(make_cache(tmp_path, dataset(12), fake_features(12, (2, 2, 3))).folder / "recipe.json")
    value[part][field] = wrong
    assert not jsonschema.Draft202012Validator(read(SCHEMAS / "recipe.schema.json")).is_valid(value)
