"""A residual operand, added where results are stored: by all algorithms, in all layouts, and nothing else is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from problems import BOUNDS, WINOGRAD_BOUND, data, execute, numpy_dtype
from tvm_conv3d import reference
from tvm_conv3d.algorithms import algorithms
from tvm_conv3d.plan import Plan
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.targets import cpu_traits, host_target

DENSE = Conv3DSpec(2, (4, 7, 19), 8, 23, (3, 3, 3), pads=(Pads(1, 1),) * 3, post_ops=("add", "relu"))  # type: ignore[arg-type]

#: Layers that fill vectors and that do not, of which each algorithm takes some.
KINDS = {
    "odd": DENSE,
    "whole": replace(DENSE, filters=32, size=(4, 8, 32)),
    "pointwise": replace(DENSE, kernel=(1, 1, 1), pads=(Pads(0, 0),) * 3),  # type: ignore[arg-type]
    "few": replace(DENSE, filters=3),
    "grouped": replace(DENSE, channels=16, filters=16, groups=4),
    "shuffled": replace(DENSE, channels=24, filters=24, groups=12),
    "depthwise": replace(DENSE, channels=21, filters=21, groups=21, kernel=(3, 3, 5), pads=(Pads(1, 1),) * 3),  # type: ignore[arg-type]
    "dilated": replace(DENSE, dilation=(1, 2, 2), size=(4, 11, 19)),
}


def residual_of(spec: Conv3DSpec) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(spec.output_shape).astype(numpy_dtype(spec.dtype))


def plans(spec: Conv3DSpec) -> Iterator[Plan]:
    """Of each algorithm, the first variant, another one, and one that stores past the caches or in strips."""
    traits = cpu_traits(host_target(2))
    for name, algorithm in algorithms("llvm").items():
        variants = algorithm.variants(spec, traits)
        for variant in dict.fromkeys([*variants[:1], *variants[3:4]]):
            yield Plan(spec, name, variant, {})
            if hasattr(variant, "stream"):
                yield Plan(spec, name, replace(variant, stream=True), {})


def assert_right(plan: Plan, residual: np.ndarray | None = None) -> None:
    spec = plan.spec
    x, kernel, bias = data(spec)
    residual = residual_of(spec) if residual is None else residual
    out, trusted = execute(plan, x, kernel, bias, residual=residual)
    assert trusted
    expected = reference.finish(spec, reference.convolve(spec, x, kernel, bias), residual)
    assert reference.relative_error(out, expected) < max(BOUNDS[spec.dtype], WINOGRAD_BOUND), plan


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("name", KINDS)
def test_all_algorithms(name: str, data_format: str) -> None:
    for plan in plans(replace(KINDS[name], data_format=data_format)):
        assert_right(plan)
