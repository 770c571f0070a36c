"""The float64 reference as a library: slow, everywhere at hand, and right."""

from __future__ import annotations

import numpy as np

from tvm_conv3d.bench.peers import Prepared
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import Conv3DSpec


class Oracle:
    def __init__(self, threads: int) -> None:
        pass

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def modes(self, spec: Conv3DSpec) -> list[str]:
        return ["float64"]

    def prepare(
        self, spec: Conv3DSpec, mode: str, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
    ) -> Prepared:
        def run() -> np.ndarray:
            return oracle.finish(spec, oracle.convolve(spec, x, kernel, bias))

        return Prepared(run, np.asarray, "definition")
