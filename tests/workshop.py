"""Processes without their start: workers forked from a warm process, which has imported what takes long.

A program of such work ends with `serve(WORK)`, and a `Workshop` is that program running. It never uses what it has
imported, so that no thread of a library is in the middle of anything when it forks, and a worker is there in a few
milliseconds. Each worker does one of the functions in WORK, and is a process as any other: with its own number,
folder, environment and output, for any signal.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from numba.core.registry import cpu_target
from PIL import Image

from featcache.core.errors import FeatcacheError

TOO_LONG_S = 60.0
"""Nothing here takes a tenth of that; a worker that does is stuck."""


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit status (a signal is negative), what it returned, what it printed."""

    code: int
    value: Any
    out: str
    err: str

    @property
    def returned(self) -> Any:
        """What it returned, if it did and was quiet."""
        assert (self.code, self.out, self.err) == (0, "", ""), self
        return self.value


class Worker:
    """One worker of a `Workshop`."""

    def __init__(self, shop: Workshop, pid: int, said: Path) -> None:
        self._shop, self.pid, self._said = shop, pid, said
        self._code: int | None = None

    def send(self, number: int) -> None:
        """Send it a signal. It is not waited for yet, so the number is its own even if it has ended."""
        os.kill(self.pid, number)

    def ended(self, within_s: float = 0.0) -> bool:
        """Whether it has ended, or does in that time."""
        end = time.monotonic() + within_s
        while self._code is None:
            left_s = end - time.monotonic()
            self._code = self._shop.ask({"wait": self.pid, "within_s": max(0.0, min(left_s, 0.02))})
            if left_s <= 0:
                break
        return self._code is not None

    def wait(self, within_s: float = TOO_LONG_S) -> Ended:
        """Its end. It is killed where it takes longer."""
        if not self.ended(within_s):
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self.ended(TOO_LONG_S)
            raise AssertionError(f"still at work after {within_s} s: {self.read('err')}")
        value = self.read("value")
        assert self._code is not None
        return Ended(self._code, json.loads(value) if value else None, self.read("out"), self.read("err"))

    def read(self, what: str) -> str:
        """What it has printed so far: its `out` or its `err`."""
        file = self._said.with_suffix(f".{what}")
        return file.read_text() if file.exists() else ""


class Workshop:
    """The warm process `python COMMAND`, with some more in its environment. Several threads may use it."""

    def __init__(self, command: Sequence[str | Path], folder: Path, more: Mapping[str, str] | None = None) -> None:
        self._folder, self._lock = folder, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **(more or {})},
        )

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, work: str, *arguments: Any, **options: Any) -> Worker:
        """Begin one of its WORK. Paths are given as they are."""
        said = self._folder / uuid.uuid4().hex
        question = json.loads(json.dumps({"arguments": arguments, "options": options}, default=str))
        pid = self.ask({"work": work, "said": str(said), **question})
        return Worker(self, pid, said)

    def run(self, work: str, *arguments: Any, **options: Any) -> Ended:
        """Do one of its WORK to the end. With `neat`, that is the end of a whole interpreter."""
        return self.start(work, *arguments, **options).wait()

    def close(self) -> None:
        self._process.communicate()


def serve(work: Mapping[str, Callable[..., Any]]) -> None:
    """Be the warm process, and in a worker do one of `work`."""
    _import_late()
    gc.freeze()
    task = _asked(work)
    if task:
        task()


def _import_late() -> None:
    """Import what libraries import at their first use, which each worker would do for itself."""
    for name in ("encodings.ascii", "pandas.io.formats.csvs", "pyarrow.pandas_compat", "tensorstore"):
        import_module(name)
    Image.init()
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def _asked(work: Mapping[str, Callable[..., Any]]) -> Callable[[], Any] | None:
    """Answer questions. Returns what a worker has to do, in the worker."""
    while question := sys.stdin.readline():
        asked = json.loads(question)
        if "wait" in asked:
            answer = _waited_for(asked["wait"], asked["within_s"])
        else:
            answer = os.fork()
            if not answer:
                return functools.partial(_work, work, **asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def _waited_for(pid: int, within_s: float) -> int | None:
    end = time.monotonic() + within_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def _work(
    functions: Mapping[str, Callable[..., Any]], work: str, said: str, arguments: Sequence[Any], options: dict[str, Any]
) -> None:
    """Do it, and end as Python does; all of that where `neat` is asked for, else see `_end`."""
    neat = options.pop("neat", False)
    for number, name in ((0, os.devnull), (1, f"{said}.out"), (2, f"{said}.err")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    answer = os.open(f"{said}.value", os.O_WRONLY | os.O_CREAT, 0o666)
    write, code = os.write, 0
    try:
        try:
            value = functions[work](*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except SystemExit as end:
        value, code = None, int(end.code or 0)
    except FeatcacheError as error:
        value, code = {"error": type(error).__name__, "message": str(error)}, 1
    write(answer, json.dumps(value).encode())
    sys.exit(code) if neat else _end(code)


def _end(code: int) -> None:
    """End as Python does, but for taking modules and C libraries apart, which takes longer than most work."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
