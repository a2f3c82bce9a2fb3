"""Who may be reached: only hosts that the user named, and nobody at all while `offline` holds.

Offline is kept by a guard, not by each caller's good will: an audit hook of Python (PEP 578) sees the look-ups and
connections of every library that uses Python's sockets. Libraries with sockets of their own ask `refuse_offline`.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from featcache.core.errors import OfflineError

_TELEMETRY = ("openvino_telemetry",)
"""Packages that exist to report to their makers. Those that bring them along do as well without."""

_LOOK_UPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_CONNECTIONS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


class _Guard:
    """Counts who wants to be offline; its hook is set once, for hooks cannot be taken away."""

    def __init__(self) -> None:
        self.holders = 0
        self._is_set = False

    def set(self) -> None:
        if not self._is_set:
            sys.addaudithook(self._hook)
            self._is_set = True

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.holders:
            return
        if event in _LOOK_UPS and not _is_here(args[0]):
            raise _refusal(_text(args[0]))
        if event in _CONNECTIONS and isinstance(args[1], tuple) and not _is_here(args[1][0]):
            raise _refusal(f"{_text(args[1][0])}:{args[1][1]}")


_guard = _Guard()


@contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Nothing in this process reaches another machine in the block. Raises OfflineError, in whoever tries."""
    if not wanted:
        yield
        return
    _guard.set()
    _guard.holders += 1
    try:
        yield
    finally:
        _guard.holders -= 1


def is_offline() -> bool:
    """Whether `offline` holds: for libraries that can be told, and would try again and again."""
    return _guard.holders > 0


def refuse_offline(host: str) -> None:
    """Raise OfflineError while `offline` holds: for what connects past Python's sockets."""
    if _guard.holders:
        raise _refusal(host)


def without_telemetry() -> None:
    """Have Python find none of the packages that call home, from now on in this process."""
    for name in _TELEMETRY:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # importing it raises ImportError then


def _refusal(where: str) -> OfflineError:
    return OfflineError(f"{where} was about to be reached, and `offline` allows no network", "Leave out `offline`")


def _text(host: Any) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)


def _is_here(host: Any) -> bool:
    """Whether a host is this machine: nothing leaves it then."""
    name = _text(host[0] if isinstance(host, tuple) else host)
    if name in ("", "None", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False
