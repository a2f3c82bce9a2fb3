"""A Keras model as a TensorFlow graph in which its weights are constants: what other libraries convert."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class FrozenGraph:
    """A graph for any number of rows.

    Attributes
    ----------
    definition : GraphDef of TensorFlow, without functions
    input : name of the tensor that the model takes
    outputs : names of the tensors that it gives, in the order of `model.outputs`
    """

    definition: Any
    input: str
    outputs: tuple[str, ...]


def frozen_graph(model: keras.Model) -> FrozenGraph:
    """The graph of a model of one input, at inference. Keras must be on TensorFlow."""
    import tensorflow as tf

    trainable = [variable.numpy() for variable in model.trainable_variables]
    others = [variable.numpy() for variable in model.non_trainable_variables]

    def forward(x: Any) -> Any:
        return import_keras().tree.flatten(model.stateless_call(trainable, others, x, training=False)[0])

    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    with tf.device("/CPU:0"), _without_functions():
        traced = tf.compat.v1.wrap_function(forward, [spec])
    return FrozenGraph(traced.graph.as_graph_def(), traced.inputs[0].name, tuple(one.name for one in traced.outputs))


@contextmanager
def _without_functions() -> Iterator[None]:
    """What layers wrap in functions of their own, as grouped convolutions are, is traced as part of the graph."""
    import tensorflow as tf

    was = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(was)
