"""A way to a server on which things go wrong: connections are cut, bytes changed or held back, or nothing comes."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

FAULTS = ("drop", "reset", "corrupt up", "corrupt down", "delay", "silence", "garbage")


class Proxy:
    """Passes connections on to a port, most of them with one fault that is drawn at random.

    faults : {kind: how often it happened}
    faulty : how likely a connection has one; 0 while nothing is to go wrong
    """

    def __init__(self, target: int, seed: int, reach_bytes: int, silence_s: float) -> None:
        self.faulty = 1.0
        self.faults: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._target, self._random = target, random.Random(seed)
        self._reach_bytes, self._silence_s = reach_bytes, silence_s
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Hear nobody any more."""
        self._listener.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                wrong = self._random.random() < self.faulty
                fault = self._random.choice(FAULTS) if wrong else ""
                place = self._random.randrange(self._reach_bytes)
                down = self._random.random() < 0.5
            threading.Thread(target=self._serve, args=(client, fault, place, down), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str, place: int, down: bool) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            down = {"corrupt up": False, "corrupt down": True, "garbage": True}.get(fault, down)
            ways = [(client, server, "" if down else fault), (server, client, fault if down else "")]
            threads = [threading.Thread(target=self._pass_on, args=(*way, place), daemon=True) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._open -= {client, server}

    def _pass_on(self, source: socket.socket, target: socket.socket, fault: str, place: int) -> None:
        """Pass bytes on; what goes wrong does so at the `place`th of them."""
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if fault and passed + len(data) > place:
                    self._note(fault)
                    data = self._broken(data, place - passed, fault, source, target)
                    fault = ""
                passed += len(data)
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _note(self, fault: str) -> None:
        with self._lock:
            self.faults[fault] += 1

    def _broken(self, data: bytes, place: int, fault: str, source: socket.socket, target: socket.socket) -> bytes:
        if fault in ("drop", "reset"):
            target.sendall(data[:place])
            if fault == "reset":
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raise OSError
        if fault.startswith("corrupt"):
            return data[:place] + bytes([data[place] ^ 1 << self._random.randrange(8)]) + data[place + 1 :]
        if fault == "garbage":
            return data[:place] + self._random.randbytes(len(data) - place)
        time.sleep(0.02 if fault == "delay" else self._silence_s)
        return data


@contextmanager
def proxy_to(port: int, seed: int = 0, reach_bytes: int = 20_000, silence_s: float = 2.0) -> Iterator[Proxy]:
    """A proxy in front of a port on loopback.

    reach_bytes : a connection's fault comes within so many bytes
    """
    proxy = Proxy(port, seed, reach_bytes, silence_s)
    try:
        yield proxy
    finally:
        proxy.close()
