"""The batches of a cache as a PyTorch data set. Imported where `Cache.to_torch` is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from featcache.store.batches import Batches


class TorchBatches(IterableDataset):  # type: ignore[misc]
    """Whole batches (X float32, y int64): use `DataLoader(dataset, batch_size=None)`.

    With num_workers > 0 each worker reads every num_workers-th buffer (and holds one), so each batch comes
    once, but the batches of different buffers alternate. Choose buffer_rows so that there are several a worker.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        # In shared memory: workers that live on from epoch to epoch see what set_epoch sets.
        self._epoch = torch.tensor(batches.epoch, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; without it every iteration has the same order."""
        self._epoch.fill_(self._batches.at(epoch).epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        worker = get_worker_info()
        mine = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for X, y in self._batches.at(int(self._epoch)).share(*mine):
            yield torch.from_numpy(X.astype(np.float32, copy=False)), torch.from_numpy(y)
