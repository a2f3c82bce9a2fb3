"""Real servers on loopback that remotes are tested against: SeaweedFS for S3, nginx for HTTP, OpenSSH for SFTP.

Each is a context manager with authentication on, ports that were free a moment ago, and files in a folder of its own.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

WEED = Path(sys.executable).with_name("weed")
NGINX, SSHD = shutil.which("nginx", path="/usr/sbin:/usr/bin"), shutil.which("sshd", path="/usr/sbin:/usr/bin")
_WAIT_S = 30.0
LOGIN, PASSWORD = "reader", "pass word"


@dataclass(frozen=True)
class S3:
    """A running S3 server. environment : of whoever may do everything, may write, or may read only"""

    port: int
    keys: tuple[str, ...] = ("admin", "writer", "reader")

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str, endpoint: str = "") -> str:
        """A remote in its bucket."""
        return f"s3://lab/{prefix}?endpoint={endpoint or self.endpoint}"

    def environment(self, who: str = "writer") -> dict[str, str]:
        """The credentials of one of its users."""
        return {"AWS_ACCESS_KEY_ID": who, "AWS_SECRET_ACCESS_KEY": f"{who}-secret", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """SeaweedFS with the bucket `lab`."""
    folder.mkdir(parents=True)
    actions = {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"],
        "writer": ["Read:lab", "Write:lab", "List:lab"],
        "reader": ["Read:lab", "List:lab"],
    }
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}], "actions": what}
        for name, what in actions.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "filer.port", "filer.port.grpc")
    names += ("volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    quiet = ("s3.iam=false", "s3.port.iceberg=0", "s3.port.lance=0", "master.telemetry=false", "admin.ui=false")
    options = [
        *quiet,
        "webdav=false",
        "dir=data",
        "ip=127.0.0.1",
        "ip.bind=127.0.0.1",
        "s3.config=s3.json",
        "bucket=lab",
        "s3.config=s3.json",
    ]
    options += [f"{name}={port}" for name, port in ports.items()]
    with _running([str(WEED), f"-logdir={folder}", "mini", *(f"-{option}" for option in options)], folder):
        server = S3(ports["s3.port"])
        _wait_for(lambda: _has_bucket(server))
        yield server


def _has_bucket(server: S3) -> bool:
    """The bucket is made a moment after the server answers."""
    key = {"access_key_id": "writer", "secret_access_key": "writer-secret"}
    quick = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    store = S3Store(
        "lab", endpoint=server.endpoint, region="x", client_options={"allow_http": True}, retry_config=quick, **key
    )
    try:
        obstore.put(store, "ready", b"1")
        return len(obstore.get(store, "ready").bytes()) == 1
    except (BaseError, FileNotFoundError):
        return False


@contextmanager
def web_server(folder: Path, root: Path, ranges: bool = True, certificate: bool = False) -> Iterator[str]:
    """nginx that shows `root` to whoever has the password. Yields its URL.

    certificate : by TLS, with a certificate that nobody knows, in the file `certificate`
    """
    folder.mkdir(parents=True)
    hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, text=True, check=True).stdout
    (folder / "users").write_text(f"{LOGIN}:{hashed}")
    (port,) = free_ports(1)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    secure = ""
    if certificate:
        names = ("-subj", "/CN=lab", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "9")
        files = ("-keyout", str(folder / "key"), "-out", str(folder / "certificate"))
        subprocess.run(
            ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", *names, *files],
            capture_output=True,
            check=True,
        )
        secure = f"ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;"
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1; user {getpass.getuser()};
        events {{ worker_connections 256; }}
        http {{
            access_log off; {temporary}
            server {{
                listen 127.0.0.1:{port} {"ssl" if certificate else ""}; {secure}
                root {root}; {"" if ranges else "max_ranges 0;"}
                auth_basic "caches"; auth_basic_user_file {folder}/users;
            }}
        }}
        """
    )
    url = f"http{'s' if certificate else ''}://127.0.0.1:{port}"
    with _running([str(NGINX), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")], folder):
        _wait_for(lambda: _connects(port))
        yield url


def netrc_in(home: Path) -> Path:
    """A ~/.netrc with the password of `web_server`."""
    file = home / ".netrc"
    file.write_text(f'machine 127.0.0.1 login {LOGIN} password "{PASSWORD}"\n')
    file.chmod(0o600)
    return file


@contextmanager
def ssh_server(folder: Path, home: Path) -> Iterator[str]:
    """sshd that knows the key in `home`/.ssh, whose known_hosts knows it. Yields sftp://user@host:port."""
    folder.mkdir(parents=True)
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    user_key, host_key = home / ".ssh/id_ed25519", folder / "host_key"
    for key in (user_key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (folder / "authorized").write_text(user_key.with_suffix(".pub").read_text())
    (port,) = free_ports(1)
    kind, public, *_ = host_key.with_suffix(".pub").read_text().split()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile {folder}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nUsePAM no\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with _running([str(SSHD), "-D", "-e", "-f", str(folder / "config")], folder):
        _wait_for(lambda: _connects(port))
        yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}"


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
        assert process.poll() is None, (folder / "log").read_text(errors="replace")[-2000:]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _connects(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def _wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert time.monotonic() < until, "the server does not answer"
        time.sleep(0.05)
