"""Random problems, their data, and the bounds that results are held to."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import packing_oracle
from tvm_conv3d.engine import build
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.runtime import interchange, loader
from tvm_conv3d.runtime.cpu_weight_gradient import WeightGradientCall
from tvm_conv3d.runtime.executor import Executor
from tvm_conv3d.runtime.weights import Weights
from tvm_conv3d.spec import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DATA_GRADIENT,
    NO_PADS,
    WEIGHT_GRADIENT,
    Conv3DSpec,
    Pads,
    same_padding,
)
from tvm_conv3d.target.cpu import host_target

#: Largest relative error (2-norm) of a result: some roundings of the output's type,.
BOUNDS = {"float64": 1e-14, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


#: What default plans with Winograd's algorithm keep, in float32.
WINOGRAD_BOUND = 1e-5


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@st.composite
def specs(draw: st.DrawFn, post_ops: tuple[str, ...] = ()) -> Conv3DSpec:
    """Small problems of every kind: strides, dilations, groups up to depthwise, uneven pads, both layouts."""
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 5, 8)))
    group_channels, group_filters = draw(st.integers(1, 9)), draw(st.integers(1, 40 // groups))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(3))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(3))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(3))
    pads = tuple(Pads(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(3))
    size = tuple(
        draw(st.integers(max(1, (k - 1) * d + 1 - sum(p)), (k - 1) * d + 8))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    )
    return Conv3DSpec(
        batch=draw(st.integers(1, 3)),
        size=size,  # type: ignore[arg-type]
        channels=groups * group_channels,
        filters=groups * group_filters,
        kernel=kernel,  # type: ignore[arg-type]
        strides=strides,  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        pads=pads,  # type: ignore[arg-type]
        groups=groups,
        data_format=draw(st.sampled_from((CHANNELS_LAST, CHANNELS_FIRST))),
        dtype=draw(st.sampled_from(("float32", "float32", "float64", "float16", "bfloat16"))),
        bias=draw(st.booleans()),
        post_ops=post_ops,
    )


@st.composite
def data_gradients(draw: st.DrawFn, post_ops: tuple[str, ...] = ()) -> Conv3DSpec:
    """Small transposed convolutions of every kind: strides above kernels, pads that crop or exceed the window."""
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels, filters = groups * draw(st.integers(1, 40 // groups)), groups * draw(st.integers(1, 9))
    kernel, strides = (tuple(draw(st.integers(1, most)) for _ in range(3)) for most in (4, 3))
    dilation = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(3))
    cells = tuple(draw(st.integers(1, 5)) for _ in range(3))
    size, pads = [], []
    for n, k, s, d in zip(cells, kernel, strides, dilation, strict=True):
        window = (k - 1) * d + 1
        before = draw(st.integers(-2, window + 1))
        size.append(draw(st.integers(1, (n - 1) * s + window + 2)))
        # so many windows whatever the size of the result
        pads.append(Pads(before, (n - 1) * s + window - size[-1] - before + draw(st.integers(0, s - 1))))
    return Conv3DSpec(
        batch=draw(st.integers(1, 2)),
        size=tuple(size),  # type: ignore[arg-type]
        channels=channels,
        filters=filters,
        kernel=kernel,  # type: ignore[arg-type]
        strides=strides,  # type: ignore[arg-type]
        dilation=dilation,  # type: ignore[arg-type]
        pads=tuple(pads),  # type: ignore[arg-type]
        groups=groups,
        data_format=draw(st.sampled_from((CHANNELS_LAST, CHANNELS_FIRST))),
        dtype=draw(st.sampled_from(("float32", "float32", "float64", "float16", "bfloat16"))),
        bias=draw(st.booleans()),
        post_ops=post_ops,
        direction=DATA_GRADIENT,
    )


def kinds_of_layers(base: Conv3DSpec) -> list[Conv3DSpec]:
    """Cousins of `base`: pointwise, temporal, spatial, strided, dilated, tiny, wide, grouped, depthwise and so on."""
    found = [
        replace(base, kernel=(1, 1, 1), pads=NO_PADS, size=(3, 5, 7)),
        replace(base, kernel=(3, 1, 1), pads=((1, 1), (0, 0), (0, 0)), batch=2),
        replace(base, kernel=(1, 3, 3), pads=((0, 0), (1, 1), (1, 1)), batch=2),
        replace(base, kernel=(1, 1, 4), pads=((0, 0), (0, 0), (1, 2))),
        replace(base, kernel=(2, 4, 2), pads=same_padding(base.size, (2, 4, 2), (1, 1, 1), (1, 1, 1))),
        replace(base, kernel=(1, 1, 1), strides=(2, 2, 2), pads=NO_PADS),
        replace(base, kernel=(4, 4, 4), strides=(4, 4, 4), pads=NO_PADS, size=(9, 9, 9), channels=1, filters=33),
        replace(base, kernel=(5, 1, 1), strides=(4, 1, 1), pads=((2, 2), (0, 0), (0, 0))),
        replace(base, size=(2, 1, 1), channels=300, filters=130),
        replace(base, size=(1, 1, 1), kernel=(1, 1, 1), pads=NO_PADS, filters=1),
        replace(base, channels=1, filters=1, batch=3),
        replace(base, filters=100, channels=3),
        replace(base, pads=((5, 0), (0, 4), (3, 3))),
        replace(base, strides=(3, 2, 1), dilation=(1, 2, 3), pads=((2, 3), (4, 1), (3, 3))),
        replace(base, channels=54, filters=54, groups=54, kernel=(3, 3, 3)),
        replace(base, channels=54, filters=108, groups=54),
        replace(base, channels=12, filters=9, groups=3),
        replace(base, channels=64, filters=68, groups=2, batch=2),
    ]
    return [replace(spec, pads=tuple(Pads(*pair) for pair in spec.pads)) for spec in found]  # type: ignore[arg-type]


def data(spec: Conv3DSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Input in the spec's type; kernel and bias, representable in it, as float64 or float32."""
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(spec.dtype)
    x = rng.standard_normal(spec.input_shape).astype(dtype)
    kernel = (0.3 * rng.standard_normal(spec.kernel_shape)).astype(dtype)
    bias = rng.standard_normal(spec.result_channels).astype(dtype) if spec.bias else None
    return x, kernel, bias


