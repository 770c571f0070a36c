"""The design spaces: random points, default rules, other instruction sets and the assembly that comes out."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import pytest

from problems import run_plan
from sampling import sampled
from tvm_conv3d.compute.shared.canonical import canonicalize
from tvm_conv3d.engine import scheduling
from tvm_conv3d.engine.algorithms import algorithms, named
from tvm_conv3d.engine.plan import Plan
from tvm_conv3d.engine.planner import make_plan
from tvm_conv3d.runtime.compatibility import check_runs_here
from tvm_conv3d.schedules.decisions import Decisions, largest_divisor
from tvm_conv3d.schedules.llvm.costs import direct, tile_rule
from tvm_conv3d.spec import CHANNELS_FIRST, Conv3DSpec, Pads, same_padding
from tvm_conv3d.target import cpu
from tvm_conv3d.target.cpu import CpuTraits, cpu_traits, host_target
from tvm_conv3d.target.resolve import resolve, target_key

AVX2 = {"kind": "llvm", "mcpu": "haswell"}
SSE = {"kind": "llvm", "mcpu": "x86-64"}
NEON = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}
AVX512 = {"kind": "llvm", "mcpu": "sapphirerapids"}
ZEN4 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}


def same(
    batch: int, size: tuple[int, int, int], channels: int, filters: int, kernel: int, **more: object
) -> Conv3DSpec:
    k = (kernel,) * 3
    strides = more.get("strides", (1, 1, 1))
    dilation = more.get("dilation", (1, 1, 1))
    pads = same_padding(size, k, strides, dilation)  # type: ignore[arg-type]
    return Conv3DSpec(batch, size, channels, filters, k, pads=pads, **more)  # type: ignore[arg-type]


DENSE = same(1, (8, 14, 14), 64, 64, 3, post_ops=("relu",))
ODD = [
    same(1, (5, 7, 11), 13, 19, 3),
    same(2, (1, 17, 3), 3, 70, 3, data_format=CHANNELS_FIRST),
    same(1, (6, 13, 13), 32, 48, 1),
    same(1, (9, 6, 10), 20, 20, 3, groups=20),
    same(1, (4, 9, 9), 24, 12, 3, groups=6, strides=(1, 2, 2)),
]


@pytest.mark.parametrize(
    ("order", "gather", "unroll_taps"),
    sampled(
        itertools.product(("filters_spatial", "spatial_filters", "filters_parallel"), ("task", "root"), (False, True)),
        5,
    ),
)
def test_all_direct_variants_are_right(order: str, gather: str, unroll_taps: bool) -> None:
    generator = random.Random(order + gather)
    for spec in ODD[:3]:
        plan = make_plan(spec, host_target(2), exact=True)
        variant = replace(
            plan.variant,
            order=order,
            gather=gather,
            unroll_taps=unroll_taps,
            rows=generator.choice((1, 2, 3)),
            columns=generator.choice((2, 3, 5)),
            vectors=generator.choice((1, 2)),
        )
        assert run_plan(replace(plan, variant=variant, decisions={"depth": 2, "unroll": 4})) < 2e-6


def test_decisions_repeat() -> None:
    """What a schedule took gives the same schedule again."""
    from tvm import ir
    from tvm.s_tir import Schedule

    plan = make_plan(DENSE, host_target(2), exact=True)
    algorithm = named(plan.algorithm)
    random_one = Schedule(algorithm.declare(DENSE, plan.variant).module(), seed=7)
    decisions = Decisions(random_one, None)
    algorithm.apply(random_one, DENSE, plan.variant, decisions)
    again = scheduling.scheduled_module(replace(plan, decisions=decisions.taken()), host_target(2))
    ir.assert_structural_equal(algorithm.family.finished(random_one.mod), again)


def test_reading_the_input_as_it_is_needs_a_fitting_problem() -> None:
    plan = make_plan(DENSE, host_target(2), exact=True)
    with pytest.raises(ValueError, match="padded copy"):
        scheduling.scheduled_module(replace(plan, variant=replace(plan.variant, gather="none")), host_target(2))


def test_the_special_algorithm_comes_first() -> None:
    target = resolve(ZEN4, 2)
    assert make_plan(DENSE, target, exact=True).algorithm == "direct"
    assert make_plan(same(1, (8, 8, 8), 32, 32, 3, groups=32), target).algorithm == "grouped"
    assert make_plan(same(1, (8, 8, 8), 36, 36, 3, groups=36), target).algorithm == "depthwise"
    assert make_plan(same(1, (8, 8, 8), 35, 70, 3, groups=35), target, exact=True).algorithm == "grouped"
    assert make_plan(same(1, (8, 8, 8), 36, 72, 3, groups=36), target).algorithm == "direct"
    assert make_plan(same(1, (8, 8, 8), 64, 64, 3, groups=2), target).algorithm == "winograd"
    assert make_plan(same(1, (8, 8, 8), 64, 64, 3, groups=2), target, exact=True).algorithm == "direct"
    assert make_plan(DENSE, target, exact=True).origin == "default"
    with pytest.raises(ValueError, match="supported: llvm"):
        algorithms("vulkan")


def test_algorithms_are_known_by_name_alone() -> None:
    for kind in ("llvm", "cuda"):
        for name, algorithm in algorithms(kind).items():
            assert named(name) is algorithm
            assert algorithm.family.kind == kind
    with pytest.raises(ValueError, match=r"no algorithm of this name. Received: 'other'; known: winograd, .*gemm"):
        named("other")


def test_a_plan_for_another_kind_of_target_is_refused() -> None:
    gpu = resolve("cuda:sm_80", 1)
    with pytest.raises(ValueError, match=r"'direct' is for targets of the kind llvm. Received: target=.*cuda"):
        scheduling.scheduled_module(make_plan(DENSE, host_target(2), exact=True), gpu)


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 13, 14, 17, 31, 56, 113])
def test_tiles_fit_registers_and_waste_little(registers: int, width: int) -> None:
    traits = CpuTraits(512 if registers == 32 else 256, registers, 2, 32 << 10, 1 << 20, 32 << 20)
    spec = same(1, (8, width, width), 64, 64, 3)
    tile = tile_rule.best_tile(canonicalize(spec), traits, spec.filters)
    cells = tile.rows * tile.columns
    assert cells * tile.vectors + tile.vectors + 1 <= registers
    assert tile.lanes == traits.lanes("float32")
    computed = -(-width // tile.rows) * tile.rows * -(-width // tile.columns) * tile.columns
    assert computed / width**2 <= 1.15
    assert cells * tile.vectors >= min(8, width**2)


def test_cells_of_a_tile_find_room_in_a_set_of_l1() -> None:
    """14 columns of 1024 channels share one of its sets, which holds 8 lines: they took 1.3 times as long."""
    traits = cpu_traits(resolve(AVX512, 2))
    spec = Conv3DSpec(1, (8, 14, 14), 1024, 256, (1, 1, 1))
    ways = traits.l1 // tile_rule.L1_PERIOD
    assert tile_rule.best_tile(canonicalize(spec), traits, 256).columns <= ways
    assert tile_rule.best_tile(canonicalize(replace(spec, channels=960)), traits, 256).columns > ways


def test_half_vectors_where_cpus_split_whole_ones() -> None:
    """24 filters are three halves there, and two whole vectors elsewhere."""
    halves = replace(cpu_traits(resolve({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}, 2)), cores=2)
    assert halves.half_width_vector_units
    whole = replace(halves, half_width_vector_units=False)
    for filters, expected in ((24, (8, 3)), (40, (8, 1)), (32, (16, 2)), (48, (16, 3)), (56, (16, 2)), (8, (8, 1))):
        spec = same(1, (8, 28, 28), 64, filters, 3)
        tile = tile_rule.best_tile(canonicalize(spec), halves, filters)
        assert (tile.lanes, tile.vectors) == expected, filters
        assert tile_rule.best_tile(canonicalize(spec), whole, filters).lanes == min(16, filters)
    spec = same(2, (9, 11, 13), 20, 24, 3)
    for name in ("direct", "winograd"):
        found = algorithms("llvm")[name].default(spec, halves)
        assert found is not None
        assert (found[0].lanes, found[0].vectors) == (8, 3)
        assert run_plan(Plan(spec, name, *found)) < 1e-5


def test_tasks_feed_all_threads() -> None:
    for cores in (2, 8, 64):
        traits = CpuTraits(512, 32, cores, 32 << 10, 1 << 20, 32 << 20)
        spec = same(1, (16, 56, 56), 64, 64, 3)
        tile = tile_rule.best_tile(canonicalize(spec), traits, spec.filters)
        box = tile_rule.task_box(canonicalize(spec), traits, (tile.rows, tile.columns), 64 * 4)
        assert tile_rule.tasks(canonicalize(spec), (tile.rows, tile.columns), box) >= tile_rule.TASKS_PER_THREAD * cores


def test_threads_have_equally_many_tasks() -> None:
    """Nine tasks for two threads, as one of long rows makes them here, took a tenth longer than 99."""
    patches = canonicalize(Conv3DSpec(1, (28, 34, 34), 32, 192, (3, 3, 3), strides=(3, 3, 3)))
    traits = cpu_traits(resolve(AVX512, 2))
    tile = tile_rule.best_tile(patches, traits, patches.filters)
    count = tile_rule.tasks(patches, (tile.rows, tile.columns), tile_rule.task_box(patches, traits, (1, 11), 128))
    assert tile_rule.unevenness(count, traits) == 0
    assert [tile_rule.unevenness(n, traits) for n in (8, 9, 99, 100)] == [0, 2, 0, 0]


def test_largest_divisor() -> None:
    assert [largest_divisor(12, limit) for limit in (1, 5, 8, 100)] == [1, 4, 6, 12]
    assert largest_divisor(31, 30) == 1


def assembly(spec: Conv3DSpec, target: dict[str, object]) -> str:
    import tvm

    resolved = resolve(target, 2)
    plan = make_plan(spec, resolved, exact=True)
    return str(
        tvm.compile(scheduling.scheduled_module(plan, resolved), target=resolved.as_tvm()).mod.inspect_source("asm")
    )


def test_assembly_of_aarch64() -> None:
    """The sums stay in NEON registers: multiply-adds of four lanes by a lane or register, many more than stores."""
    text = assembly(DENSE, NEON)
    fused = len(re.findall(r"\bfmla\s+v\d+\.4s", text))
    assert fused >= 20
    assert "fmadd" not in text or len(re.findall(r"\bfmadd\b", text)) < fused / 10


@pytest.mark.parametrize(("target", "register"), [(AVX2, "ymm"), (AVX512, "zmm")])
def test_assembly_of_x86(target: dict[str, object], register: str) -> None:
    """One multiply-add a vector of the tile, and no spill among them."""
    text = assembly(DENSE, target)
    lines = text.splitlines()
    fused = [i for i, line in enumerate(lines) if re.search(rf"vfmadd\d+ps.*%{register}\d+$", line)]
    tile = make_plan(DENSE, resolve(target, 2), exact=True).variant
    assert len(fused) >= tile.rows * tile.columns * tile.vectors
    inner = lines[fused[0] : fused[-1]]
    assert not [line for line in inner if "(%rsp)" in line and register in line]


def test_sse_has_no_wider_vectors() -> None:
    text = assembly(DENSE, SSE)
    assert "ymm" not in text
    assert "mulps" in text


def test_traits_of_targets() -> None:
    found = {
        name: cpu_traits(resolve(target, 4))
        for name, target in {"avx2": AVX2, "sse": SSE, "neon": NEON, "avx512": AVX512}.items()
    }
    assert {name: (t.vector_bits, t.registers) for name, t in found.items()} == {
        "avx2": (256, 16),
        "sse": (128, 16),
        "neon": (128, 32),
        "avx512": (512, 32),
    }
    assert all(t.cores == 4 for t in found.values())
    assert found["avx2"].lanes("float64") == 4
    assert target_key(resolve(NEON, 2)) == "llvm-aarch64-neoverse-n1"


def test_intel_servers_use_whole_vectors() -> None:
    assert "-prefer-256-bit" in resolve(AVX512, 2).attributes


def test_instructions_that_the_system_hides_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_conv3d.target import cpu

    monkeypatch.setattr(cpu, "_linux_cpu_flags", lambda: frozenset({"sse2", "avx", "avx2", "fma", "f16c"}))
    narrow = cpu.host_target.__wrapped__(2)
    assert cpu_traits(narrow).vector_bits <= 256


def test_a_large_host_does_not_promise_its_whole_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_linux_caches", lambda: {3: 480 << 20})
    assert cpu_traits(host_target(2)).l3 == 32 << 20
    assert cpu_traits(host_target(64)).l3 == 480 << 20
    monkeypatch.setattr(cpu, "_linux_caches", lambda: {3: 8 << 20})
    assert cpu_traits(host_target(2)).l3 == 8 << 20


def test_code_for_another_machine_is_not_run() -> None:
    with pytest.raises(ValueError, match="it can't run code"):
        check_runs_here(resolve(NEON, 2))


@pytest.mark.parametrize(
    "system", ["apple-darwin", "apple-macosx14.0.0", "pc-windows-msvc", "w64-windows-gnu", "unknown-none-elf"]
)
def test_code_for_another_system_is_not_run(system: str) -> None:
    """Its object files have another format; LLVM's linker would fail, or the process."""
    from tvm.target import codegen

    architecture = str(codegen.llvm_get_system_triple()).split("-")[0]
    other = resolve({"kind": "llvm", "mtriple": f"{architecture}-{system}"}, 2)
    with pytest.raises(ValueError, match=r"it can't run code.*run it there"):
        check_runs_here(other)
    for same_system in ("linux-gnu", "unknown-linux-gnu", "pc-linux-musl"):
        check_runs_here(resolve({"kind": "llvm", "mtriple": f"{architecture}-{same_system}"}, 2))


