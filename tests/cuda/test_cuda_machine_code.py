"""Machine code of kernels, where it can be read: what is multiplied, copied and stored, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cuda_checks import default_plans
from sampling import sampled
from tvm_conv3d.compute.cuda.variants import WindowVariant
from tvm_conv3d.diagnostics import cuda_report, cuda_sass
from tvm_conv3d.diagnostics.cuda_sass import Code, count, width
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.lower import lower
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.scheduling import scheduled_module
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.spec import CHANNELS_FIRST, CHANNELS_LAST, DATA_GRADIENT, WEIGHT_GRADIENT, Conv3DSpec
from tvm_conv3d.target.description import Target
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

needs_nvdisasm = pytest.mark.skipif(
    cuda_sass.find_nvdisasm() is None or toolkit.find_nvcc() is None,
    reason="needs nvcc, and nvdisasm: pip install nvidia-cuda-nvdisasm",
)

#: Products for each read of shared memory that tiles of registers make.
LEAST = {"gemm": 8, "winograd_gemm": 8, "tensor_gemm": 2}

#: As `nvdisasm -c` prints it: a loop that copies, one around another that multiplies, a trap; then one without loops.
LISTING = """
	.section	.text.first,"ax",@progbits
.text.first:
        /*0000*/                   LDG.E.U16 R1, desc[UR4][R2.64] ;
.L_x_0:
        /*0010*/                   LDG.E.U16 R1, desc[UR4][R2.64] ;
        /*0020*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0040*/              @!P1 FFMA R1, R2, R3, R4 ;
.L_x_2:
        /*0050*/                   LDS.128 R4, [R8] ;
        /*0058*/              @!PT LDS RZ, [RZ] ;
        /*0060*/                   FFMA R1, R2, R3, R4 ;
        /*0070*/                   LDG.E.U8 R1, desc[UR4][R2.64] ;
        /*0080*/                   FFMA R1, R2, R3, R4 ;
        /*0090*/                   FFMA.FTZ R1, R2, R3, R4 ;
        /*00a0*/               @P0 BRA `(.L_x_2) ;
        /*00b0*/              @!P0 BRA `(.L_x_1) ;
        /*00c0*/               @P2 BRA `(.L_x_4) ;
        /*00d0*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*00e0*/                   STG.E desc[UR4][R2.64], R4 ;
.L_x_4:
        /*00f0*/                   EXIT ;
.L_x_3:
        /*0100*/                   BRA `(.L_x_3);
	.section	.text.second,"ax",@progbits
.text.second:
        /*0000*/                   STL.64 [R1], R4 ;
        /*0010*/                   LDL R4, [R1] ;
        /*0020*/                   LDG.E.U16 R1, desc[UR4][R2.64] ;
"""


def test_listings_are_read() -> None:
    found = cuda_sass.read(LISTING)
    first, second = found["first"], found["second"]
    assert list(found) == ["first", "second"]
    assert first.ratio == ("FFMA:LDS", 3.0)
    assert (first.narrow_loads, first.stores, first.local) == (1, (4, 8), 0)
    assert (second.ratio, second.narrow_loads, second.stores, second.local) == (None, 1, None, 2)
    assert [width(name) for name in ("LDG.E.U16", "LDG.E.128.CONSTANT", "STG.E", "LDS.U.64")] == [2, 16, 4, 8]


def code_of(layer: str, dtype: str, data_format: str, arch: str) -> Mapping[str, Code]:
    """The machine code of a layer's default plan, by kernel."""
    spec = next(x.spec for x in read_csv(LAYERS) if x.name == layer)
    target = resolve(f"cuda:{arch}", 1)
    (plan,) = default_plans([replace(spec, dtype=dtype, data_format=data_format)], f"cuda:{arch}")
    found = cuda_sass.disassembled(toolkit.compile_cubin(lower(scheduled_module(plan, target), target).source, arch))
    assert found
    return found


@needs_nvdisasm
@pytest.mark.parametrize(
    ("layer", "arch", "data_format"),
    sampled(
        [
            (layer, arch, data_format)
            for layer, arch in (
                ("nnunet_s2", "sm_80"),
                *((layer, "sm_90") for layer in ("nnunet_s2", "nnunet_s3", "i3d_4f_b1", "vnet_5x5x5_64")),
            )
            for data_format in (CHANNELS_LAST, CHANNELS_FIRST)
        ],
        3,
    ),
)
def test_tensor_cores_are_fed_by_wide_copies(layer: str, arch: str, data_format: str) -> None:
    """Four products for each read of fragments, copies past the registers, stores of 16 bytes, no local memory."""
    kernels = code_of(layer, "float16", data_format, arch).values()
    # the input may be turned by a kernel of its own
    (product,) = (code for code in kernels if count(code.all, "HMMA"))
    assert product.ratio is not None and product.ratio[0] == "HMMA:LDSM" and product.ratio[1] >= 4, product
    assert count(product.all, "HMMA") == product.all["HMMA.16816.F32"], product
    assert count(product.all, "LDGSTS") == product.all["LDGSTS.E.BYPASS.128"] > 0, product
    for code in kernels:
        assert code.stores == (16, 16), code
        assert code.local == code.narrow_loads == 0, code


