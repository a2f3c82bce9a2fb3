"""Progress in a terminal (with rich) and in a notebook (as HTML)."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from typing import TYPE_CHECKING, Any

from featcache.core.interrupts import finishing_in_hand
from featcache.core.progress import Advance, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_REDRAW_S = 0.2
_COUNT_WIDTH, _TIME_WIDTH = 11, 7
_STEERING = re.compile(r"\n(?! {2})")


class Terminal:
    """Bars and notes on standard error; no bar where that is no terminal. See `Progress`."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    @contextmanager
    def begin(self, what: str, total: int) -> Iterator[Advance]:
        """A bar that goes when the work is done."""
        outer = self._bar, self._task
        with _bar() if self._bar is None else nullcontext(self._bar) as bar:
            if bar is None:
                yield lambda steps: None
                return
            task = bar.add_task(printable(what), total=total, note="")
            self._bar, self._task = bar, task
            try:
                yield lambda steps: bar.advance(task, steps)
            finally:
                bar.remove_task(task)
                self._bar, self._task = outer

    def note(self, message: str) -> None:
        """A line on standard error."""
        sys.stderr.write(f"{printable(message)}\n")

    def epochs(self, history: Sequence[Any]) -> None:
        """Put the latest epoch beside the bar."""
        if self._bar is not None:
            self._bar.update(self._task, note=in_words(history[-1]))

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """See `finishing_in_hand`."""
        return finishing_in_hand()


class Notebook:
    """Bars below the cell, which go when the work is done, and printed notes. See `Progress`."""

    def __init__(self) -> None:
        self._words = ""

    @contextmanager
    def begin(self, what: str, total: int) -> Iterator[Advance]:
        """A bar that is drawn again at most every fifth of a second; an exported notebook shows none."""
        from IPython.display import HTML, display

        done, drawn_s = 0, time.monotonic()
        handle = display(HTML(_html_bar(what, 0, total)), display_id=True)

        def advance(steps: int) -> None:
            nonlocal done, drawn_s
            done += steps
            if time.monotonic() - drawn_s > _REDRAW_S:
                drawn_s = time.monotonic()
                handle.update(HTML(_html_bar(f"{what} {self._words}", done, total)))

        try:
            yield advance
        finally:
            self._words = ""
            handle.update(HTML(""))

    def note(self, message: str) -> None:
        """Print it below the cell."""
        sys.stdout.write(f"{printable(message)}\n")

    def epochs(self, history: Sequence[Any]) -> None:
        """Put the latest epoch beside the bar."""
        self._words = in_words(history[-1])

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """See `finishing_in_hand`."""
        return finishing_in_hand()


def shown(progress: Progress | None) -> Progress:
    """`progress` itself, or what fits the place: a notebook's or a terminal's."""
    if progress is not None:
        return progress
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return Notebook() if shell is not None and hasattr(shell, "kernel") else Terminal()


def printable(text: str) -> str:
    """Text without what would steer the terminal (escapes, marks that turn its direction) or pass for another line.

    Lines that are indented belong to the message before them, and stay.
    """
    kept = _STEERING.sub("\ufffd", text)
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in kept)


def in_words(entry: Any) -> str:
    """loss 0.2101, accuracy 0.950; val 0.3400, 0.910; lr 0.001, 12 ms"""
    looked = entry.val_loss == entry.val_loss  # NaN where it was not
    val = f"; val {entry.val_loss:.4f}, {entry.val_accuracy:.3f}" if looked else ""
    return (
        f"loss {entry.loss:.4f}, accuracy {entry.accuracy:.3f}{val}; lr {entry.lr:.3g}, {1000 * entry.seconds:.0f} ms"
    )


def _html_bar(what: str, done: int, total: int) -> str:
    """A bar, or a count where the total is not known (0)."""
    bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
    return f"{bar}{done}{f' of {total}' if total else ''} <small>{escape(printable(what))}</small>"


@contextmanager
def _bar() -> Iterator[Bar | None]:
    """rich's progress bar, with room for a note, on standard error; None where that is no terminal.

    Where the terminal is narrow, name and note are cut; bar, count and time left stay.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = Console(stderr=True)
    cut: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    whole: dict[str, Any] = {"no_wrap": True, "overflow": "crop"}
    bar_width = min(40, max(10, console.width // 6))
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=2, **cut)),
        BarColumn(bar_width, table_column=Column(min_width=bar_width, **whole)),
        MofNCompleteColumn(table_column=Column(min_width=_COUNT_WIDTH, justify="right", **whole)),
        TimeRemainingColumn(table_column=Column(min_width=_TIME_WIDTH, **whole)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=3, **cut)),
    ]
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        yield progress
