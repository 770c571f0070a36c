"""What needs no GPU: cross-compilation, the static report, the doctor's words, the tuner's refusal."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cuda_checks import arguments, default_plans
from cuda_fakes import FakeDriver
from problems import data
from tvm_conv3d.cli import main
from tvm_conv3d.compute.cuda.variants import WeightGradientGemmVariant, WeightGradientWindowVariant
from tvm_conv3d.compute.shared.argument import Function
from tvm_conv3d.diagnostics import cuda_report
from tvm_conv3d.diagnostics.cuda_work import Work, works_of
from tvm_conv3d.engine import build
from tvm_conv3d.engine.artifact import Artifact
from tvm_conv3d.engine.cuda import toolkit
from tvm_conv3d.engine.cuda.image import Image, Launch
from tvm_conv3d.engine.cuda.toolkit import Resources
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import default_plan
from tvm_conv3d.reference import oracle
from tvm_conv3d.reference.layers import read_csv
from tvm_conv3d.runtime import loader
from tvm_conv3d.runtime.cuda import driver as drivers
from tvm_conv3d.runtime.cuda.kernels import LoadedImage, Memory
from tvm_conv3d.spec import DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT, Conv3DSpec, Pads
from tvm_conv3d.target.gpu import ARCHITECTURES
from tvm_conv3d.target.resolve import resolve

LAYERS = Path(__file__).parents[2] / "scripts" / "layers.csv"

SPEC = Conv3DSpec(1, (3, 4, 5), 8, 12, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]

needs_nvcc = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="needs nvcc")


def compiled(folder: Path, target: str, spec: Conv3DSpec = SPEC) -> dict[str, bytes]:
    assert main(["compile", "--spec", spec.key(), "--target", target, "-o", str(folder / "out")]) == 0
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_compiling_for_a_gpu_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command writes computes the right numbers, with its own launches and nothing else."""
    files = compiled(tmp_path, "cuda:sm_90")
    assert {"module.bin", "module.cu", "schedule.py", "meta.json"} <= files.keys()
    about = json.loads(files["meta.json"])
    assert Conv3DSpec.parse(about["spec"]) == SPEC
    assert b"__global__" in files["module.cu"] and b"T.prim_func" in files["schedule.py"]
    gpu = FakeDriver(90)
    monkeypatch.setattr(drivers, "get", lambda: gpu)
    (plan,) = default_plans([SPEC], "cuda:sm_90")
    given = data(SPEC)
    out = np.empty(SPEC.output_shape, np.float32)
    arrays = {**arguments(plan, *given), "out": out}
    assert [argument["name"] for argument in about["functions"]["main"]] == list(arrays)
    memory = {name: Memory.holding(0, array) for name, array in arrays.items()}
    kernels = LoadedImage(Image.from_bytes(files["module.bin"])).functions["main"]
    kernels(0, 0, {name: block.address for name, block in memory.items()})
    gpu.download(0, out, memory["out"].address)
    assert oracle.relative_error(out, oracle.convolve(SPEC, *given)) < 2e-6


@needs_nvcc
def test_machine_code_of_gpus(tmp_path: Path) -> None:
    files = compiled(tmp_path, "cuda:sm_80", replace(SPEC, dtype="bfloat16", channels=16))
    assert files["module.cubin"].startswith(b"\x7fELF")
    assert Image.from_bytes(files["module.bin"]).cubin == files["module.cubin"]
    with pytest.raises(RuntimeError, match="nvcc refuses the source"):
        toolkit.compile_cubin("no C++", "sm_80")


def test_source_serves_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    monkeypatch.setattr(toolkit, "find_nvrtc", lambda: None)
    files = compiled(tmp_path, "cuda:sm_90")
    assert "module.cubin" not in files
    assert Image.from_bytes(files["module.bin"]).source.encode() == files["module.cu"]


def test_compiling_for_cpus(tmp_path: Path) -> None:
    files = compiled(tmp_path, "llvm")
    about = json.loads(files["meta.json"])
    functions = {name: Function.from_json(values) for name, values in about["functions"].items()}
    loaded = loader.link(Artifact(files["module.o"], functions, ""))
    assert callable(loaded.main.code) and callable(loaded.functions["pack"].code)
    assert b"main" in files["module.s"]
    other = compiled(tmp_path / "arm", '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}')
    assert b"fmla" in other["module.s"]


