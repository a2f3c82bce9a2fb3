"""Grouped convolutions that can be trained on every backend.

TensorFlow has no gradient of a grouped convolution on a processor. Keras compiles it with XLA instead, which takes half
a minute for one layer's batch of 16 where slices take a third of a second (56x56, 128 channels in 32 groups, two
cores). So on TensorFlow every group is a convolution of its own slice, of the same kernel: the same sums. The
other forms were measured too: one full convolution with zeros between groups takes 1.5 to 9 times as long as slices, a
depthwise one summed over the group as long or twice as long, and needs up to 32 times the memory.
"""

from __future__ import annotations

import functools
from typing import Any

from featcache.backbones.import_keras import import_keras


@functools.cache
def grouped_conv_class() -> Any:
    """A Conv2D of several groups: `keras.layers.Conv2D`, but for how TensorFlow computes it.

    It goes by the name of Keras' own class, so a saved network consists of Keras' layers alone: whoever loads it needs
    nothing of featcache, and gets the same outputs.
    """
    keras = import_keras()

    class Conv2D(keras.layers.Conv2D):  # type: ignore[misc, name-defined]
        __module__ = "keras.layers"

        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            if keras.backend.backend() != "tensorflow":
                return super().convolution_op(inputs, kernel)
            axis = 1 if self.data_format == "channels_first" else -1
            slices = keras.ops.split(inputs, self.groups, axis)
            kernels = keras.ops.split(kernel, self.groups, -1)
            outputs = [super(Conv2D, self).convolution_op(*pair) for pair in zip(slices, kernels, strict=True)]
            return keras.ops.concatenate(outputs, axis)

    return Conv2D
