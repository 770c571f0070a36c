"""The data of one layer: the same numbers for every library, and the oracle's answer to them."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec

#: A relative error (2-norm) beyond this marks a row as wrong. The half types round their output.
TOLERANCE = {"float32": 1e-5, "float64": 1e-11, "float16": 5e-3, "bfloat16": 2e-2}

#: Multiply-accumulates that the oracle may spend on a layer, and the most output positions that are compared.
ORACLE_MACS = 2e9
MAX_POSITIONS = 1 << 15


@dataclass(frozen=True)
class Problem:
    """One layer's data on disk, where every process finds it, and what is right."""

    spec: Conv3DSpec
    folder: Path
    positions: np.ndarray
    expected: np.ndarray

    def error(self, result: Path) -> float:
        """The relative error of a worker's values at :attr:`positions`; infinite where they cannot be compared."""
        values = np.load(result)
        if values.shape != self.expected.shape or not np.isfinite(values).all():
            return float("inf")
        return oracle.relative_error(values, self.expected)


def make(spec: Conv3DSpec, folder: Path, seed: int = 0) -> Problem:
    """Draws input, weights and bias, writes them into `folder` and asks the oracle.

    The files hold float32 (float64 for that type) with values that `spec.dtype` represents exactly, so that a worker
    needs no half types of NumPy to read them.
    """
    rng = np.random.default_rng(seed)
    x, kernel, bias = (
        _rounded(scale * rng.standard_normal(shape, _storage(spec)), spec.dtype)
        for scale, shape in ((1.0, spec.input_shape), (0.05, spec.kernel_shape), (0.05, (spec.result_channels,)))
    )
    used_bias = bias if spec.bias else None
    positions = choose_positions(spec, rng)
    expected = oracle.finish(spec, oracle.convolve_at(spec, x, kernel, used_bias, positions))
    for name, array in (("x", x), ("kernel", kernel), ("bias", bias), ("positions", positions)):
        np.save(folder / f"{name}.npy", array)
    return Problem(spec, folder, positions, expected)


def choose_positions(spec: Conv3DSpec, rng: np.random.Generator) -> np.ndarray:
    """The output positions (sample, depth, height, width) to be checked: all, or the corners and a random sample."""
    shape = (spec.batch, *spec.out_size)
    total = int(np.prod(shape))
    each = max(1, spec.macs // max(1, total))
    count = min(MAX_POSITIONS, max(64, int(ORACLE_MACS // each)))
    if total <= count:
        return np.stack(np.unravel_index(np.arange(total), shape), axis=1)
    sample = np.stack([rng.integers(0, n, count) for n in shape], axis=1)
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape), indexing="ij"), axis=-1).reshape(-1, 4)
    return np.concatenate([corners, sample])


def choose_taps(spec: Conv3DSpec, rng: np.random.Generator) -> np.ndarray:
    """The taps (depth, height, width) at which a gradient of weights is checked: all, or the last and some others."""
    taps = np.array(list(np.ndindex(*spec.kernel)))
    count = max(2, int(ORACLE_MACS // max(1, spec.macs // len(taps))))
    return taps if len(taps) <= count else np.concatenate([taps[-1:], rng.permutation(taps[:-1])[: count - 1]])


def values_at(result: np.ndarray, positions: np.ndarray, data_format: str) -> np.ndarray:
    """(count, filters) values of an output array at `positions`."""
    if data_format == CHANNELS_FIRST:
        result = np.moveaxis(result, 1, -1)
    n, d, h, w = positions.T
    return np.asarray(result[n, d, h, w])


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for one layer's files, in memory where the system offers that."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2 << 30
    return tempfile.TemporaryDirectory(prefix="tvm_conv3d_bench_", dir=shared if roomy else None)


def _storage(spec: Conv3DSpec) -> type[np.float64] | type[np.float32]:
    return np.float64 if spec.dtype == "float64" else np.float32


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return values.astype(dtype).astype(values.dtype)
