"""A residual operand, added where results are stored: by all algorithms, in all layouts, within its bounds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import cuda_checks
from problems import BOUNDS, WINOGRAD_BOUND, data, execute, fenced, residual_of
from sampling import sampled
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, NO_PADS, Conv3DSpec, Pads
from tvm_conv3d.spec.post_ops import parsed
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve, traits_of

SAME = (Pads(1, 1),) * 3
DENSE = Conv3DSpec(2, (4, 7, 19), 8, 23, (3, 3, 3), pads=SAME, post_ops=("add", "relu"))  # type: ignore[arg-type]

#: Layers that fill vectors and that do not, of which each algorithm takes some.
KINDS = {
    "odd": DENSE,
    "whole": replace(DENSE, filters=32, size=(4, 8, 32)),
    "pointwise": replace(DENSE, kernel=(1, 1, 1), pads=NO_PADS),
    "few": replace(DENSE, filters=3),
    "grouped": replace(DENSE, channels=16, filters=16, groups=4),
    "shuffled": replace(DENSE, channels=24, filters=24, groups=12),
    "depthwise": replace(DENSE, channels=21, filters=21, groups=21, kernel=(3, 3, 5)),
    "dilated": replace(DENSE, dilation=(1, 2, 2), size=(4, 11, 19)),
    "dilated evenly": replace(DENSE, dilation=(1, 2, 2), size=(4, 12, 18)),
}
FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)


def plans(spec: Conv3DSpec) -> Iterator[Plan]:
    """Of each algorithm two variants, and one that stores past the caches."""
    traits = cpu_traits(host_target(2))
    for name, algorithm in algorithms("llvm").items():
        variants = algorithm.variants(spec, traits)
        past = [replace(variant, stream=True) for variant in variants[:1] if hasattr(variant, "stream")]
        for variant in dict.fromkeys([*variants[:1], *past, *variants[3:4]]):
            yield Plan(spec, name, variant, {})


def assert_right(plan: Plan) -> None:
    spec = plan.spec
    x, kernel, bias = data(spec)
    residual = residual_of(spec)
    assert residual is not None
    out, trusted = execute(plan, x, kernel, bias, residual=fenced(residual))
    assert trusted
    expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias), residual)
    assert oracle.relative_error(out, expected) < max(BOUNDS[spec.dtype], WINOGRAD_BOUND), plan


@pytest.mark.parametrize(("name", "data_format"), sampled(itertools.product(KINDS, FORMATS), 5))
def test_all_algorithms(name: str, data_format: str) -> None:
    for plan in plans(replace(KINDS[name], data_format=data_format)):
        assert_right(plan)


def error_over_residual(plan: Plan) -> float:
    """The error of a result that is written over the residual operand."""
    spec = plan.spec
    x, kernel, bias = data(spec)
    residual = residual_of(spec)
    assert residual is not None
    expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias), residual)
    out, trusted = execute(plan, x, kernel, bias, out=residual, residual=residual)
    assert trusted and out is residual
    return oracle.relative_error(out, expected)


@pytest.mark.parametrize("name", sampled([*KINDS], 5))
def test_results_are_written_over_residual_operands_with_the_channels_last(name: str) -> None:
    for plan in plans(KINDS[name]):
        assert error_over_residual(plan) < max(BOUNDS["float32"], WINOGRAD_BOUND), plan


def test_rows_of_a_single_channel_are_not_written_over_residual_operands() -> None:
    # vectors of a row overlap: what BoundCall.may_overwrite tells
    found = [plan for plan in plans(replace(KINDS["odd"], filters=1)) if plan.algorithm == "planes"]
    assert found and all(error_over_residual(plan) > 1e-3 for plan in found)


def test_each_algorithm_is_tried() -> None:
    kinds = [replace(spec, data_format=data_format) for spec in KINDS.values() for data_format in ("channels_last",)]
    forward = {name for name, algorithm in algorithms("llvm").items() if not algorithm.of_weights}
    assert {plan.algorithm for spec in kinds for plan in plans(spec)} == forward


@pytest.mark.parametrize(
    ("name", "dtype", "data_format"),
    sampled(itertools.product(("odd", "grouped", "depthwise"), ("float64", "float16", "bfloat16"), FORMATS), 5),
)
def test_types(name: str, dtype: str, data_format: str) -> None:
    spec = replace(KINDS[name], dtype=dtype, data_format=data_format)
    for found in {plan.algorithm: plan for plan in plans(spec)}.values():
        assert_right(found)


def test_strips() -> None:
    (plan, *_) = (plan for plan in plans(KINDS["odd"]) if plan.algorithm == "direct")
    assert_right(replace(plan, variant=replace(plan.variant, order="strips"), decisions={"strip": 2}))


@pytest.mark.parametrize(
    ("chain", "bias", "name", "data_format"),
    sampled(
        itertools.product(
            ("add", "relu+add", "leaky_relu:0.1+add+gelu:tanh", "elu+add"), (True, False), ("odd", "whole"), FORMATS
        ),
        9,
    ),
)
def test_any_place_in_the_chain(chain: str, bias: bool, name: str, data_format: str) -> None:
    spec = replace(KINDS[name], post_ops=parsed(chain), bias=bias, data_format=data_format)
    for found in {plan.algorithm: plan for plan in plans(spec)}.values():
        assert_right(found)


def test_what_is_not_finite_passes_as_by_the_definition() -> None:
    for found in {plan.algorithm: plan for plan in plans(KINDS["odd"])}.values():
        x, kernel, bias = data(found.spec)
        residual = residual_of(found.spec)
        assert residual is not None
        residual.flat[:3] = (np.nan, np.inf, -np.inf)
        out, _ = execute(found, x, kernel, bias, residual=residual)
        np.testing.assert_array_equal(out.flat[:3], [np.nan, np.inf, 0])
        assert np.isfinite(out.flat[3:]).all()


def gpu_plans(spec: Conv3DSpec) -> Iterator[Plan]:
    """Of each algorithm the first variant, and one whose reduction is cut into parts."""
    for name, algorithm in algorithms("cuda").items():
        variants = algorithm.variants(spec, traits_of(resolve("cuda:sm_80", 1)))
        in_parts = [variant for variant in variants if getattr(variant, "parts", 1) > 1]
        for variant in dict.fromkeys([*variants[:1], *in_parts[:1]]):
            yield Plan(spec, name, variant, {})


@pytest.mark.parametrize("data_format", sampled(FORMATS, 2))
def test_gpus(data_format: str, machine: str) -> None:
    """The emulator checks that each access is in bounds."""
    base = Conv3DSpec(2, (3, 5, 6), 32, 24, (3, 3, 3), pads=SAME, post_ops=("add", "gelu"), data_format=data_format)  # type: ignore[arg-type]
    kinds = [
        base,
        replace(base, filters=21, channels=20),
        replace(base, filters=3),
        replace(base, channels=12, filters=24, groups=12),
        replace(base, dtype="bfloat16"),
        replace(base, dtype="float64", post_ops=("relu", "add")),
    ]
    found = [plan for spec in kinds for plan in gpu_plans(spec)]
    assert {plan.algorithm for plan in found} == cuda_checks.forward_algorithms()
    assert any(getattr(plan.variant, "parts", 1) > 1 for plan in found)
    cuda_checks.assert_right(found, machine=machine)
