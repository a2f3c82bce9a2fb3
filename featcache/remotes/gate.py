"""A way out of this process that leads to one server and to no other: what is secret follows no redirect.

The library that speaks to buckets follows redirects, and takes a session token along to whatever host a server names.
As its proxy, on the loopback, this lets it reach the server that it was meant for, and refuses every other one.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit

_HEAD_BYTES = 64 << 10
_CONNECT_S, _SILENT_S = 10.0, 120.0
_BLOCK_BYTES = 256 << 10
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


def way_to(endpoint: str) -> str:
    """The address of a proxy that leads to this server alone; one for each server and process."""
    return _gate(endpoint, os.getpid()).url


@cache
def _gate(endpoint: str, _: int) -> Gate:
    return Gate(endpoint)


class Gate:
    """Lets through what goes to `endpoint`, a URL; where there is none, to Amazon."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._host = (parts.hostname or "").lower()
        self._port = parts.port or (80 if parts.scheme == "http" else 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, name="featcache-gate", daemon=True).start()

    def allows(self, host: str, port: int) -> bool:
        """Whether a server is the one that is meant."""
        host = host.lower().rstrip(".")
        if not self._host:
            return host.endswith(_AMAZON) and port == 443
        return port == self._port and (host == self._host or host.endswith(f".{self._host}"))

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="featcache-gate", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            client.settimeout(_SILENT_S)
            head, rest = _head_of(client)
            method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            host, port = parts.hostname or "", parts.port or 80
            if not self.allows(host, port):
                client.sendall(b"HTTP/1.1 403 Redirect refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            try:
                server = socket.create_connection((host, port), _CONNECT_S)
            except OSError as error:
                said = f"{error.strerror or error} by {host}:{port}".encode()
                client.sendall(b"HTTP/1.1 400 No way\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
                return
            with server:
                server.settimeout(_SILENT_S)
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(_for_one_answer(head, target, parts.netloc))
                server.sendall(rest)
                threading.Thread(target=_pump, args=(client, server), name="featcache-gate", daemon=True).start()
                _pump(server, client)


def _head_of(client: socket.socket) -> tuple[bytes, bytes]:
    """What a request begins with, to its empty line, and what has come behind it."""
    came = b""
    while b"\r\n\r\n" not in came:
        block = client.recv(_HEAD_BYTES)
        came += block
        if not block or len(came) > _HEAD_BYTES:
            raise ValueError("no request")
    head, _, rest = came.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _for_one_answer(head: bytes, target: str, netloc: str) -> bytes:
    """A request as it goes to the server itself; the connection ends with its answer, so that each is looked at."""
    path = target.partition(netloc)[2] or "/"
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    kept = [line for line in lines if line.split(b":")[0].strip().lower() not in (b"connection", b"proxy-connection")]
    first = first.replace(target.encode("latin-1"), path.encode("latin-1"), 1)
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(_BLOCK_BYTES):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
