"""A subclass of Keras's layer on Keras's backends; above `torch`, whose operators it calls on Keras's torch backend.

Never holds: arithmetic of convolutions, what a layer is but for its computation.
Entry points: `layer.Conv3D`, `acceleration.accelerate`.
"""

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ModuleNotFoundError(
        "tvm_conv3d.keras needs Keras, which is not installed. Install it: pip install 'tvm-conv3d[keras]', and one of "
        "its backends: torch, jax or tensorflow-cpu.",
        name="keras",
    ) from None

if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 5):
    raise ImportError(
        f"tvm_conv3d.keras needs Keras 3.5 or later. Received: Keras {keras.__version__}. "
        "Install it: pip install 'tvm-conv3d[keras]'."
    )

from tvm_conv3d.keras.acceleration import accelerate, restore
from tvm_conv3d.keras.counting import Counters, counters, reset_counters
from tvm_conv3d.keras.layer import Conv3D
from tvm_conv3d.keras.report import Report

__all__ = ["Conv3D", "Counters", "Report", "accelerate", "counters", "reset_counters", "restore"]
