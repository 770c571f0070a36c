"""PyTorch's modules, argument for argument, and whole networks, on operators that are registered with torch.

Never holds: arithmetic of convolutions, layers of other frameworks.
Entry points: `modules.Conv3d`, `modules.ConvTranspose3d`, `acceleration.accelerate`.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "tvm_conv3d.torch needs PyTorch, which is not installed. Install it: pip install 'tvm-conv3d[torch]'",
        name="torch",
    ) from None

from tvm_conv3d.torch.acceleration import accelerate
from tvm_conv3d.torch.counting import Counters, counters, reset_counters
from tvm_conv3d.torch.modules import Conv3d, ConvTranspose3d
from tvm_conv3d.torch.report import Report

__all__ = ["Conv3d", "ConvTranspose3d", "Counters", "Report", "accelerate", "counters", "reset_counters"]