@pytest.mark.parametrize(
    "target",
    [{"kind": "llvm", "mtriple": "bogus"}, {"kind": "llvm", "num-cores": 0}, {"kind": "llvm", "mcpu": "bogus"}],
)
def test_targets_that_llvm_would_crash_on(target: object) -> None:
    with pytest.raises(ValueError, match="Received"):
        resolve(target, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["vulkan", 3, {"kind": "nothing"}, {"kind": "opencl"}])
def test_bad_targets(target: object) -> None:
    with pytest.raises(ValueError, match=r"[Tt]arget"):
        resolve(target, 2)  # type: ignore[arg-type]


def test_pads_survive_merging_of_axes() -> None:
    temporal = Conv3DSpec(2, (5, 6, 7), 3, 4, (3, 1, 1), pads=(Pads(1, 1), Pads(0, 0), Pads(0, 0)))
    merged = canonicalize(temporal)
    assert (merged.batch, merged.size, merged.pads) == (2, (5, 1, 42), temporal.pads)
    pointwise = canonicalize(Conv3DSpec(2, (5, 6, 7), 3, 4, (1, 1, 1)))
    assert (pointwise.batch, pointwise.size) == (1, (1, 1, 420))
    padded = Conv3DSpec(1, (5, 6, 7), 3, 4, (1, 1, 1), pads=(Pads(0, 0), Pads(0, 0), Pads(0, 1)))
    assert canonicalize(padded).size == (1, 30, 7)


