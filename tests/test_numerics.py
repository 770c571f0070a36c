"""Results of the compiled kernels against the float64 oracle, and the oracle against the bare definition."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from problems import assert_right, data, kinds_of_layers, run, specs
from sampling import sampled
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec

FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)
BASE = Conv3DSpec(1, (6, 7, 8), 16, 24, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

examples = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(spec=specs())
def test_oracle_is_the_definition(spec: Conv3DSpec) -> None:
    """The oracle at the first and the last output cell, summed number by number."""
    x, kernel, bias = data(replace(spec, dtype="float64"))
    out = oracle.convolve(spec, x, kernel, bias)
    last = spec.data_format == CHANNELS_LAST
    for cell, f in itertools.product(((0, 0, 0), tuple(n - 1 for n in spec.out_size)), (0, spec.filters - 1)):
        total = 0.0 if bias is None else bias[f]
        group = f // spec.group_filters
        for *tap, c in np.ndindex(*spec.kernel, spec.group_channels):
            at = [
                o * s + t * d - p.before
                for o, s, t, d, p in zip(cell, spec.strides, tap, spec.dilation, spec.pads, strict=True)
            ]
            if all(0 <= i < n for i, n in zip(at, spec.size, strict=True)):
                channel = group * spec.group_channels + c
                value = x[(0, *at, channel)] if last else x[(0, channel, *at)]
                total += value * kernel[(*tap, c, f)]
        assert out[(0, *cell, f) if last else (0, f, *cell)] == pytest.approx(total, rel=1e-12, abs=1e-12)


@examples
@given(spec=specs())
def test_any_problem(spec: Conv3DSpec) -> None:
    assert_right(spec)


@pytest.mark.deep
@settings(examples, max_examples=200)
@given(spec=specs())
def test_many_problems(spec: Conv3DSpec) -> None:
    assert_right(spec)


@pytest.mark.parametrize(
    ("groups", "dtype", "data_format"),
    sampled(itertools.product((1, 2, 16), ("float32", "float64", "float16", "bfloat16"), FORMATS), 5),
)
def test_dtypes_formats_groups(groups: int, dtype: str, data_format: str) -> None:
    filters = 32 if groups == 16 else 24
    assert_right(replace(BASE, filters=filters, data_format=data_format, dtype=dtype, groups=groups))


@pytest.mark.parametrize(
    "spec",
    sampled([replace(spec, data_format=f) for spec in kinds_of_layers(BASE) for f in FORMATS], 3),
    ids=lambda spec: spec.key(),
)
def test_kinds_of_layers(spec: Conv3DSpec) -> None:
    assert_right(spec)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("groups", [1, 16])
def test_non_finite_values_reach_exactly_their_windows(value: float, groups: int) -> None:
    spec = replace(BASE, groups=groups, filters=16, strides=(1, 2, 1), bias=False)
    x, kernel, _ = data(spec)
    kernel = np.abs(kernel) + np.float32(0.1)
    clean = oracle.convolve(spec, x, kernel)
    x[0, 2, 3, 4, 5] = value
    result = run(spec, x, kernel, None)
    touched = np.zeros(spec.input_shape)
    touched[0, 2, 3, 4, 5] = 1
    reached = oracle.convolve(spec, touched, kernel) != 0
    np.testing.assert_array_equal(~np.isfinite(result), reached)
    assert oracle.relative_error(result[~reached], clean[~reached]) < 1e-5


def test_empty_outputs() -> None:
    for spec in (replace(BASE, batch=0), replace(BASE, size=(0, 4, 4))):
        x, kernel, bias = data(spec)
        assert run(spec, x, kernel, bias).shape == spec.output_shape
