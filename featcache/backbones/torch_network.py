"""A network of PyTorch, cut at the outputs of its modules, and the same network as ONNX."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.cuts import CutLayer, check_pooling, check_precision
from featcache.backbones.network import Cut
from featcache.backbones.onnx_file import Input
from featcache.backbones.onnx_network import OnnxNetwork
from featcache.backbones.own_models import one_line
from featcache.backbones.preprocess import preprocess
from featcache.backbones.shaping import Shaping, shaping_of
from featcache.backbones.spec import NetworkSpec
from featcache.backbones.torch_models import FEATURES, Made, made_of
from featcache.backbones.torch_weights import state_digest
from featcache.core.errors import BackboneError, nearest
from featcache.core.recipe import FeatureSpace

_INPUT = "image"
_OPSET = 17
_CLASSIFIERS = frozenset({"classifier", "fc", "head", "heads"})
"""What the libraries call the modules behind the features."""


@dataclass(frozen=True)
class TorchNetwork:
    """A network of PyTorch.

    Attributes
    ----------
    cuts : one for each layer
    made : the module
    shapings : from the raw output of each layer to features
    """

    cuts: tuple[Cut, ...]
    made: Made
    shapings: tuple[Shaping, ...]

    @cached_property
    def module(self) -> Any:
        """torch.nn.Module from (n, 3, s, s) to a tuple of the raw outputs of the layers."""
        return _tapped(self.made, [cut.space.layer for cut in self.cuts])

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the module takes for pixels (n, s, s, 3), uint8."""
        x = preprocess(pixels, self.cuts[0].space.preprocessing)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    @cached_property
    def as_onnx(self) -> OnnxNetwork:
        """The same network as ONNX, for one row at a time. Raises BackboneError where it cannot be exported."""
        torch = importlib.import_module("torch")
        side = self.made.side_px
        file = io.BytesIO()
        names = [f"layer{number}" for number in range(len(self.cuts))]
        try:
            with _plainly(torch):
                torch.onnx.export(
                    self.module,
                    (torch.zeros(1, 3, side, side),),
                    file,
                    input_names=[_INPUT],
                    output_names=names,
                    opset_version=_OPSET,
                    dynamo=False,
                )
        except Exception as error:  # the exporter has errors of its own
            raise BackboneError(f"{self.made.name}: PyTorch cannot export it to ONNX ({one_line(error)})") from error
        given = Input(_INPUT, True, side, 1, np.dtype(np.float32))
        return OnnxNetwork(self.cuts, file.getvalue(), given, self.shapings, 1, False)


@contextmanager
def _plainly(torch: Any) -> Iterator[None]:
    """Attention is computed by operators that ONNX has, and nothing is printed."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logs, torch._C._jit_onnx_log = torch._C._jit_onnx_log, lambda *_: None  # prints a whole graph, past sys.stdout
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
        torch._C._jit_onnx_log = logs


def load_torch(spec: NetworkSpec, built: Any = None) -> TorchNetwork:
    """The network that `spec` asks for, of PyTorch.

    built : what the function of `spec` made, where it is one

    Raises
    ------
    MissingPackageError : PyTorch, or the library that has the network, is not installed.
    BackboneError : there is no such network or layer, or a wrong size, pooling or tokens.
    WeightsError : see `made_of`.
    """
    check_pooling(spec.pooling)
    precision = check_precision(spec.precision)
    made = made_of(spec, built)
    outputs = _outputs(made)
    layers = tuple(spec.layers) or (_default(made, outputs),)
    _check(layers, outputs, spec.model)
    grid = _grid(made)
    shapings = tuple(
        shaping_of(
            outputs[layer],
            pooling=spec.pooling,
            tokens=spec.tokens,
            grid=grid,
            prefix=made.prefix if _is_of_tokens(outputs[layer], made.prefix, grid) else None,
            label=f"{spec.model}: layer {layer}",
        )
        for layer in layers
    )
    space = FeatureSpace(
        backbone=made.name,
        layer="",
        input_size_px=made.side_px,
        preprocessing=made.mode,
        pooling="none",
        weights_digest=state_digest(made.module),
        precision=precision,
    )
    cuts = tuple(
        Cut(
            replace(space, layer=layer, pooling=one.pooling, tokens=one.tokens),
            made.weights,
            one.feature_shape,
            made.transform,
        )
        for layer, one in zip(layers, shapings, strict=True)
    )
    return TorchNetwork(cuts, made, shapings)


def layers_of_torch(spec: NetworkSpec, built: Any = None) -> list[CutLayer]:
    """Every module whose output features can be taken from, in the order in which they are called."""
    weights = spec.weights if built is not None else "random"
    return [
        CutLayer(name, shape, name) for name, shape in _outputs(made_of(replace(spec, weights=weights), built)).items()
    ]


def _check(layers: Sequence[str], outputs: dict[str, tuple[int, ...]], label: str) -> None:
    for name in layers:
        if name not in outputs:
            close = nearest(name, outputs)
            near = close if close.startswith("did") else "'featcache models NAME --layers' lists them"
            raise BackboneError(f"{label}: there is no layer {name!r} with one output a row: {near}")
    if twice := [name for name in layers if list(layers).count(name) > 1]:
        raise BackboneError(f"{label}: layer {twice[0]} is named twice: name each layer once")


def _is_of_tokens(shape: tuple[int, ...], prefix: Any, grid: int | None) -> bool:
    """Whether a layer's output is all tokens with what stands before them, and not a part of them."""
    return prefix is not None and len(shape) == 2 and (grid is None or shape[0] == prefix.n + grid * grid)


