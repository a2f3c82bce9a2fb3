"""Optional packages: which are installed, and the line that installs one.

The base installation reads, verifies and shares caches, trains heads in Gram space and writes reports. Each extra of
pyproject.toml adds one thing to that.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from featcache.core.errors import MissingPackageError

EXTRAS = {
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "huggingface": "transformers",
    "kerashub": "keras_hub",
    "openvino": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "export": "tf2onnx",
    "fast": "tensorstore",
    "tensorboard": "tensorboardX",
    "s3": "obstore",
    "aws": "boto3",
    "gs": "obstore",
    "az": "obstore",
    "sftp": "paramiko",
    "share": "cryptography",
    "serve": "uvicorn",
    "mlflow": "mlflow",
    "dask": "distributed",
    "ray": "ray",
    "heic": "pillow_heif",
    "czi": "pylibCZIrw",
    "cellpose": "cellpose",
    "stardist": "stardist",
}
"""{extra: the package that what needs the extra imports}"""


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'featcache[{extra}]'"


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported for that."""
    return find_spec(package) is not None


def keep_triton_out() -> None:
    """Keep Triton out of a process that has TensorFlow, before a library of PyTorch is imported.

    Each brings an LLVM of its own, and where TensorFlow's was first, Triton's ends the process. PyTorch needs Triton to
    compile for GPUs, and computes without it.
    """
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # what import takes for "not installed"


def require_extra(extra: str, what: str) -> None:
    """Raise MissingPackageError, with the command that installs it, where the package of an extra is missing.

    what : what requires the package, as the subject of a sentence
    """
    if not is_installed(EXTRAS[extra]):
        raise MissingPackageError(f"{what} requires {EXTRAS[extra]}, which is not installed: {install_line(extra)}")
