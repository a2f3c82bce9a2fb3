"""A training before it begins, in words; and as it goes: a bar with the latest epoch's loss, accuracy and rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featcache.cli.output import bar, duration, printable, size

if TYPE_CHECKING:
    from featcache.core.progress import Advance
    from featcache.heads import Expected
    from featcache.training import Epoch


class Live:
    """Shows how far a training is. `track` is what pipelines take to show it, `tell` is to be told of each epoch."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    @contextmanager
    def track(self, description: str, total: int) -> Iterator[Advance]:
        """A bar on standard error that goes when it is done; nothing where that is no terminal."""
        with bar() as progress:
            if progress is None:
                yield lambda steps: None
                return
            self._progress, self._task = progress, progress.add_task(printable(description), total=total, note="")
            yield lambda steps: progress.advance(self._task, steps)
        self._progress = None

    def tell(self, history: Sequence[Epoch]) -> None:
        """Put the latest epoch beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, note=sentence(history[-1]))


def sentence(entry: Epoch) -> str:
    """loss 0.2101, accuracy 0.950; val 0.3400, 0.910; lr 0.001, 12 ms"""
    looked = entry.val_loss == entry.val_loss  # NaN where it was not
    val = f"; val {entry.val_loss:.4f}, {entry.val_accuracy:.3f}" if looked else ""
    return (
        f"loss {entry.loss:.4f}, accuracy {entry.accuracy:.3f}{val}; lr {entry.lr:.3g}, {1000 * entry.seconds:.0f} ms"
    )


def in_words(expected: Expected) -> str:
    """Gram space: asked for; Gram matrix 77.0 MB (kept beside the cache), memory about 0.9 GB of 20.0 GB free, ..."""
    names = {"gram": "Gram space", "primal": "primal"}
    parts = [f"memory about {size(expected.memory_bytes)} of {size(expected.free_bytes)} free"]
    if expected.gram_bytes:
        where = "kept beside the cache" if expected.gram_kept else "to be computed, and kept beside the cache"
        used = "" if expected.gram_in_memory else ", used from the disk"
        parts.insert(0, f"Gram matrix {size(expected.gram_bytes)} ({where}{used})")
    parts.append(
        f"about {duration(expected.before_s)} besides {duration(expected.epochs_s)} for {expected.epochs} epochs"
    )
    return f"{names[expected.solver]}: {expected.why}; {', '.join(parts)}"
