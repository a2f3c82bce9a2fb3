"""What messages name exists: arguments and calls in Python, flags and commands at the command line."""

from __future__ import annotations

import ast
import functools
import inspect
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import Run

import featcache
from featcache.cli import COMMANDS, cli
from featcache.cli.hints import in_flags
from featcache.core.errors import CacheNotFoundError, RemoteDroppedError, UsageError, WeightsError
from featcache.core.project import AugmentationSection, DatasetSection, StorageSection, ViewsSection
from featcache.core.settings import settings_of
from featcache.heads import HeadConfig, Protocol
from featcache.networks import ScratchConfig
from featcache.synthetic.drawing import write_cells

HINT = re.compile(r"[\"'`](featcache [a-z][^\"'`]*)[\"'`]")
SPAN = re.compile(r"`([^`\n]+)`")
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


PACKAGE = Path(featcache.__file__).parent
TEXTS = {(file.relative_to(PACKAGE).as_posix(), text) for file in PACKAGE.rglob("*.py") for text in texts(file)}
SPANS = sorted(
    {(file, span) for file, text in TEXTS if file[:4] != "cli/" for span in SPAN.findall(text) if span[:1] != "X"}
)
"""Arguments and calls, as the library words them."""
HINTS = sorted(
    {(file, hint) for file, text in TEXTS for hint in HINT.findall(text)}
    | {(file, in_flags(f"`{span}`")[1:-1]) for file, span in SPANS if span.startswith("featcache.")}
)
"""Commands, as the command line words them."""


OF_COMMANDS = {"force"}
"""Arguments of functions that are no public ones: `featcache rm` has no twin in Python."""


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


def all_options() -> list[click.Option]:
    groups = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    found = []
    while groups:
        command = groups.pop()
        assert command is not None
        if isinstance(command, click.Group):
            groups += list(command.commands.values())
        found += [param for param in command.params if isinstance(param, click.Option)]
    return found


@functools.cache
def arguments_in_python() -> set[str]:
    """Parameters of the public functions and classes, and the settings that some of them take by name."""
    records = (DatasetSection, ViewsSection, AugmentationSection, StorageSection, HeadConfig, Protocol, ScratchConfig)
    public = [getattr(featcache, name) for name in featcache.__all__]
    found = {name for thing in public if callable(thing) for name in inspect.signature(thing).parameters}
    return found.union(*map(settings_of, records))


def test_an_option_that_a_message_names_is_one() -> None:
    names = {name for option in all_options() for name in (*option.opts, *option.secondary_opts)}
    known = names | OTHERS | {"--help", "--version"}
    strange = {(file, name) for file, text in TEXTS for name in OPTION.findall(text) if name not in known}
    assert strange == set()


def test_only_the_command_line_names_flags() -> None:
    below = {(file, HINT.sub("", text)) for file, text in TEXTS if not file.startswith("cli/")}
    assert {(file, name) for file, text in below for name in OPTION.findall(text) if name not in OTHERS} == set()


@pytest.mark.parametrize(("file", "span"), SPANS)
def test_an_argument_in_a_message_is_one_in_python_and_has_a_flag(file: str, span: str) -> None:
    with click.Context(click.Command("all", params=list(all_options()))):
        assert "`" not in in_flags(f"`{span}`")
    call = ast.parse(f"_({span})", mode="eval").body
    assert isinstance(call, ast.Call)
    names = [word.arg for word in call.keywords]
    match call.args:
        case [ast.Call(ast.Attribute(ast.Name("featcache"), verb), values, words)]:
            arguments = {str(word.arg): ast.unparse(word.value) for word in words}
            inspect.signature(getattr(featcache, verb)).bind_partial(*values, **arguments)
        case bare:
            names += map(ast.unparse, bare)
    assert set(names) <= arguments_in_python() | OF_COMMANDS


def test_a_message_is_worded_for_who_reads_it() -> None:
    error = WeightsError("x.h5: no weights for `input_size_px=32`", "Set `weights='my file'`, or leave out `layers`")
    assert str(error) == "x.h5: no weights for `input_size_px=32`. Set `weights='my file'`, or leave out `layers`"
    with click.Context(find(["extract"])[0]):
        said = in_flags(str(error))
    assert said == "x.h5: no weights for --input-size 32. Set --weights 'my file', or leave out --layer"
    assert in_flags("`featcache.extract(dtype='float32')`") == "'featcache extract --dtype float32 --model NAME'"
    for strange in ("`a b`", "`rm -rf`", "`weights`", "`os.remove('x')`", "`featcache.nothing()`", "`(`", "`lr=`"):
        assert in_flags(strange) == strange


def test_errors_keep_message_and_hint_through_a_pickle() -> None:
    """Also where a library has its own way to pickle errors, as Dask has, which calls `__new__`."""
    for kind in (UsageError, CacheNotFoundError, RemoteDroppedError):
        bare = kind.__new__(kind, "wrong")
        assert isinstance(bare, kind)
        error = pickle.loads(pickle.dumps(kind("wrong", "Do this")))
        assert (str(error), error.message, error.hint) == ("wrong. Do this", "wrong", "Do this")


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
