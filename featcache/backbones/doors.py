"""Opens a network of any kind by its name: of Keras, or from an ONNX file."""

from __future__ import annotations

from featcache.backbones.cuts import CutLayer
from featcache.backbones.model_names import kind_of
from featcache.backbones.network import Network, keras_layers_to_cut, load_network, no_keras
from featcache.backbones.onnx_network import OnnxNetwork, layers_of_onnx, load_onnx
from featcache.backbones.spec import NetworkSpec

AnyNetwork = Network | OnnxNetwork


def open_network(spec: NetworkSpec) -> AnyNetwork:
    """The network that `spec` asks for, whatever it is made with. Raises what its loader raises."""
    return load_onnx(spec) if kind_of(spec.model) == "onnx" else load_network(spec)


def layers_to_cut(spec: NetworkSpec) -> list[CutLayer]:
    """Every layer of the network of `spec`, in its order; built without weights where it is one of the registry."""
    return layers_of_onnx(spec) if kind_of(spec.model) == "onnx" else keras_layers_to_cut(spec)


def as_keras(network: AnyNetwork) -> Network:
    """The network itself. Raises BackboneError where it is not one of Keras."""
    if isinstance(network, Network):
        return network
    raise no_keras(network.cuts[0].space.backbone)
