"""Generated CUDA, run on the CPU: right kernels give NumPy's numbers in every order of their threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cuda_kernels
from cuda_kernels import TARGET
from cuda_on_cpu import (
    Launch,
    UnsupportedKernelError,
    compile_kernels,
    compile_modules,
    compile_sources,
    gxx,
    lower_module,
    run_module,
    run_program,
)

pytestmark = pytest.mark.skipif(gxx() is None, reason="g++ is not on the PATH: it compiles CUDA kernels for the CPU")

ORDERS = ["forward", "reverse", ("shuffled", 7)]
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def _dtype(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _random(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * scale).astype(_dtype(dtype))


def _check(module: Any, arrays: list[Any], expected: np.ndarray, order: Any, tolerance: float) -> None:
    report = run_module(module, TARGET, arrays, order)
    report.check()
    np.testing.assert_allclose(report.arrays[-1].astype(np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [
        *(("float32", lanes) for lanes in (1, 2, 4)),
        *((dtype, lanes) for dtype in ("float16", "bfloat16") for lanes in (1, 2, 4, 8)),
        ("int32", 4),
        ("int8", 4),
    ],
)
def test_cuda_elementwise_in_scalars_and_vectors(dtype: str, lanes: int, order: Any) -> None:
    a, b = _random((296,), dtype, 3), _random((296,), dtype, 5)
    # Each operation rounds to the type, in NumPy as on the GPU; float32 may fuse the addition.
    expected = np.maximum(a * b + np.ones((), a.dtype), np.zeros((), a.dtype)).astype(np.float64)
    tolerance = 1e-6 if dtype == "float32" else 0
    _check(cuda_kernels.elementwise(dtype, 296, lanes), [a, b, None], expected, order, tolerance)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_grids_and_blocks_in_three_dimensions(order: Any) -> None:
    a = _random((7, 5, 3), "float32")
    z, y, x = np.indices((3, 5, 7))
    expected = a.transpose().astype(np.float64) + 100 * z + 10 * y + x
    _check(cuda_kernels.transpose((3, 5, 7)), [a, None], expected, order, 1e-5)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("scope", ["shared", "shared.dyn"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cuda_matmul_through_shared_memory(dtype: str, scope: str, order: Any) -> None:
    a, b = _random((32, 64), dtype, 0.1), _random((64, 32), dtype, 0.1)
    expected = np.exp(a.astype(np.float64) @ b.astype(np.float64))
    _check(cuda_kernels.matmul(dtype, scope=scope), [a, b, None], expected, order, TOLERANCE[dtype])


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_matmul_with_asynchronous_copies(order: Any) -> None:
    import tvm

    a, b = _random((32, 64), "float32", 0.1), _random((64, 32), "float32", 0.1)
    with tvm.transform.PassContext(config={"tirx.use_async_copy": 1}):
        module = cuda_kernels.matmul("float32", scope="shared.dyn", pipelined=True)
        lowered = lower_module(module, TARGET)
        assert "cp.async" in lowered.source
        _check(module, [a, b, None], np.exp(a.astype(np.float64) @ b), order, 2e-6)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cuda_matmul_on_tensor_cores(dtype: str, order: Any) -> None:
    a, b = _random((32, 32), dtype), _random((32, 32), dtype)[::-1].copy()
    expected = a.astype(np.float64) @ b.astype(np.float64)
    _check(cuda_kernels.tensor_core_matmul(dtype), [a, b, None], expected, order, 1e-5)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("columns", [16, 32, 128])
def test_cuda_threads_that_sum_by_shuffles(columns: int, order: Any) -> None:
    a = _random((5, columns), "float32")
    _check(cuda_kernels.row_sums(5, columns), [a, None], a.sum(1, dtype=np.float64), order, 1e-5)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_kernels_share_a_workspace_that_the_host_allocates(order: Any) -> None:
    a = _random((6, 6), "float32")
    padded = np.pad(a, 1)
    module = cuda_kernels.padded_difference(6)
    lowered = lower_module(module, TARGET)
    assert len(lowered.launches) == 2
    assert [w.shape for w in lowered.workspaces] == [(64,)]
    _check(module, [a, None], (padded[:6, :6] - padded[2:, 2:]).astype(np.float64), order, 0)


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "log": np.log,
    "erf": np.vectorize(math.erf),
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.round,
    "cos": np.cos,
    "sin": np.sin,
    "exp2": np.exp2,
    "log2": np.log2,
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cuda_device_math(dtype: str) -> None:
    a = np.abs(_random((128,), dtype, 2)) + _dtype(dtype).type(0.25)
    report = run_module(cuda_kernels.activations(dtype, 128, tuple(_FUNCTIONS)), TARGET, [a] + [None] * len(_FUNCTIONS))
    report.check()
    for (name, function), array in zip(_FUNCTIONS.items(), report.arrays[1:], strict=True):
        # Relative: a sigmoid in a small type is several operations, each rounded.
        tolerance = {"float32": 2e-6, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
        expected = function(a.astype(np.float64))
        np.testing.assert_allclose(array.astype(np.float64), expected, tolerance, tolerance, err_msg=name)


_CONVERSIONS = """
extern "C" __global__ void widen(half* __restrict__ h, nv_bfloat16* __restrict__ b,
                                 float* __restrict__ x, float* __restrict__ y) {
  x[blockIdx.x * 256 + threadIdx.x] = ((float)h[blockIdx.x * 256 + threadIdx.x]);
  y[blockIdx.x * 256 + threadIdx.x] = ((float)b[blockIdx.x * 256 + threadIdx.x]);
}
extern "C" __global__ void narrow(float* __restrict__ x, half* __restrict__ h, nv_bfloat16* __restrict__ b) {
  h[blockIdx.x * 256 + threadIdx.x] = ((half)x[blockIdx.x * 256 + threadIdx.x]);
  b[blockIdx.x * 256 + threadIdx.x] = __float2bfloat16_rn(x[blockIdx.x * 256 + threadIdx.x]);
}
"""


def test_cuda_small_floats_widen_exactly_and_narrow_to_nearest_even() -> None:
    every = np.arange(65536, dtype=np.uint16)
    half, bfloat = every.view(np.float16), every.view(ml_dtypes.bfloat16)
    program = compile_kernels(_CONVERSIONS)
    empty = np.zeros(65536, np.float32)
    launch = Launch("widen", (256, 1, 1), (256, 1, 1), 0, ("h", "b", "x", "y"))
    report = run_program(program, [launch], {"h": half, "b": bfloat, "x": empty, "y": empty})
    report.check()
    np.testing.assert_array_equal(report.buffers["x"], half.astype(np.float32))
    np.testing.assert_array_equal(report.buffers["y"], bfloat.astype(np.float32))
    # Everything halfway between two halves or bfloat16s, its neighbours, and values of any magnitude.
    ties = np.concatenate([x[:-1] / 2 + x[1:] / 2 for x in (np.sort(half[np.isfinite(half)]).astype(np.float32),)])
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 15, np.uint32)
    bits[::3] = bits[::3] & 0xFFFF0000 | 0x8000
    values = np.concatenate(
        [ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9)), bits.view("f4")]
    )
    values = np.resize(values, -(-values.size // 256) * 256).astype(np.float32)
    buffers = {"x": values, "h": np.zeros(values.shape, np.float16), "b": np.zeros(values.shape, ml_dtypes.bfloat16)}
    launch = Launch("narrow", (values.size // 256, 1, 1), (256, 1, 1), 0, ("x", "h", "b"))
    report = run_program(program, [launch], buffers)
    report.check()
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(report.buffers["h"], values.astype(np.float16))
        np.testing.assert_array_equal(report.buffers["b"].astype("f4"), values.astype(ml_dtypes.bfloat16).astype("f4"))


def test_cuda_modules_compile_in_one_batch_and_once() -> None:
    shapes = [(3, 4, 5), (2, 2, 2), (1, 9, 4)]
    compiled = compile_modules([lower_module(cuda_kernels.transpose(shape), TARGET) for shape in shapes])
    assert len({module.program.library for module in compiled}) == 1
    for shape, module in zip(shapes, compiled, strict=True):
        report = module.run([np.zeros(shape[::-1], np.float32), None])
        report.check()
        assert report.arrays[1].shape == shape
        assert report.arrays[1][-1, -1, -1] == 100 * (shape[0] - 1) + 10 * (shape[1] - 1) + shape[2] - 1
    (again,) = compile_modules([compiled[0].lowered])
    assert again.program is compiled[0].program


def test_cuda_arrays_stay_as_they_are_and_outputs_begin_as_nan() -> None:
    a = np.arange(2, dtype=np.float32)
    program = compile_kernels(
        'extern "C" __global__ void first(float* __restrict__ a, float* __restrict__ b) { b[0] = a[1]; a[1] = 5.0f; }'
    )
    launch = Launch("first", (1, 1, 1), (1, 1, 1), 0, ("a", "b"))
    report = run_program(program, [launch], {"a": a, "b": np.full(2, np.nan, np.float32)})
    assert report.ok
    assert a.tolist() == [0, 1]
    assert report.buffers["a"].tolist() == [0, 5]
    assert report.buffers["b"][0] == 1
    assert np.isnan(report.buffers["b"][1])


def test_cuda_assembly_and_unknown_functions_are_refused_with_the_line() -> None:
    kernel = 'extern "C" __global__ void odd(float* __restrict__ a) {{ {} }}'
    with pytest.raises(UnsupportedKernelError, match=r"inline assembly.*mma\.sync"):
        compile_kernels(kernel.format('asm volatile("mma.sync.aligned;");'))
    with pytest.raises(UnsupportedKernelError, match=r"odd.*\n.*no_such_function"):
        compile_kernels(kernel.format("a[0] = no_such_function(1.0f);"))
    with pytest.raises(UnsupportedKernelError, match="no __global__ function"):
        compile_kernels("")


def test_cuda_one_bad_source_of_a_batch_is_named() -> None:
    good = 'extern "C" __global__ void good(float* __restrict__ a) { a[0] = 3.0f; }'
    bad = 'extern "C" __global__ void bad(float* __restrict__ a) { a[0] = missing; }'
    with pytest.raises(UnsupportedKernelError, match=r"^bad: "):
        compile_sources([good, bad])


def test_cuda_arrays_that_do_not_fit_are_refused() -> None:
    module = cuda_kernels.transpose((3, 5, 7))
    with pytest.raises(ValueError, match=r"2 parameters\. Received: 1 arrays"):
        run_module(module, TARGET, [None])
    with pytest.raises(ValueError, match=r"shape \(7, 5, 3\) and dtype float32. Received: shape \(3, 5, 7\)"):
        run_module(module, TARGET, [np.zeros((3, 5, 7), np.float32), None])
    with pytest.raises(ValueError, match="order must be"):
        run_module(module, TARGET, [None, None], "sideways")
