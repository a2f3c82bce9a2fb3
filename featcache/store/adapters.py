"""The batches of a cache as other libraries take them. Each library is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.core.extras import require_extra
from featcache.store.batches import Batches

if TYPE_CHECKING:
    from featcache.store.torch_adapter import TorchBatches


def to_tf(batches: Batches, n_classes: int, *, one_hot: bool) -> Any:
    """A `tf.data.Dataset` of `batches`; each iteration is the next epoch, the first one that of `batches`."""
    require_extra("tensorflow", "to_tf")
    import tensorflow as tf

    epochs = count(batches.epoch)
    identity, several_labels = np.eye(n_classes, dtype=np.float32), batches.labels.ndim == 2

    def hot(y: NDArray[np.int64]) -> NDArray[np.float32]:
        return y.astype(np.float32) if several_labels else identity[y]

    def epoch() -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        for X, y in batches.at(next(epochs)):
            yield X.astype(np.float32, copy=False), hot(y) if one_hot else y

    even = batches.drop_last or len(batches.rows) % batches.batch_size == 0
    size = batches.batch_size if even else None
    inputs = tf.TensorSpec((size, *batches.features.shape[1:]), tf.float32)
    shape = (size, n_classes) if one_hot or several_labels else (size,)
    labels = tf.TensorSpec(shape, tf.float32 if one_hot else tf.int64)
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=(inputs, labels))
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches))).prefetch(1)


def to_torch(batches: Batches) -> TorchBatches:
    """A `torch.utils.data.IterableDataset` of `batches`. See `featcache.store.torch_adapter.TorchBatches`."""
    require_extra("torch", "to_torch")
    from featcache.store.torch_adapter import TorchBatches

    return TorchBatches(batches)
