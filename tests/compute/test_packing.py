"""Weights packed by compiled code: the same numbers, in the same places, as NumPy's packing gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import packing_oracle
from cuda_on_cpu import compile_modules, lower_module
from problems import data, data_gradients, specs
from tvm_conv3d.compute.cuda.implicit_gemm import GemmVariant
from tvm_conv3d.compute.cuda.tensor_gemm import TensorVariant
from tvm_conv3d.compute.cuda.window import WindowVariant
from tvm_conv3d.compute.cuda.winograd_gemm import WinogradGemmVariant
from tvm_conv3d.compute.llvm.depthwise import DepthwiseVariant
from tvm_conv3d.compute.llvm.direct import DirectVariant, declare_packing
from tvm_conv3d.compute.llvm.grouped import GroupedVariant
from tvm_conv3d.compute.llvm.planes import PlanesVariant
from tvm_conv3d.compute.llvm.winograd import WinogradVariant
from tvm_conv3d.compute.llvm.winograd_rows import WinogradRowsVariant
from tvm_conv3d.compute.shared import packing
from tvm_conv3d.compute.shared.argument import PACK
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import build
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.artifact import MAIN, Artifact
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.runtime import interchange, parallel, threads
from tvm_conv3d.spec import CHANNELS_FIRST, DATA_GRADIENT, Conv3DSpec, same_padding
from tvm_conv3d.target.cpu import cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve

#: What a case names: algorithm, spec, variant.
Case = tuple[str, Conv3DSpec, Any]


def layer(channels: int, filters: int, kernel: tuple[int, int, int], **more: Any) -> Conv3DSpec:
    size = more.pop("size", (6, 7, 8))
    pads = same_padding(size, kernel, more.get("strides", (1, 1, 1)), more.get("dilation", (1, 1, 1)))
    return Conv3DSpec(1, size, channels, filters, kernel, pads=pads, **more)


#: On an input of 1 x 2 x 8 the taps along depth but the middle one see padding only.
TRIMMED = layer(5, 18, (3, 3, 3), size=(1, 2, 8))
#: The last tap along height and width alone sees the input.
LAST_TAP = Conv3DSpec(1, (4, 1, 1), 3, 5, (2, 3, 3), pads=((0, 0), (2, 0), (2, 0)))  # type: ignore[arg-type]
#: A transposed convolution: along depth a phase has one tap, the other two; along width one of them has none.
UPSAMPLED = layer(10, 6, (3, 4, 1), strides=(2, 3, 2), direction=DATA_GRADIENT)

ON_CPUS: list[Case] = [
    ("direct", layer(16, 64, (3, 3, 3)), DirectVariant(16, 2, 1, 6)),
    ("direct", layer(48, 96, (3, 3, 3)), DirectVariant(16, 3, 1, 6)),
    ("direct", layer(5, 21, (2, 3, 1), bias=False), DirectVariant(8, 2, 1, 4)),
    ("direct", layer(12, 21, (3, 2, 2), groups=3), DirectVariant(8, 1, 1, 4)),
    ("direct", layer(24, 20, (1, 2, 3), groups=4), DirectVariant(8, 2, 1, 4, interleaved=2)),
    ("direct", layer(8, 24, (3, 1, 1), groups=8), DirectVariant(16, 1, 1, 4, interleaved=8)),
    ("direct", layer(7, 33, (1, 1, 1), dtype="float64"), DirectVariant(4, 2, 1, 4)),
    ("direct", layer(7, 33, (3, 3, 3), dtype="float16"), DirectVariant(16, 2, 1, 4)),
    ("direct", layer(16, 32, (3, 3, 3), dtype="bfloat16"), DirectVariant(16, 2, 1, 4)),
    ("direct", TRIMMED, DirectVariant(16, 1, 1, 4)),
    ("direct", LAST_TAP, DirectVariant(4, 1, 1, 1)),
    ("direct", UPSAMPLED, DirectVariant(8, 2, 1, 4)),
    ("direct", replace(UPSAMPLED, groups=2, dtype="bfloat16"), DirectVariant(4, 1, 1, 4)),
    ("direct", replace(UPSAMPLED, strides=(1, 1, 1)), DirectVariant(8, 2, 1, 4)),
    ("grouped", layer(24, 36, (3, 3, 3), groups=12), GroupedVariant(16, 1, 4)),
    ("grouped", layer(32, 32, (3, 1, 2), groups=8), GroupedVariant(16, 1, 4, shuffled=True)),
    ("grouped", layer(12, 12, (2, 2, 2), groups=6, dtype="bfloat16"), GroupedVariant(8, 1, 4, shuffled=True)),
    ("grouped", replace(TRIMMED, groups=5, filters=10), GroupedVariant(16, 1, 4)),
    ("depthwise", layer(54, 54, (3, 3, 3), groups=54), DepthwiseVariant(16, 1, 4)),
    ("depthwise", layer(16, 16, (1, 3, 5), groups=16, bias=False), DepthwiseVariant(8, 2, 2)),
    ("depthwise", layer(5, 5, (3, 3, 3), groups=5, size=(1, 1, 4), dtype="float16"), DepthwiseVariant(16, 1, 1)),
    ("planes", layer(5, 7, (3, 3, 3), data_format=CHANNELS_FIRST), PlanesVariant(8, 1, 2, 4)),
    ("planes", layer(6, 8, (1, 1, 1), groups=2, data_format=CHANNELS_FIRST), PlanesVariant(8, 1, 1, 4)),
    ("planes", layer(9, 3, (3, 3, 3), dtype="bfloat16", strides=(1, 2, 2)), PlanesVariant(8, 1, 1, 2)),
    ("winograd", layer(13, 21, (3, 3, 3)), WinogradVariant("ppp", (4, 3, 2), (1, 1, 2), 16, 1, 2)),
    ("winograd", layer(16, 64, (3, 3, 3)), WinogradVariant("ppp", (4, 4, 4), (1, 1, 2), 16, 2, 2)),
    ("winograd", layer(8, 8, (3, 3, 3), bias=False), WinogradVariant("fpp", (1, 4, 4), (1, 1, 2), 8, 1, 2)),
    ("winograd", layer(3, 16, (3, 2, 3)), WinogradVariant("fff", (1, 1, 1), (1, 1, 2), 16, 1, 2)),
    (
        "winograd",
        layer(4, 18, (3, 4, 5), strides=(2, 3, 2), size=(8, 9, 10)),
        WinogradVariant("sss", (2, 2, 3), (1, 1, 2), 16, 1, 2),
    ),
    (
        "winograd",
        layer(5, 8, (3, 5, 7), strides=(2, 2, 3), size=(7, 13, 10)),
        WinogradVariant("fys", (1, 3, 2), (2, 1, 2), 16, 1, 2),
    ),
    ("winograd", layer(5, 8, (3, 3, 3), strides=(2, 2, 2)), WinogradVariant("yyy", (2, 3, 2), (1, 1, 1), 8, 1, 1)),
    ("winograd", layer(3, 8, (3, 3, 3), dilation=(2, 1, 2)), WinogradVariant("dpd", (2, 2, 2), (1, 1, 1), 8, 1, 1)),
    (
        "winograd",
        layer(12, 24, (3, 3, 3), groups=4),
        WinogradVariant("ppp", (2, 2, 2), (1, 1, 1), 8, 1, 1, interleaved=2),
    ),
    ("winograd", layer(12, 42, (1, 3, 3), groups=2), WinogradVariant("ppp", (1, 4, 4), (1, 1, 1), 8, 1, 1)),
    ("winograd", layer(7, 9, (3, 3, 3), dtype="float16"), WinogradVariant("ppp", (2, 2, 4), (1, 1, 1), 16, 1, 1)),
    ("winograd", layer(7, 9, (3, 3, 3), dtype="float64"), WinogradVariant("ppp", (2, 2, 4), (1, 1, 1), 8, 1, 1)),
    ("winograd", TRIMMED, WinogradVariant("ppp", (1, 2, 4), (1, 1, 1), 16, 1, 1)),
    ("winograd_rows", layer(18, 18, (3, 3, 5), groups=18), WinogradRowsVariant(4, (1, 2, 2), 16, 1, 1)),
    ("winograd_rows", layer(12, 20, (1, 2, 7), groups=4, bias=False), WinogradRowsVariant(2, (1, 2, 2), 8, 1, 1)),
    ("winograd_rows", replace(TRIMMED, groups=5, filters=10), WinogradRowsVariant(2, (1, 1, 2), 8, 1, 1)),
    ("winograd_rows", layer(6, 6, (3, 3, 3), groups=3, dtype="float64"), WinogradRowsVariant(2, (1, 1, 2), 8, 1, 1)),
]

ON_GPUS: list[Case] = [
    ("gemm", layer(13, 21, (3, 3, 3)), GemmVariant(64, 32, 8, 8, 8)),
    ("gemm", layer(8, 24, (1, 2, 3), groups=2, bias=False), GemmVariant(32, 8, 4, 8, 4, vector=4)),
    ("gemm", layer(3, 20, (3, 3, 3), dtype="bfloat16"), GemmVariant(32, 16, 8, 8, 4, flat=True)),
    ("gemm", layer(16, 16, (3, 3, 3), dtype="float64"), GemmVariant(32, 16, 8, 8, 4, parts=9)),
    ("gemm", TRIMMED, GemmVariant(32, 16, 8, 8, 4)),
    ("tensor_gemm", layer(13, 21, (3, 3, 3), dtype="float16"), TensorVariant(32, 32, 16, 1, 1)),
    ("tensor_gemm", layer(3, 32, (3, 3, 3), dtype="bfloat16"), TensorVariant(32, 16, 16, 1, 1, flat=True)),
    ("gemm", UPSAMPLED, GemmVariant(32, 8, 8, 8, 4)),
    ("gemm", replace(UPSAMPLED, groups=2, bias=False), GemmVariant(32, 8, 8, 8, 4, flat=True)),
    ("tensor_gemm", replace(UPSAMPLED, dtype="float16"), TensorVariant(32, 16, 16, 1, 1)),
    ("window", layer(12, 18, (3, 2, 3), groups=6), WindowVariant(1, 4)),
    ("window", layer(24, 9, (3, 2, 3), groups=3), WindowVariant(1, 4)),
    ("window", layer(24, 9, (3, 2, 3), groups=3, data_format=CHANNELS_FIRST), WindowVariant(4, 1)),
    ("window", replace(LAST_TAP, dtype="float16"), WindowVariant(1, 1)),
    ("winograd_gemm", layer(13, 21, (3, 3, 3)), WinogradGemmVariant("ppp", (1, 4, 4), 32, 32, 8, 8, 8)),
    ("winograd_gemm", layer(8, 8, (3, 3, 3), bias=False), WinogradGemmVariant("ppp", (2, 2, 4), 32, 8, 8, 8, 2)),
    (
        "winograd_gemm",
        layer(5, 9, (3, 3, 4), strides=(1, 2, 2), size=(6, 8, 8)),
        WinogradGemmVariant("pss", (2, 2, 2), 32, 8, 4, 8, 2),
    ),
    ("winograd_gemm", replace(TRIMMED, size=(1, 6, 8)), WinogradGemmVariant("ppp", (1, 2, 4), 32, 16, 4, 8, 2)),
]


def named_case(case: Case) -> str:
    name, spec, variant = case
    return f"{name} {spec.key()} {getattr(variant, 'modes', '')}"


@pytest.mark.parametrize("case", ON_CPUS, ids=named_case)
def test_on_a_cpu(case: Case) -> None:
    assert_packed(case, _pack_on_cpu(*case))


@pytest.mark.parametrize("case", ON_CPUS[::4], ids=named_case)
def test_beside_the_convolution(case: Case) -> None:
    """As exported code and remote devices have it, compiled as the convolution is."""
    name, spec, variant = case
    artifact = build.compile_plan(Plan(spec, name, variant, {}), host_target(2), with_packing=True)
    assert set(artifact.functions) == {MAIN, PACK}
    assert_packed(case, _called(artifact, data(spec)[1:]))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(spec=st.one_of(specs(), data_gradients()))
def test_variants_of_any_problem(spec: Conv3DSpec) -> None:
    """Each algorithm's first choice and last resort."""
    for algorithm in algorithms("llvm").values():
        found = algorithm.variants(spec, cpu_traits(host_target(2)))
        for variant in dict.fromkeys([*found[:1], *found[-1:]]):
            case = (algorithm.name, spec, variant)
            assert_packed(case, _pack_on_cpu(*case))


