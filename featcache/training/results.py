"""What every training leaves: its run, measured and described in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.errors import CacheError, DatasetError, HeadError, RunError
from featcache.core.machine import usable_cores
from featcache.datasets import SPLITS
from featcache.doubt import Doubt, Likeness, pooled, reliability
from featcache.measures import evaluate, judge
from featcache.segmentation import SegmenterFile
from featcache.store import Cache
from featcache.training import runs
from featcache.training.history import Epoch

_MOST_ROWS = 5000
"""Of training rows that tell like from unlike."""


@dataclass(frozen=True)
class Fitted:
    """What a training did: its run, whether that was there already, and after which epoch of which run it went on.

    cache : name of the cache that it was trained on
    expected : what it was expected to take, where that was asked for
    """

    run: runs.Run
    cache: str
    reused: bool
    resumed_at: int = 0
    resumed_from: str = ""
    expected: Any = None


def refuse_unfair_splits(cache: Cache) -> None:
    """Refuse splits that no honest training can use: one without rows of a class, or with rows of another's group."""
    again = "Change dataset.csv, or run `featcache.init(resplit=True)` and extract this cache again"
    if torn := cache.torn_groups():
        n_torn, group, splits = torn
        raise HeadError(
            f"{cache.name}: {n_torn} groups stand in several splits ({group!r:.80} in {' and '.join(splits)}): a "
            "group must stay on one side, or the test leaks into the training",
            again,
        )
    labels = set(cache.classes)
    for split in SPLITS:
        if missing := labels - cache.labels_of(split):
            raise HeadError(f"{cache.name}: the split {split!r} has no rows of {', '.join(sorted(missing))}", again)


@contextmanager
def explaining_damage(cache: Cache) -> Iterator[None]:
    """Say what to do about features that cannot be read."""
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. Remove {cache.folder} and run the extract command that made it again") from error


def there_already(folder: Path, cache: Cache) -> Fitted:
    """A finished run, as the outcome of a training that found it. Raises RunError where its files cannot be read."""
    run = runs.Run(folder)
    try:
        if not (set(SPLITS) <= set(run.metrics) and {"solver", "why", "classes"} <= set(run.config)):
            raise RunError(f"{run.folder}: config.json or metrics.json is not whole")
    except RunError as error:
        raise RunError(error, "Set `again=True` to train it again") from error
    return Fitted(run, cache.name, reused=True)


def described(cache: Cache, why: str) -> dict[str, Any]:
    """What config.json says of the training besides what decides it, for people and reports."""
    return {
        "backbone": cache.recipe.space.backbone,
        "cache_name": cache.name,
        "weights": cache.manifest.provenance.get("weights", ""),
        "recipe": cache.recipe.to_dict(),
        "classes": list(cache.classes),
        "why": why,
        "cores": usable_cores(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"label_separator": cache.label_separator} if cache.label_separator else {}),
        **({"relabelled_images": cache.relabelled_images} if cache.relabelled_images else {}),
    }


def measured(cache: Cache, probabilities: NDArray[np.floating[Any]]) -> dict[str, dict[str, Any]]:
    """The measures of each split; see `featcache.measures.evaluate`.

    probabilities : (rows of the cache, classes)
    """
    groups = cache.groups
    return {
        split: evaluate(judge(probabilities[numbers], cache.labels(split), groups=groups[numbers]), cache.classes)
        for split, numbers in ((split, cache.numbers(split)) for split in SPLITS)
    }


def write_results(
    folder: Path,
    cache: Cache,
    *,
    config: Mapping[str, Any],
    probabilities: NDArray[np.floating[Any]],
    splits: Mapping[str, Any],
    history: Sequence[Epoch],
    started: float,
    timing: Mapping[str, Any] = MappingProxyType({}),
    pooled_rows: Callable[[NDArray[np.intp]], NDArray[np.floating[Any]]],
    more_like: NDArray[Any] | None = None,
) -> None:
    """Write predictions.csv, doubt.npz, history.csv, config.json and, last, metrics.json.

    Where a row may have several labels, doubt.npz only says what training images are like, and there is no
    calibration: the rest of both is about one class a row.

    probabilities : (rows of the cache, classes)
    splits : what `measured` makes of them
    pooled_rows : gives features of rows, averaged over places: (n, c)
    more_like : features (n, ..., c) of images that are in no cache, which were trained on as well
    started : `time.perf_counter()` of then
    timing : what metrics.json says of the training besides its epochs and seconds
    """
    _keep_segmenter(cache, folder)
    runs.write_predictions(
        folder,
        cache.row_parts(),
        probabilities=probabilities,
        classes=cache.classes,
        label_separator=cache.label_separator,
    )
    doubt = _doubt(cache, probabilities, pooled_rows, more_like)
    doubt.save(folder)
    calibration = {}
    if not cache.label_separator:
        calibration = {"calibration": _calibration(cache, probabilities, doubt)}
    took = {
        "epochs": len(history),
        "seconds": round(time.perf_counter() - started, 3),
        "s_per_epoch": sum(entry.seconds for entry in history) / len(history),
    }
    runs.write_run(folder, dict(config), metrics={**took, **timing, **splits, **calibration}, history=history)


def _keep_segmenter(cache: Cache, folder: Path) -> None:
    """Copy the fitted segmenter that cut out the cells of a cache: what predicts new images needs it.

    A copy that is not the one of the recipe is worth nothing, and is left out.
    """
    with suppress(DatasetError):
        if known := SegmenterFile.kept(cache.manifest.provenance, cache.recipe.space.segmentation, where=cache.name):
            known.write(folder / runs.SEGMENTER_FILE)


def pooled_rows_of(cache: Cache) -> Callable[[NDArray[np.intp]], NDArray[np.floating[Any]]]:
    """What gives features of a cache, averaged over places, by the numbers of their rows; streamed."""

    def rows(numbers: NDArray[np.intp]) -> NDArray[np.floating[Any]]:
        return np.concatenate([pooled(block) for _, block in cache.features.blocks(numbers)])

    return rows


def _plain(cache: Cache, split: str) -> NDArray[np.intp]:
    """The numbers of the rows of a split that are no augmented views."""
    numbers = cache.numbers(split)
    return np.asarray(numbers[cache.view[numbers] == 0])


def _doubt(
    cache: Cache,
    probabilities: NDArray[np.floating[Any]],
    pooled_rows: Callable[[NDArray[np.intp]], NDArray[np.floating[Any]]],
    more_like: NDArray[Any] | None,
) -> Doubt:
    """What the plain validation rows say."""
    train, val = _plain(cache, "train"), _plain(cache, "val")
    like = pooled_rows(train[:: -(-len(train) // _MOST_ROWS)])
    likeness = Likeness.of(like if more_like is None else np.concatenate([like, pooled(more_like)]))
    return Doubt.of(
        probabilities[val],
        cache.labels()[val],
        groups=cache.groups[val],
        likeness=likeness,
        features=pooled_rows(val),
    )


def _calibration(cache: Cache, probabilities: NDArray[np.floating[Any]], doubt: Doubt) -> dict[str, Any]:
    """How sure the run is and how often it is right, of plain rows, before its temperature is used and after."""
    found: dict[str, Any] = {"temperature": doubt.temperature}
    for split in ("val", "test"):
        numbers = _plain(cache, split)
        p, y = probabilities[numbers].astype(np.float64), cache.labels()[numbers]
        p /= p.sum(axis=1, keepdims=True)
        found[split] = {"before": reliability(p, y), "after": reliability(doubt.calibrated(p), y)}
    return found
