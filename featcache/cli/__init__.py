"""The command line: one small module a command, each loaded only when its command runs."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from importlib import import_module

import click

from featcache import __version__
from featcache.errors import FeatcacheError

COMMANDS = {
    "demo": "the whole thing on generated leukocytes, offline, a report at the end",
    "init": "look at images, write featcache.toml and dataset.csv",
    "dataset": "check the data set, split it anew, draw its views",
    "models": "the backbones: size, features, which weights are at hand",
    "extract": "run a backbone once over every view, keep its features",
    "fit-head": "train a head on cached features",
    "report": "every run as tables, figures and one HTML page",
    "ls": "the caches of this project",
    "info": "what a cache is: recipe, rows, files, how it was made",
}


class _Commands(click.Group):
    """Knows every command by name and imports its module when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"featcache.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from featcache.errors import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}: {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featcache")
def cli() -> None:
    """Run a frozen backbone once over every augmented image, keep its features, train heads on them.

    \b
    Start:    featcache init FOLDER          class folders, a CSV or Pascal VOC
              featcache extract --model efficientnet-lite0
              featcache fit-head --epochs 5000
              featcache report

    Every command takes --help and, for machines, --json.
    """


def main() -> None:
    """Run the command line. Every error of ours ends as one message and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _end("interrupted; what was finished is kept: the same command goes on from there", 130)
    except KeyboardInterrupt:
        _end("interrupted; what was finished is kept: the same command goes on from there", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except FeatcacheError as error:
        _end(f"featcache: {error}", 1)
    except MemoryError:
        _end("featcache: not enough memory: use fewer rows, a smaller backbone or --pooling avg", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(f"featcache: {where}{error.strerror or error}", 1)
    except Exception as error:  # noqa: BLE001 - the last net: a person sees a message, never a traceback
        _end(_defect(error), 1)


def _defect(error: Exception) -> str:
    """Keep the traceback of what should not have happened in a file, and say where."""
    with tempfile.NamedTemporaryFile("w", prefix="featcache-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    return (
        f"featcache: a defect of featcache itself: {type(error).__name__}: {error}. What was finished is kept. "
        f"Please report it with the file {log.name}"
    )


def _end(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