@pytest.mark.parametrize("wrong", [("n1", "cuda:sm_90"), (SPEC.key(), "cuda:sm_1"), (SPEC.key(), "{")])
def test_compile_refuses_in_words(wrong: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, target = wrong
    assert main(["compile", "--spec", key, "--target", target, "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("compile: ")
    assert not (tmp_path / "out").exists()


def test_occupancy_is_cudas() -> None:
    """Against NVIDIA's occupancy calculator."""
    launch = Launch("k", (1, 1, 1), (256, 1, 1), 0, ())
    hopper, ampere = ARCHITECTURES["sm_90"], ARCHITECTURES["sm_86"]
    assert cuda_report.resident_blocks(hopper, Resources(64, 0, 0, 0), launch) == (4, "registers")
    assert cuda_report.resident_blocks(hopper, Resources(32, 0, 0, 0), launch) == (8, "threads")
    assert cuda_report.resident_blocks(hopper, Resources(32, 0, 0, 47 << 10), launch) == (4, "shared memory")
    assert cuda_report.resident_blocks(ampere, Resources(40, 0, 0, 0), launch) == (6, "threads")


_ENTRY = 'extern "C" __global__ void __launch_bounds__({}) {}(float* x) {{}}\n'

_TOLD = "Compiling entry function '{}' for 'sm_90'\n{} bytes spill stores, 0 bytes spill loads\nUsed 40 registers\n"


def fake_compiler(needs: dict[str, int], seen: list[str]) -> toolkit._Compiler:
    """Kernels spill until launch bounds leave each thread the registers that it needs."""

    def compile_source(source: str, options: Sequence[str]) -> tuple[bytes, str]:
        seen.append(source)
        told = ""
        for threads, blocks, name in re.findall(r"__launch_bounds__\((\d+)(?:, (\d+))?\) (\w+)", source):
            given = (64 << 10) // (int(threads) * int(blocks)) if blocks else 32
            told += _TOLD.format(name, 8 * (given < needs[name]))
        return b"code", told

    return compile_source


def test_kernels_that_spill_get_no_more_registers_than_they_need() -> None:
    """Each by itself, so that as many blocks as can be lie on a multiprocessor."""
    source = _ENTRY.format(128, "a") + _ENTRY.format(256, "b") + _ENTRY.format(128, "c")
    seen: list[str] = []
    toolkit._without_spills(fake_compiler({"a": 52, "b": 90, "c": 20}, seen), source)
    assert re.findall(r"__launch_bounds__\(([^)]*)\)", seen[-1]) == ["128, 9", "256, 2", "128"]


def test_a_kernel_that_spills_whatever_it_gets_stays_as_it_was() -> None:
    seen: list[str] = []
    _, told = toolkit._without_spills(fake_compiler({"a": 200}, seen), _ENTRY.format(128, "a"))
    assert "8 bytes spill" in told
    assert len(set(seen)) == len(seen)


def test_registers_that_a_plan_grants() -> None:
    """By launch bounds that the compiler is not told otherwise of."""
    source = toolkit.with_registers(_ENTRY.format(128, "a") + _ENTRY.format(256, "b"), ["a", "b"], 255)
    assert re.findall(r"__launch_bounds__\(([^)]*)\)", source) == ["128, 2", "256, 1"]
    seen: list[str] = []
    toolkit._without_spills(fake_compiler({"a": 300, "b": 90}, seen), source)
    assert seen == [source]


@needs_nvcc
def test_default_kernels_do_not_spill(capsys: pytest.CaptureFixture[str]) -> None:
    """A few of the layers whose table is in docs/cuda.md."""
    arguments = ["--layers", str(LAYERS), "--arch", "sm_90"]
    assert cuda_report.main([*arguments, "--filter", "voxnet"]) == 0
    table = capsys.readouterr().out
    assert "4 kernels, 0 with spills" in table
    assert "| voxnet_2 | float16 | tensor_gemm |" in table


@needs_nvcc
def test_kernels_of_gradients_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", str(LAYERS), "--arch", "sm_90", "--filter", "slowfast", "--dtype", "float32"]
    assert cuda_report.main([*arguments, "--direction", DATA_GRADIENT, "--direction", WEIGHT_GRADIENT]) == 0
    of_data, of_weights = capsys.readouterr().out.split(f"### {WEIGHT_GRADIENT} on sm_90")
    assert f"### {DATA_GRADIENT} on sm_90" in of_data
    parts = ["", "product", "addition", "bias", "bias addition"]
    kinds = [line.split("|")[3].strip() for line in (of_data + of_weights).splitlines() if "| float32 |" in line]
    assert [kind.partition(" ")[2] for kind in kinds] == parts
    assert "5 kernels, 0 with spills" in of_weights


def test_the_work_of_weight_gradients() -> None:
    """Counted by hand: of 2x3x8 positions, of a product in two parts and of windows."""
    dense = Conv3DSpec(1, (2, 3, 8), 8, 16, (1, 1, 1), direction=WEIGHT_GRADIENT, bias=False, dtype="float16")
    tile = WeightGradientGemmVariant(8, 8, 4, 2, 4, parts=2)
    product, addition = works_of(Plan(dense, "weight_gradient_gemm", tile, {}), (4, 1))
    # of a block 8 x 8 sums of 24 positions; all read 48 x 8 and 48 x 16 halves, and keep 4 x 64 floats
    assert product == Work(2 * 64 * 24, 2 * 16 * 24 + 4 * 64, 2 * 48 * 24 + 4 * 256, "product")
    assert addition == Work(0, 4 * 256 + 2 * 128, 4 * 256 + 2 * 128, "addition")
    depthwise = replace(
        dense, filters=8, groups=8, kernel=(1, 1, 3), pads=(Pads(0, 0), Pads(0, 0), Pads(1, 1)), bias=True
    )
    windows = WeightGradientWindowVariant(3, 4, 2, 2, 8)
    product, _, bias, total = works_of(Plan(depthwise, "weight_gradient_window", windows, {}), (1, 1, 2, 1))
    # 16 threads with 6 runs of 4 columns, under which lie 6 cells
    assert product == Work(2 * 16 * 3 * 24, 2 * 16 * 6 * 10 + 4 * 48, 2 * 2 * 48 * 8 + 4 * 48, "product")
    # 32 times 48 positions are over 39 squared: two parts for each of the 32 threads that add those of a filter
    assert bias == Work(0, (2 * 48 * 8 + 4 * 64 * 8) // 2, 2 * 48 * 8 + 4 * 64 * 8, "bias")
    assert total == Work(0, 4 * 64 * 8 + 2 * 8, 4 * 64 * 8 + 2 * 8, "bias addition")


def committed(table: str) -> list[tuple[str, ...]]:
    """Layer, type, algorithm and tile of the rows below a heading of docs/cuda.md."""
    text = (LAYERS.parents[1] / "docs" / "cuda.md").read_text().partition(f"### {table}")[2].partition("\n### ")[0]
    return [tuple(map(str.strip, line.split("|")[1:5])) for line in text.splitlines() if line.startswith("| ")][1:]


def rows_of(name: str, spec: Conv3DSpec, arch: str) -> list[tuple[str, ...]]:
    """The same of a layer's default plan."""
    plan = default_plan(spec, resolve(f"cuda:{arch}", 1))
    one = 1 if getattr(plan.variant, "parts", 1) == 1 else 2
    kernels = {"winograd_gemm": 3}.get(plan.algorithm, one + (2 if spec.direction == WEIGHT_GRADIENT else 0))
    works = works_of(plan, (1,) * kernels)
    nothing = (Resources(1, 0, 0, 0), Launch("", (1, 1, 1), (1, 1, 1), 0, ()))
    rows = [cuda_report.Row(name, plan, ARCHITECTURES[arch], *nothing, work, 1, "") for work in works]
    return [tuple(map(str.strip, cuda_report.line(row).split("|")[1:5])) for row in rows]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_committed_tables_are_of_the_default_plans(arch: str) -> None:
    layers = read_csv(LAYERS)
    found = [rows_of(x.name, replace(x.spec, dtype=dtype), arch) for x in layers for dtype in ("float32", "float16")]
    assert committed(arch) == list(itertools.chain(*found))


@pytest.mark.parametrize("direction", [DATA_GRADIENT, WEIGHT_GRADIENT])
def test_committed_tables_of_gradients_are_of_the_default_plans(direction: str) -> None:
    told = committed(f"{direction} on sm_90")
    some = {name for name, *_ in told}
    assert len(some) == 10
    specs = {x.name: cuda_report.DIRECTIONS[direction](x.spec) for x in read_csv(LAYERS) if x.name in some}
    assert told == list(itertools.chain(*(rows_of(name, spec, "sm_90") for name, spec in specs.items())))


def test_tuning_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("xgboost", "rich"):
        pytest.importorskip(package)
    from tvm_conv3d.tuning import command

    def refuse() -> None:
        raise drivers.CudaError("There is no NVIDIA driver here.")

    monkeypatch.setattr(drivers, "get", refuse)
    assert command.main(["--spec", SPEC.key(), "--dry-run"], kind="cuda") == 0
    assert "1 layers for cuda-sm_90" in capsys.readouterr().out
    assert command.main(["--spec", SPEC.key()], kind="cuda") == 2
    assert "no NVIDIA driver" in capsys.readouterr().err


#: Whose sums of weights lie where those of the bias do, as TVM sees that they are read before these are written.
DEPTHWISE = replace(SPEC, channels=16, filters=16, groups=16, size=(4, 7, 7))


@pytest.mark.parametrize(
    ("problem", "direction"), [(SPEC, FORWARD), (SPEC, WEIGHT_GRADIENT), (DEPTHWISE, WEIGHT_GRADIENT)]
)
def test_the_tuner_measures_on_the_gpu(problem: Conv3DSpec, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm_ffi")
    from tvm_conv3d.tuning import measure

    gpu = FakeDriver()
    monkeypatch.setattr(drivers, "get", lambda: gpu)
    target = resolve("cuda:sm_80", 1)
    spec = replace(problem, direction=direction)
    (plan,) = default_plans([spec])
    pair = (plan, build.compile_plan(plan, target))
    (error,) = measure.perform(measure.Request("error", "cuda", (pair,)), measure.Bench.of(spec))
    assert error < 2e-6
    (seconds,) = measure.perform(measure.Request("time", "cuda", (pair,), cutoff_seconds=0.0), measure.Bench.of(spec))
    assert seconds > 0
