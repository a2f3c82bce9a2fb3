"""serve: answer requests for predictions over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from featcache.core.errors import UsageError
from featcache.core.extras import require_extra
from featcache.core.progress import Progress
from featcache.core.project import Project
from featcache.core.shown import shown
from featcache.prediction import Predictor, check_doubt, open_trained
from featcache.training import Run

_KEEP_ALIVE_S, _END_S, _MOST_CONNECTIONS = 5, 10, 256
_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    run: Run | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    confidence: float | None = None,
    false_alarms: float = 0.05,
    max_mb: float = 20.0,
    read_s: float = 20.0,
    waiting: int = 64,
    weights: str | None = None,
    project: Project | None = None,
    ready: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Answer requests until the process is told to end: POST an image to /predict, or open / in a browser.

    Parameters
    ----------
    run : file of a bundle, which needs no project; or a run, as of `predict`
    host, port : where to listen; by default this machine alone is answered. Port 0 is a free one
    confidence, false_alarms : as of `predict`
    max_mb : largest image file, MB; a larger one is answered with 413
    read_s : seconds that a client has to send its image; a slower one is answered with 408
    waiting : images that are read or computed at once; beyond that, requests are answered with 503
    weights, project : as of `predict`
    ready : called with its address once it listens, such as "http://127.0.0.1:8000"
    progress : told the same

    Raises
    ------
    MissingPackageError : the extra `serve` is not installed
    UsageError : the port is taken, or a number makes no sense
    RunError, WeightsError : as of `predict`
    """
    progress = shown(progress)
    require_extra("serve", "a service")
    import uvicorn

    from featcache.serving.app import Limits, app_of

    if not (max_mb > 0 and read_s > 0 and waiting >= 1):
        raise UsageError(f"`max_mb={max_mb}`, `read_s={read_s}`, `waiting={waiting}`: expected numbers above 0")
    trained = open_trained(run, project)
    check_doubt(trained, confidence=confidence, false_alarms=false_alarms)
    predictor = Predictor.of(trained, weights=weights, progress=progress)
    predictor.refuse_given("an image that is sent")
    listening = _listening(host, port)
    hosts = ("*",) if host not in _LOCAL else _LOCAL
    app = app_of(
        predictor,
        confidence=confidence,
        false_alarms=false_alarms,
        limits=Limits(max_bytes=int(max_mb * 1e6), read_s=read_s, waiting=waiting),
        hosts=hosts,
    )
    with listening:
        shown_host = f"[{host}]" if ":" in host else host
        address = f"http://{shown_host}:{listening.getsockname()[1]}"
        progress.note(f"serving {predictor.name} at {address} (Ctrl-C ends it)")
        if ready:
            ready(address)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_END_S,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{host}:{port}: cannot listen there: {reason}", "Choose another `port`") from error
    return made
