"""This package, as its users call it: NumPy in, NumPy out, the whole Python call."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_conv3d.bench.peers import Prepared
from tvm_conv3d.engine import records
from tvm_conv3d.spec import NO_PADS, Conv3DSpec, post_ops

#: Elements of what is computed between two calls: enough for torch to take several threads.
_BETWEEN = 1 << 17


class Ours:
    def __init__(self, threads: int) -> None:
        import tvm_conv3d

        self._package = tvm_conv3d
        tvm_conv3d.set_num_threads(threads)

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("tvm-conv3d", "apache-tvm", "numpy")}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["numpy"]

    def layer_of(self, spec: Conv3DSpec) -> Any:
        """The layer that computes `spec`, not built."""
        return self._package.Conv3D(
            spec.filters,
            spec.kernel,
            strides=spec.strides,
            padding="valid" if spec.pads == NO_PADS else "same",
            data_format=spec.data_format,
            dilation_rate=spec.dilation,
            groups=spec.groups,
            activation=post_ops.printed(spec.post_ops),
            use_bias=spec.bias,
            dtype=spec.dtype,
        )

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        layer = self.layer_of(spec)
        x = x.astype(_numpy_dtype(spec.dtype))
        layer.build(x.shape)
        layer.set_weights([kernel] if bias is None else [kernel, bias])
        return Prepared(lambda: layer(x), np.asarray, layer.plan_for(x.shape).origin_name)


class Untuned(Ours):
    """The same with the default plans, whatever records there are."""

    def __init__(self, threads: int) -> None:
        os.environ[records.LOGS_VARIABLE] = records.NO_LOGS
        super().__init__(threads)


class Alone(Ours):
    """Without torch in the process, which TVM imports where it is installed; NumPy does something before each call."""

    def __init__(self, threads: int) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        super().__init__(threads)

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        data = np.ones(_BETWEEN, np.float32)
        return replace(super().prepare(spec, mode, x, kernel, bias), before=lambda: np.exp(data))


class BesideTorch(Ours):
    """In a process in which torch has just run a parallel operator before each call."""

    def __init__(self, threads: int) -> None:
        import torch

        self._torch = torch
        torch.set_num_threads(threads)
        super().__init__(threads)

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        data = self._torch.ones(_BETWEEN)
        return replace(super().prepare(spec, mode, x, kernel, bias), before=lambda: self._torch.exp(data))


def _numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
