"""Sums of many terms are as exact as short ones, as they are summed in parts; short ones are summed as ever."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import test_spaces

import cuda_checks
from problems import BOUNDS, execute, numpy_dtype, run_plan
from sampling import sampled
from tvm_conv3d import Conv3D
from tvm_conv3d.compute.llvm.winograd_rows import WinogradRowsVariant
from tvm_conv3d.compute.shared import stages
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve, traits_of

GPU = resolve("cuda:sm_80", 1)

#: Long sums of each algorithm, of odd sizes, so that the last part is smaller. In one part their relative errors are
#: 2.1e-6 (30,001 terms) to 3.2e-6 (42,014 terms) with numbers at random between 0 and 1.
LONG = {
    "direct": [
        Conv3DSpec(1, (8, 9, 12), 47, 24, (7, 9, 11), pads=(Pads(1, 0), Pads(0, 1), Pads(2, 1))),
        Conv3DSpec(1, (1, 2, 3), 30011, 9, (1, 1, 1)),
        Conv3DSpec(1, (1, 4, 5000), 7, 20, (1, 2, 3001)),
    ],
    "grouped": [Conv3DSpec(1, (13, 14, 21), 32, 32, (13, 15, 21), pads=(Pads(0, 0), Pads(1, 2), Pads(1, 1)), groups=4)],
    "depthwise": [
        Conv3DSpec(1, (31, 32, 34), 20, 20, (31, 33, 32), pads=(Pads(1, 0), Pads(1, 1), Pads(0, 0)), groups=20)
    ],
    "planes": [Conv3DSpec(1, (13, 15, 31), 11, 3, (13, 15, 17), pads=(Pads(1, 0), Pads(0, 1), Pads(1, 1)))],
    "winograd": [Conv3DSpec(1, (1, 5, 9), 30001, 20, (1, 3, 3))],
    "winograd_rows": [
        Conv3DSpec(1, (89, 91, 12), 8, 8, (89, 91, 5), groups=2, pads=(Pads(1, 0), Pads(0, 1), Pads(1, 1)))
    ],
}

#: Depthwise rows are declared in channels_last only.
CASES = [
    (name, replace(spec, data_format=data_format))
    for name, specs in LONG.items()
    for spec in specs
    for data_format in ([CHANNELS_LAST] if name == "depthwise" else [CHANNELS_LAST, CHANNELS_FIRST])
]

SHORT = {
    "direct": Conv3DSpec(1, (4, 6, 6), 37, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3),
    "grouped": Conv3DSpec(1, (8, 8, 8), 32, 32, (3, 3, 3), groups=4),
    "depthwise": Conv3DSpec(1, (8, 8, 8), 20, 20, (7, 7, 7), groups=20),
    "planes": Conv3DSpec(1, (8, 8, 16), 16, 3, (3, 3, 3), data_format=CHANNELS_FIRST),
    "winograd": Conv3DSpec(1, (8, 8, 8), 512, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3),
    "winograd_rows": Conv3DSpec(1, (9, 9, 16), 32, 32, (7, 7, 7), groups=32, pads=(Pads(3, 3),) * 3),
}


def plan_of(name: str, spec: Conv3DSpec) -> Plan:
    variants = algorithms("llvm")[name].variants(spec, cpu_traits(host_target(2)))
    # the rules leave long kernels along rows to other algorithms
    return Plan(spec, name, variants[0] if variants else WinogradRowsVariant(2, (1, 4, 2), 8, 4, 2), {})


def positive(spec: Conv3DSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(0)
    x, kernel = (rng.random(shape).astype(spec.accumulator) for shape in (spec.input_shape, spec.kernel_shape))
    return x, kernel, rng.random(spec.filters).astype(spec.accumulator) if spec.bias else None


def scheduled(plan: Plan) -> str:
    return str(scheduling.scheduled_module(plan, host_target(2)).script())


@pytest.mark.parametrize("accuracy", ["default", "strict"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_mean_of_a_large_window(data_format: str, accuracy: str) -> None:
    """262,144 numbers of 250 to 320, weighted alike: in one part 6e-5 off, numpy/numpy#29772."""
    shape = (1, 16, 16, 16, 64) if data_format == CHANNELS_LAST else (1, 64, 16, 16, 16)
    x = np.random.default_rng(0).uniform(250, 320, shape).astype(np.float32)
    layer = Conv3D(1, 16, data_format=data_format, use_bias=False, accuracy=accuracy)
    layer.build(shape)
    weight = np.float32(1 / x.size)
    layer.set_weights([np.full((16, 16, 16, 64, 1), weight)])
    expected = x.sum(dtype=np.float64) * np.float64(weight)
    assert abs(float(np.asarray(layer(x)).item()) / expected - 1) < 1.5e-6


