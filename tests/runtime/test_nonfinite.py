"""NaN and infinity reach exactly the outputs whose window holds them, at the speed of clean data."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import data, numpy_dtype, residual_of, specs
from sampling import sampled
from tvm_conv3d import Conv3D
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import cpu_backend, interchange, nonfinite
from tvm_conv3d.runtime.cpu_backend import CpuCall
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.spec.post_ops import FUSED_ACTIVATIONS

VALUES = (np.nan, np.inf, -np.inf)


def sprinkled(spec: Conv3DSpec, seed: int, values: tuple[float, ...], share: float = 0.01) -> np.ndarray:
    """Random data of which a share are `values`, at least one."""
    x, _, _ = data(spec, seed)
    rng = np.random.default_rng(seed + 1)
    at = rng.random(x.shape) < share
    at.flat[rng.integers(x.size)] = True
    x[at] = rng.choice(values, int(at.sum()))
    return x


def kinds(x: np.ndarray) -> np.ndarray:
    """0 for what is finite, 1 for NaN, 2 and 3 for the infinities."""
    x = np.asarray(x, np.float64)
    return np.isnan(x) + 2 * np.isposinf(x) + 3 * np.isneginf(x)


sums = given(
    spec=specs(),
    seed=st.integers(0, 1000),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=3, unique=True),
    share=st.sampled_from([0.0, 0.003, 0.1]),
    zero_weights=st.sampled_from([0.0, 0.02, 0.5]),
    alike=st.booleans(),
    chain=st.sampled_from([(), (), ("add",), ("relu", "add")]),
)


@settings(max_examples=40, deadline=None)
@sums
def test_the_kind_of_each_sum_is_that_of_the_definition(**drawn: Any) -> None:
    assert_kinds_of_sums(**drawn)


@pytest.mark.deep
@settings(max_examples=300, deadline=None)
@sums
def test_the_kind_of_many_sums_is_that_of_the_definition(**drawn: Any) -> None:
    assert_kinds_of_sums(**drawn)


def assert_kinds_of_sums(
    spec: Conv3DSpec,
    seed: int,
    values: list[float],
    share: float,
    zero_weights: float,
    alike: bool,
    chain: tuple[str, ...],
) -> None:
    spec = replace(spec, dtype="float32" if spec.dtype == "float64" else spec.dtype, post_ops=chain)
    _, kernel, bias = data(spec, seed)
    kernel = np.abs(kernel) if alike else kernel
    kernel[np.random.default_rng(seed).random(kernel.shape) < zero_weights] = 0
    assert_kinds(spec, sprinkled(spec, seed, tuple(values), share), kernel, bias)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_a_single_element(value: float, data_format: str) -> None:
    spec = Conv3DSpec(1, (3, 3, 3), 1, 1, (3, 3, 3), data_format=data_format)
    x, kernel, bias = data(spec)
    x.flat[5] = value
    assert_kinds(spec, x, kernel, bias)


class OracleSteps(NamedTuple):
    """The convolutions that a result is put together of, by the oracle; `x` is what the whole one is called with."""

    spec: Conv3DSpec
    x: np.ndarray

    def fill(self, operands: nonfinite.Operands) -> bool:
        out, clean, residual, weights = operands
        finite = np.isfinite(self.x.astype(np.float32))
        np.testing.assert_array_equal(clean, np.where(finite, self.x, np.zeros_like(self.x)))
        sums = oracle.convolve(self.spec, clean, weights.kernel, weights.bias)
        with np.errstate(invalid="ignore"):
            out[:] = oracle.finish(self.spec, sums, residual).astype(out.dtype)
        return True

    def convolve_signs(self, signs: np.ndarray, weights: Weights) -> np.ndarray:
        return oracle.convolve(self.spec, signs, weights.kernel).astype(np.float32)


def assert_kinds(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> None:
    """Without any compiled convolution: against the oracle."""
    out = np.empty(spec.output_shape, x.dtype)
    residual = residual_of(spec)
    if residual is not None:
        residual.flat[::5] = np.resize(VALUES, residual.flat[::5].shape)

    doubts, weights = nonfinite.Doubts(), Weights(kernel, bias, 0)
    steps = OracleSteps(spec, x)
    assert nonfinite.fill(nonfinite.Operands(out, x, residual, weights), spec, doubts, True, steps)
    assert doubts.nonfinite
    with np.errstate(invalid="ignore"):
        expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias), residual)
    np.testing.assert_array_equal(kinds(out), kinds(expected))


def layer(**more: object) -> Conv3DSpec:
    base = Conv3DSpec(1, (6, 14, 15), 32, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3)
    return replace(base, **more)  # type: ignore[arg-type]


LAYERS = {
    "plain": layer(),
    "batch, no pads": layer(batch=2, pads=(Pads(0, 0),) * 3),
    "uneven pads": layer(pads=(Pads(2, 0), Pads(0, 3), Pads(1, 2))),
    "dilated": layer(dilation=(1, 2, 2), pads=(Pads(1, 1), Pads(2, 2), Pads(2, 2)), channels=48, filters=48),
    "strided": layer(size=(8, 28, 28), strides=(1, 2, 2), channels=64, filters=64),
    "grouped": layer(groups=2, channels=64, filters=64),
    "along rows": layer(size=(8, 32, 32), groups=32, kernel=(5, 5, 5), pads=(Pads(2, 2), Pads(2, 2), Pads(2, 2))),
    "unseen taps": layer(size=(1, 14, 15), pads=(Pads(1, 1), Pads(1, 1), Pads(1, 1)), channels=64, filters=64),
    "float16": layer(dtype="float16"),
    "bfloat16": layer(dtype="bfloat16"),
}


def both(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The second result for the same data, and that of the definition."""
    fast, strict = Executor(), Executor(accuracy="strict")
    fast.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    second = fast.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    return second, strict.convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))