def test_on_a_gpu() -> None:
    """On the CPU, thread by thread: no access is out of bounds, and no threads race."""
    target = resolve("cuda:sm_80", 1)
    lowered = [lower_module(named(name).packing(spec, variant), target) for name, spec, variant in ON_GPUS]
    for case, compiled in zip(ON_GPUS, compile_modules(lowered), strict=True):
        _, kernel, bias = data(case[1])
        weights = [kernel] if bias is None else [kernel, bias]
        parameters = compiled.lowered.parameters
        stored = [_stored(array).reshape(p.shape) for array, p in zip(weights, parameters, strict=False)]
        report = compiled.run([*stored, None, None])
        report.check()
        assert_packed(case, report.arrays[-2:])


def test_structured_kernels_keep_their_zeros() -> None:
    """A kernel of one tap is transformed to what the definition gives, to the last bit."""
    case = ("winograd", layer(4, 8, (3, 3, 3)), WinogradVariant("ppp", (2, 2, 2), (1, 1, 1), 8, 1, 1))
    kernel = np.zeros(case[1].kernel_shape, np.float32)
    kernel[1, 1, 1] = 1
    weights = (kernel, np.zeros(8, np.float32))
    packed = _pack_on_cpu(*case, weights=weights)[0]
    np.testing.assert_array_equal(packed, packing_oracle.pack(*case, *weights)[0])
    assert (packed == 0).any() and (packed != 0).any()