def residual_of(spec: Conv3DSpec) -> np.ndarray | None:
    """The residual operand of a spec that has one, the same for the same shape; None where it has none."""
    if not spec.residual:
        return None
    return np.random.default_rng(1).standard_normal(spec.output_shape).astype(numpy_dtype(spec.dtype))


def fenced(array: np.ndarray) -> np.ndarray:
    """A copy that ends where the process may read no further."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    copy = np.frombuffer(memory, np.uint8, array.nbytes, size - array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run(spec: Conv3DSpec, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return Executor().convolve(spec, interchange.wrap(x), Weights(kernel, bias, 0))


def assert_right(spec: Conv3DSpec, seed: int = 0) -> None:
    """Runs `spec` on random data and compares with the oracle."""
    x, kernel, bias = data(spec, seed)
    result = run(spec, x, kernel, bias)
    expected = oracle.finish(spec, oracle.convolve(spec, x, kernel, bias))
    assert result.shape == spec.output_shape
    assert result.dtype == numpy_dtype(spec.dtype)
    winograd = Executor().plan_for(spec).algorithm.startswith("winograd")
    bound = max(BOUNDS[spec.dtype], WINOGRAD_BOUND) if winograd else BOUNDS[spec.dtype]
    assert oracle.relative_error(result, expected) < bound, spec.key()


def linked(plan: Plan) -> loader.Loaded:
    """The plan's code, compiled anew."""
    return loader.link(build.compile_plan(plan, host_target(2)))


def execute(
    plan: Plan,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    loaded: loader.Loaded | None = None,
) -> tuple[np.ndarray, bool]:
    """Compiles and runs `plan`: the result, in `out` where it is given, and whether all flags are finite.

    The residual operand is that of :func:`residual_of` unless another one is given, which may be `out` itself. The
    plan's code is compiled unless it is given.
    """
    packed_kernel, packed_bias = packing_oracle.pack(plan.algorithm, plan.spec, plan.variant, kernel, bias)
    loaded = loaded or linked(plan)
    if out is None:
        out = np.empty(plan.spec.output_shape, x.dtype)
    if out is not residual:
        out.fill(np.nan)
    code, function = loaded.main.code, loaded.main.function
    flags = {a.name: np.full(a.shape, np.nan, a.dtype) for a in function.of("flags")}
    arrays = {
        "x": x,
        "kernel": packed_kernel,
        "bias": packed_bias,
        "out": out,
        "residual": residual_of(plan.spec) if residual is None else residual,
        **flags,
    }
    code(*function.ordered({a.name: interchange.exported(arrays[a.name], a.shape) for a in function.arguments}))
    return out, all(np.isfinite(array).all() for array in flags.values())


def run_plan(plan: Plan) -> float:
    """Compiles and runs `plan` on random data; returns the relative error."""
    if plan.spec.direction == WEIGHT_GRADIENT:
        return _run_gradient(plan)
    x, kernel, bias = data(plan.spec)
    out, trusted = execute(plan, x, kernel, bias)
    assert trusted
    expected = oracle.finish(plan.spec, oracle.convolve(plan.spec, x, kernel, bias), residual_of(plan.spec))
    return oracle.relative_error(out, expected)


def _run_gradient(plan: Plan) -> float:
    """The same of a gradient of weights: the larger error of theirs and the bias's."""
    x, gradient = data(plan.spec)[0], np.random.default_rng(2).standard_normal(plan.spec.output_shape)
    gradient = gradient.astype(x.dtype)
    found = WeightGradientCall(plan, linked(plan)).run(*map(interchange.wrap, map(fenced, (x, gradient))))
    wanted = oracle.weight_gradient(plan.spec, x, gradient)
    # a spec without bias has no gradient of one
    pairs = [(one, other) for one, other in zip(found, wanted, strict=True) if one is not None]
    return max(oracle.relative_error(one, other) for one, other in pairs)
