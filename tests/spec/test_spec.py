"""Specs: what they refuse, that their keys tell all of them, and the oracle's answer to what is new in them."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_conv3d.reference import oracle
from tvm_conv3d.spec import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DATA_GRADIENT,
    DTYPES,
    FORWARD,
    WEIGHT_GRADIENT,
    Conv3DSpec,
    Pads,
)
from tvm_conv3d.spec.post_ops import ADD, FUSED_ACTIVATIONS, PARAMETERS, PostOp

BASE = Conv3DSpec(1, (6, 7, 8), 4, 6, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


@st.composite
def steps(draw: st.DrawFn) -> str:
    """A post-op, with any of its parameters given."""
    name = draw(st.sampled_from([ADD, *FUSED_ACTIVATIONS]))
    numbers = st.floats(0, allow_infinity=False, exclude_min=True, allow_subnormal=False).map(str)
    given = [draw(st.sampled_from(p.words) if p.words else numbers) for p in PARAMETERS.get(name, ())]
    if name == "hard_tanh":
        given.sort(key=float)
    return ":".join([name, *given[: draw(st.integers(0, len(given)))]] if name != "hard_tanh" else [name, *given])


@st.composite
def all_specs(draw: st.DrawFn) -> Conv3DSpec:
    """Any problem, with values for all fields."""
    triple = st.tuples(*[st.integers(1, 5)] * 3)
    kernel, dilation, size, apart = draw(triple), draw(triple), draw(triple), draw(triple)
    pads = []
    for n, k, d, z in zip(size, kernel, dilation, apart, strict=True):
        before = draw(st.integers(-4, 4))
        least = (k - 1) * d + 1 - (n - 1) * z - 1 - before
        pads.append(Pads(before, draw(st.integers(least, least + 9))))
    direction = draw(st.sampled_from([FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT]))
    chain = [] if direction == WEIGHT_GRADIENT else draw(st.lists(steps(), max_size=3))
    other_type = st.sampled_from([None, *DTYPES])
    groups = draw(st.integers(1, 3))
    return Conv3DSpec(
        batch=draw(st.integers(0, 3)),
        size=size,
        channels=groups * draw(st.integers(1, 9)),
        filters=groups * draw(st.integers(1, 9)),
        kernel=kernel,
        strides=draw(triple),
        dilation=dilation,
        pads=tuple(pads),  # type: ignore[arg-type]
        groups=groups,
        data_format=draw(st.sampled_from([CHANNELS_LAST, CHANNELS_FIRST])),
        dtype=draw(st.sampled_from(DTYPES)),
        bias=draw(st.booleans()),
        post_ops=tuple(step for i, step in enumerate(chain) if step != ADD or ADD not in chain[:i]),
        direction=direction,
        input_dilation=apart,
        weights_dtype=draw(other_type),
        output_dtype=draw(other_type),
    )


@settings(max_examples=500, deadline=None, derandomize=True)
@given(spec=all_specs())
def test_a_key_is_the_problem(spec: Conv3DSpec) -> None:
    key = spec.key()
    assert Conv3DSpec.parse(key) == spec
    assert re.fullmatch(r"[A-Za-z0-9_.:+-]+", key)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(one=all_specs(), other=all_specs(), names=st.sets(st.sampled_from([f.name for f in fields(Conv3DSpec)])))
def test_other_problems_have_other_keys(one: Conv3DSpec, other: Conv3DSpec, names: set[str]) -> None:
    try:
        mixed = replace(one, **{name: getattr(other, name) for name in names})
    except ValueError:
        return
    assert (mixed.key() == one.key()) == (mixed == one)


def test_keys_of_old_problems_stay() -> None:
    old = "n2_i16x56x40x64_o32_k3x1x3_s1x2x1_d1x1x2_p1.1x0.0x1.2_g2_ncdhw_bfloat16_nobias_linear"
    assert Conv3DSpec.parse(old).key() == old
    assert Conv3DSpec.parse(old).post_ops == ()
    relu = old.replace("nobias_linear", "bias_leaky_relu")
    assert Conv3DSpec.parse(relu) == replace(Conv3DSpec.parse(old), bias=True, post_ops=("leaky_relu",))


def test_what_is_new_is_printed_where_it_is_not_usual() -> None:
    spec = replace(BASE, post_ops=("add", "leaky_relu:0.010"), input_dilation=(1, 2, 1), output_dtype="bfloat16")
    spec = replace(spec, pads=((1, 1), (-2, 3), (0, 0)), direction=DATA_GRADIENT)  # type: ignore[arg-type]
    assert spec.key() == (
        "n1_i6x7x8x4_o6_k3x3x3_s1x1x1_d1x1x1_z1x2x1_p1.1x-2.3x0.0_g1_data_gradient_ndhwc_float32_ybfloat16_bias"
        "_add+leaky_relu:0.01"
    )


def test_one_way_of_saying_it() -> None:
    assert replace(BASE, post_ops=("linear",)) == BASE
    assert replace(BASE, post_ops=("leaky_relu:0.2", "elu:1.0", "gelu:none", "hard_tanh:-1")).post_ops == (
        "leaky_relu",
        "elu",
        "gelu",
        "hard_tanh",
    )
    assert replace(BASE, post_ops=("hard_tanh:-1:2", "hard_tanh:-2:1")).post_ops == ("hard_tanh:-1:2", "hard_tanh:-2")
    assert replace(BASE, post_ops=("leaky_relu:-0",)) == replace(BASE, post_ops=("leaky_relu:0.0",))
    assert replace(BASE, weights_dtype="float32", output_dtype="float32") == BASE
    half = replace(BASE, weights_dtype="float32", dtype="bfloat16")
    assert half.dtypes == ("bfloat16", "float32", "bfloat16", "float32")
    assert replace(half, dtype="float32") == BASE
    assert replace(half, output_dtype="float64").accumulator == "float64"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"post_ops": "relu"}, r"must be a tuple of post-ops.*Received: 'relu'"),
        ({"post_ops": None}, "must be a tuple"),
        ({"post_ops": ("softmax",)}, "must be one of add, linear, relu, .*Received: 'softmax'"),
        ({"post_ops": (3,)}, "Received: 3"),
        ({"post_ops": ("relu:1",)}, "relu has these parameters: none. Received: 'relu:1'"),
        ({"post_ops": ("elu:x",)}, "`alpha` of elu must be a finite number. Received: 'elu:x'"),
        ({"post_ops": ("elu:nan",)}, "must be a finite number"),
        ({"post_ops": ("celu:0",)}, "must be a number above 0"),
        ({"post_ops": ("hard_shrink:-1",)}, "must be a number of at least 0"),
        ({"post_ops": ("gelu:fast",)}, "must be none or tanh"),
        ({"post_ops": ("hard_tanh:2",)}, "must not be above"),
        ({"post_ops": ("add", "relu", "add")}, "at most once"),
        ({"post_ops": ("relu",), "direction": WEIGHT_GRADIENT}, "no post-ops"),
        ({"direction": "backward"}, "`direction` must be one of forward, data_gradient, weight_gradient"),
        ({"weights_dtype": "int8"}, "`weights_dtype` must be one of"),
        ({"input_dilation": (0, 1, 1)}, "`input_dilation` must be three integers of at least 1"),
        ({"pads": ((-2, -2), (1, 1), (1, 1))}, "The input is too small"),
        ({"pads": ((1, 1), (1, 1))}, "`pads` must be three pairs"),
        ({"pads": ((1 << 40, 0), (1, 1), (1, 1))}, "The output is too large: .* and up to 2147483647 along an axis"),
        ({"pads": ((1 << 13, 0),) * 3}, "The output is too large: .* where up to 1099511627776 are computed"),
        ({"batch": 1 << 31}, "The input is too large"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)  # type: ignore[arg-type]


def test_steps_read_what_they_print() -> None:
    for text in (ADD, "relu", "leaky_relu:1e-07", "hard_tanh:-3", "softplus:1e300"):
        assert str(PostOp.parse(text)) == text
    assert str(PostOp.parse("softplus:1e+300")) == "softplus:1e300"


def test_shapes_by_direction() -> None:
    spec = replace(BASE, strides=(2, 2, 2), data_format=CHANNELS_FIRST)
    assert (spec.input_shape, spec.output_shape) == ((1, 4, 6, 7, 8), (1, 6, 3, 4, 4))
    back = replace(spec, direction=DATA_GRADIENT)
    assert (back.input_shape, back.output_shape) == ((1, 6, 3, 4, 4), (1, 4, 6, 7, 8))
    weights = replace(spec, direction=WEIGHT_GRADIENT)
    assert (weights.input_shape, weights.output_shape) == (spec.input_shape, spec.output_shape)
    assert spec.kernel_shape == back.kernel_shape == weights.kernel_shape == (3, 3, 3, 4, 6)
    # of several sizes with one output size, `size` says which
    assert replace(back, size=(5, 7, 7)).input_shape == back.input_shape


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spec=all_specs())
def test_the_oracle_of_gradients(spec: Conv3DSpec) -> None:
    """The gradient of the input is the transposed linear map: <convolve(x), y> = <x, gradient(y)>."""
    forward, backward = replace(spec, direction=FORWARD), replace(spec, direction=DATA_GRADIENT)
    rng = np.random.default_rng(0)
    x, kernel, y = map(rng.standard_normal, (forward.input_shape, spec.kernel_shape, forward.output_shape))
    result = oracle.convolve(backward, y, kernel)
    assert result.shape == backward.output_shape
    assert np.vdot(oracle.convolve(forward, x, kernel), y) == pytest.approx(np.vdot(x, result), rel=1e-9, abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spec=all_specs())
def test_the_oracle_of_signed_pads_and_input_dilation(spec: Conv3DSpec) -> None:
    """By the definition, at random output cells."""
    spec = replace(spec, direction=FORWARD, data_format=CHANNELS_LAST, batch=1, groups=1)
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(spec.input_shape), rng.standard_normal(spec.kernel_shape)
    cells = [(0, *(int(rng.integers(n)) for n in spec.out_size)) for _ in range(3)]
    expected = np.zeros((3, spec.filters))
    for row, (_, *cell) in zip(expected, cells, strict=True):
        for tap in np.ndindex(*spec.kernel):
            axes = zip(cell, spec.strides, tap, spec.dilation, spec.pads, strict=True)
            at = [o * s + t * d - pads.before for o, s, t, d, pads in axes]
            index = [i // z if i % z == 0 else -1 for i, z in zip(at, spec.input_dilation, strict=True)]
            if all(0 <= i < n for i, n in zip(index, spec.size, strict=True)):
                row += x[(0, *index)] @ kernel[tap]
    out = oracle.convolve(spec, x, kernel)
    np.testing.assert_allclose([out[cell] for cell in cells], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(oracle.convolve_at(spec, x, kernel, None, np.array(cells)), expected, atol=1e-9)
