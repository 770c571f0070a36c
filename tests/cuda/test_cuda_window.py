"""Windows in registers on GPUs: pairs of depthwise filters in half types, and rows of taps one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cuda_checks import assert_right, default_plans
from cuda_on_cpu.execute import Order
from tvm_conv3d.compute.cuda.variants import WindowVariant
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine.algorithms import algorithms
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.schedules.cuda.costs.window import variants
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads
from tvm_conv3d.target.gpu import ARCHITECTURES

DEPTHWISE = Conv3DSpec(
    2, (3, 4, 7), 22, 22, (3, 3, 3), pads=(Pads(1, 1),) * 3, groups=22, dtype="float16", post_ops=("relu",)
)

GROUPED = replace(DEPTHWISE, channels=24, filters=18, groups=3, post_ops=())


OCTETS = replace(DEPTHWISE, size=(3, 5, 6), channels=16, filters=6, groups=2, post_ops=())


ROWS = replace(DEPTHWISE, size=(3, 5, 8), channels=4, filters=4, groups=4, data_format=CHANNELS_FIRST)


def plan(spec: Conv3DSpec, rows: int, columns: int, lanes: int = 1, planes: int = 1, **decisions: int) -> Plan:
    variant = WindowVariant(rows, columns, threads=32, lanes=lanes, planes=planes)
    return Plan(spec, "window", variant, decisions)


CASES = [
    plan(DEPTHWISE, 1, 4, 2),
    plan(replace(DEPTHWISE, dtype="bfloat16", post_ops=("add", "relu")), 1, 2, 2),
    plan(replace(DEPTHWISE, dtype="float32", bias=False), 1, 1, 2),
    plan(replace(DEPTHWISE, channels=24, filters=24, groups=24, strides=(1, 2, 2)), 1, 4, 4),
    plan(replace(DEPTHWISE, channels=24, filters=24, groups=24, dilation=(1, 2, 2)), 2, 2, 4),
    plan(replace(DEPTHWISE, kernel=(1, 7, 5), pads=(Pads(0, 0), Pads(3, 3), Pads(2, 2))), 1, 4, 2),
    plan(replace(DEPTHWISE, kernel=(1, 1, 30), pads=(Pads(0, 0), Pads(0, 0), Pads(14, 15))), 1, 1, 2),
    plan(replace(DEPTHWISE, kernel=(1, 2, 30), pads=(Pads(0, 0), Pads(0, 1), Pads(14, 15))), 1, 4, 2),
    plan(GROUPED, 1, 4),
    plan(GROUPED, 1, 4, unroll=2),
    plan(replace(GROUPED, dtype="float32"), 2, 1),
    plan(replace(GROUPED, kernel=(1, 1, 30), pads=(Pads(0, 0), Pads(0, 0), Pads(14, 15))), 1, 1),
    plan(replace(GROUPED, kernel=(1, 2, 30), pads=(Pads(0, 0), Pads(0, 1), Pads(14, 15))), 1, 2),
    # a line of taps along the height after the other
    plan(GROUPED, 4, 1),
    plan(replace(GROUPED, dtype="bfloat16", dilation=(1, 1, 2)), 3, 1),
    plan(replace(GROUPED, dtype="float32", kernel=(1, 30, 2), pads=(Pads(0, 0), Pads(14, 15), Pads(0, 1))), 4, 1),
    plan(replace(DEPTHWISE, strides=(1, 1, 2)), 4, 1, 2),
    # positions of a row at once: of two taps, of a tile's windows, of such that begin inside a vector
    *(
        plan(replace(ROWS, pads=(Pads(1, 1), Pads(1, 1), pads), strides=strides, dtype=dtype), rows, columns)
        for pads, strides, dtype, rows, columns in (
            (Pads(0, 1), (1, 2, 2), "float32", 4, 1),
            (Pads(1, 0), (1, 2, 2), "float16", 1, 1),
            (Pads(1, 1), (1, 1, 1), "bfloat16", 1, 4),
            (Pads(2, 3), (2, 1, 1), "float32", 2, 2),
            (Pads(3, 0), (1, 1, 4), "float32", 1, 3),
        )
    ),
    plan(replace(ROWS, channels=1, filters=5, groups=1, data_format="channels_last"), 1, 4),
    plan(replace(ROWS, kernel=(1, 2, 3), dilation=(1, 1, 2)), 1, 4),
    # eight channels at once, or fewer
    *(
        plan(replace(OCTETS, dtype=dtype), rows, columns, planes=planes, **decisions)
        for dtype, rows, columns, planes, decisions in (
            ("float16", 4, 1, 1, {}),
            ("float16", 1, 1, 1, {}),
            ("float16", 1, 4, 1, {"unroll": 4}),
            ("float16", 2, 2, 1, {}),
            ("float16", 1, 1, 2, {}),
            ("bfloat16", 4, 1, 1, {}),
        )
    ),
    # planes of a thread, whole or not, a line of taps along the depth after the other
    plan(replace(ROWS, strides=(1, 2, 2), pads=(Pads(1, 1), Pads(0, 1), Pads(0, 1))), 1, 1, planes=2),
    plan(replace(ROWS, dtype="float32", strides=(2, 1, 1), dilation=(1, 2, 1)), 1, 1, planes=4),
    plan(replace(ROWS, size=(9, 5, 7), kernel=(5, 3, 3), pads=(Pads(2, 2), Pads(1, 1), Pads(1, 1))), 1, 1, planes=4),
    plan(replace(ROWS, dilation=(2, 1, 1), pads=(Pads(2, 2), Pads(1, 1), Pads(1, 1))), 1, 2, planes=3),
    plan(
        replace(ROWS, size=(30, 3, 4), kernel=(30, 1, 2), pads=(Pads(14, 15), Pads(0, 0), Pads(0, 1))), 1, 1, planes=4
    ),
    plan(replace(GROUPED, dtype="float32"), 1, 1, planes=2),
    plan(DEPTHWISE, 1, 1, 2, planes=3),
]


@pytest.mark.parametrize("order", ["forward", "reverse", ("shuffled", 2)], ids=str)
def test_windows_are_right(order: Order) -> None:
    assert_right(CASES, order=order)


def test_windows_are_right_where_they_run(machine: str) -> None:
    assert_right(CASES[:2], machine=machine)


def test_pairs_of_filters_are_taken_in_half_types_of_channels_last() -> None:
    for spec, lanes in (
        (DEPTHWISE, 2),
        (replace(DEPTHWISE, dtype="float32"), 1),
        (replace(DEPTHWISE, data_format=CHANNELS_FIRST), 1),
        (replace(DEPTHWISE, channels=21, filters=21, groups=21), 1),
        (replace(DEPTHWISE, filters=44), 1),
        (GROUPED, 1),
    ):
        assert {variant.lanes for variant in variants(canonicalize(spec), ARCHITECTURES["sm_80"])} == {lanes}, spec
    assert_right(default_plans([DEPTHWISE]))


def test_planes_and_rows_of_a_thread_are_refused() -> None:
    with pytest.raises(ValueError, match="several planes or several rows"):
        algorithms("cuda")["window"].declare(ROWS, WindowVariant(2, 1, planes=2))


def test_short_rows_are_tiled_along_the_depth() -> None:
    """In channels_first, where the windows overlap along it at least as much as along the height."""
    for spec, planes in (
        (replace(ROWS, size=(50, 22, 22), channels=184, filters=184, groups=184, strides=(1, 2, 2)), 4),
        (replace(ROWS, size=(50, 32, 32), channels=184, filters=184, groups=184), 1),
        (replace(ROWS, size=(50, 22, 22), channels=184, filters=184, groups=184, strides=(2, 1, 1)), 1),
    ):
        best = variants(canonicalize(spec), ARCHITECTURES["sm_80"])[0]
        assert (best.planes, best.rows * best.planes) == (planes, 4), spec


def test_filters_whose_channels_lie_apart_are_refused() -> None:
    for spec in (GROUPED, replace(DEPTHWISE, data_format=CHANNELS_FIRST), replace(DEPTHWISE, filters=44)):
        with pytest.raises(ValueError, match="has no 2 filters whose channels lie side by side"):
            algorithms("cuda")["window"].declare(spec, WindowVariant(1, 4, lanes=2))