# --- modules --------------------------------------------------------------------------------------


def _tapped(made: Made, layers: Sequence[str]) -> Any:
    """A module that gives the outputs of some layers of another one."""
    torch = importlib.import_module("torch")

    class Tapped(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = made.module

        def forward(self, x: Any) -> Any:
            seen: dict[str, Any] = {}
            hooks = [
                module.register_forward_hook(_keeping(seen, name))
                for name, module in made.module.named_modules()
                if name in layers
            ]
            try:
                last = (made.features or made.module)(x)
            finally:
                for hook in hooks:
                    hook.remove()
            return tuple(last if name == FEATURES and name not in seen else seen[name] for name in layers)

    return Tapped().eval()


def _keeping(seen: dict[str, Any], name: str) -> Any:
    def keep(_: Any, __: Any, output: Any) -> None:
        seen[name] = output.clone()  # what follows may change it in place

    return keep


def _outputs(made: Made) -> dict[str, tuple[int, ...]]:
    """The shape of one row of the output of every module that is called once and gives one tensor of rows."""
    torch = importlib.import_module("torch")
    calls: dict[str, int] = {}
    found: dict[str, Any] = {}

    def note(name: str) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found[name] = output

        return keep

    hooks = [module.register_forward_hook(note(name)) for name, module in made.module.named_modules() if name]
    x = torch.zeros(2, 3, made.side_px, made.side_px)  # two rows, to tell rows from windows of one
    try:
        with torch.inference_mode():
            last = (made.features or made.module)(x)
    except Exception as error:  # a module may raise anything
        raise BackboneError(
            f"{made.name}: it cannot be computed for images of {made.side_px} px ({one_line(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    shapes = {
        name: tuple(output.shape[1:])
        for name, output in found.items()
        if calls[name] == 1 and 2 <= output.ndim <= 4 and output.shape[0] == 2
    }
    if made.features is not None and isinstance(last, torch.Tensor):
        shapes[FEATURES] = tuple(last.shape[1:])
    return shapes


def _default(made: Made, outputs: dict[str, tuple[int, ...]]) -> str:
    """The library's own features, else the output of the last module that gives a map or tokens.

    Of modules around each other that end with the same output, the outermost: it is called last. What a classifier
    gives is none, though that of SqueezeNet begins with a map of classes.
    """
    if FEATURES in outputs and made.features is not None:
        return FEATURES
    grid = _grid(made)
    for name in reversed([name for name in outputs if name.partition(".")[0] not in _CLASSIFIERS]):
        shape = outputs[name]
        is_map = len(shape) == 3 and (shape[1] == shape[2] > 1 or shape[0] == shape[1] > 1)
        if is_map or (len(shape) == 2 and grid is not None and 0 <= shape[0] - grid * grid <= 16):
            return name
    raise BackboneError(
        f"{made.name}: no module gives a feature map (h, w, c) or tokens (t, c)",
        "Name a layer with `layers=[NAME]`; `featcache.models(NAME, layers=True)` lists them",
    )


def _grid(made: Made) -> int | None:
    """Patches along a side: of the first convolution, if it cuts the image into squares that do not overlap."""
    torch = importlib.import_module("torch")
    for module in made.module.modules():
        if isinstance(module, torch.nn.Conv2d):
            (high, wide), strides = module.kernel_size, module.stride
            return made.side_px // high if high == wide > 1 and strides == (high, high) else None
    return None
