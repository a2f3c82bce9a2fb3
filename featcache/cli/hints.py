"""Messages of the library in the words of the command line.

The library names arguments and calls as Python does, in backticks: `weights=PATH`, `featcache.init(resplit=True)`. Here
they become --weights PATH and 'featcache init --resplit'. Capitals stand for a value that the reader knows.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence

import click

_NESTED = {"check-dataset": ("dataset", "check"), "segment": ("dataset", "segment")}
"""Commands in a group, by the functions that they call."""
_SPAN = re.compile(r"`([^`\n]+)`")


def in_flags(text: str) -> str:
    """A message with flags of the running command, and with commands, in place of arguments and calls."""
    return _SPAN.sub(lambda span: _worded(span[1]) or span[0], text)


def _worded(span: str) -> str:
    """An argument or a call in words of the command line; "" for anything else that stands in backticks."""
    try:
        match ast.parse(f"_({span})", mode="eval").body:
            case ast.Call(args=[ast.Call(ast.Attribute(ast.Name("featcache"), verb), values, keywords)]):
                return repr(_command(verb.replace("_", "-"), values, keywords))
            case ast.Call(args=names, keywords=keywords):
                context = click.get_current_context(silent=True)
                options = _options(context.command) if context else {}
                bare = [options[ast.unparse(name)].opts[-1] for name in names]
                return shlex.join([*bare, *_flags(keywords, options)])
    except (SyntaxError, ValueError, KeyError):
        pass
    return ""


def _command(verb: str, values: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> str:
    """A command as it works when it is pasted, with the options that it cannot do without."""
    from featcache.cli import cli

    path = _NESTED.get(verb, (verb,))
    command: click.Command | None = cli
    for name in path:
        command = command.get_command(click.Context(command), name) if isinstance(command, click.Group) else None
    if command is None:
        raise KeyError(verb)
    options = _options(command)
    words = [*(word for value in values for word in _words(value)), *_flags(keywords, options)]
    for option in command.params:
        if isinstance(option, click.Option) and option.required and option.opts[-1] not in words:
            words += [option.opts[-1], str(option.metavar)]
    return shlex.join(["featcache", *path, *words])


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options of a command, by the names of the arguments that they stand for, and by their own names."""
    found = [param for param in command.params if isinstance(param, click.Option)]
    by_flag = {option.opts[-1].lstrip("-").replace("-", "_"): option for option in found}
    return {**by_flag, **{str(option.name): option for option in found}}


def _flags(keywords: Sequence[ast.keyword], options: dict[str, click.Option]) -> Iterator[str]:
    """weights="a b", resplit=True -> "--weights", "a b", "--resplit" """
    for keyword in keywords:
        yield options[str(keyword.arg)].opts[-1]
        yield from _words(keyword.value)


def _words(value: ast.expr) -> list[str]:
    match value:
        case ast.Constant(True):
            return []
        case ast.Constant(str(text)):
            return [text]
        case ast.Constant(float(number)):
            return [f"{number:g}"]
        case ast.Tuple(parts) | ast.List(parts):
            return [",".join(word for part in parts for word in _words(part))]
    return [ast.unparse(value)]
