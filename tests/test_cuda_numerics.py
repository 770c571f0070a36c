"""CUDA kernels against the float64 oracle, run on the CPU thread by thread: no GPU is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cuda_checks import assert_right, default_plans
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, NO_PADS, Conv3DSpec, Pads, same_padding

BASE = Conv3DSpec(1, (4, 5, 6), 16, 24, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

KINDS = [
    replace(BASE, kernel=(1, 1, 1), pads=NO_PADS, size=(3, 5, 7)),
    replace(BASE, kernel=(3, 1, 1), pads=((1, 1), (0, 0), (0, 0)), batch=2),
    replace(BASE, kernel=(1, 3, 3), pads=((0, 0), (1, 1), (1, 1)), batch=2),
    replace(BASE, kernel=(1, 1, 4), pads=((0, 0), (0, 0), (1, 2))),
    replace(BASE, kernel=(2, 4, 2), pads=same_padding(BASE.size, (2, 4, 2), (1, 1, 1), (1, 1, 1))),
    replace(BASE, kernel=(1, 1, 1), strides=(2, 2, 2), pads=NO_PADS),
    replace(BASE, kernel=(4, 4, 4), strides=(4, 4, 4), pads=NO_PADS, size=(9, 9, 9), channels=1, filters=33),
    replace(BASE, kernel=(5, 1, 1), strides=(4, 1, 1), pads=((2, 2), (0, 0), (0, 0))),
    replace(BASE, size=(2, 1, 1), channels=300, filters=130, kernel=(1, 3, 1)),
    replace(BASE, size=(1, 1, 1), kernel=(1, 1, 1), pads=NO_PADS, filters=1),
    replace(BASE, channels=1, filters=1, batch=3),
    replace(BASE, filters=100, channels=3),
    replace(BASE, pads=((5, 0), (0, 4), (3, 3))),
    replace(BASE, strides=(3, 2, 1), dilation=(1, 2, 3), pads=((2, 3), (4, 1), (3, 3))),
    replace(BASE, channels=54, filters=54, groups=54, kernel=(3, 3, 3)),
    replace(BASE, channels=54, filters=108, groups=54),
    replace(BASE, channels=12, filters=9, groups=3),
    replace(BASE, channels=64, filters=68, groups=2, batch=2, kernel=(2, 2, 2)),
]


def fixed(spec: Conv3DSpec) -> Conv3DSpec:
    return replace(spec, pads=tuple(Pads(*pair) for pair in spec.pads))  # type: ignore[arg-type]


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_kinds_of_layers(data_format: str) -> None:
    assert_right(default_plans(replace(fixed(spec), data_format=data_format) for spec in KINDS))


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtypes_formats_groups(data_format: str, dtype: str) -> None:
    specs = [
        replace(fixed(BASE), filters=32 if groups == 16 else 24, data_format=data_format, dtype=dtype, groups=groups)
        for groups in (1, 2, 16)
    ]
    assert_right(default_plans(specs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
def test_tensor_cores(dtype: str, data_format: str) -> None:
    plans = default_plans(replace(fixed(spec), dtype=dtype, data_format=data_format) for spec in KINDS[:14])
    assert {plan.algorithm for plan in plans} >= {"tensor_gemm", "window"}
    assert_right(plans)


def test_older_gpus_have_no_tensor_cores_for_these() -> None:
    specs = [replace(fixed(BASE), dtype=dtype) for dtype in ("float16", "bfloat16")]
    plans = default_plans(specs, "cuda:sm_75")
    assert [plan.algorithm for plan in plans] == ["gemm", "gemm"]
    assert_right(plans, "cuda:sm_75")
