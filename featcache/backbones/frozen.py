"""A Keras model as a TensorFlow graph in which its weights are constants: what other libraries read and convert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from featcache.backbones.import_keras import import_keras

if TYPE_CHECKING:
    import keras

_LARGE_BYTES = 1 << 16
SIGNATURES = ("serve", "serving_default")
"""What Keras and what TensorFlow call the function of a SavedModel."""


@dataclass(frozen=True)
class FrozenGraph:
    """A graph for any number of rows.

    Attributes
    ----------
    definition : GraphDef of TensorFlow
    input : name of the tensor that the model takes
    outputs : names of the tensors that it gives, in the order of `model.outputs`
    """

    definition: Any
    input: str
    outputs: tuple[str, ...]


def frozen_graph(model: keras.Model, *, flat: bool = False) -> FrozenGraph:
    """The graph of a model of one input, at inference. Keras must be on TensorFlow.

    flat : put into the graph itself what layers compile as functions, as grouped convolutions are, which TensorFlow
        then cannot compute on a processor; for readers that know no functions
    """
    import tensorflow as tf

    trainable = [variable.numpy() for variable in model.trainable_variables]
    others = [variable.numpy() for variable in model.non_trainable_variables]

    def forward(x: Any) -> Any:
        values = import_keras().tree.flatten(model.stateless_call(trainable, others, x, training=False)[0])
        return [tf.identity(value) for value in values]  # nodes of their own, which converters find again

    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    with tf.device("/CPU:0"), _without_functions(flat):
        traced = tf.compat.v1.wrap_function(forward, [spec])
    return FrozenGraph(traced.graph.as_graph_def(), traced.inputs[0].name, tuple(one.name for one in traced.outputs))


def without_large(graph: FrozenGraph) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The definition of a graph in which large constants are inputs, and their values by the names of the tensors.

    What copies graphs, as TensorFlow and tf2onnx do again and again, copies no weights then.
    """
    import tensorflow as tf

    definition, held = type(graph.definition)(), {}
    definition.CopyFrom(graph.definition)
    for node in definition.node:
        if node.op != "Const" or (value := node.attr["value"].tensor).ByteSize() < _LARGE_BYTES:
            continue
        held[f"{node.name}:0"] = tf.make_ndarray(value)
        node.op = "Placeholder"
        node.attr["shape"].shape.CopyFrom(value.tensor_shape)
        del node.attr["value"]
    return definition, held


def save_frozen(graph: FrozenGraph, folder: Path, *, input_: Any, outputs: Sequence[str]) -> None:
    """Write a graph as a SavedModel.

    `keras.Model.export` comes to the same, but writes all weights twice and takes several times as long.

    input_ : the model's own, which has the name, shape and dtype
    outputs : names, in the order of the graph's
    """
    import tensorflow as tf

    definition, held = without_large(graph)
    module = tf.Module()
    module.held = {str(number): tf.Variable(value, trainable=False) for number, value in enumerate(held.values())}

    def serve(x: Any) -> dict[str, Any]:
        weights = (variable.read_value() for variable in module.held.values())
        given = {graph.input: x, **dict(zip(held, weights, strict=True))}
        values = tf.graph_util.import_graph_def(definition, given, return_elements=list(graph.outputs), name="")
        return dict(zip(outputs, values, strict=True))

    spec = tf.TensorSpec(input_.shape, input_.dtype, name=input_.name)
    module.serve = tf.function(serve, input_signature=[spec], autograph=False)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains it
    tf.saved_model.save(module, str(folder), dict.fromkeys(SIGNATURES, module.serve), options)


@contextmanager
def _without_functions(wanted: bool) -> Iterator[None]:
    """Functions of TensorFlow are traced in the block as plain Python."""
    import tensorflow as tf

    was = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(wanted or was)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(was)
