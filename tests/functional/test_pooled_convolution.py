"""Maxima of convolutions in parts of the depth, against the float64 oracle's convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_training import windows

from tvm_conv3d.functional import pooled_convolution
from tvm_conv3d.functional.arguments import ConvArguments
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import kept_weights
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.spec import Conv3DSpec, Triple

RNG = np.random.default_rng(5)

#: Arguments of a spec, window, and windows along the depth in a part: the last part shorter or not, rests of windows,
#: strides, dilation, groups.
CASES: list[tuple[dict[str, Any], Triple, int]] = [
    ({"batch": 2, "size": (13, 9, 8), "channels": 1, "filters": 16}, (2, 2, 2), 2),
    ({"batch": 1, "size": (14, 7, 9), "channels": 3, "filters": 5, "bias": True}, (3, 1, 2), 1),
    ({"batch": 1, "size": (22, 9, 8), "channels": 2, "filters": 4, "strides": (2, 1, 1)}, (2, 2, 1), 2),
    ({"batch": 2, "size": (17, 9, 8), "channels": 4, "filters": 8, "dilation": (2, 1, 1), "groups": 2}, (1, 2, 2), 5),
    ({"batch": 1, "size": (12, 6, 6), "channels": 1, "filters": 3, "dtype": "float64"}, (2, 3, 2), 3),
]


def spec_of(**arguments: Any) -> Conv3DSpec:
    """With a ReLU and a kernel of 3x3x3."""
    return Conv3DSpec(**{"kernel": (3, 3, 3), "bias": False, "post_ops": ("relu",), **arguments})


def operands(spec: Conv3DSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Input, kernel and bias."""
    shapes = spec.input_shape, spec.kernel_shape, (spec.filters,) if spec.bias else None
    x, kernel, bias = (None if shape is None else RNG.standard_normal(shape).astype(spec.dtype) for shape in shapes)
    assert x is not None and kernel is not None
    return x, kernel, bias


@pytest.mark.parametrize(("arguments", "window", "at_once"), CASES)
def test_parts(arguments: dict[str, Any], window: Triple, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(**arguments)
    whole = spec.out_size[0] // window[0]
    plane = np.prod(spec.output_shape[2:]) * window[0] * np.dtype(spec.dtype).itemsize
    traits = pooled_convolution.traits_of(pooled_convolution.host_target(1))
    monkeypatch.setattr(pooled_convolution, "_OF_CACHE", (at_once + 0.5) * plane / traits.l3)
    assert pooled_convolution.windows_at_once(spec, window) == at_once < whole
    x, kernel, bias = operands(spec)
    weights = kept_weights.STORE.get(kernel, bias, spec.dtype, ConvArguments())
    found, cells = pooled_convolution.maxima(Executor(), spec, x, weights, window)
    values, _ = windows(oracle.finish(spec, oracle.convolve(spec, x, kernel, bias)), window)
    assert found.dtype == spec.dtype and found.shape == values.shape[:-1]
    assert oracle.relative_error(found, values.max(-1)) < 1e-6
    # whichever of equal ones it is: of a ReLU's zeros many are
    picked = np.take_along_axis(values, cells[..., None].astype(np.int64), -1)[..., 0]
    np.testing.assert_allclose(picked, values.max(-1), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "window"),
    [
        ({"channels": 64}, (2, 2, 2)),
        ({"pads": ((1, 1), (0, 0), (0, 0))}, (2, 2, 2)),
        ({"batch": 0}, (2, 2, 2)),
        ({"size": (4, 8, 8)}, (3, 2, 2)),
        ({"size": (4, 8, 8)}, (2, 2, 2)),
    ],
    ids=["many products", "pads along the depth", "no sample", "no window", "one plane of windows"],
)
def test_what_is_computed_as_a_whole(arguments: Any, window: Triple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled_convolution, "_OF_CACHE", 1e-9)
    spec = spec_of(**{"batch": 1, "size": (12, 8, 8), "channels": 1, "filters": 16, **arguments})
    assert pooled_convolution.windows_at_once(spec, window) is None
    x, kernel, _ = operands(spec)
    weights = kept_weights.STORE.get(kernel, None, spec.dtype, ConvArguments())
    found, cells = pooled_convolution.maxima(Executor(), spec, x, weights, window)
    values, _ = windows(oracle.finish(spec, oracle.convolve(spec, x, kernel)), window)
    assert found.shape == cells.shape == values.shape[:-1]
    if found.size:
        assert oracle.relative_error(found, values.max(-1)) < 1e-5


def test_what_lies_in_the_caches_is_computed_as_a_whole() -> None:
    small = spec_of(batch=1, size=(12, 12, 12), channels=1, filters=16)
    assert pooled_convolution.windows_at_once(small, (2, 2, 2)) is None
    large = spec_of(batch=1, size=(512, 128, 128), channels=1, filters=64)
    assert pooled_convolution.windows_at_once(large, (2, 2, 2)) is not None
