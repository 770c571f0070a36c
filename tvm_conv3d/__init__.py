"""`keras.layers.Conv3D`, argument for argument, on kernels compiled by Apache TVM."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_conv3d.functional.convolution import conv3d, conv3d_transpose
    from tvm_conv3d.functional.gradients import conv3d_data_gradient, conv3d_weight_gradient
    from tvm_conv3d.layer.conv3d import Conv3D, Convolution3D
    from tvm_conv3d.runtime.kept_weights import set_kept_weights
    from tvm_conv3d.runtime.output_pool import set_kept_memory
    from tvm_conv3d.runtime.threads import get_num_threads, set_num_threads

__all__ = [
    "Conv3D",
    "Convolution3D",
    "__version__",
    "conv3d",
    "conv3d_data_gradient",
    "conv3d_transpose",
    "conv3d_weight_gradient",
    "get_num_threads",
    "set_kept_memory",
    "set_kept_weights",
    "set_num_threads",
]

_HOMES = {
    "Conv3D": "tvm_conv3d.layer.conv3d",
    "Convolution3D": "tvm_conv3d.layer.conv3d",
    "conv3d": "tvm_conv3d.functional.convolution",
    "conv3d_data_gradient": "tvm_conv3d.functional.gradients",
    "conv3d_transpose": "tvm_conv3d.functional.convolution",
    "conv3d_weight_gradient": "tvm_conv3d.functional.gradients",
    "get_num_threads": "tvm_conv3d.runtime.threads",
    "set_kept_memory": "tvm_conv3d.runtime.output_pool",
    "set_kept_weights": "tvm_conv3d.runtime.kept_weights",
    "set_num_threads": "tvm_conv3d.runtime.threads",
}


def __getattr__(name: str) -> Any:
    """Imports at first use: the package is looked into by tools that need no layer."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tvm-conv3d")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