@needs_nvdisasm
@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        ("ansor_c3d_1", "float32"),
        ("c3dnet_conv5a", "float32"),
        ("nnunet_s2", "float32"),
        ("c3dnet_conv5a", "float16"),
        ("x3dm_dw_54", "float16"),
        ("resnext3d_g32_a", "bfloat16"),
    ],
)
def test_values_stay_in_registers_and_come_by_words(layer: str, dtype: str) -> None:
    """Of each algorithm, alone and in parts: no local memory, and in main loops no loads of 2 bytes."""
    spec = next(replace(x.spec, dtype=dtype) for x in read_csv(LAYERS) if x.name == layer)
    for row in cuda_report.examine(layer, spec, "sm_90"):
        assert row.code is not None
        assert row.resources.spills == row.local == row.code.narrow_loads == 0, row
        if row.work.part in ("", "product") and row.plan.algorithm.endswith("gemm"):
            assert row.code.ratio is not None and row.code.ratio[1] >= LEAST[row.plan.algorithm], row


@needs_nvdisasm
@pytest.mark.parametrize("data_format", [CHANNELS_LAST, CHANNELS_FIRST])
@pytest.mark.parametrize("direction", [DATA_GRADIENT, WEIGHT_GRADIENT])
@pytest.mark.parametrize(
    ("layer", "dtype"), [("r3d18_l2_down", "float32"), ("c3dnet_conv5a", "float16"), ("x3dm_dw_216", "float16")]
)
def test_kernels_of_gradients_stay_in_registers(layer: str, dtype: str, direction: str, data_format: str) -> None:
    """Strided, in parts, and depthwise: no spills, and no array of a thread in local memory."""
    spec = next(replace(x.spec, dtype=dtype, data_format=data_format) for x in read_csv(LAYERS) if x.name == layer)
    rows = cuda_report.examine(layer, cuda_report.DIRECTIONS[direction](spec), "sm_90")
    for row in rows:
        assert row.resources.spills == row.local == 0, row


@needs_nvdisasm
def test_reports_show_machine_code() -> None:
    spec = next(x.spec for x in read_csv(LAYERS) if x.name == "c3dnet_conv5a")
    product, addition = cuda_report.examine("c3dnet_conv5a", spec, "sm_90")
    assert product.code is not None and product.code.ratio is not None
    assert f"| FFMA:LDS {product.code.ratio[1]:.1f} | 0 |" in cuda_report.line(product)
    assert "|  | 0 | 16 |" in cuda_report.line(addition)


@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")
def test_reports_without_a_disassembler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda_sass, "find_nvdisasm", lambda: None)
    arguments = ["--layers", str(LAYERS), "--arch", "sm_90", "--filter", "voxnet_1", "--dtype", "float32"]
    assert cuda_report.main(arguments) == 0
    told = capsys.readouterr().out
    assert "| - | - | - |" in told and cuda_sass.NOT_FOUND in told


@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")
def test_reports_list_accesses_over_twice_their_least(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: rows of 11 halves, of which a thread stores four that lie under one another."""
    arguments = ["--layers", str(LAYERS), "--arch", "sm_90", "--filter", "movinet_a0_b4_dw", "--dtype", "float16"]
    first = [*arguments, "--data-format", CHANNELS_FIRST]
    assert cuda_report.main([*first, "--data-format", CHANNELS_LAST]) == 0
    told = capsys.readouterr().out
    assert told.count("| movinet_a0_b4_dw |") == 2
    assert told.endswith("\n0 accesses take over 2 times their least.\n")
    default_plan = cuda_report.default_plan

    def planted(spec: Conv3DSpec, target: Target) -> Plan:
        return replace(default_plan(spec, target), variant=WindowVariant(4, 1))

    monkeypatch.setattr(cuda_report, "default_plan", planted)
    assert cuda_report.main(first) == 1
    counted, listed = capsys.readouterr().out.splitlines()[-2:]
    assert counted == "1 accesses take over 2 times their least:"
    assert listed.startswith(
        "movinet_a0_b4_dw float16 channels_first sm_90 window main_kernel: store of out, 2 bytes a thread: "
    )
    found, least = map(float, listed.rpartition(": ")[2].removesuffix(" sectors").split("/"))
    assert found > 2 * least == 4


@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")
def test_what_the_assembler_gives_up_is_an_error_of_the_report() -> None:
    """As the registers that a warp group asks for in a kernel without bounds: ptxas tells so, and goes on."""
    source = 'extern "C" __global__ void k() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }'
    with pytest.raises(RuntimeError, match=r"ptxas gives up .*setmaxnreg"):
        toolkit.compile_measured(source, "sm_90a")
