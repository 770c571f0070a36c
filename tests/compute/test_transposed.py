"""Transposed convolution, a data gradient, against the oracle's scatter-add and against PyTorch."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing_oracle import filter_bias, live_weights
from problems import BOUNDS, WINOGRAD_BOUND, assert_right, data, data_gradients, numpy_dtype, run, run_plan
from sampling import sampled
from transposed_cases import GEOMETRIES, ONE, gradient
from tvm_conv3d.compute.shared.canonical import CanonicalSpec, canonicalize
from tvm_conv3d.engine import planner
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.engine.records.record import Record
from tvm_conv3d.engine.scheduling import schedule
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DATA_GRADIENT, FORWARD, Conv3DSpec, Pads, Triple
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import instruction_set


@settings(max_examples=300, deadline=None, derandomize=True)
@given(spec=data_gradients())
def test_the_canonical_form_is_the_same_problem(spec: Conv3DSpec) -> None:
    """A forward convolution by the oracle, its filters woven into the result by the definition of phases."""
    canonical = canonicalize(spec)
    rng = np.random.default_rng(0)
    y, kernel = rng.standard_normal(spec.input_shape), rng.standard_normal(spec.kernel_shape)
    bias = rng.standard_normal(spec.channels)
    merged = as_spec(canonical)
    filters = oracle.convolve(
        merged, y.reshape(merged.input_shape), live_weights(canonical, kernel), filter_bias(canonical, bias)
    )
    result = woven(canonical, filters).reshape(spec.output_shape)
    np.testing.assert_allclose(result, oracle.convolve(spec, y, kernel, bias), atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(spec=data_gradients())
def test_numbers(spec: Conv3DSpec) -> None:
    assert_right(spec)


@pytest.mark.parametrize(
    ("geometry", "data_format"), sampled(itertools.product(GEOMETRIES, (CHANNELS_LAST, CHANNELS_FIRST)), 5)
)
def test_every_variant(geometry: tuple[Triple, Triple, Triple, Triple], data_format: str) -> None:
    """All algorithms that take it, of strides the direct one only; channels that fill vectors, and that do not."""
    kernel, strides, before, open_cells = geometry
    traits = cpu_traits(host_target(2))
    for channels, filters, groups, chain in ((32, 16, 1, ("relu",)), (20, 5, 1, ("add", "relu")), (16, 16, 16, ())):
        spec = gradient(
            (4, 5, 6),
            channels,
            filters,
            kernel,
            strides,
            before=before,
            open_cells=open_cells,
            groups=groups,
            data_format=data_format,
            post_ops=chain,
        )
        for name, algorithm in algorithms("llvm").items():
            variants = algorithm.variants(spec, traits)
            assert not variants or name == "direct" or max(strides) == 1
            for variant in variants[:: max(2, len(variants) // 2)]:
                bound = BOUNDS["float32"] if algorithm.exact else WINOGRAD_BOUND
                assert run_plan(Plan(spec, name, variant, {})) < bound, (name, variant, spec.key())


@pytest.mark.parametrize(
    ("dtype", "post_op"),
    sampled(itertools.product(("float32", "float64", "float16", "bfloat16"), ("leaky_relu:0.1", "gelu", "sigmoid")), 4),
)
def test_post_ops_and_types(dtype: str, post_op: str) -> None:
    for data_format in (CHANNELS_LAST, CHANNELS_FIRST):
        for channels in (16, 5):
            more = {"before": ONE, "dtype": dtype, "data_format": data_format, "post_ops": (post_op,)}
            assert_right(gradient((3, 4, 5), channels, 8, (3, 3, 3), (2, 1, 2), **more))


@pytest.mark.parametrize("strides", [1, 2, 10**30])
@pytest.mark.parametrize("dilation", [1, 10**6, 10**20])
def test_no_geometry_costs_memory(strides: int, dilation: int) -> None:
    """Strides beyond the result and dilations beyond all sizes: few taps are left of them."""
    spec = of_last_tap(strides, dilation)
    assert max(canonicalize(spec).kernel) <= 9
    x, kernel, bias = data(spec)
    # as far as sizes reach the same, and not too much for the oracle
    alike = of_last_tap(min(strides, 7), min(dilation, 9))
    expected = oracle.convolve(alike, x, kernel, bias)
    assert oracle.relative_error(run(spec, x, kernel, bias), expected) < BOUNDS["float32"]


def of_last_tap(strides: int, dilation: int) -> Conv3DSpec:
    """One whose pads lay the last tap of the first window on the first cell."""
    pads = (Pads(2 * dilation, 0),) * 3
    return Conv3DSpec(1, (5, 5, 5), 3, 4, (3, 3, 3), (strides,) * 3, (dilation,) * 3, pads, direction=DATA_GRADIENT)


def test_cells_that_no_tap_reaches_are_the_bias() -> None:
    spec = gradient((2, 2, 2), 16, 3, (1, 1, 1), (3, 3, 3), open_cells=(2, 2, 2))
    x, kernel, bias = data(spec)
    result = run(spec, x, kernel, bias)
    reached = np.zeros(result.shape, bool)
    reached[:, ::3, ::3, ::3] = True
    assert bias is not None
    np.testing.assert_array_equal(result[~reached].reshape(-1, 16), np.broadcast_to(bias, (6**3 - 8, 16)))
    assert (result[reached].reshape(-1, 16) != bias).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(spec=data_gradients(), values=st.lists(st.sampled_from((np.nan, np.inf, -np.inf)), min_size=1, max_size=3))
def test_nonfinite_data_reach_the_cells_of_their_windows(spec: Conv3DSpec, values: list[float]) -> None:
    """A cell of the input that no tap of a phase takes does not meet that phase, not even times zero."""
    assert_kinds(spec, values)


@pytest.mark.parametrize(
    ("groups", "data_format"), sampled(itertools.product((1, 2), (CHANNELS_LAST, CHANNELS_FIRST)), 3)
)
def test_nonfinite_data_by_winograd(groups: int, data_format: str) -> None:
    spec = gradient((8, 12, 12), 32, 32 * groups, (3, 3, 3), before=ONE, groups=groups, data_format=data_format)
    assert Executor().plan_for(spec).algorithm.startswith("winograd")
    for values in ([np.nan], [np.inf], [np.nan, np.inf, -np.inf]):
        assert_kinds(spec, values)


def test_an_executor_keeps_apart_what_shares_shapes() -> None:
    """Pads that lay other taps on the same phases, and a forward problem of the same shapes."""
    executor = Executor()
    start = gradient((4, 4, 4), 8, 8, (3, 3, 3), (2, 2, 2), before=ONE, open_cells=ONE)
    specs = [replace(start, pads=(Pads(before, 1 - before),) * 3) for before in (0, 1, 2)]
    stride1 = gradient((6, 6, 6), 8, 8, (3, 3, 3), before=ONE)
    specs += [stride1, replace(stride1, direction=FORWARD)]
    x, kernel, bias = data(stride1)
    small = x[:, :4, :4, :4].copy()
    for spec in (*specs, *specs):
        source = small if spec.input_shape == small.shape else x
        result = executor.convolve(spec, interchange.wrap(source), Weights(kernel, bias, 0))
        expected = oracle.convolve(spec, source, kernel, bias)
        assert oracle.relative_error(result, expected) < WINOGRAD_BOUND, spec.key()


def test_shapes_are_checked() -> None:
    spec = gradient((4, 4, 4), 6, 8, (2, 2, 2), (2, 2, 2))
    x, kernel, bias = data(spec)
    assert bias is not None and bias.shape == (6,)
    for wrong in (
        (x[:, 1:], kernel, bias),
        (x, kernel[1:], bias),
        (x, kernel, np.zeros(8, np.float32)),
        (x, kernel, None),
    ):
        with pytest.raises(ValueError, match="data_gradient"):
            run(spec, *wrong)


def test_accuracy_and_workspace() -> None:
    spec = gradient((8, 14, 14), 64, 64, (3, 3, 3), before=ONE)
    target = host_target(2)
    assert make_plan(spec, target).algorithm.startswith("winograd")
    assert Executor(accuracy="strict").plan_for(spec).algorithm == "direct"
    x, kernel, bias = data(spec)
    expected = oracle.convolve(spec, x, kernel, bias)
    result = Executor(accuracy="strict").convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))
    assert oracle.relative_error(result, expected) < BOUNDS["float32"]
    strided = gradient((8, 14, 14), 64, 64, (3, 3, 3), (2, 2, 2), before=ONE)
    needed = planner.bytes_per_thread(make_plan(strided, target), target)
    less = make_plan(strided, target, workspace_limit=needed - 1)
    assert planner.bytes_per_thread(less, target) < needed
    assert run_plan(less) < BOUNDS["float32"]


@pytest.mark.parametrize(("kernel", "strides", "before", "open_cells"), GEOMETRIES)
def test_keys_and_records_round_trip(
    kernel: Triple, strides: Triple, before: Triple, open_cells: Triple, tmp_path: Path
) -> None:
    spec = gradient((4, 5, 6), 8, 16, kernel, strides, before=before, open_cells=open_cells)
    assert Conv3DSpec.parse(spec.key()) == spec
    target = host_target(2)
    plan = planner.default_plan(spec, target, exact=True)
    variant = replace(plan.variant, columns=1)
    decisions = schedule(Plan(spec, plan.algorithm, variant, {}))[1].taken()
    about = {"isa": instruction_set(target), "cpu": "a CPU", "date": "2026-11-26", "versions": {}}
    record = Record(spec.key(), 2, plan.algorithm, asdict(variant), decisions, 1e-3, 2e-3, **about)  # type: ignore[arg-type]
    file = tmp_path / "records.jsonl"
    file.write_text(record.line() + "\n")
    found = make_plan(spec, target, logs=file)
    assert (found.origin, found.variant) == (str(file), variant)
    assert run_plan(found) < BOUNDS["float32"]


@pytest.mark.parametrize("strides", [1, 2, (3, 2, 1)])
@pytest.mark.parametrize(("dilation", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_against_torch(strides: int | Triple, dilation: int, groups: int) -> None:
    torch = pytest.importorskip("torch")
    steps: Triple = strides if isinstance(strides, tuple) else (strides,) * 3
    for taps, pad in itertools.product((2, 3), (0, 1)):
        more: Triple = (steps[0] - 1, steps[1] - 1, steps[2] - 1)
        spec = gradient(
            (3, 4, 5),
            8,
            12,
            (taps,) * 3,
            steps,
            dilation=(dilation,) * 3,
            before=(pad,) * 3,
            open_cells=more,
            groups=groups,
            data_format=CHANNELS_FIRST,
        )
        x, kernel, bias = data(spec)
        # (channels that are read, channels of a group of the result, taps)
        weight = np.moveaxis(kernel, (4, 3), (0, 1)).copy()
        given_ = map(torch.from_numpy, (x, weight, bias))
        expected = torch.nn.functional.conv_transpose3d(*given_, steps, pad, more, groups, dilation).numpy()
        assert oracle.relative_error(run(spec, x, kernel, bias), expected) < WINOGRAD_BOUND


def as_spec(canonical: CanonicalSpec) -> Conv3DSpec:
    """The forward convolution that a canonical form is."""
    names = ("batch", "size", "channels", "filters", "kernel", "strides", "dilation", "pads", "groups", "data_format")
    return Conv3DSpec(**{name: getattr(canonical, name) for name in names})


def woven(canonical: CanonicalSpec, filters: np.ndarray) -> np.ndarray:
    """The result, of the filters of all windows."""
    last = canonical.data_format == CHANNELS_LAST
    filters = filters if last else np.moveaxis(filters, 1, -1)
    result = np.full((canonical.batch, *canonical.result_size, canonical.groups, canonical.set_filters), np.nan)
    by_phase = filters.reshape(*filters.shape[:4], canonical.groups, *canonical.phases, canonical.set_filters)
    for phase in np.ndindex(*canonical.phases):
        into = result[
            (slice(None), *(slice(first, None, step) for first, step in zip(phase, canonical.phases, strict=True)))
        ]
        depth, height, width = into.shape[1:4]
        into[...] = by_phase[(slice(None), slice(depth), slice(height), slice(width), slice(None), *phase)]
    result = result.reshape(*result.shape[:4], -1)
    return result if last else np.moveaxis(result, -1, 1)


def assert_kinds(spec: Conv3DSpec, values: list[float]) -> None:
    """NaN, infinities and finite numbers stand where the oracle has them."""
    spec = replace(spec, dtype="float32" if spec.dtype == "float64" else spec.dtype)
    x, kernel, bias = data(spec)
    rng = np.random.default_rng(1)
    at = rng.random(x.shape) < 0.01
    at.flat[rng.integers(x.size)] = True
    x[at] = rng.choice(values, int(at.sum())).astype(numpy_dtype(spec.dtype))
    with np.errstate(invalid="ignore"):
        expected = oracle.convolve(spec, x, kernel, bias)
        result = run(spec, x, kernel, bias).astype(np.float64)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(result), kind(expected), err_msg=spec.key())
