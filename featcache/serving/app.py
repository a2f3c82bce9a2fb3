"""The service: its routes, its limits, and what it counts."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from featcache.core.errors import DatasetError, FeatcacheError
from featcache.core.machine import usable_cores
from featcache.core.recipe import UM_PER_PX
from featcache.heads import Head, attribute
from featcache.images import Item, PixelSize, png_of, read_picture
from featcache.prediction import Predictor, said
from featcache.reporting import heatmap
from featcache.serving.batching import Batcher

_SECURITY = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_PAGE = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_UNREAD = {"connection": "close"}
"""Of an answer that comes before the image has: the rest is not waited for."""
_RETRY = {"retry-after": "1", **_UNREAD}
_PASSED_OVER = 16 << 20
"""Bytes of a file that is too large, read and forgotten: after more of them, the connection is closed."""
_BYTES_IN_HAND = 256 << 20
"""Of images that are being received, all clients together."""
_log = logging.getLogger("featcache.serving")


@dataclass(frozen=True)
class Limits:
    """max_bytes : of an image file; read_s : to send it; waiting : images in hand at once"""

    max_bytes: int
    read_s: float
    waiting: int


def app_of(
    predictor: Predictor,
    *,
    confidence: float | None,
    false_alarms: float,
    limits: Limits,
    hosts: Sequence[str] = ("*",),
) -> Starlette:
    """The service as an ASGI application.

    hosts : names that requests may call it by: a page elsewhere cannot reach a service on this machine by another name
    """
    service = _Service(predictor, limits, confidence=confidence, false_alarms=false_alarms)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/page.css", service.page),
            Route("/page.js", service.page),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health),
            Route("/metrics", service.metrics),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={HTTPException: _refused, Exception: _failed},
        lifespan=service.lifespan,
    )


class _Service:
    """What answers requests."""

    def __init__(self, predictor: Predictor, limits: Limits, *, confidence: float | None, false_alarms: float) -> None:
        self._predictor, self._limits = predictor, limits
        self._confidence, self._false_alarms = confidence, false_alarms
        self._in_hand = self._bytes = 0
        self._rendering = predictor.rendering()
        self._render_pool = ThreadPoolExecutor(usable_cores(), "featcache-render")
        self._batcher = Batcher(predictor.engine)
        self._counted = CollectorRegistry()
        self._answers = Counter("featcache_requests", "Requests for predictions", ["status"], registry=self._counted)
        self._seconds = Histogram("featcache_seconds", "Seconds of a prediction", registry=self._counted)
        Gauge("featcache_in_hand", "Images in hand", registry=self._counted).set_function(lambda: self._in_hand)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """While the service runs."""
        async with self._batcher:
            yield
        self._render_pool.shutdown(cancel_futures=True)

    async def page(self, request: Request) -> Response:
        """The page to drop images on, and its parts."""
        name = request.url.path.strip("/") or "page.html"
        text = resources.files("featcache.serving").joinpath(name).read_text("utf-8")
        return Response(text, media_type=_PAGE[name], headers=_SECURITY)

    async def health(self, _: Request) -> Response:
        """Whether it answers, and by what."""
        space = self._predictor.recipe.space
        value = {"status": "ok", "run": self._predictor.name, "classes": list(self._predictor.head.classes)}
        return JSONResponse({**value, "network": space.backbone, "runtime": self._predictor.engine.name})

    async def metrics(self, _: Request) -> Response:
        """What was counted, for Prometheus."""
        return Response(generate_latest(self._counted), media_type="text/plain; version=0.0.4")

    async def predict(self, request: Request) -> Response:
        """The class of an image, and what speaks for it: `?heatmap=1`."""
        started = time.perf_counter()
        status = 500
        try:
            answer = await self._answer(request)
            status = 200
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            self._answers.labels(str(status)).inc()
        self._seconds.observe(time.perf_counter() - started)
        return JSONResponse(answer, headers=_SECURITY)

    async def _answer(self, request: Request) -> dict[str, Any]:
        if self._in_hand >= self._limits.waiting:
            raise HTTPException(503, "too many images at once: send this one again in a second", _RETRY)
        self._in_hand += 1
        try:
            name, data = await self._file(request)
            loop = asyncio.get_running_loop()
            um_per_px = self._um_per_px(request.query_params.get("um_per_px", ""))
            picture = await loop.run_in_executor(self._render_pool, self._rendered, name, data, um_per_px)
            features = (await self._batcher.row(picture))[None]
            with_heatmap = request.query_params.get("heatmap", "") not in ("", "0")
            said_of = partial(self._said, name, picture, features=features, with_heatmap=with_heatmap)
            return await loop.run_in_executor(self._render_pool, said_of)
        finally:
            self._in_hand -= 1

    async def _file(self, request: Request) -> tuple[str, bytes]:
        """Name and bytes of the image that a request brings: as its body, or as a file of a form."""
        try:
            async with asyncio.timeout(self._limits.read_s):
                body = await self._body(request)
        except TimeoutError as error:
            words = f"the image was not sent within {self._limits.read_s:g} s"
            raise HTTPException(408, words, _UNREAD) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the connection ended before the image did") from error
        if not body:
            raise HTTPException(400, "the request holds no image: POST the bytes of one, or a form with one")
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return "image", body
        return await self._of_form(request, body)

    async def _body(self, request: Request) -> bytes:
        most = self._limits.max_bytes
        declared = request.headers.get("content-length", "")
        is_too_large = declared.isdigit() and int(declared) > most
        parts: list[bytes] = []
        size = held = 0
        try:
            async for part in request.stream():
                size += len(part)
                if is_too_large or size > most:
                    is_too_large = True
                    if size > most + _PASSED_OVER:
                        break
                    continue  # who is still sending does not read an answer
                held += len(part)
                self._bytes += len(part)
                if self._bytes > _BYTES_IN_HAND:
                    raise HTTPException(503, "too many images at once: send this one again in a second", _RETRY)
                parts.append(part)
        finally:
            self._bytes -= held
        if is_too_large:
            raise HTTPException(413, f"the file is too large: at most {most / 1e6:g} MB are read", _UNREAD)
        return b"".join(parts)

    async def _of_form(self, request: Request, body: bytes) -> tuple[str, bytes]:
        async def stream() -> AsyncGenerator[bytes]:
            yield body

        try:
            form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=8).parse()
        except (MultiPartException, KeyError) as error:
            raise HTTPException(400, f"the form cannot be read: {error}") from error
        try:
            for value in form.values():
                if not isinstance(value, str):
                    return value.filename or "image", await value.read()
        finally:
            await form.close()
        raise HTTPException(400, "the form has no file")

    def _um_per_px(self, said: str) -> float:
        """The side of a pixel that a request says; 0 where it says none."""
        try:
            value = float(said or 0)
        except ValueError:
            value = -1.0
        least, most = UM_PER_PX
        if said and not least <= value <= most:
            raise HTTPException(400, f"um_per_px={said:.40}: expected the side of a pixel, {least:g} to {most:g} µm")
        if said and not self._rendering.framing.um_per_px:
            raise HTTPException(400, "um_per_px: the run does not look at physical sizes; leave it out")
        return value

    def _rendered(self, name: str, data: bytes, um_per_px: float) -> NDArray[np.uint8]:
        """An image as the network takes it. um_per_px : side of a pixel, where the request says it; else 0"""
        framing = self._rendering.framing
        try:
            picture = read_picture(data, framing.white)
            size = PixelSize(um_per_px) if um_per_px else picture.size
            framing.scale(size)
        except DatasetError as error:
            raise HTTPException(400, str(error)) from error
        except MemoryError as error:
            raise HTTPException(503, "no memory for this image now", _RETRY) from error
        rendered = self._rendering(Item(name, pixels=picture.pixels, um_per_px=size.um))
        if rendered.problem:
            raise HTTPException(400, rendered.problem)
        return rendered.views[0]

    def _said(
        self, name: str, picture: NDArray[np.uint8], *, features: NDArray[Any], with_heatmap: bool
    ) -> dict[str, Any]:
        predictor = self._predictor
        rows = predictor.probabilities_and_distances(features)
        found = said(
            predictor.name,
            predictor.head,
            paths=(name,),
            rows=rows,
            doubt=predictor.doubt,
            confidence=self._confidence,
            false_alarms=self._false_alarms,
        )
        answer: dict[str, Any] = {"run": predictor.name, **found.to_dict()["rows"][0]}
        if with_heatmap:
            answer["heatmap"], answer["heatmap_exact"] = self._heatmap(picture, features)
        return answer

    def _heatmap(self, picture: NDArray[np.uint8], features: NDArray[Any]) -> tuple[str | None, bool]:
        """As a data URL; None for heads that have none."""
        head = self._predictor.head
        if not isinstance(head, Head) or len(head.row_shape) != 3:
            return None, False
        found = attribute(head, self._predictor.rounded(features), name=self._predictor.name)
        png = base64.b64encode(png_of(heatmap(picture, found.places[0]))).decode()
        return f"data:image/png;base64,{png}", not self._predictor.is_whole


async def _refused(_: Request, error: Exception) -> Response:
    """What was wrong with a request."""
    status, words = getattr(error, "status_code", 500), getattr(error, "detail", "")
    return JSONResponse({"error": words}, status, headers={**_SECURITY, **(getattr(error, "headers", None) or {})})


async def _failed(_: Request, error: Exception) -> Response:
    """What went wrong here, in words that show nothing of this machine; the log has all of it."""
    _log.error("a request failed", exc_info=error)
    words = "the service could not compute this image" if isinstance(error, FeatcacheError) else "the service failed"
    return JSONResponse({"error": words}, 500, headers=_SECURITY)
