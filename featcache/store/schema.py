"""JSON Schemas (draft 2020-12) of recipe.json and manifest.json, for readers in other languages.

python -m featcache.store.schema docs/schema     writes them anew
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from featcache.core.files import write_json
from featcache.core.recipe import LEFT_OUT, RECIPE_FORMAT, Augmentation, FeatureSpace
from featcache.store.layout import MANIFEST_FILE, RECIPE_FILE
from featcache.store.manifest import CACHE_FORMAT, LEFT_OUT_OF_MANIFEST, Manifest


def recipe_schema() -> dict[str, Any]:
    """What recipe.json must look like."""
    parts = {"space": FeatureSpace, "augmentation": Augmentation}
    schema = {
        "type": "object",
        "properties": {"format": {"const": RECIPE_FORMAT}, **{name: {"$ref": f"#/$defs/{name}"} for name in parts}},
        "$defs": {name: TypeAdapter(record).json_schema() for name, record in parts.items()},
    }
    return _described(schema, RECIPE_FILE)


def manifest_schema() -> dict[str, Any]:
    """What manifest.json must look like. Digests, the seal and the list of files say more than a schema can."""
    schema = _described(Manifest.model_json_schema(), MANIFEST_FILE)
    schema["properties"]["format"] = {"const": CACHE_FORMAT}
    return schema


def _described(schema: dict[str, Any], file: str) -> dict[str, Any]:
    """Every field but those that are left out is written, and none besides: others with a default are required too."""
    may_lack = LEFT_OUT | LEFT_OUT_OF_MANIFEST
    for part in (schema, *schema.get("$defs", {}).values()):
        part["required"] = sorted(set(part["properties"]) - may_lack)
        part["additionalProperties"] = False
        part.pop("description", None)
        for field in part["properties"].values():
            field.pop("default", None)
            if {"type": "null"} in field.get("anyOf", []):  # a field that may be None is not written then
                field.update(next(kind for kind in field.pop("anyOf") if kind["type"] != "null"))
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": f"featcache {file}"}


def write(folder: Path) -> None:
    """Put both schemas into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.schema.json", recipe_schema())
    write_json(folder / "manifest.schema.json", manifest_schema())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
