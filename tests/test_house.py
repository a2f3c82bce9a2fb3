"""What import-linter does not hold: packages are entered by their faces, and calls say what their arguments are."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import featcache
from featcache.cli import COMMANDS

ROOT = Path(__file__).parents[1] / "featcache"
FACES = sorted(path.parent.name for path in ROOT.glob("*/__init__.pyi"))
FILES = sorted(ROOT.rglob("*.py"))

VERBS = {name for name in COMMANDS if name.replace("-", "_") in featcache.__all__}

POSITIONAL = {
    "heads/steps.py",  # compiled by Numba, which takes no named arguments
    "backbones/zoo/drop_path.py",  # a layer, which Keras makes from its configuration
}
OTHERS_CALL = {"compute_loss", "convert", "missing_host_key", "redirect_request", "fit", "order", "by_blocks", "join"}
"""Called by a library, or passed on as a function, with arguments in their order."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports from featcache, also within functions."""
    return [
        (node.module, alias.name)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "featcache"
        for alias in node.names
    ]


@cache
def attributes(path: Path) -> list[tuple[str, str]]:
    """(name, attribute) of everything that is asked of a name in a file."""
    return [
        (node.value.id, node.attr)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_other_packages_are_entered_by_their_faces(path: Path) -> None:
    past = [
        f"from {module} import {name}"
        for module, name in imports(path)
        if len(parts := module.split(".")) > 2 and parts[1] in FACES and parts[1] != package_of(path)
    ]
    assert past == []


@pytest.mark.parametrize("face", FACES)
def test_a_face_shows_what_others_use_and_no_more(face: str) -> None:
    stub = ast.parse((ROOT / face / "__init__.pyi").read_text(encoding="utf-8"))
    shown = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    outsiders = [path for path in FILES if package_of(path) != face]
    used = {name for path in outsiders for module, name in imports(path) if module == f"featcache.{face}"}
    used |= {name for path in outsiders for owner, name in attributes(path) if owner == face}
    assert shown - used - set(featcache.__all__) == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_parameters_after_the_second_are_named(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in POSITIONAL:
        return
    found = []
    for scope in ast.walk(tree(path)):
        for node in getattr(scope, "body", []) if isinstance(scope, (ast.Module, ast.ClassDef)) else []:
            if not isinstance(node, ast.FunctionDef) or node.name in OTHERS_CALL or node.args.vararg:
                continue
            is_command = any("option" in ast.unparse(decorator) for decorator in node.decorator_list)
            is_public = not node.name.startswith("_") or node.name == "__init__"
            names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
            if is_public and not is_command and len(names) > 2:
                found.append(f"{node.name}({', '.join(names)})")
    assert found == []


@pytest.mark.parametrize("command", sorted(VERBS))
def test_a_command_is_one_call_of_the_public_function_of_its_name(command: str) -> None:
    verb = command.replace("-", "_")
    path = ROOT / "cli" / f"{verb}.py"
    doors = {
        **dict.fromkeys(("adapt", "attribution", "evaluate", "predict"), "featcache.prediction"),
        **dict.fromkeys(("bundle", "check", "export"), "featcache.deployment"),
        "count": "featcache.counting",
        "fit_segmenter": "featcache.pixelwise",
        "serve": "featcache.serving",
    }
    door = doors.get(verb, "featcache.api")
    assert [module for module, name in imports(path) if name == verb] == [door]
    uses = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and node.id == verb]
    assert len(uses) == 1
