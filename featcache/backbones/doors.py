"""Opens a network of any kind by its name: of Keras, of PyTorch, or from an ONNX file."""

from __future__ import annotations

from featcache.backbones.cuts import CutLayer
from featcache.backbones.keras_hub_models import layers_of_kerashub, load_kerashub
from featcache.backbones.model_names import KERAS_HUB, LIBRARIES, kind_of
from featcache.backbones.network import Network, keras_layers_to_cut, load_network, no_keras
from featcache.backbones.onnx_network import OnnxNetwork, layers_of_onnx, load_onnx
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.torch_models import built_by
from featcache.backbones.torch_network import TorchNetwork, layers_of_torch, load_torch

AnyNetwork = Network | OnnxNetwork | TorchNetwork


def open_network(spec: NetworkSpec) -> AnyNetwork:
    """The network that `spec` asks for, whatever it is made with. Raises what its loader raises."""
    kind = kind_of(spec.model)
    if kind == "onnx":
        return load_onnx(spec)
    if kind in LIBRARIES:
        return load_torch(spec)
    if kind == KERAS_HUB:
        return load_kerashub(spec)
    if kind == "builder" and (built := built_by(spec.model)) is not None:
        return load_torch(spec, built)
    return load_network(spec)


def layers_to_cut(spec: NetworkSpec) -> list[CutLayer]:
    """Every layer of the network of `spec`, in its order; built without weights where it has a name."""
    kind = kind_of(spec.model)
    if kind == "onnx":
        return layers_of_onnx(spec)
    if kind in LIBRARIES:
        return layers_of_torch(spec)
    if kind == KERAS_HUB:
        return layers_of_kerashub(spec)
    if kind == "builder" and (built := built_by(spec.model)) is not None:
        return layers_of_torch(spec, built)
    return keras_layers_to_cut(spec)


def as_keras(network: AnyNetwork) -> Network:
    """The network itself. Raises BackboneError where it is not one of Keras."""
    if isinstance(network, Network):
        return network
    raise no_keras(network.cuts[0].space.backbone)