def test_a_layer_tells_its_plan() -> None:
    from tvm_conv3d import Conv3D

    plan = Conv3D(8, 3, padding="same", accuracy="strict").plan_for((1, 6, 7, 8, 4))
    assert (plan.algorithm, plan.origin) == ("direct", "default")
    assert plan.spec.key() == "n1_i6x7x8x4_o8_k3x3x3_s1x1x1_d1x1x1_p1.1x1.1x1.1_g1_ndhwc_float32_bias_linear"


def test_depthwise_layers_take_half_vectors_where_those_are_whole() -> None:
    """A strided layer of 184 channels: rows of cells would be copied phase by phase."""
    target = resolve({"mtriple": "x86_64-linux-gnu", **AVX512}, 2)
    strided = make_plan(same(1, (50, 22, 22), 184, 184, 3, groups=184, strides=(1, 2, 2)), target)
    assert (strided.algorithm, strided.variant.lanes) == ("grouped", 8)
    few = make_plan(same(1, (16, 56, 56), 24, 24, 3, groups=24), target)
    assert (few.algorithm, few.variant.lanes) == ("depthwise", 16)
    assert make_plan(same(1, (9, 15, 17), 12, 12, 3, groups=12, strides=(1, 2, 2)), target).variant.lanes == 16


@pytest.mark.parametrize("cores", [2, 3, 16])
def test_tasks_of_grouped_layers_feed_all_threads(cores: int) -> None:
    traits = CpuTraits(512, 32, cores, 32 << 10, 1 << 20, 32 << 20)
    for spec in (same(1, (50, 22, 22), 184, 184, 3, groups=184), same(1, (8, 56, 56), 128, 128, 3, groups=32)):
        found = algorithms("llvm")["grouped"].default(spec, traits)
        assert found is not None
        variant, box = found
        sizes = tuple(box[name] for name in ("depth", "rows", "columns"))
        assert tile_rule.tasks(spec, (1, variant.columns), sizes) >= tile_rule.TASKS_PER_THREAD * cores  # type: ignore[arg-type]


