"""Commands and options as click has them, with options in groups and errors that name flags."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click

from featcache.cli.hints import in_flags
from featcache.core.errors import ArgumentsError, FeatcacheError

_F = TypeVar("_F", bound=Callable[..., Any])
Decorator = Callable[[_F], _F]
_REST = "Options"
_METAVARS = {"integer": "N", "integer range": "N", "float": "X", "float range": "X", "directory": "FOLDER"}


class Option(click.Option):
    """An option with the group that `--help` lists it in.

    Parameters
    ----------
    group : title of the group
    default_text : what stands for the default, where `default` is None because the command looks it up later
    """

    def __init__(self, *args: Any, group: str = _REST, default_text: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group, self.default_text = group, default_text
        if self.metavar is None:
            self.metavar = _METAVARS.get(self.type.name)

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets behind the help."""
        extra = super().get_help_extra(ctx)
        if self.default_text:
            extra["default"] = self.default_text
        return extra


class Command(click.Command):
    """A command whose help lists its options by group, and whose errors name its flags."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group of options under its title; those that have none come last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                groups.setdefault(getattr(param, "group", _REST), []).append(record)
        groups[_REST] = groups.pop(_REST)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it. Errors of the library are raised again with flags instead of arguments."""
        try:
            return super().invoke(ctx)
        except ArgumentsError as error:
            raise click.UsageError(in_flags(str(error)), ctx) from error
        except FeatcacheError as error:
            error.args = (in_flags(str(error)),)
            raise


class Group(click.Group):
    """A command with commands of its own."""

    command_class = Command


def option(*names: str, **attributes: Any) -> Decorator[Any]:
    """An option that `Option` describes."""
    return click.option(*names, cls=Option, **attributes)


def combined(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several decorators as one; the options of the first come first."""
    return lambda function: reduce(lambda made, decorate: decorate(made), reversed(decorators), function)