@pytest.mark.parametrize(("name", "spec"), sampled(CASES, 2), ids=[f"{name} {spec.key()}" for name, spec in CASES])
def test_long_sums_of_positive_numbers(name: str, spec: Conv3DSpec) -> None:
    plan, given = plan_of(name, spec), positive(spec)
    out, trusted = execute(plan, *given)
    assert trusted
    assert oracle.relative_error(out, oracle.convolve(spec, *given)) < 5e-7


@pytest.mark.parametrize("channels", [4096, 8191, 262144])
def test_equal_terms(channels: int) -> None:
    """Their roundings all have one sign: in one part 2.9e-5, 5.8e-5 and 1.9e-3 off."""
    spec = Conv3DSpec(1, (1, 2, 6), channels, 8, (1, 1, 1), bias=False)
    x = np.full(spec.input_shape, 0.3, np.float32) * np.linspace(0.4, 1, 6, dtype=np.float32)[:, None]
    kernel = np.full(spec.kernel_shape, 0.7, np.float32)
    out, _ = execute(plan_of("direct", spec), x, kernel, None)
    assert oracle.relative_error(out, oracle.convolve(spec, x, kernel)) < 1.2e-5


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(dtype: str) -> None:
    """Half types are summed in float32, and rounded once at the end."""
    spec = Conv3DSpec(1, (1, 1, 3), 65537, 8, (1, 1, 1), dtype=dtype, bias=False)
    x, kernel, _ = positive(replace(spec, dtype="float64"))
    x, kernel = x.astype(numpy_dtype(dtype)), (kernel / 1024).astype(numpy_dtype(dtype))
    out, _ = execute(plan_of("direct", spec), x, kernel, None)
    bound = {"float64": 1e-15, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert oracle.relative_error(out, oracle.convolve(spec, x, kernel)) < bound


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_numbers_are_neither_lost_nor_changed(value: float) -> None:
    spec = replace(LONG["direct"][0], bias=False)
    x, kernel, _ = positive(spec)
    x[0, 4, 4, 5, 3] = value
    out, _ = execute(plan_of("direct", spec), x, kernel, None)
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(expected := oracle.convolve(spec, x, kernel)))
    np.testing.assert_array_equal(out[~np.isfinite(out)], expected[~np.isfinite(expected)].astype(np.float32))


