"""TensorFlow: a compiled `tf.function` on channels-last tensors, the only layout that its CPU kernels have."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared
from tvm_conv3d.spec import CHANNELS_FIRST, NO_PADS, Conv3DSpec


class TensorFlow:
    def __init__(self, threads: int) -> None:
        import tensorflow

        self._tensorflow = tensorflow
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)

    def versions(self) -> dict[str, str]:
        return {"tensorflow": self._tensorflow.__version__}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["ndhwc"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        tf = self._tensorflow
        if spec.groups > 1:
            # Its plain kernel crashes or is wrong there, and XLA is far slower.
            raise ValueError("TensorFlow's CPU kernel has no groups")
        x = np.moveaxis(x, 1, -1) if spec.data_format == CHANNELS_FIRST else x
        data, weights = (tf.cast(tf.constant(array), spec.dtype) for array in (x, kernel))
        offset = None if bias is None else tf.cast(tf.constant(bias), spec.dtype)
        padding = "VALID" if spec.pads == NO_PADS else "SAME"

        @tf.function
        def layer(value: Any) -> Any:
            value = tf.nn.convolution(value, weights, spec.strides, padding, "NDHWC", spec.dilation)
            value = value if offset is None else tf.nn.bias_add(value, offset)
            return tf.nn.relu(value) if spec.post_ops == ("relu",) else value

        wide = "float64" if spec.dtype == "float64" else "float32"

        def to_numpy(result: Any) -> np.ndarray:
            array: np.ndarray = tf.cast(result, wide).numpy()
            return np.moveaxis(array, -1, 1) if spec.data_format == CHANNELS_FIRST else array

        concrete = layer.get_concrete_function(data)
        return Prepared(lambda: concrete(data), to_numpy)