def test_weights_that_outgrow_the_cache_are_read_once() -> None:
    """Few cells and many weights: blocks of filters are the tasks, each with all cells."""
    traits = replace(cpu_traits(host_target(2)), l2=1 << 20, l3=32 << 20)
    tail = Conv3DSpec(1, (2, 7, 7), 512, 512, (3, 3, 3), pads=((1, 1),) * 3)  # type: ignore[arg-type]
    for spec, order in ((tail, "filters_parallel"), (replace(tail, size=(16, 28, 28)), "filters_spatial")):
        variant, decisions = direct.default(canonicalize(spec), traits)
        assert variant.order == order
        if order == "filters_parallel":
            assert decisions["depth"] * decisions["rows"] * variant.rows >= 14


def test_wider_tiles_where_l3_could_not_feed_narrow_ones() -> None:
    """Two whole multiply-adds a cycle outrun L3 in tiles of four columns: 1.4 times the time on a Zen 5."""
    whole = CpuTraits(512, 32, 2, 48 << 10, 1 << 20, 32 << 20)
    halves = replace(whole, half_width_vector_units=True)
    for size, channels in (((8, 28, 28), 128), ((24, 24, 24), 128), ((32, 32, 32), 128)):
        spec = same(1, size, channels, channels, 3)
        columns = []
        for traits in (halves, whole):
            found = algorithms("llvm")["winograd"].default(spec, traits)
            assert found is not None
            columns.append(found[0].columns)
        assert columns[0] == 4, size
        assert columns[1] >= 7, size


def test_few_weights_come_from_l3_in_time() -> None:
    spec = same(1, (16, 56, 56), 64, 64, 3)
    whole = CpuTraits(512, 32, 2, 48 << 10, 1 << 20, 32 << 20)
    winograd = algorithms("llvm")["winograd"]
    assert winograd.default(spec, whole) == winograd.default(spec, replace(whole, half_width_vector_units=True))