@pytest.mark.parametrize(("name", "spec"), sampled(test_spaces.CASES, 4))
def test_parts_of_all_kinds_of_schedules(name: str, spec: Conv3DSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few terms, so that any loop is cut: of taps and channels, unrolled or under a condition.

    Only the channels of shuffled groups can't be, the 12 terms of a tap: there are never as many as a part has.
    """
    monkeypatch.setattr(stages, "PART", 13)
    for plan in test_spaces.random_points(named(name), spec, 2):
        bound = BOUNDS[spec.dtype] if named(name).exact else 1e-5
        assert run_plan(plan) < bound, plan.describe()


@pytest.mark.parametrize("name", list(SHORT))
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_long_sums_of_which_an_activation_is_taken(name: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that calls functions of our own brings their texts into the code, around all else."""
    monkeypatch.setattr(stages, "PART", 40)
    plan = plan_of(name, replace(SHORT[name], post_ops=(activation,)))
    assert run_plan(plan) < (BOUNDS["float32"] if named(name).exact else 1e-5)


@pytest.mark.parametrize("name", list(SHORT))
def test_short_sums_have_the_code_they_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(name, SHORT[name])
    found = scheduled(plan)
    monkeypatch.setattr(stages, "PART", 10**9)
    assert found == scheduled(plan)


@pytest.mark.parametrize(("name", "spec"), CASES[::2], ids=[f"{name} {spec.key()}" for name, spec in CASES[::2]])
def test_variants_that_compete_while_tuning_sum_in_parts(name: str, spec: Conv3DSpec) -> None:
    for variant in algorithms("llvm")[name].variants(spec, cpu_traits(host_target(2)))[:6]:
        assert "_local_part = " in scheduled(Plan(spec, name, variant, {})), variant


ON_GPU = [
    ("gemm", Conv3DSpec(1, (4, 5, 6), 19, 24, (3, 3, 3), pads=(Pads(1, 1),) * 3)),
    ("gemm", Conv3DSpec(1, (3, 5, 6), 37, 40, (3, 1, 2), dtype="float64", data_format=CHANNELS_FIRST)),
    ("window", Conv3DSpec(1, (4, 5, 6), 23, 4, (3, 3, 3), pads=(Pads(1, 1),) * 3)),
    ("winograd_gemm", Conv3DSpec(1, (4, 8, 8), 147, 32, (3, 3, 3), pads=(Pads(1, 1),) * 3)),
    ("tensor_gemm", Conv3DSpec(1, (4, 5, 6), 40, 70, (3, 3, 3), dtype="bfloat16", data_format=CHANNELS_FIRST)),
    ("tensor_gemm", Conv3DSpec(2, (9, 10, 9), 32, 70, (3, 3, 3), dtype="float16", pads=(Pads(1, 1),) * 3)),
]


def gpu_plan(name: str, spec: Conv3DSpec) -> Plan:
    """In one part, and of those that compete that with most filters in a tile: its warps have several fragments."""
    variant = max(algorithms("cuda")[name].variants(spec, traits_of(GPU)), key=lambda v: getattr(v, "filters", 0))
    return Plan(spec, name, replace(variant, parts=1) if hasattr(variant, "parts") else variant, {})


def test_gpus_sum_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so short that there are many, with a shorter one at the end."""
    monkeypatch.setattr(stages, "PART_ON_GPU", 100)
    plans = [gpu_plan(*case) for case in ON_GPU]
    for plan in plans:
        assert "_part = " in str(scheduling.scheduled_module(plan, GPU).script()), plan
    cuda_checks.assert_right(plans)


@pytest.mark.parametrize("name", ["gemm", "window"])
def test_long_sums_on_gpus(name: str) -> None:
    """29,601 terms: in one part 2.6e-6 and 3.0e-6 off."""
    spec = Conv3DSpec(1, (9, 11, 15), 23, 24 if name == "gemm" else 4, (9, 11, 13), bias=False)
    plan, given = gpu_plan(name, spec), positive(spec)
    (out,) = cuda_checks.compute([plan], [given])
    assert cuda_checks.relative_error(spec, out, *given) < 1e-6


def test_long_sums_of_bad_tiles_on_gpus() -> None:
    """Where a number is not finite, cells beside its windows are summed by the definition: in one part 1.4e-6 off."""
    spec = Conv3DSpec(1, (4, 8, 8), 1501, 16, (3, 3, 3), pads=(Pads(1, 1),) * 3, bias=False)
    x, kernel, _ = positive(spec)
    x[0, 1, 1, 1, 5] = np.inf
    plan = gpu_plan("winograd_gemm", spec)
    assert "direct_local_part = " in str(scheduling.scheduled_module(plan, GPU).script())
    (out,) = cuda_checks.compute([plan], [(x, kernel, None)])
    expected = oracle.convolve(spec, x, kernel)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(out), finite)
    assert oracle.relative_error(out[finite], expected[finite]) < 1e-6


def test_parts_of_very_long_sums_are_no_fewer_terms_than_parts() -> None:
    assert [stages.terms_of_part(n) for n in (1, 1025, 2**20, 2**22)] == [1024, 1024, 1024, 2048]


def test_error_bound_ends_to_grow_where_parts_begin() -> None:
    """Of data without structure: an eighth of what one part of 262,144 terms would have."""
    bounds = []
    for channels in (64, 1024, 4096, 262144):
        spec = Conv3DSpec(1, (1, 2, 6), channels, 8, (1, 1, 1))
        bounds.append(named("direct").error_bound(spec, plan_of("direct", spec).variant))
    assert bounds == sorted(bounds)
    assert bounds[1] == pytest.approx(4 * bounds[0])
    assert bounds[3] < 1.2 * bounds[1]


def test_sums_of_a_part_stay_in_registers() -> None:
    """In the innermost loop, of products, nothing goes through the stack."""
    import tvm

    spec, target = Conv3DSpec(1, (4, 14, 14), 128, 64, (3, 3, 3), pads=(Pads(1, 1),) * 3), host_target(2)
    plan = make_plan(spec, target, exact=True)
    module = scheduling.lowered_module(scheduling.scheduled_module(plan, target), target)
    lines = str(tvm.compile(module, target=target.as_tvm()).mod.inspect_source("asm")).splitlines()
    labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"(\.?L\w+):", line))}
    jumps = [(labels.get(line.split()[-1], i), i) for i, line in enumerate(lines) if re.match(r"\s+(j|b)", line)]
    loops = [(first, last) for first, last in jumps if first < last]
    innermost = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    bodies = [lines[first:last] for first, last in innermost]
    products = [body for body in bodies if sum("vfmadd" in line or "fmla" in line for line in body) >= 8]
    assert products
    assert not [line for body in products for line in body if "(%rsp)" in line or "[sp" in line]
