"""State dicts of PyTorch from files, read without running code, and put into a module where every tensor fits."""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import MissingPackageError, WeightsError
from featcache.core.extras import install_line, is_installed

_SAFETENSORS = ".safetensors"
_CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "net", "backbone")
"""Entries of a checkpoint that hold the network, those that are tried first before others."""
_PREFIXES = ("module.", "backbone.", "model.", "encoder.", "teacher.", "_orig_mod.")
_HEADS = ("head.", "head_dist.", "fc.", "classifier.", "heads.", "dino_head.", "ibot_head.", "projector.")
"""What comes behind the features, and is not part of the network here."""
_OF_TRAINING = ("mask_token", "num_batches_tracked")
_SHOWN = 3


def load_state(module: Any, path: Path, *, label: str, interpolate: bool = False) -> None:
    """Put the weights in a file into `module`, all of them.

    Parameters
    ----------
    module : torch.nn.Module, changed
    path : .safetensors, or a state dict that torch.save wrote
    label : what errors call the network
    interpolate : resample a position table of another grid of patches

    Raises
    ------
    WeightsError : the file is missing, damaged, wants to run code, or is of another network: the first tensors that
        are missing, too many or of another shape are named.
    """
    torch = importlib.import_module("torch")
    found = _adapted(_unwrapped(_read(path)), module)
    wanted = {name: value for name, value in module.state_dict().items() if not _is_of_training(name)}
    if interpolate:
        _resample_positions(found, wanted)
    missing = [name for name in wanted if name not in found]
    other = [name for name in found if name not in wanted and not name.startswith(_HEADS)]
    wrong = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if missing or other or wrong:
        raise _of_another(path, label, found, wanted, missing=missing, other=other, wrong=wrong)
    with torch.no_grad():
        module.load_state_dict({name: found[name] for name in wanted}, strict=False)


def _of_another(
    path: Path,
    label: str,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    missing: Sequence[str],
    other: Sequence[str],
    wrong: Sequence[str],
) -> WeightsError:
    shapes = [f"{name} {_shape(found[name])} there, {_shape(wanted[name])} here" for name in wrong]
    said = [
        f"{what}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for what, names in (("of another shape", shapes), ("missing", missing), ("not of this network", other))
        if names
    ]
    hint = ""
    if not missing and not other and all("pos_embed" in name or "position" in name for name in wrong):
        hint = "Set the `input_size_px` that the file was trained with, or `interpolate_positions=True` to resample it"
    return WeightsError(f"{path}: these are not the weights of {label}: {'; '.join(said)}", hint)


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _read(path: Path) -> Any:
    """What a file holds."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    torch = importlib.import_module("torch")
    try:
        if path.suffix.lower() == _SAFETENSORS:
            if not is_installed("safetensors"):
                raise MissingPackageError(
                    f"{path} requires safetensors, which is not installed: {install_line('torch')}"
                )
            return importlib.import_module("safetensors.torch").load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: it holds more than weights, and loading it could run code of whoever made it",
            "Save its state dict: torch.save(model.state_dict(), FILE), or use .safetensors",
        ) from error
    except ImportError:
        raise
    except Exception as error:  # a damaged file: of zip, pickle, or of safetensors' own
        raise WeightsError(
            f"{path}: not a readable weights file (damaged or cut off?): {' '.join(str(error).split())[:200]}"
        ) from error


def _unwrapped(value: Any) -> dict[str, Any]:
    """The tensors of a checkpoint by name, wherever in it they lie, without what training put before their names."""
    for _ in range(3):
        if not isinstance(value, Mapping):
            break
        inner = next((value[name] for name in _CONTAINERS if isinstance(value.get(name), Mapping)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, Mapping) or not any(hasattr(one, "shape") for one in value.values()):
        raise WeightsError("the file holds no state dict: expected tensors by name")
    tensors = {str(name): one for name, one in value.items() if hasattr(one, "shape")}
    tensors = {name: one for name, one in tensors.items() if not _is_of_training(name)}
    for _ in range(3):
        body = [name for name in tensors if not name.startswith(_HEADS)]
        prefix = next((one for one in _PREFIXES if body and all(name.startswith(one) for name in body)), "")
        if not prefix:
            break
        tensors = {name.removeprefix(prefix): one for name, one in tensors.items()}
    return tensors


def _is_of_training(name: str) -> bool:
    return name.endswith(_OF_TRAINING)


def _adapted(found: dict[str, Any], module: Any) -> dict[str, Any]:
    """DINOv2's own names for registers as timm has them, where the module is timm's: positions are of patches alone."""
    names = module.state_dict()
    if "register_tokens" in found and "reg_token" in names and "pos_embed" in found:
        found = dict(found)
        found["reg_token"] = found.pop("register_tokens")
        positions = found["pos_embed"]
        if names["pos_embed"].shape[1] != positions.shape[1] or getattr(module, "no_embed_class", False):
            found["cls_token"] = found["cls_token"] + positions[:, :1]
            found["pos_embed"] = positions[:, 1:]
    return found


def _resample_positions(found: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    """Position tables (1, prefix + g * g, c) for another g, as timm resamples them: bicubic, antialiased."""
    torch = importlib.import_module("torch")
    for name in [name for name in wanted if name.endswith("pos_embed") and name in found]:
        old, new = found[name], wanted[name]
        if old.ndim != 3 or new.ndim != 3 or old.shape == new.shape or old.shape[2] != new.shape[2]:
            continue
        prefix = next((n for n in range(17) if _root(old.shape[1] - n) and _root(new.shape[1] - n)), None)
        if prefix is None:
            continue
        before, after = _root(old.shape[1] - prefix), _root(new.shape[1] - prefix)
        grid = old[:, prefix:].float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(after, after), mode="bicubic", antialias=True)
        table = grid.permute(0, 2, 3, 1).reshape(1, after * after, -1)
        found[name] = torch.cat([old[:, :prefix].float(), table], dim=1)


def _root(number: int) -> int:
    """The side of a square of so many; 0 where there is none."""
    side = int(max(number, 0) ** 0.5 + 0.5)
    return side if side > 1 and side * side == number else 0


def state_digest(module: Any) -> str:
    """SHA-256, in hex, of the tensors of a module in its order, as `weights_digest` of a Keras model is made."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if _is_of_training(name):
            continue
        value = tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
        found.update(f"{value.dtype.name} {','.join(map(str, value.shape))}\n".encode("ascii"))
        found.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).data)
    return found.hexdigest()
