"""Generated CUDA, run on the CPU: every kind of planted fault is found, and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cuda_kernels
from cuda_kernels import TARGET
from cuda_on_cpu import Fault, Launch, Report, compile_kernels, gxx, lower_module, run_program, without_barrier

pytestmark = pytest.mark.skipif(gxx() is None, reason="g++ is not on the PATH: it compiles CUDA kernels for the CPU")

ORDERS = ["forward", "reverse", ("shuffled", 7)]


def _run(
    body: str, *, order: Any = "forward", block: int = 64, grid: int = 1, shared: int = 0, timeout: float = 60.0
) -> Report:
    """Run a kernel `probe` over the buffers a (64 floats, 0, 1, 2, ...) and b (64 floats)."""
    source = (
        'extern "C" __global__ void __launch_bounds__(64) probe(float* __restrict__ a_ptr, float* __restrict__ b_ptr) {'
        f"\n{body}\n}}\n"
    )
    launch = Launch("probe", (grid, 1, 1), (block, 1, 1), shared, ("a", "b"))
    buffers = {"a": np.arange(64, dtype=np.float32), "b": np.zeros(64, np.float32)}
    return run_program(compile_kernels(source), [launch], buffers, order, timeout)


def _only(report: Report, kind: str) -> Fault:
    assert report.kinds == {kind}, report.faults
    with pytest.raises(AssertionError, match=f"{kind}: "):
        report.check()
    return report.faults[0]


_REVERSED = """  __shared__ alignas(64) float tile_ptr[64];
  tile_ptr[((int)threadIdx.x)] = a_ptr[((int)threadIdx.x)];
  __syncthreads();
  b_ptr[((int)threadIdx.x)] = tile_ptr[(63 - ((int)threadIdx.x))];"""


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_fault_race_between_a_write_and_a_read(order: Any) -> None:
    good = _run(_REVERSED, order=order)
    good.check()
    assert good.buffers["b"].tolist() == list(range(63, -1, -1))
    fault = _run(_REVERSED.replace("__syncthreads();", ""), order=order).faults[-1]
    assert (fault.kind, fault.kernel, fault.buffer) == ("race", "probe", "tile")
    assert fault.thread + fault.other_thread == 63
    assert fault.index in (fault.thread, fault.other_thread)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("scope", ["shared", "shared.dyn"])
@pytest.mark.parametrize("barrier", [1, 2])
def test_cuda_fault_race_where_a_barrier_of_a_real_kernel_is_missing(barrier: int, scope: str, order: Any) -> None:
    lowered = lower_module(cuda_kernels.matmul("float16", scope=scope), TARGET)
    assert lowered.source.count("__syncthreads();") == 2
    x, out = np.ones((32, 64), np.float16), np.zeros((32, 32), np.float16)
    buffers = {"a": x, "b": x.reshape(64, 32), "out": out}
    run_program(compile_kernels(lowered.source), lowered.launches, buffers, order).check()
    report = run_program(compile_kernels(without_barrier(lowered.source, barrier)), lowered.launches, buffers, order)
    assert "race" in report.kinds
    names = {"shared": {"a_shared", "b_shared"}, "shared.dyn": {"buf_dyn_shmem"}}[scope]
    assert {fault.buffer for fault in report.faults} <= names


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_fault_race_of_different_values_and_none_of_equal_ones(order: Any) -> None:
    body = """  __shared__ alignas(64) float tile_ptr[4];
  tile_ptr[(((int)threadIdx.x) & 3)] = VALUE;
  __syncthreads();
  b_ptr[((int)threadIdx.x)] = tile_ptr[0];"""
    _run(body.replace("VALUE", "((float)(((int)threadIdx.x) & 3))"), order=order).check()
    fault = _only(_run(body.replace("VALUE", "((float)((int)threadIdx.x))"), order=order), "race")
    assert "different values" in fault.detail
    assert fault.thread % 4 == fault.other_thread % 4 == fault.index


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_fault_race_of_blocks_in_global_memory(order: Any) -> None:
    body = "  b_ptr[((int)threadIdx.x)] = ((float)((int)blockIdx.x));"
    _run(body, grid=1, order=order).check()
    fault = _only(_run(body, grid=3, order=order), "race")
    assert (fault.buffer, fault.block[0] in (0, 1, 2)) == ("b", True)
    body = "  b_ptr[((int)blockIdx.x)] = 1.0f;\n  a_ptr[((int)blockIdx.x)] = b_ptr[(1 - ((int)blockIdx.x))];"
    assert "another block" in _only(_run(body, grid=2, block=1, order=order), "race").detail


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_warp_barriers_order_the_lanes_of_a_warp_only(order: Any) -> None:
    body = """  __shared__ alignas(64) float tile_ptr[64];
  tile_ptr[((int)threadIdx.x)] = a_ptr[((int)threadIdx.x)];
  __syncwarp();
  b_ptr[((int)threadIdx.x)] = tile_ptr[(((int)threadIdx.x) ^ MASK)];"""
    report = _run(body.replace("MASK", "31"), order=order)
    report.check()
    assert report.buffers["b"][:3].tolist() == [31, 30, 29]
    fault = _run(body.replace("MASK", "32"), order=order).faults[-1]
    assert (fault.kind, abs(fault.thread - fault.other_thread)) == ("race", 32)


@pytest.mark.parametrize("ctype", ["half", "uchar", "short"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_cuda_threads_may_write_side_by_side_whatever_the_size(ctype: str, dynamic: bool) -> None:
    declare = f"__shared__ alignas(64) {ctype} tile_ptr[64];"
    if dynamic:
        declare = f"extern __shared__ __align__(64) {ctype} tile_ptr[];"
    body = f"""  {declare}
  tile_ptr[((int)threadIdx.x)] = (({ctype})a_ptr[((int)threadIdx.x)]);
  b_ptr[((int)threadIdx.x)] = ((float)tile_ptr[((int)threadIdx.x)]);"""
    report = _run(body, shared=128)
    report.check()
    assert report.buffers["b"].tolist() == list(range(64))


def test_cuda_fault_unwritten_shared_memory() -> None:
    body = _REVERSED.replace(
        "tile_ptr[((int)threadIdx.x)] =", "if (((int)threadIdx.x) != 5) tile_ptr[((int)threadIdx.x)] ="
    )
    fault = _only(_run(body), "unwritten")
    assert (fault.buffer, fault.index, fault.thread) == ("tile", 5, 58)


def test_cuda_fault_unwritten_again_in_every_block() -> None:
    body = _REVERSED.replace(
        "tile_ptr[((int)threadIdx.x)] =", "if (((int)blockIdx.x) == 0) tile_ptr[((int)threadIdx.x)] ="
    )
    assert _only(_run(body, grid=2), "unwritten").block == (1, 0, 0)


@pytest.mark.parametrize(
    ("body", "buffer", "index", "thread", "detail"),
    [
        ("b_ptr[((int)threadIdx.x)] = a_ptr[(((int)threadIdx.x) + 1)];", "a", 64, 63, "read of 4 bytes in global"),
        ("b_ptr[(((int)threadIdx.x) - 1)] = 1.0f;", "b", -1, 0, "write of 4 bytes in global"),
        ("*(float4*)(b_ptr + (((int)threadIdx.x) * 4)) = *(float4*)(a_ptr + 0);", "b", 64, 16, "write of 16 bytes"),
        ("b_ptr[0] = *(float*)(a_ptr + 1000000000000);", "a", 10**12, 0, "read of 4 bytes in global"),
        (
            "__shared__ float t_ptr[63]; t_ptr[((int)threadIdx.x)] = 0.0f;",
            "t",
            63,
            63,
            "write of 4 bytes in shared memory; the buffer has 63 elements",
        ),
        ("__shared__ float t_ptr[8]; b_ptr[((int)threadIdx.x)] = t_ptr[-2];", "t", -2, 0, "read of 4 bytes in shared"),
        ("float t_ptr[4]; t_ptr[(((int)threadIdx.x) - 59)] = 0.0f;", "t", -59, 0, "own array of 4 elements"),
        (
            "float t_ptr[6]; *(float4*)(t_ptr + (((int)threadIdx.x) / 63 * 4)) = make_float4(0, 0, 0, 0);",
            "t",
            1,
            63,
            "own array of 1 elements",
        ),
    ],
)
def test_cuda_fault_out_of_bounds(body: str, buffer: str, index: int, thread: int, detail: str) -> None:
    fault = _only(_run("  " + body.replace("; ", ";\n  ")), "out-of-bounds")
    assert (fault.kernel, fault.buffer, fault.index, fault.thread) == ("probe", buffer, index, thread)
    assert detail in fault.detail


def test_cuda_fault_out_of_bounds_in_dynamic_shared_memory() -> None:
    body = """  extern __shared__ __align__(64) uchar buf_dyn_shmem_ptr[];
  ((float*)buf_dyn_shmem_ptr)[((int)threadIdx.x)] = a_ptr[((int)threadIdx.x)];
  __syncthreads();
  b_ptr[((int)threadIdx.x)] = ((float*)buf_dyn_shmem_ptr)[(63 - ((int)threadIdx.x))];"""
    report = _run(body, shared=256)
    report.check()
    assert report.buffers["b"][0] == 63
    fault = _only(_run(body, shared=252), "out-of-bounds")
    assert (fault.buffer, fault.index, fault.thread) == ("buf_dyn_shmem", 252, 63)


def test_cuda_out_of_bounds_accesses_do_not_happen() -> None:
    report = _run("  b_ptr[((int)threadIdx.x)] = (7.0f + a_ptr[(((int)threadIdx.x) - 32)]);\n  a_ptr[64] = 9.0f;")
    assert report.buffers["b"][:33].tolist() == [7.0] * 33
    assert report.buffers["a"].tolist() == list(range(64))
    assert [fault.count for fault in report.faults if fault.index < 0] == [64] * 3


@pytest.mark.parametrize(
    "access",
    [
        "a_ptr[0] = ((*(float4*)(b_ptr + 2))).load().x;",
        "__shared__ float t_ptr[64];\n  *(float2*)(t_ptr + 3) = make_float2(0, 0);",
        "float t_ptr[64];\n  *(float4*)(t_ptr + 1) = make_float4(0, 0, 0, 0);",
    ],
)
def test_cuda_fault_misaligned(access: str) -> None:
    _only(_run("  " + access), "misaligned")


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("  if (((int)threadIdx.x) < 40) {\n    __syncthreads();\n  }", "barrier 1 that others have exited without"),
        ("  if (((int)threadIdx.x) == 7) return;\n  __syncthreads();", "barrier 1 that others have exited without"),
        (
            "  if (((int)threadIdx.x) < 32) {\n    __syncthreads();\n  } else {\n    __syncthreads();\n  }",
            "threads wait at barrier 1 and at barrier 2",
        ),
    ],
)
def test_cuda_fault_barrier_divergence(body: str, detail: str, order: Any) -> None:
    fault = _only(_run(body, order=order), "barrier-divergence")
    assert detail in fault.detail
    assert fault.other_thread >= 0


_FRAGMENT = """  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_ptr[1];
  __shared__ alignas(64) float out_ptr[256];
  nvcuda::wmma::fill_fragment(sums_ptr[0], 0x1p+0f/*1.000000e+00*/);
  nvcuda::wmma::store_matrix_sync((&(out_ptr[0])), sums_ptr[0], 16, nvcuda::wmma::mem_row_major);
  __syncthreads();
  b_ptr[((int)threadIdx.x)] = out_ptr[(((int)threadIdx.x) * 8)];"""


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_faults_of_warps(order: Any) -> None:
    report = _run(_FRAGMENT, block=32, order=order)
    report.check()
    assert report.buffers["b"].tolist() == [1.0] * 32 + [0.0] * 32
    fault = _run(_FRAGMENT, block=24, order=order).faults[0]
    assert (fault.kind, "without all 32 lanes" in fault.detail) == ("warp-divergence", True)
    own_pointers = _FRAGMENT.replace("out_ptr[0])", "out_ptr[(((int)threadIdx.x) / 31 * 8)])").replace("256", "264")
    fault = _run(own_pointers, block=32, order=order).faults[0]
    assert (fault.kind, "different pointers" in fault.detail) == ("warp-divergence", True)
    assert "misaligned" in _run(_FRAGMENT.replace("out_ptr[0])", "out_ptr[4])").replace("256", "264"), block=32).kinds
    unordered = _run(_FRAGMENT.replace("__syncthreads();", ""), block=32, order=order)
    assert _only(unordered, "race").buffer == "out"


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cuda_fault_tensor_cores_without_a_barrier(order: Any) -> None:
    lowered = lower_module(cuda_kernels.tensor_core_matmul("float16"), TARGET)
    x = np.ones((32, 32), np.float16)
    buffers = {"a": x, "b": x, "out": np.zeros((32, 32), np.float32)}
    program = compile_kernels(without_barrier(lowered.source, 1))
    report = run_program(program, lowered.launches, buffers, order)
    assert "race" in report.kinds
    assert {fault.buffer for fault in report.faults} == {"a_shared"}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("missing", ["__syncthreads();", "wait_group"])
def test_cuda_fault_asynchronous_copies_without_a_wait(missing: str, order: Any) -> None:
    import tvm

    with tvm.transform.PassContext(config={"tirx.use_async_copy": 1}):
        lowered = lower_module(cuda_kernels.matmul("float32", scope="shared.dyn", pipelined=True), TARGET)
    if missing == "wait_group":
        source = lowered.source.replace("  tvm_builtin_ptx_cp_async_wait_group_async_wait_group_1();\n", "")
    else:
        source = without_barrier(lowered.source, 1)
    assert source != lowered.source
    x = np.ones((32, 64), np.float32)
    buffers = {"a": x, "b": x.reshape(64, 32), "out": np.zeros((32, 32), np.float32)}
    report = run_program(compile_kernels(source), lowered.launches, buffers, order)
    assert not report.ok or not np.isfinite(report.buffers["out"]).all()


@pytest.mark.parametrize(
    ("launch", "detail"),
    [
        ({"block": 1025}, "more than 1024 threads"),
        ({"grid": 0}, "empty"),
        ({"shared": 1 << 18}, "dynamic shared memory"),
    ],
)
def test_cuda_fault_launch_that_a_gpu_refuses(launch: dict[str, int], detail: str) -> None:
    assert detail in _only(_run("  b_ptr[0] = 1.0f;", **launch), "launch").detail


def test_cuda_fault_too_much_static_shared_memory() -> None:
    body = "  __shared__ float t_ptr[12289];\n  t_ptr[((int)threadIdx.x)] = 0.0f;"
    assert "static shared memory: 49156 bytes" in _only(_run(body), "launch").detail


def test_cuda_fault_crash_and_timeout_are_reported() -> None:
    crash = _run("  b_ptr[0] = 1.0f;\n  b_ptr[64] = 1.0f;\n  __builtin_trap();")
    assert crash.kinds == {"out-of-bounds", "crash"}
    assert crash.buffers["b"][0] == 1.0
    assert "not done after" in _only(_run("  for (volatile int i = 0; i < 2; i = 0) {}", timeout=0.2), "timeout").detail