def assert_alike(spec: Conv3DSpec, result: np.ndarray, expected: np.ndarray) -> None:
    finite = kinds(expected) == 0
    np.testing.assert_array_equal(kinds(result), kinds(expected))
    # some activations amplify the rounding
    bound = {"float32": 1e-5 if not spec.post_ops else 1e-4, "float16": 1e-3, "bfloat16": 8e-3}[spec.dtype]
    assert oracle.relative_error(result[finite], expected[finite]) < bound


@pytest.mark.parametrize(
    ("name", "data_format"), sampled(itertools.product(LAYERS, (CHANNELS_LAST, CHANNELS_FIRST)), 3)
)
@pytest.mark.parametrize("values", [VALUES[:1], VALUES], ids=["NaN", "all"])
def test_layers(name: str, data_format: str, values: tuple[float, ...]) -> None:
    spec = replace(LAYERS[name], data_format=data_format)
    assert Executor().plan_for(spec).algorithm.startswith("winograd")
    x = sprinkled(spec, 0, values, 3e-4)
    _, kernel, bias = data(spec)
    kernel[0, 0, 0, 0, 1::3] = 0
    assert_alike(spec, *both(spec, x, kernel, bias))


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "gelu"])
def test_biases_that_are_not_finite(activation: str) -> None:
    spec = layer(post_ops=(activation,))
    x = sprinkled(spec, 0, VALUES, 3e-4)
    _, kernel, bias = data(spec)
    assert bias is not None
    bias[:3] = VALUES
    assert_alike(spec, *both(spec, x, kernel, bias))


@pytest.mark.parametrize(
    ("dtype", "activation"), sampled(itertools.product(("float32", "float16", "bfloat16"), FUSED_ACTIVATIONS), 3)
)
def test_each_activation_makes_the_same_of_sums_that_are_not_finite(activation: str, dtype: str) -> None:
    filters = 5
    spec = Conv3DSpec(3, (1, 1, 1), 1, filters, (1, 1, 1), dtype=dtype, post_ops=(activation,))
    x = np.array(VALUES).reshape(spec.input_shape).astype(numpy_dtype(dtype))
    bias = np.array([0.5, *VALUES, -2.0]).astype(x.dtype)
    expected = Executor().convolve(spec, interchange.wrap(x), Weights(np.ones(spec.kernel_shape, x.dtype), bias, 0))
    results = nonfinite._results(spec, bias).view(x.dtype)
    np.testing.assert_array_equal(results.astype(np.float32), expected.reshape(3, filters).astype(np.float32))


class Log(list[str]):
    """Names of the algorithms that run, in order."""

    def take(self) -> list[str]:
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    found = Log()
    fill = CpuCall.fill

    def logged(self: CpuCall, *arguments: Any) -> bool:
        found.append(self.plan.algorithm)
        return fill(self, *arguments)

    monkeypatch.setattr(CpuCall, "fill", logged)
    return found  # type: ignore[return-value]


