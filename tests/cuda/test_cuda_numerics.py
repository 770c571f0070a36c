"""CUDA kernels against the float64 oracle, run on the CPU thread by thread: no GPU is needed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cuda_checks import assert_right, default_plans
from problems import kinds_of_layers
from sampling import sampled
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, Conv3DSpec, Pads

BASE = Conv3DSpec(1, (4, 5, 6), 16, 24, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]


def fixed(spec: Conv3DSpec) -> Conv3DSpec:
    return replace(spec, pads=tuple(Pads(*pair) for pair in spec.pads))  # type: ignore[arg-type]


@pytest.mark.parametrize("data_format", sampled((CHANNELS_LAST, CHANNELS_FIRST), 2))
def test_kinds_of_layers(data_format: str, machine: str) -> None:
    assert_right(
        default_plans(replace(spec, data_format=data_format) for spec in kinds_of_layers(BASE)), machine=machine
    )


@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtypes_formats_groups(data_format: str, dtype: str, machine: str) -> None:
    specs = [
        replace(fixed(BASE), filters=32 if groups == 16 else 24, data_format=data_format, dtype=dtype, groups=groups)
        for groups in (1, 2, 16)
    ]
    assert_right(default_plans(specs), machine=machine)


@pytest.mark.parametrize(
    ("dtype", "data_format"),
    sampled(itertools.product(("float16", "bfloat16"), (CHANNELS_LAST, CHANNELS_FIRST)), 3),
)
def test_tensor_cores(dtype: str, data_format: str, machine: str) -> None:
    plans = default_plans(replace(spec, dtype=dtype, data_format=data_format) for spec in kinds_of_layers(BASE)[:14])
    assert {plan.algorithm for plan in plans} >= {"tensor_gemm", "window"}
    assert_right(plans, machine=machine)


def test_older_gpus_have_no_tensor_cores_for_these(machine: str) -> None:
    specs = [replace(fixed(BASE), dtype=dtype) for dtype in ("float16", "bfloat16")]
    plans = default_plans(specs, "cuda:sm_75")
    assert [plan.algorithm for plan in plans] == ["gemm", "gemm"]
    assert_right(plans, "cuda:sm_75", machine=machine)
