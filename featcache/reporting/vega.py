"""Vega-Lite: the scripts that draw charts in a page, and charts drawn here; loaded when a report is written.

vl-convert brings Vega, Vega-Lite and Vega-Embed inside, so that nothing is fetched.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

_WIDTH_PX, _SCALE = 720, 1.5
FONT = "system-ui, sans-serif"
_STILL_FONT = "sans-serif"


@functools.cache
def script() -> str:
    """JavaScript that defines `vegaEmbed`, as a module."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub is wrong


def svg(spec: Mapping[str, Any], theme: Mapping[str, Any]) -> str:
    """A chart as SVG, 720 px wide."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_still(spec, theme)))


def png(spec: Mapping[str, Any], theme: Mapping[str, Any]) -> bytes:
    """A chart as PNG."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(_still(spec, theme), scale=_SCALE))


def _still(spec: Mapping[str, Any], theme: Mapping[str, Any]) -> dict[str, Any]:
    """For a page of one width, and without pictures that wait for a pointer."""
    return {**spec, "width": _WIDTH_PX, "config": {**theme, "font": _STILL_FONT}}
