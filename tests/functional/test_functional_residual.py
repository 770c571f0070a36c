"""A residual operand of the functions: any chain, order of memory and library, against the float64 oracle."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from functional_cases import FILTERS, RNG, VIEWS, check, data, expected, inside, peak
from problems import WINOGRAD_BOUND, numpy_dtype
from sampling import sampled
from tvm_conv3d import conv3d, conv3d_transpose
from tvm_conv3d.functional import convolution
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime.cpu_backend import CpuCall
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DATA_GRADIENT, Conv3DSpec, Pads

#: With "add" alone, before and after an activation, and between two.
CHAINS = [
    ("add",),
    ("add", "relu"),
    ("leaky_relu:0.01", "add"),
    ("gelu:tanh", "add", "hard_tanh:-2:2"),
    ("elu", "linear", "tanh", "add", "silu", "relu6"),
]

VALUES = (np.nan, np.inf, -np.inf)


def finished(sums: np.ndarray, chain: tuple[str, ...], residual: Any = None) -> np.ndarray:
    """The oracle's result of a chain of post-ops."""
    spec = Conv3DSpec(1, (1, 1, 1), 1, 1, (1, 1, 1), post_ops=chain)
    with np.errstate(all="ignore"):
        return oracle.finish(spec, sums, residual)


def residual_for(sums: np.ndarray, dtype: str = "float32") -> np.ndarray:
    return RNG.standard_normal(sums.shape).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("bias", [True, False])
def test_chains(chain: tuple[str, ...], data_format: str, bias: bool) -> None:
    x, w, b = data(data_format=data_format)
    given = b if bias else None
    sums = expected(x, w, given, ((1, 1), (0, -2), (1, 0)), data_format)
    residual = residual_for(sums)
    padding = (1, (0, -2), (1, 0))
    result = conv3d(x, w, given, padding=padding, data_format=data_format, post_ops=chain, residual=residual)
    check(result, finished(sums, chain, residual))


@pytest.mark.parametrize("chain", [("hard_tanh:-0.5:0.25",), ("elu:0.7", "tanh"), ("celu:2", "softplus:0.5")])
def test_chains_without_one(chain: tuple[str, ...]) -> None:
    x, w, b = data()
    check(conv3d(x, w, b, post_ops=list(chain)), finished(expected(x, w, b), chain))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "int8", "bool"])
def test_it_is_cast_to_the_inputs_type(dtype: str, kind: str) -> None:
    x, w, b = data(dtype, groups=2)
    sums = expected(x, w, b, groups=2)
    residual = (3 * RNG.standard_normal(sums.shape)).astype(numpy_dtype(kind))
    result = conv3d(x, w, b, groups=2, post_ops=("add",), residual=residual)
    assert result.dtype == x.dtype
    check(result, sums + residual.astype(x.dtype).astype(np.float64), dtype)


@pytest.mark.parametrize("name", VIEWS)
def test_any_strides(name: str) -> None:
    x, w, b = data()
    sums = expected(x, w, b)
    residual = residual_for(sums)
    check(conv3d(x, w, b, post_ops=("add",), residual=VIEWS[name](residual)), sums + residual)


def test_any_order_of_memory() -> None:
    x, w, b = data(data_format=CHANNELS_FIRST)
    sums = expected(x, w, b, data_format=CHANNELS_FIRST)
    residual = residual_for(sums)
    for first, last in ((x, False), (inside(x), True)):
        for added in (residual, inside(residual)):
            result = conv3d(first, w, b, data_format=CHANNELS_FIRST, post_ops=("add",), residual=added)
            check(result, sums + residual)
            assert result.transpose(0, 2, 3, 4, 1).flags.c_contiguous is last


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_it_is_not_copied_where_it_lies_as_the_result(library: str) -> None:
    x = np.ones((1, 4, 32, 128, 128), np.float32)
    w = np.ones((1, 1, 1, 4, 4), np.float32)
    for arrays in ((x, x), (inside(x), inside(x))):
        if library == "torch":
            torch = pytest.importorskip("torch", reason="torch is not installed")
            arrays = tuple(map(torch.from_numpy, arrays))
        given, residual = arrays
        # the result is all that is new
        assert peak(
            lambda x=given, r=residual: conv3d(x, w, data_format=CHANNELS_FIRST, post_ops=("add",), residual=r)
        ) < (1.5 * x.nbytes)


def test_libraries_may_be_mixed() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, b = data()
    sums = expected(x, w, b)
    residual = residual_for(sums)
    half = torch.from_numpy(residual).bfloat16()
    check(conv3d(x, w, b, post_ops=("add",), residual=half), sums + half.double().numpy())
    result = conv3d(torch.from_numpy(x), w, b, post_ops=("add",), residual=residual)
    assert isinstance(result, torch.Tensor)
    check(result, sums + residual)


