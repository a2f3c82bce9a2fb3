"""What an error left out before it, shown under it: it often is the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.cli.hints import in_flags
from featcache.cli.output import print_json
from featcache.core.errors import DatasetError

_SHOWN = 5


@contextmanager
def listing_left_out(as_json: bool) -> Iterator[None]:
    """With --json, print an error about images as an object: {error, left_out}. It is raised all the same."""
    try:
        yield
    except DatasetError as error:
        if as_json:
            left_out = [{"path": path, "reason": reason} for path, reason in error.left_out]
            print_json({"error": in_flags(str(error)), "left_out": left_out})
        raise


def left_out_lines(error: BaseException) -> list[str]:
    """The first of what was left out before an error, a line each."""
    left_out = error.left_out if isinstance(error, DatasetError) else ()
    lines = [f"  {path}: {reason}" for path, reason in left_out[:_SHOWN]]
    if len(left_out) > _SHOWN:
        lines.append(f"  ... and {len(left_out) - _SHOWN} more (all of them with --json)")
    return [f"left out: {len(left_out)}", *lines] if left_out else []