def caller(spec: Conv3DSpec) -> tuple[Callable[..., np.ndarray], np.ndarray, np.ndarray]:
    executor = Executor()
    x, kernel, bias = data(spec)

    def call(x: np.ndarray, kernel: np.ndarray = kernel, version: int = 0) -> np.ndarray:
        return executor.convolve(spec, interchange.wrap(x), Weights(kernel, bias, version))

    return call, x, kernel


def test_what_runs_for_nan(log: Log) -> None:
    call, x, _ = caller(layer())
    holes = sprinkled(layer(), 0, VALUES[:1])
    call(x)
    assert log.take() == ["winograd"]
    call(holes)
    assert log.take() == ["winograd", "winograd"]
    call(holes)
    assert log.take() == ["winograd"]
    call(x)
    call(x)
    assert log.take() == ["winograd", "winograd"]
    assert np.isfinite(call(x)).all()


def test_what_runs_for_infinities(log: Log) -> None:
    call, _, _ = caller(layer())
    x = sprinkled(layer(), 0, VALUES[1:])
    call(x)
    log.clear()
    call(x)
    assert log.take() == ["winograd", "winograd"]


def test_clean_data_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    call, x, _ = caller(layer())
    call(sprinkled(layer(), 0, VALUES[:1]))
    seen = []
    split = nonfinite._split
    monkeypatch.setattr(nonfinite, "_split", lambda *args: (seen.append(args), split(*args))[1])
    call(x)
    call(x)
    assert len(seen) == 1


def test_weights_that_are_not_finite_are_not_tried_again(log: Log) -> None:
    call, x, kernel = caller(layer())
    spoilt = kernel.copy()
    spoilt[1, 1, 1, 3, 5] = np.nan
    call(x, spoilt, 1)
    assert log.take() == ["winograd", "direct"]
    assert np.isnan(call(x, spoilt, 1)[..., 5]).all()
    assert log.take() == ["direct"]
    call(x, kernel, 2)
    call(x, kernel, 2)
    assert log.take() == ["winograd", "winograd"]


def test_data_that_overflow_are_not_tried_again(log: Log) -> None:
    call, x, _ = caller(layer())
    large = x.copy()
    large[0, 2, 3, 4, 5] = 3e38
    call(large)
    assert log.take() == ["winograd", "direct"]
    call(large)
    assert log.take() == ["direct"]
    large[0, 0] = np.nan
    call(large)
    assert log.take() == ["direct"]
    call(x)
    call(x)
    assert log.take() == ["winograd", "winograd"]


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_read_only_data_are_left_as_they_are(data_format: str) -> None:
    spec = layer(data_format=data_format)
    x = sprinkled(spec, 0, VALUES)
    before = x.copy()
    x.setflags(write=False)
    call, _, _ = caller(spec)
    call(x)
    np.testing.assert_array_equal(x, before)


def test_sums_of_signs_are_whole_where_they_are_trusted() -> None:
    """The worst there is: all elements infinite, all signs alike."""
    for spec in (layer(), layer(channels=64, filters=64), layer(channels=128)):
        plan = Executor().plan_for(nonfinite.sums_spec(spec))
        kernel, signs = np.ones(spec.kernel_shape, np.int8), np.ones(spec.input_shape, np.float32)
        executor = Executor()
        steps = cpu_backend._Steps(executor.prepared(spec, exact=False), executor)
        sums = steps.convolve_signs(signs, Weights(kernel, None, 0))
        expected = oracle.convolve(replace(spec, bias=False), signs, kernel)
        assert np.abs(sums - expected).max() < 0.1, plan


def test_clean_data_beside_data_with_nan() -> None:
    """Both threads note what they found of one spec; the one with NaN had a fifth of its results without."""
    layer = Conv3D(32, 3, padding="same")
    clean = np.random.default_rng(0).standard_normal((1, 6, 24, 24, 32)).astype(np.float32)
    holed = clean.copy()
    holed[:, 2:4] = np.nan
    expected = np.isnan(layer(holed))
    done, lost = threading.Event(), []

    def work() -> None:
        while not done.is_set():
            lost.extend([True] if np.isnan(layer(clean)).any() else [])

    other = threading.Thread(target=work)
    other.start()
    for _ in range(150):
        lost.extend([True] if (np.isnan(layer(holed)) != expected).any() else [])
    done.set()
    other.join()
    assert not lost