def test_results_without_elements() -> None:
    x, w, b = data()
    for shape in ((0, 6, 7, 9), (2, 0, 7, 9)):
        residual = np.zeros((*shape, FILTERS), np.float32)
        empty = x[: shape[0], : shape[1]]
        assert conv3d(empty, w, b, padding="same", post_ops=("add",), residual=residual).shape == residual.shape


# Winograd's algorithm, and data that are not finite


def layer(**more: Any) -> tuple[Conv3DSpec, tuple[np.ndarray, ...]]:
    """A layer that takes Winograd's algorithm, with input, kernel, bias and residual operand."""
    spec = Conv3DSpec(1, (6, 14, 15), 32, 32, (3, 3, 3), pads=(Pads(1, 1), Pads(1, -1), Pads(1, 1)), **more)
    assert Executor().plan_for(spec).algorithm.startswith("winograd")
    shapes = (spec.input_shape, spec.kernel_shape, (32,), spec.output_shape)
    scales = (1, 0.1, 1, 1)
    arrays = [s * RNG.standard_normal(shape) for s, shape in zip(scales, shapes, strict=True)]
    return spec, tuple(array.astype(numpy_dtype(spec.dtype)) for array in arrays)


def run(spec: Conv3DSpec, arrays: tuple[np.ndarray, ...], accuracy: str = "default") -> np.ndarray:
    x, w, b, residual = arrays
    options = {"groups": spec.groups, "data_format": spec.data_format, "post_ops": spec.post_ops}
    return conv3d(x, w, b, padding=spec.pads, residual=residual, accuracy=accuracy, **options)


def wanted(spec: Conv3DSpec, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    x, w, b, residual = arrays
    with np.errstate(all="ignore"):
        return oracle.finish(spec, oracle.convolve(spec, x, w, b), residual)


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("accuracy", ["strict", "default"])
@pytest.mark.parametrize("chain", [("add", "relu"), ("leaky_relu", "add")], ids="+".join)
def test_all_algorithms(chain: tuple[str, ...], accuracy: str, data_format: str) -> None:
    spec, arrays = layer(post_ops=chain, data_format=data_format)
    error = oracle.relative_error(run(spec, arrays, accuracy), wanted(spec, arrays))
    assert error < (WINOGRAD_BOUND if accuracy == "default" else 2e-6)


def kinds(values: np.ndarray) -> np.ndarray:
    """0 for what is finite, 1 for NaN, 2 and 3 for the infinities."""
    values = np.asarray(values, np.float64)
    return np.isnan(values) + 2 * np.isposinf(values) + 3 * np.isneginf(values)


NOT_FINITE: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("add",), {}),
    (("relu", "add", "leaky_relu:0.1"), {}),
    (("add", "relu"), {"groups": 2}),
    (("add", "hard_tanh:-9:9"), {"dtype": "float16"}),
    (("relu", "add"), {"dtype": "bfloat16"}),
]


