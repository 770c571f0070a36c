"""JAX: one jitted function with constant weights, in both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared, channels_first, like_spec
from tvm_conv3d.spec import Conv3DSpec


class JAX:
    def __init__(self, threads: int) -> None:
        import jax

        self._jax = jax
        jax.config.update("jax_enable_x64", True)

    def versions(self) -> dict[str, str]:
        return {"jax": self._jax.__version__}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["ndhwc", "ncdhw"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        jax, first = self._jax, mode == "ncdhw"
        data = channels_first(x, spec.data_format)
        data = jax.numpy.asarray(data if first else np.moveaxis(data, 1, -1), spec.dtype)
        weights = jax.numpy.asarray(kernel, spec.dtype)
        offset = None
        if bias is not None:
            offset = jax.numpy.asarray(bias.reshape((-1, 1, 1, 1) if first else (-1,)), spec.dtype)
        layout = ("NCDHW" if first else "NDHWC", "DHWIO", "NCDHW" if first else "NDHWC")

        @jax.jit
        def layer(value: Any) -> Any:
            value = jax.lax.conv_general_dilated(
                value,
                weights,
                spec.strides,
                [tuple(pair) for pair in spec.pads],
                rhs_dilation=spec.dilation,
                dimension_numbers=layout,
                feature_group_count=spec.groups,
            )
            value = value if offset is None else value + offset
            return jax.numpy.maximum(value, 0) if spec.post_ops == ("relu",) else value

        wide = np.float64 if spec.dtype == "float64" else np.float32

        def to_numpy(result: Any) -> np.ndarray:
            array = np.asarray(result).astype(wide)
            return like_spec(array if first else np.moveaxis(array, -1, 1), spec)

        return Prepared(lambda: layer(data).block_until_ready(), to_numpy)
