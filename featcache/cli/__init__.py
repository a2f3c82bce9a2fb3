"""The command line: one small module a command, each loaded only when its command runs."""

from __future__ import annotations

import atexit
import io
import os
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from featcache import __version__
from featcache.cli.interrupts import noting_interrupts
from featcache.cli.left_out import left_out_lines
from featcache.cli.output import say
from featcache.core import files
from featcache.core.errors import FeatcacheError, shortage

SECTIONS = {
    "Start": {
        "demo": "run the whole job on generated images, offline",
        "init": "find images, write featcache.toml and dataset.csv",
        "dataset": "check the data set, correct labels, preview views, generate one",
        "run": "do a whole study from a recipe, or what is left of it",
    },
    "Compute": {
        "models": "list the backbones and their layers",
        "extract": "compute the features of every view and cache them",
        "explain": "explain a cache's name, and what extract would compute",
        "plan": "say what a large extraction on many workers takes",
    },
    "Train": {
        "fit-head": "train a head on cached features",
        "fit-segmenter": "fit a segmenter of cells to pictures with masks",
        "cross-validate": "judge every image by heads trained without it",
        "sweep": "train many heads on one cache and keep the best",
        "fit-scratch": "train a whole network from random weights",
        "fine-tune": "train the last blocks, or all, of a pretrained network",
    },
    "Use": {
        "predict": "predict the class of new images with a trained run",
        "count": "count the white cells of whole smears by class",
        "evaluate": "say how good a run is on images of another laboratory",
        "adapt": "fit a head to a few labelled images of another laboratory",
        "attribution": "draw which places of an image speak for its class",
        "export": "write a run as one model that other programs run",
        "bundle": "write a run as one zip file that predicts anywhere",
        "serve": "answer requests for predictions over HTTP",
        "check": "check that a bundle gives the same probabilities here",
    },
    "Look": {
        "report": "write all runs as tables, figures and one HTML page",
        "runs": "list the runs; compare, tag, note and remove them",
        "ls": "list the caches of the project",
        "info": "show one cache: recipe, rows, files",
        "diff": "compare two caches",
        "status": "show how far caches are, and who is at work",
        "verify": "check every byte of a cache, recompute rows, repair",
    },
    "Share": {
        "remote": "name the remotes that caches and runs are shared on",
        "push": "send caches and runs to a remote",
        "pull": "get a cache, a part of one, or a run from a remote",
        "pack": "write caches and runs into one zip file",
        "index": "make a folder on a web server a remote",
        "key": "manage keys that sign and keys that are trusted",
    },
    "Tidy": {
        "convert": "copy a cache into another format or dtype",
        "rm": "remove caches",
        "gc": "remove leftovers and caches that others contain",
    },
}
"""Every command with what it does, in the groups and the order of `featcache --help`."""

COMMANDS = {name: does for section in SECTIONS.values() for name, does in section.items()}


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
        """List the commands in groups, without importing one."""
        widest = max(map(len, COMMANDS))
        with formatter.section("Commands"):
            for title, commands in SECTIONS.items():
                with formatter.section(title):
                    formatter.write_dl([(f"{name:{widest}}", does) for name, does in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from featcache.core.errors import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command {args[0]!r}: {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featcache")
def cli() -> None:
    """Run a frozen backbone once over all augmented images, cache its features, and train heads on them.

    \b
      featcache init FOLDER      class folders, a CSV file or Pascal VOC
      featcache extract --model efficientnet-lite0
      featcache fit-head --epochs 5000
      featcache report

    Every command has --help, and --json for scripts.
    """


def main() -> None:
    """Run the command line. Every error ends as one message and an exit code: 1, 2 for usage, 130 interrupted."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal cannot show must not end a command
            stream.reconfigure(errors="backslashreplace")
    files.on_remark = lambda said: _echo(f"note: {said}")
    with noting_interrupts() as interrupts:
        try:
            ended = cli.main(prog_name="featcache", standalone_mode=False)
        except Exception as error:  # noqa: BLE001 - the last net: a person sees a message, never a traceback
            _exit(_say_error(error, bool(interrupts)))
        except KeyboardInterrupt as error:
            _exit(_say_error(error, interrupted=True))
    if isinstance(ended, int):  # what a command gave to click's Exit
        sys.exit(ended)


def _open_closed_streams() -> None:
    """Let what was closed by whoever started us lead nowhere: else the next file that is opened takes its number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


_LEFT_TO_THEMSELVES = ("featcache-compute", "featcache-call")
"""Threads that may not come back: of a network in the middle of a batch, of a server that does not answer."""


def _exit(code: int) -> NoReturn:
    """End; without waiting for threads that may not come back, which Python, or a library in it, would do."""
    if any(thread.name.startswith(_LEFT_TO_THEMSELVES) for thread in threading.enumerate()):
        with suppress(Exception):
            atexit._run_exitfuncs()  # what is kept on the disk for a while is removed
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _say_error(error: BaseException, interrupted: bool) -> int:
    """Print an error as one message on standard error. Returns the exit code."""
    if isinstance(error, click.exceptions.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # click takes every EOFError for the end of a person's input
    if isinstance(error, click.ClickException):
        error.show(_Printable())
        return error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (click.exceptions.Abort, KeyboardInterrupt)) or interrupted:
        _echo("interrupted: finished work is kept; run the same command again to continue")
        return 130
    if isinstance(error, OSError) and error.filename is None:
        _give_up_stdout()  # it may be what cannot be written: a closed pipe, a full disk
    if not isinstance(error, BrokenPipeError):
        _echo(f"featcache: {_message(error)}")
        for line in left_out_lines(error):
            _echo(line)
    return 1


class _Printable(io.StringIO):
    """Where click writes a usage error, which may quote what a file said: standard error, by the one printer."""

    def write(self, text: str) -> int:
        say(text.removesuffix("\n"), as_json=True)
        return len(text)


def _message(error: BaseException) -> str:
    if isinstance(error, FeatcacheError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory: use fewer rows, a smaller backbone or --pooling avg"
    if short := shortage(error):
        return f"{short}: free some and run the command again; finished work is kept"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return _defect(error)


def _defect(error: BaseException) -> str:
    """Keep the traceback of what should not have happened in a file, and say where."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="featcache-", suffix=".log", delete=False) as log:
            traceback.print_exception(error, file=log)
        kept = f"with the file {log.name}"
    except OSError:
        kept = "with the command"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what}. Finished work is kept. Please report it {kept}"


def _give_up_stdout() -> None:
    """Let what is still to be flushed at the end go nowhere, instead of failing once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _echo(message: str) -> None:
    with suppress(OSError):  # nobody listens: the exit code says it
        say(message, as_json=True)