@pytest.mark.parametrize("values", [VALUES[:1], VALUES], ids=["NaN", "all"])
@pytest.mark.parametrize(
    ("case", "data_format"), sampled(itertools.product(NOT_FINITE, (CHANNELS_LAST, CHANNELS_FIRST)), 3)
)
def test_what_is_not_finite_passes_as_by_the_definition(
    case: tuple[tuple[str, ...], dict[str, Any]], data_format: str, values: tuple[float, ...]
) -> None:
    chain, more = case
    spec, (x, w, b, residual) = layer(post_ops=chain, data_format=data_format, **more)
    x.flat[RNG.integers(x.size, size=6)] = RNG.choice(values, 6)
    # also where windows are not finite: there an infinity may meet the other one
    residual.flat[:: residual.size // 2003] = RNG.choice(VALUES)
    residual.flat[1 :: residual.size // 2003] = RNG.choice(VALUES)
    arrays = (x, w, b, residual)
    right = wanted(spec, arrays)
    finite = kinds(right) == 0
    # the second call knows that there was something
    for _ in range(2):
        result = run(spec, arrays)
        np.testing.assert_array_equal(kinds(result), kinds(right))
        bound = {"float32": WINOGRAD_BOUND, "float16": 1e-3, "bfloat16": 8e-3}[spec.dtype]
        assert oracle.relative_error(result[finite], right[finite]) < bound


def test_it_runs_at_winograds_speed_whatever_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, arrays = layer(post_ops=("add",))
    arrays[3].flat[::7] = np.nan
    run(spec, arrays)
    ran = []
    real = CpuCall.fill
    monkeypatch.setattr(CpuCall, "fill", lambda self, *rest: (ran.append(self.plan), real(self, *rest))[1])
    run(spec, arrays)
    arrays[0].flat[7] = np.nan
    run(spec, arrays)
    run(spec, arrays)
    assert len(ran) == 4
    assert {plan.algorithm for plan in ran} == {"winograd"}


def test_sums_that_overflow_are_left_to_the_definition() -> None:
    spec, (x, w, b, residual) = layer(post_ops=("add",))
    x.flat[1234] = 3e38
    result = run(spec, (x, 10 * w, b, residual))
    with np.errstate(over="ignore"):
        right = wanted(spec, (x, 10 * w, b, residual)).astype(np.float32)
    np.testing.assert_array_equal(kinds(result), kinds(right))


# Transposed convolution


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("strides", [1, 2])
def test_transposed(strides: int, data_format: str) -> None:
    x, w, b = RNG.standard_normal((2, 3, 4, 5, 16)), RNG.standard_normal((3, 3, 3, 8, 16)), RNG.standard_normal(8)
    x, w, b = (array.astype(np.float32) for array in (x, w, b))
    size = tuple((n - 1) * strides + 3 for n in x.shape[1:4])
    spec = Conv3DSpec(
        2, size, 8, 16, (3, 3, 3), (strides,) * 3, direction=DATA_GRADIENT, post_ops=("relu", "add", "elu")
    )  # type: ignore[arg-type]
    residual = RNG.standard_normal(spec.output_shape).astype(np.float32)
    for value in (None, np.nan, np.inf):
        if value is not None:
            x.flat[77] = value
            residual.flat[::101] = -np.inf
        with np.errstate(all="ignore"):
            right = oracle.finish(spec, oracle.convolve(spec, x, w, b), residual)
        first = data_format == CHANNELS_FIRST
        given = [np.moveaxis(a, -1, 1).copy() if first else a for a in (x, residual)]
        options = {"data_format": data_format, "post_ops": spec.post_ops, "strides": strides}
        result = conv3d_transpose(given[0], w, b, residual=given[1], **options)
        result = np.moveaxis(result, 1, -1) if first else result
        np.testing.assert_array_equal(kinds(result), kinds(right))
        finite = kinds(right) == 0
        assert oracle.relative_error(result[finite], right[finite]) < WINOGRAD_BOUND


# Errors


@pytest.mark.parametrize("function", [conv3d, conv3d_transpose])
@pytest.mark.parametrize(
    ("post_ops", "residual", "error", "text"),
    [
        (
            ("add",),
            None,
            ValueError,
            "`post_ops` has 'add', which adds `residual`, an array of the result's shape (2, ",
        ),
        (("relu",), np.ones(3), ValueError, "`residual` is added where `post_ops` has 'add', as in ('add', 'relu')"),
        (("add",), np.ones((2, 4, 6, 7)), ValueError, "`residual` must have the result's shape (2, "),
        (("add", "add"), np.ones(3), ValueError, "`post_ops` must hold 'add' at most once"),
        (("add",), 1.0, TypeError, "`residual` can't be taken. Expected an array or tensor. Received: 1.0"),
        (("add",), np.ones(3, complex), TypeError, "`residual` must hold real numbers. Received: dtype=complex128"),
    ],
)
def test_what_is_refused(
    function: Any, post_ops: tuple[str, ...], residual: Any, error: type[Exception], text: str
) -> None:
    x, w, b = data()
    if function is conv3d_transpose:
        w = w.transpose(0, 1, 2, 4, 3)
    for _ in range(2):
        with pytest.raises(error, match=re.escape(text)):
            function(x, w, b, post_ops=post_ops, residual=residual)


def test_a_gradient_is_not_lost_in_silence() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, w, b = data()
    residual = torch.ones(conv3d(x, w, b).shape, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"and `residual` requires one.*`residual.detach\(\)`"):
        conv3d(x, w, b, post_ops=("add",), residual=residual)
    with torch.no_grad():
        check(conv3d(x, w, b, post_ops=("add",), residual=residual), expected(x, w, b) + 1)


def test_executors_check_its_shape() -> None:
    spec, (x, w, b, residual) = layer(post_ops=("add",))
    wrap = convolution.interchange.wrap
    weights = convolution.Weights(w, b, 0)
    with pytest.raises(ValueError, match=r"takes a residual operand of shape .* Received: None"):
        Executor().convolve(spec, wrap(x), weights)
    with pytest.raises(ValueError, match=r"takes a residual operand of shape .* Received: \(1, 5"):
        Executor().convolve(spec, wrap(x), weights, wrap(residual[:, :5]))
