"""Every command that a message names is one that works as it is printed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import Run

import featcache
from featcache.cli import COMMANDS, cli
from featcache.synthetic.drawing import write_cells

HINT = re.compile(r"[\"'`](featcache [a-z][^\"'`]*)[\"'`]")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
OTHERS = {"--no-verify", "--user"}
"""Options of other programs that messages name."""


def texts(file: Path) -> Iterator[str]:
    """All text of a module but docstrings; what is put in when it runs stands as X."""
    tree = ast.parse(file.read_text("utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


TEXTS = {
    (file.relative_to(Path(featcache.__file__).parent).as_posix(), text)
    for file in Path(featcache.__file__).parent.rglob("*.py")
    for text in texts(file)
}
HINTS = sorted({(file, hint) for file, text in TEXTS for hint in HINT.findall(text)})


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and what is left of them."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"there is no command {words[0]}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize(("file", "hint"), HINTS)
def test_a_hint_names_a_command_with_all_that_it_needs(file: str, hint: str) -> None:
    command, words = find(shlex.split(hint)[1:])
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    given, positional = set(), 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            positional += 1
            continue
        assert word in options, f"{command.name} has no {word}"
        given.add(options[word])
        if not getattr(options[word], "is_flag", False):
            assert words, f"{word} wants a value"
            words.pop(0)
    missing = [param for param in command.params if isinstance(param, click.Option) and param.required]
    assert set(missing) <= given
    assert positional >= sum(param.required for param in arguments)
    assert positional <= len(arguments) or any(param.nargs == -1 for param in arguments)


def all_options() -> set[str]:
    groups = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    found = set()
    while groups:
        command = groups.pop()
        assert command is not None
        if isinstance(command, click.Group):
            groups += list(command.commands.values())
        found |= {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return found | {"--help", "--version"}


def test_an_option_that_a_message_names_is_one() -> None:
    known = all_options() | OTHERS
    strange = {(file, name) for file, text in TEXTS for name in OPTION.findall(text) if name not in known}
    assert strange == set()


def test_hints_of_the_first_steps_work_from_another_folder(run: Run, tmp_path: Path) -> None:
    """What init says to do next, and what an error says to do instead, run as they are printed."""
    write_cells(tmp_path / "a set", 4, size_px=16)
    ran = run("init", "a set", "--into", "my project", cwd=tmp_path)
    (hint,) = re.findall(r"next: featcache (.*)", ran.out)
    fast = [*shlex.split(hint), "--weights", "random", "--input-size", "32", "--pooling", "avg"]
    ran = run(*fast, cwd=tmp_path)
    (hint,) = re.findall(r"next: featcache (.*)", ran.out)
    assert hint == "fit-head -C 'my project'"
    ran = run(*shlex.split(hint), "--epochs", "1", "--batch", "2", cwd=tmp_path)
    (hint,) = re.findall(r"next: featcache (.*)", ran.out)
    assert run(*shlex.split(hint), cwd=tmp_path).code == 0
    listed = tmp_path / "my project" / "dataset.csv"
    listed.write_text(listed.read_text().replace(",val,", ",train,"))
    said = run("dataset", "check", "-C", "my project", cwd=tmp_path).error
    (hint,) = re.findall(r"featcache (init --resplit --into 'my project')", said)
    assert run(*shlex.split(hint), cwd=tmp_path).code == 0
    assert run("dataset", "check", "-C", "my project", cwd=tmp_path).code == 0