def test_large_kernels_have_wide_indices() -> None:
    """A kernel of 2**31 elements, whose offsets no number of 32 bits holds."""
    spec = Conv3DSpec(1, (1, 1, 1), 2**16, 2**15, (1, 1, 1))
    variant = DirectVariant(16, 2, 1, 1)
    function = packing.module(canonicalize(spec), variant, declare_packing)[PACK]
    assert str(function.params[0].ty.shape[0].ty.dtype) == "int64"
    assert build.compile_packing(Plan(spec, "direct", variant, {}), host_target(2)).object_code


def assert_packed(case: Case, found: Sequence[np.ndarray]) -> None:
    """Packed kernel and bias are NumPy's: to the bit, or transformed kernels to the last bit but one."""
    name, spec, variant = case
    _, kernel, bias = data(spec)
    expected_kernel, expected_bias = packing_oracle.pack(name, spec, variant, kernel, bias)
    expected = _stored(expected_kernel)
    packed = found[0].reshape(expected.shape)
    if named(name).exact:
        assert packed.tobytes() == expected.tobytes()
    else:
        # three transforms in float64 round a few times, float32 once
        apart = 16 * np.finfo(np.float64).eps * np.abs(expected).max()
        difference = np.abs(packed.astype(np.float64) - expected.astype(np.float64))
        assert packed.dtype == expected.dtype
        assert (difference <= np.spacing(np.abs(expected)) + apart).all()
    assert found[1].tobytes() == expected_bias.tobytes()


def _pack_on_cpu(
    name: str, spec: Conv3DSpec, variant: Any, weights: tuple[np.ndarray, np.ndarray | None] | None = None
) -> list[np.ndarray]:
    """Packed kernel and bias by code that packs only."""
    artifact = build.compile_packing(Plan(spec, name, variant, {}), host_target(2))
    return _called(artifact, weights or data(spec)[1:])


def _called(artifact: Artifact, weights: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Packed kernel and bias; all arguments lie at the least aligned addresses that they may."""
    inputs = [_moved(_stored(array)) for array in weights if array is not None]
    results = artifact.functions[PACK].of("output")
    outputs = [_moved(np.full(a.size_bytes, 0xFF, np.uint8).view(a.dtype).reshape(a.shape)) for a in results]
    function = parallel.link(artifact.object_code).get_function(PACK)
    threads.run(function, *map(interchange.exported, [*inputs, *outputs]))
    return outputs


def _stored(array: np.ndarray) -> np.ndarray:
    """bfloat16 as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _moved(array: np.ndarray) -> np.ndarray:
    """A copy one element behind an address that is a multiple of 64."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + array.itemsize
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved
